"""What a model generates, taken apart into content, reasoning and tool calls."""
