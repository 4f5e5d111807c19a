"""Modes: the ways of answering a request. A new one is a file here and a line in `registry.py`."""
