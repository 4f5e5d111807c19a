"""The HTTP gateway: OpenAI's API over clusters. Holds no state that a cluster needs."""
