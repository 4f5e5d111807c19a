"""litellm: an answer, a stream, the overflow of the context."""

import json
import os

import litellm

litellm.telemetry = False
ask = {
    "model": f"hosted_vllm/{os.environ['MODEL']}",
    "api_base": os.environ["OPENAI_BASE_URL"],
    "api_key": os.environ["OPENAI_API_KEY"],
    "temperature": 0,
    "max_tokens": int(os.environ["NEW"]),
    "num_retries": 0,
}
messages = [{"role": "user", "content": os.environ["QUESTION"]}]
whole = litellm.completion(messages=messages, **ask)
chunks = list(litellm.completion(messages=messages, stream=True, **ask))
try:
    litellm.completion(messages=[{"role": "user", "content": "word " * 20_000}], **ask)
    error = ""
except litellm.ContextWindowExceededError as caught:
    error = type(caught).__name__
answers = [
    whole.choices[0].message.content,
    "".join(chunk.choices[0].delta.content or "" for chunk in chunks),
]
print(json.dumps({"answers": answers, "ids": len({c.id for c in chunks}), "error": error}))
