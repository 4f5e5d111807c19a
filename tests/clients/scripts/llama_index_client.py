"""llama-index's OpenAILike: a chat, its stream, a completion."""

import json
import os

from llama_index.core.base.llms.types import ChatMessage
from llama_index.llms.openai_like import OpenAILike

settings = {
    "model": os.environ["MODEL"],
    "api_base": os.environ["OPENAI_BASE_URL"],
    "api_key": os.environ["OPENAI_API_KEY"],
    "temperature": 0,
    "max_tokens": int(os.environ["NEW"]),
    "max_retries": 0,
}
chat = OpenAILike(**settings, is_chat_model=True)
messages = [ChatMessage(role="user", content=os.environ["QUESTION"])]
streamed = "".join(chunk.delta or "" for chunk in chat.stream_chat(messages))
completion = OpenAILike(**settings).complete(os.environ["QUESTION"])
print(
    json.dumps(
        {"answers": [chat.chat(messages).message.content, streamed], "completion": completion.text}
    )
)
