"""Chords as Celery messages, the result backend that joins them, and the Celery app."""
