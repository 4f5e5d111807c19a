"""`submit_prompt`, and the generations that it returns."""
