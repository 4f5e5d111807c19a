"""The gateway: HTTP for any OpenAI client, the page, and metrics."""
