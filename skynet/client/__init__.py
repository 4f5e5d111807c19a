"""`submit_prompt`, and the generations that it returns."""

from skynet.client.client import Client, submit_prompt, submit_prompts
from skynet.client.generation import Generation

__all__ = ["Client", "Generation", "submit_prompt", "submit_prompts"]
