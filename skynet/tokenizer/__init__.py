"""Prompts to token ids, token ids to text."""
