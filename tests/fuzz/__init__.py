"""Fuzzing of everything that comes from Redis, from the queues and from model files."""
