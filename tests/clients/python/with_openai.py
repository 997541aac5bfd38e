"""OpenAI's client, and its Azure one where that is what the environment sets up."""

import json
import os

import openai
from drive import CITY, CITY_SCHEMA, SAID, TEXT, WRONG_KEY, breaks, raises, same

AZURE = "AZURE_OPENAI_ENDPOINT" in os.environ
Client, AsyncClient = (
    (openai.AzureOpenAI, openai.AsyncAzureOpenAI) if AZURE else (openai.OpenAI, openai.AsyncOpenAI)
)
MODEL = "gpt-4o"
ASK = [{"role": "user", "content": "Say something."}]
FUNCTION = {"name": "weather", "description": "Tells the weather.", "parameters": CITY_SCHEMA}
TOOL = {"type": "function", "function": FUNCTION}


def ask(model=MODEL, messages=ASK, retries=0, key=None, **more):
    client = Client(max_retries=retries, **({"api_key": key} if key else {}))
    return client.chat.completions.create(model=model, messages=messages, **more)


def chat():
    answer = ask()
    same(answer.choices[0].message.content, TEXT)
    same(answer.usage.total_tokens, 17)


def text_of(chunks):
    return "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)


def stream():
    chunks = list(ask(stream=True, stream_options={"include_usage": True}))
    same(text_of(chunks), TEXT)
    same(chunks[-1].usage.completion_tokens, 6)


def tool():
    message = ask(tools=[TOOL]).choices[0].message
    (call,) = message.tool_calls
    same((call.function.name, json.loads(call.function.arguments)), ("weather", CITY))
    result = {"role": "tool", "tool_call_id": call.id, "content": "rain"}
    same(ask(messages=[*ASK, message, result], tools=[TOOL]).choices[0].message.content, SAID + "rain")


def stream_tool():
    arguments = ""
    for chunk in ask(tools=[TOOL], stream=True):
        for choice in chunk.choices:
            for call in choice.delta.tool_calls or ():
                arguments += call.function.arguments or ""
    same(json.loads(arguments), CITY)


async def async_():
    async with AsyncClient(max_retries=0) as client:
        answer = await client.chat.completions.create(model=MODEL, messages=ASK)
        same(answer.choices[0].message.content, TEXT)
        chunks = await client.chat.completions.create(model=MODEL, messages=ASK, stream=True)
        same(text_of([chunk async for chunk in chunks]), TEXT)


def responses():
    answer = Client(max_retries=0).responses.create(model=MODEL, input="Say something.")
    same(answer.output_text, TEXT)


def responses_stream():
    with Client(max_retries=0).responses.stream(model=MODEL, input="Say something.") as events:
        text = "".join(event.delta for event in events if event.type == "response.output_text.delta")
        same((text, events.get_final_response().output_text), (TEXT, TEXT))


def embeddings():
    answer = Client(max_retries=0).embeddings.create(model="text-embedding-3-small", input=["one", "two"])
    same([item.embedding for item in answer.data], [[0.5, -0.25, 1.0]] * 2)


def models():
    same([model.id for model in Client(max_retries=0).models.list()][0], MODEL)


def unauthorized():
    raises(openai.AuthenticationError, lambda: ask(key=WRONG_KEY), 401)


def forbidden():
    return raises(openai.PermissionDeniedError, lambda: ask("fake-forbidden"), 403)


def bad_request():
    raises(openai.BadRequestError, lambda: ask(messages=[]), 400)


def unknown_model():
    raises(openai.NotFoundError, lambda: ask("fake-unknown"), 404)


def rate_limited():
    raises(openai.RateLimitError, lambda: ask("fake-rate-limited"), 429)


def overloaded():
    raises(openai.InternalServerError, lambda: ask("fake-overloaded"), 503)


def broken():
    raises(openai.InternalServerError, lambda: ask("fake-broken"), 500)


def retry():
    same(ask("fake-flaky", retries=2).choices[0].message.content, TEXT)


def cut():
    return breaks(ask("fake-cut", stream=True))


def error_in_stream():
    error = raises(openai.APIError, lambda: list(ask("fake-error-in-stream", stream=True)))
    # Not one of its subclasses, for a connection that broke, say.
    same(type(error), openai.APIError)
