"""The HTTP gateway: APIs of OpenAI's and other clients, for a cluster."""
