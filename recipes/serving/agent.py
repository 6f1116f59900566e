"""An agent framework, unchanged, over a served model: tools, typed results and streams (pydantic-ai).

python recipes/serving/agent.py http://127.0.0.1:8333/v1 ponder-135m
"""

from __future__ import annotations

import asyncio
import sys

from pydantic import BaseModel
from pydantic_ai import Agent, NativeOutput
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
from pydantic_ai.providers.openai import OpenAIProvider
from pydantic_ai.usage import UsageLimits


class Sum(BaseModel):
    """A number."""

    value: int


async def main(url: str, name: str) -> None:
    """Asks in four ways and says what came out. Ends with an error where a way does not work."""
    provider = OpenAIProvider(base_url=url, api_key="none")
    chat = OpenAIChatModel(name, provider=provider)
    settings = {"max_tokens": 400, "temperature": 0.0}

    plain = await Agent(chat, model_settings=settings).run("What is 3 + 4?")
    print("chat:", plain.output, "| thought:", bool(plain.response.thinking), "|", plain.usage.output_tokens, "tokens")

    typed = await Agent(chat, output_type=NativeOutput(Sum), model_settings=settings).run("What is 3 + 4?")
    print("schema:", typed.output)
    assert isinstance(typed.output, Sum)

    called = await Agent(chat, output_type=Sum, model_settings=settings).run("What is 3 + 4?")
    print("tool that must be called:", called.output)
    assert isinstance(called.output, Sum)

    async with Agent(chat, model_settings=settings).run_stream("What is 20 + 15?") as stream:
        print("stream:", await stream.get_output())

    responses = Agent(OpenAIResponsesModel(name, provider=provider), model_settings={"max_tokens": 400})
    first = await responses.run("What is 6 * 7?", usage_limits=UsageLimits(request_limit=2))
    again = await responses.run("And 2 + 2?", message_history=first.all_messages())
    print("responses:", first.output, "| then:", again.output)


asyncio.run(main(*sys.argv[1:3]))
