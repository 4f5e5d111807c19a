"""instructor: an object of a class, by a schema and by JSON that is asked for."""

import json
import os
from typing import Literal

import instructor
from openai import OpenAI
from pydantic import BaseModel


class City(BaseModel):
    name: Literal["Paris", "Rome", "Berlin"]
    is_capital: bool


client = instructor.from_openai(OpenAI(max_retries=0), mode=instructor.Mode.JSON_SCHEMA)
city = client.chat.completions.create(
    model=os.environ["MODEL"],
    messages=[{"role": "user", "content": os.environ["QUESTION"]}],
    response_model=City,
    temperature=0,
    max_retries=0,
)
print(json.dumps({"city": city.model_dump()}))
