// Runs scenarios with one SDK, set up by its own environment variables alone, and prints a line of JSON for each.
//
//     drive.mjs <module> <scenario>...
//
// A scenario is a function that the module exports; one that returns has passed. `load` asks until the program gets a SIGTERM.

import assert from "node:assert/strict";

// What the fake provider says, and what its models call tools with.
export const TEXT = [1, 2, 3, 4, 5, 6].map((n) => `piece ${n} `).join("");
export const CITY = { city: "Paris" };
export const SAID = "The tool said: ";
export const CITY_SCHEMA = { type: "object", properties: { city: { type: "string" } }, required: ["city"] };
// A key that nobody made valid.
export const WRONG_KEY = "sk-wrong-0123456789";
const WORKERS = 4;

export const same = assert.deepEqual;

// That a call ends in an error of just this class, with this status or one of these.
export async function raises(kind, status, call) {
  try {
    await call();
  } catch (error) {
    assert.equal(error.constructor.name, kind.name, error);
    assert([status].flat().includes(error.status), `${error.status} instead of ${status}`);
    return error.message;
  }
  assert.fail(`no ${kind.name}`);
}

// That a stream begins, and ends in an error, of whichever class fetch has for it.
export async function breaks(stream) {
  let pieces = 0;
  try {
    for await (const _ of await stream) pieces += 1;
  } catch (error) {
    assert(pieces > 0, `nothing came before the end: ${error}`);
    return error.constructor.name;
  }
  assert.fail(`a clean end after ${pieces} events`);
}

// Plain and streamed requests, over and over, by several workers. The first failure would do, but all are told.
async function load(module) {
  let ended = false;
  process.once("SIGTERM", () => (ended = true));
  let requests = 0;
  const failures = [];
  const work = async () => {
    while (!ended) {
      for (const scenario of [module.chat, module.stream]) {
        await scenario().catch((error) => failures.push(error.stack));
        if ((requests += 1) === 1) console.log(JSON.stringify({ begun: true }));
      }
    }
  };
  await Promise.all(Array.from({ length: WORKERS }, work));
  assert(failures.length === 0, `${failures.length} of ${requests} failed, the first:\n${failures[0]}`);
  return `${requests} requests`;
}

const [name, ...scenarios] = process.argv.slice(2);
// The modules import this one: not before it is all there.
queueMicrotask(async () => {
  const module = await import(`./with_${name}.mjs`);
  for (const scenario of scenarios) {
    let line;
    try {
      const said = await (scenario === "load" ? load(module) : module[scenario.replaceAll("-", "_")]());
      line = { scenario, passed: true, said: `${said ?? ""}` };
    } catch (error) {
      line = { scenario, passed: false, said: error.stack };
    }
    console.log(JSON.stringify(line));
  }
});
