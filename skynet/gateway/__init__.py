"""The HTTP gateway: any OpenAI client, a page and metrics."""
