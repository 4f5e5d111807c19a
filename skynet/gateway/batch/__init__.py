"""Many requests from a file, after those that somebody waits for: OpenAI's batches."""
