"""Anthropic's client."""

import anthropic
from anthropic import Anthropic, AsyncAnthropic
from drive import CITY, CITY_SCHEMA, SAID, TEXT, WRONG_KEY, breaks, raises, same

MODEL = "claude-opus-5"
ASK = [{"role": "user", "content": "Say something."}]
TOOL = {"name": "weather", "description": "Tells the weather.", "input_schema": CITY_SCHEMA}


def ask(model=MODEL, messages=ASK, retries=0, key=None, **more):
    client = Anthropic(max_retries=retries, **({"api_key": key} if key else {}))
    return client.messages.create(model=model, max_tokens=100, messages=messages, **more)


def chat():
    answer = ask()
    same(answer.content[0].text, TEXT)
    same((answer.usage.input_tokens, answer.usage.output_tokens), (11, 6))


def stream():
    with Anthropic(max_retries=0).messages.stream(model=MODEL, max_tokens=100, messages=ASK) as events:
        same("".join(events.text_stream), TEXT)
        same(events.get_final_message().usage.output_tokens, 6)


def tool():
    answer = ask(tools=[TOOL])
    call = answer.content[0]
    same((answer.stop_reason, call.name, call.input), ("tool_use", "weather", CITY))
    result = {"type": "tool_result", "tool_use_id": call.id, "content": "rain"}
    messages = [*ASK, {"role": "assistant", "content": answer.content}, {"role": "user", "content": [result]}]
    same(ask(messages=messages, tools=[TOOL]).content[0].text, SAID + "rain")


def stream_tool():
    with Anthropic().messages.stream(model=MODEL, max_tokens=100, messages=ASK, tools=[TOOL]) as events:
        same(events.get_final_message().content[0].input, CITY)


async def async_():
    async with AsyncAnthropic(max_retries=0) as client:
        answer = await client.messages.create(model=MODEL, max_tokens=100, messages=ASK)
        same(answer.content[0].text, TEXT)
        async with client.messages.stream(model=MODEL, max_tokens=100, messages=ASK) as events:
            same("".join([text async for text in events.text_stream]), TEXT)


def count_tokens():
    same(Anthropic(max_retries=0).messages.count_tokens(model=MODEL, messages=ASK).input_tokens, 11)


def models():
    same([model.id for model in Anthropic(max_retries=0).models.list()][0], MODEL)


def unauthorized():
    raises(anthropic.AuthenticationError, lambda: ask(key=WRONG_KEY), 401)


def forbidden():
    return raises(anthropic.PermissionDeniedError, lambda: ask("fake-forbidden"), 403)


def bad_request():
    raises(anthropic.BadRequestError, lambda: ask(messages=[]), 400)


def unknown_model():
    raises(anthropic.NotFoundError, lambda: ask("fake-unknown"), 404)


def rate_limited():
    raises(anthropic.RateLimitError, lambda: ask("fake-rate-limited"), 429)


def overloaded():
    # The older client has the class, but does not export it.
    raises(anthropic._exceptions.OverloadedError, lambda: ask("fake-overloaded"), 529)


def broken():
    raises(anthropic.InternalServerError, lambda: ask("fake-broken"), 500)


def retry():
    same(ask("fake-flaky", retries=2).content[0].text, TEXT)


def cut():
    return breaks(ask("fake-cut", stream=True))


def error_in_stream():
    error = raises(anthropic.APIStatusError, lambda: list(ask("fake-error-in-stream", stream=True)))
    assert "overloaded_error" in str(error), error
    return type(error).__name__
