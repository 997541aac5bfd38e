// OpenAI's client, and its Azure one where that is what the environment sets up.

import OpenAI, { AzureOpenAI } from "openai";
import { CITY, CITY_SCHEMA, SAID, TEXT, WRONG_KEY, breaks, raises, same } from "./drive.mjs";

const Client = process.env.AZURE_OPENAI_ENDPOINT ? AzureOpenAI : OpenAI;
const MODEL = "gpt-4o";
const ASK = [{ role: "user", content: "Say something." }];
const TOOL = { type: "function", function: { name: "weather", description: "Tells the weather.", parameters: CITY_SCHEMA } };

const client = (options) => new Client({ maxRetries: 0, ...options });
const ask = (body, options) => client(options).chat.completions.create({ model: MODEL, messages: ASK, ...body });

async function textOf(chunks) {
  let text = "";
  for await (const chunk of await chunks) text += chunk.choices[0]?.delta.content ?? "";
  return text;
}

export async function chat() {
  const answer = await ask();
  same([answer.choices[0].message.content, answer.usage.total_tokens], [TEXT, 17]);
}

export const stream = async () => same(await textOf(ask({ stream: true })), TEXT);

export async function tool() {
  const { message } = (await ask({ tools: [TOOL] })).choices[0];
  const [call] = message.tool_calls;
  same([call.function.name, JSON.parse(call.function.arguments)], ["weather", CITY]);
  const result = { role: "tool", tool_call_id: call.id, content: "rain" };
  const answer = await ask({ messages: [...ASK, message, result], tools: [TOOL] });
  same(answer.choices[0].message.content, SAID + "rain");
}

export async function stream_tool() {
  let text = "";
  for await (const chunk of await ask({ stream: true, tools: [TOOL] })) {
    text += chunk.choices[0]?.delta.tool_calls?.[0].function.arguments ?? "";
  }
  same(JSON.parse(text), CITY);
}

export async function responses() {
  same((await client().responses.create({ model: MODEL, input: "Say something." })).output_text, TEXT);
}

export async function responses_stream() {
  const events = client().responses.stream({ model: MODEL, input: "Say something." });
  same((await events.finalResponse()).output_text, TEXT);
}

export async function embeddings() {
  const answer = await client().embeddings.create({ model: "text-embedding-3-small", input: ["one", "two"] });
  same(answer.data.map((item) => item.embedding), [[0.5, -0.25, 1], [0.5, -0.25, 1]]);
}

export async function models() {
  for await (const model of client().models.list()) return same(model.id, MODEL);
}

export const unauthorized = () => raises(OpenAI.AuthenticationError, 401, () => ask({}, { apiKey: WRONG_KEY }));
export const forbidden = () => raises(OpenAI.PermissionDeniedError, 403, () => ask({ model: "fake-forbidden" }));
export const bad_request = () => raises(OpenAI.BadRequestError, 400, () => ask({ messages: [] }));
export const unknown_model = () => raises(OpenAI.NotFoundError, 404, () => ask({ model: "fake-unknown" }));
export const rate_limited = () => raises(OpenAI.RateLimitError, 429, () => ask({ model: "fake-rate-limited" }));
export const overloaded = () => raises(OpenAI.InternalServerError, 503, () => ask({ model: "fake-overloaded" }));
export const broken = () => raises(OpenAI.InternalServerError, 500, () => ask({ model: "fake-broken" }));

export async function retry() {
  const answer = await ask({ model: "fake-flaky" }, { maxRetries: 2 });
  same(answer.choices[0].message.content, TEXT);
}

export const cut = () => breaks(ask({ model: "fake-cut", stream: true }));

export const error_in_stream = () =>
  raises(OpenAI.APIError, undefined, () => textOf(ask({ model: "fake-error-in-stream", stream: true })));
