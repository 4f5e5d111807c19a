"""Reads checkpoints: safetensors, GGUF, and their text files."""
