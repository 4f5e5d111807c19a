"""Chords as Celery messages, and the Celery app that carries them."""
