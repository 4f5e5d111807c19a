"""Bodies of requests, as OpenAI's and other clients send them."""
