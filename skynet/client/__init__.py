"""`submit_prompt` and what it returns."""
