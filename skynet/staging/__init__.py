"""Staging: a checkpoint's tensors into Redis, with a request for a plan."""
