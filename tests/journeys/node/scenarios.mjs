// Runs the scenarios of one SDK, all at once, and prints a line of JSON for each:
// {"scenario", "result"}, or {"scenario", "error"} where it threw.

/** Where the gateway is, and three tokens: one that is good, one unknown, one whose month is spent. */
export const gateway = {
  url: process.env.TEST_GATEWAY_URL,
  token: process.env.TEST_TOKEN,
  unknown: process.env.TEST_TOKEN_UNKNOWN,
  spent: process.env.TEST_TOKEN_SPENT,
};

export const QUESTION = "what are five words here";

/** Run `scenarios`, each a function of the headers that name its session. */
export async function run(sdk, scenarios) {
  await Promise.all(
    Object.entries(scenarios).map(async ([scenario, play]) => {
      const line = { scenario };
      try {
        line.result = await play({ "x-session-id": `node/${sdk}/${scenario}` });
      } catch (error) {
        line.error = error instanceof Error ? error.stack : String(error);
      }
      process.stdout.write(`${JSON.stringify(line)}\n`);
    }),
  );
}

/** Return what a call that has to fail is rejected with, by `describe`. */
export async function failure(call, describe) {
  let answer;
  try {
    answer = await call;
  } catch (error) {
    return { name: error.constructor.name, ...describe(error) };
  }
  throw new Error(`It did not fail: ${JSON.stringify(answer)}`);
}

/** Return the number of words in a text. */
export function words(text) {
  return text.trim().split(/\s+/).length;
}

/** Return the items of an async iterable. */
export async function collected(items) {
  const all = [];
  for await (const item of items) all.push(item);
  return all;
}
