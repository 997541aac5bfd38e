// Anthropic's client.

import Anthropic, { OverloadedError } from "@anthropic-ai/sdk";
import { CITY, CITY_SCHEMA, SAID, TEXT, WRONG_KEY, breaks, raises, same } from "./drive.mjs";

const MODEL = "claude-opus-5";
const ASK = [{ role: "user", content: "Say something." }];
const TOOL = { name: "weather", description: "Tells the weather.", input_schema: CITY_SCHEMA };
const BODY = { model: MODEL, max_tokens: 100, messages: ASK };

const client = (options) => new Anthropic({ maxRetries: 0, ...options });
const ask = (body, options) => client(options).messages.create({ ...BODY, ...body });
const whole = (body) => client().messages.stream({ ...BODY, ...body }).finalMessage();

export async function chat() {
  const answer = await ask();
  same([answer.content[0].text, answer.usage.output_tokens], [TEXT, 6]);
}

export async function stream() {
  const answer = await whole();
  same([answer.content[0].text, answer.usage.output_tokens], [TEXT, 6]);
}

export async function tool() {
  const answer = await ask({ tools: [TOOL] });
  const [call] = answer.content;
  same([answer.stop_reason, call.name, call.input], ["tool_use", "weather", CITY]);
  const result = { type: "tool_result", tool_use_id: call.id, content: "rain" };
  const messages = [...ASK, { role: "assistant", content: answer.content }, { role: "user", content: [result] }];
  same((await ask({ messages, tools: [TOOL] })).content[0].text, SAID + "rain");
}

export const stream_tool = async () => same((await whole({ tools: [TOOL] })).content[0].input, CITY);

export async function count_tokens() {
  same((await client().messages.countTokens({ model: MODEL, messages: ASK })).input_tokens, 11);
}

export async function models() {
  for await (const model of client().models.list()) return same(model.id, MODEL);
}

export const unauthorized = () => raises(Anthropic.AuthenticationError, 401, () => ask({}, { apiKey: WRONG_KEY }));
export const forbidden = () => raises(Anthropic.PermissionDeniedError, 403, () => ask({ model: "fake-forbidden" }));
export const bad_request = () => raises(Anthropic.BadRequestError, 400, () => ask({ messages: [] }));
export const unknown_model = () => raises(Anthropic.NotFoundError, 404, () => ask({ model: "fake-unknown" }));
export const rate_limited = () => raises(Anthropic.RateLimitError, 429, () => ask({ model: "fake-rate-limited" }));
export const overloaded = () => raises(OverloadedError, 529, () => ask({ model: "fake-overloaded" }));
export const broken = () => raises(Anthropic.InternalServerError, 500, () => ask({ model: "fake-broken" }));

export async function retry() {
  same((await ask({ model: "fake-flaky" }, { maxRetries: 2 })).content[0].text, TEXT);
}

export const cut = () => breaks(ask({ model: "fake-cut", stream: true }));

export const error_in_stream = () =>
  raises(Anthropic.APIError, undefined, async () => {
    for await (const _ of await ask({ model: "fake-error-in-stream", stream: true }));
  });
