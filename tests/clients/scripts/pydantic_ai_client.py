"""pydantic-ai: an agent's answer, and one of a type."""

import asyncio
import json
import os
from typing import Literal

from pydantic import BaseModel
from pydantic_ai import Agent, NativeOutput
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.settings import ModelSettings


class City(BaseModel):
    name: Literal["Paris", "Rome", "Berlin"]
    is_capital: bool


async def main() -> None:
    model, question = OpenAIChatModel(os.environ["MODEL"]), os.environ["QUESTION"]
    limited = ModelSettings(temperature=0, max_tokens=int(os.environ["NEW"]))
    agent = Agent(model, model_settings=limited)
    whole = await agent.run(question)
    async with agent.run_stream(question) as stream:
        streamed = await stream.get_output()
    typed = Agent(
        model, output_type=NativeOutput(City), model_settings=ModelSettings(temperature=0)
    )
    city = (await typed.run(question)).output
    answers = [whole.output, streamed]
    print(json.dumps({"answers": answers, "city": city.model_dump()}))


asyncio.run(main())
