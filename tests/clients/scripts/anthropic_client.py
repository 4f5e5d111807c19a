"""anthropic: a message, a stream, the number of tokens, an error."""

import json
import os

import anthropic

client = anthropic.Anthropic(max_retries=0)
ask = {
    "model": os.environ["MODEL"],
    "messages": [{"role": "user", "content": os.environ["QUESTION"]}],
}
more = {"max_tokens": int(os.environ["NEW"]), "extra_body": {"temperature": 0}}
message = client.messages.create(**ask, **more)
with client.messages.stream(**ask, **more) as stream:
    streamed = "".join(stream.text_stream)
    final = stream.get_final_message()
counted = client.messages.count_tokens(**ask)
try:
    client.messages.create(**{**ask, "model": "nobodys"}, **more)
    error = ""
except anthropic.NotFoundError as caught:
    error = caught.body["error"]["type"]
usage = message.usage
print(
    json.dumps(
        {
            "answers": [message.content[0].text, streamed, final.content[0].text],
            "stop_reason": [message.stop_reason, final.stop_reason],
            "input_tokens": usage.input_tokens + (usage.cache_read_input_tokens or 0),
            "counted": counted.input_tokens,
            "error": error,
        }
    )
)
