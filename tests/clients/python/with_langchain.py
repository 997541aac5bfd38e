"""LangChain, on the clients of OpenAI, Azure OpenAI or Anthropic: whichever the environment sets up."""

import os

from drive import CITY, SAID, TEXT, WRONG_KEY, raises, same
from langchain_core.messages import HumanMessage, ToolMessage
from langchain_core.tools import tool as as_tool

if "ANTHROPIC_API_KEY" in os.environ:
    import anthropic as sdk
    from langchain_anthropic import ChatAnthropic as Chat

    MODEL = {"model": "claude-opus-5"}
elif "AZURE_OPENAI_ENDPOINT" in os.environ:
    import openai as sdk
    from langchain_openai import AzureChatOpenAI as Chat
    from langchain_openai import AzureOpenAIEmbeddings as Embeddings

    MODEL = {"azure_deployment": "gpt-4o"}
else:
    import openai as sdk
    from langchain_openai import ChatOpenAI as Chat
    from langchain_openai import OpenAIEmbeddings as Embeddings

    MODEL = {"model": "gpt-4o"}

ASK = [HumanMessage("Say something.")]


@as_tool
def weather(city: str) -> str:
    """Tells the weather."""
    return f"rain in {city}"


def model(name=None, **more):
    chosen = {key: name or value for key, value in MODEL.items()}
    return Chat(max_retries=0, **chosen, **more)


def text(message):
    return message.content if isinstance(message.content, str) else "".join(part["text"] for part in message.content)


def chat():
    answer = model().invoke(ASK)
    same((text(answer), answer.usage_metadata["total_tokens"]), (TEXT, 17))


def stream():
    same("".join(text(chunk) for chunk in model().stream(ASK)), TEXT)


def tool():
    with_tool = model().bind_tools([weather])
    asked = with_tool.invoke(ASK)
    (call,) = asked.tool_calls
    same((call["name"], call["args"]), ("weather", CITY))
    told = ToolMessage(weather.invoke(call["args"]), tool_call_id=call["id"])
    same(text(with_tool.invoke([*ASK, asked, told])), SAID + "rain in Paris")


async def async_():
    same(text(await model().ainvoke(ASK)), TEXT)
    same("".join([text(chunk) async for chunk in model().astream(ASK)]), TEXT)


def embeddings():
    # Its own cutting into pieces needs a table that it downloads.
    own = Embeddings(model="text-embedding-3-small", check_embedding_ctx_length=False)
    same(own.embed_documents(["one", "two"]), [[0.5, -0.25, 1.0]] * 2)


def unauthorized():
    raises(sdk.AuthenticationError, lambda: model(api_key=WRONG_KEY).invoke(ASK), 401)


def forbidden():
    return raises(sdk.PermissionDeniedError, lambda: model("fake-forbidden").invoke(ASK), 403)


def rate_limited():
    raises(sdk.RateLimitError, lambda: model("fake-rate-limited").invoke(ASK), 429)
