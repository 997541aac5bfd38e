// Google's client, with a key of the Gemini API.

import { ApiError, GoogleGenAI } from "@google/genai";
import { CITY, CITY_SCHEMA, SAID, TEXT, WRONG_KEY, breaks, raises, same } from "./drive.mjs";

const MODEL = "gemini-2.5-flash";
const ASK = "Say something.";
const TOOLS = { tools: [{ functionDeclarations: [{ name: "weather", parametersJsonSchema: CITY_SCHEMA }] }] };

const client = (options) => new GoogleGenAI({ ...options });
const ask = (body, options) => client(options).models.generateContent({ model: MODEL, contents: ASK, ...body });
const askStream = (body) => client().models.generateContentStream({ model: MODEL, contents: ASK, ...body });

export async function chat() {
  const answer = await ask();
  same([answer.text, answer.usageMetadata.totalTokenCount], [TEXT, 17]);
}

export async function stream() {
  let text = "";
  for await (const chunk of await askStream()) text += chunk.text;
  same(text, TEXT);
}

export async function tool() {
  const answer = await ask({ config: TOOLS });
  const [call] = answer.functionCalls;
  same([call.name, call.args], ["weather", CITY]);
  const told = { functionResponse: { name: "weather", response: { result: "rain" } } };
  const contents = [
    { role: "user", parts: [{ text: ASK }] },
    answer.candidates[0].content,
    { role: "user", parts: [told] },
  ];
  same((await ask({ contents, config: TOOLS })).text, SAID + "rain");
}

export async function embeddings() {
  const answer = await client().models.embedContent({ model: "gemini-embedding-001", contents: ["one", "two"] });
  same(answer.embeddings.map((item) => item.values), [[0.5, -0.25, 1], [0.5, -0.25, 1]]);
}

export async function models() {
  for await (const model of await client().models.list()) return same(model.name, `models/${MODEL}`);
}

export async function count_tokens() {
  same((await client().models.countTokens({ model: MODEL, contents: ASK })).totalTokens, 11);
}

// Google says 400 to a key that is not valid, a proxy 401.
export const unauthorized = () => raises(ApiError, [400, 401], () => ask({}, { apiKey: WRONG_KEY }));
export const forbidden = () => raises(ApiError, 403, () => ask({ model: "fake-forbidden" }));
export const unknown_model = () => raises(ApiError, 404, () => ask({ model: "fake-unknown" }));
export const rate_limited = () => raises(ApiError, 429, () => ask({ model: "fake-rate-limited" }));
export const overloaded = () => raises(ApiError, 503, () => ask({ model: "fake-overloaded" }));
export const broken = () => raises(ApiError, 500, () => ask({ model: "fake-broken" }));

export async function retry() {
  const httpOptions = { retryOptions: { attempts: 3 } };
  same((await ask({ model: "fake-flaky" }, { httpOptions })).text, TEXT);
}

export const cut = () => breaks(askStream({ model: "fake-cut" }));

export const error_in_stream = () =>
  raises(ApiError, 503, async () => {
    for await (const _ of await askStream({ model: "fake-error-in-stream" }));
  });
