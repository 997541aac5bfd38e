"""Google's client, with a key of the Gemini API."""

from drive import CITY, CITY_SCHEMA, SAID, TEXT, WRONG_KEY, breaks, raises, same
from google import genai
from google.genai import errors, types

MODEL = "gemini-2.5-flash"
ASK = "Say something."
WEATHER = types.FunctionDeclaration(
    name="weather", description="Tells the weather.", parameters_json_schema=CITY_SCHEMA
)
TOOLS = types.GenerateContentConfig(
    tools=[types.Tool(function_declarations=[WEATHER])],
    automatic_function_calling=types.AutomaticFunctionCallingConfig(disable=True),
)


# One try, unless the scenario is about more.
def client(attempts=1, **more):
    retry = types.HttpRetryOptions(attempts=attempts, initial_delay=0.02, max_delay=0.1)
    return genai.Client(http_options=types.HttpOptions(retry_options=retry), **more)


# A client closes its connections when it is collected, so it is kept.
def ask(model=MODEL, contents=ASK, config=None, **more):
    own = client(**more)
    return own.models.generate_content(model=model, contents=contents, config=config)


def ask_stream(model=MODEL):
    own = client()
    yield from own.models.generate_content_stream(model=model, contents=ASK)


def chat():
    answer = ask()
    same((answer.text, answer.usage_metadata.total_token_count), (TEXT, 17))


def stream():
    same("".join(chunk.text for chunk in ask_stream()), TEXT)


def tool():
    answer = ask(config=TOOLS)
    (call,) = answer.function_calls
    same((call.name, call.args), ("weather", CITY))
    result = types.Part.from_function_response(name="weather", response={"result": "rain"})
    asked = types.Content(role="user", parts=[types.Part(text=ASK)])
    told = types.Content(role="user", parts=[result])
    same(ask(contents=[asked, answer.candidates[0].content, told], config=TOOLS).text, SAID + "rain")


async def async_():
    own = client().aio
    answer = await own.models.generate_content(model=MODEL, contents=ASK)
    same(answer.text, TEXT)
    chunks = await own.models.generate_content_stream(model=MODEL, contents=ASK)
    same("".join([chunk.text async for chunk in chunks]), TEXT)


def embeddings():
    own = client()
    answer = own.models.embed_content(model="gemini-embedding-001", contents=["one", "two"])
    same([item.values for item in answer.embeddings], [[0.5, -0.25, 1.0]] * 2)


def models():
    own = client()
    same([model.name for model in own.models.list()][0], "models/" + MODEL)


def count_tokens():
    own = client()
    same(own.models.count_tokens(model=MODEL, contents=ASK).total_tokens, 11)


def unauthorized():
    # Google says 400 to a key that is not valid, a proxy 401.
    error = raises(errors.ClientError, lambda: ask(api_key=WRONG_KEY))
    assert error.code in (400, 401), error


def forbidden():
    return raises(errors.ClientError, lambda: ask("fake-forbidden"), 403)


def unknown_model():
    raises(errors.ClientError, lambda: ask("fake-unknown"), 404)


def rate_limited():
    raises(errors.ClientError, lambda: ask("fake-rate-limited"), 429)


def overloaded():
    raises(errors.ServerError, lambda: ask("fake-overloaded"), 503)


def broken():
    raises(errors.ServerError, lambda: ask("fake-broken"), 500)


def retry():
    same(ask("fake-flaky", attempts=3).text, TEXT)


def cut():
    return breaks(ask_stream("fake-cut"))


def error_in_stream():
    raises(errors.ServerError, lambda: list(ask_stream("fake-error-in-stream")), 503)
