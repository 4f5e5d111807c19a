"""Requests: options, prompts, text tasks, records, completions. Knows no Redis."""
