"""Putting a checkpoint into Redis and asking for it to be run."""
