"""Hostile input for every reader of files: see `tests.fuzz.harness`, and `python -m tests.fuzz` for many examples."""
