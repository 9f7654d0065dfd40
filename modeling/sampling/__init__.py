"""Samplers: draw tokens from a generator. They know the generator contracts only, no class."""
