"""Images as people have them, to tar shards."""
