"""Reading checkpoints: safetensors, GGUF, the text files beside them."""
