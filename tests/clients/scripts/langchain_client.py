"""langchain-openai: an answer, a stream, a structured output."""

import json
import os
from typing import Literal

from langchain_openai import ChatOpenAI
from pydantic import BaseModel


class City(BaseModel):
    name: Literal["Paris", "Rome", "Berlin"]
    is_capital: bool


model = ChatOpenAI(
    model=os.environ["MODEL"], temperature=0, max_tokens=int(os.environ["NEW"]), max_retries=0
)
question = os.environ["QUESTION"]
answer = model.invoke(question)
chunks = list(model.stream(question, stream_usage=True))
long = ChatOpenAI(model=os.environ["MODEL"], temperature=0, max_retries=0)
city = long.with_structured_output(City, method="json_schema").invoke(question)
print(
    json.dumps(
        {
            "answers": [answer.content, "".join(chunk.content for chunk in chunks)],
            "tokens": answer.usage_metadata["output_tokens"],
            "streamed_tokens": sum(
                chunk.usage_metadata["output_tokens"] for chunk in chunks if chunk.usage_metadata
            ),
            "city": city.model_dump(),
        }
    )
)
