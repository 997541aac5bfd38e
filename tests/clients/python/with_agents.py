"""OpenAI's Agents SDK: the Responses API, unless told otherwise."""

import openai
from agents import Agent, Runner, function_tool
from drive import SAID, TEXT, same

ASK = "Say something."


@function_tool
def weather(city: str) -> str:
    """Tells the weather."""
    return f"rain in {city}"


def agent(model="gpt-4o", **more):
    return Agent(name="Agent", model=model, **more)


async def run(*arguments, **more):
    return (await Runner.run(agent(*arguments, **more), ASK)).final_output


async def chat():
    same(await run(), TEXT)


async def stream():
    events = Runner.run_streamed(agent(), ASK).stream_events()
    events = [event.data async for event in events if event.type == "raw_response_event"]
    same("".join(event.delta for event in events if event.type == "response.output_text.delta"), TEXT)


async def tool():
    same(await run(tools=[weather]), SAID + "rain in Paris")


async def forbidden():
    try:
        said = await run("fake-forbidden")
    except openai.PermissionDeniedError as error:
        return error
    raise AssertionError(f"no PermissionDeniedError, but {said!r}")
