import { setTimeout } from "node:timers/promises";
import OpenAI, { toFile } from "openai";
import { QUESTION, collected, failure, gateway, run, words } from "./scenarios.mjs";

const client = (apiKey) => new OpenAI({ apiKey, baseURL: `${gateway.url}/v1`, timeout: 30_000 });
const openai = client(gateway.token);
const POLLS_MAX = 50;

const line = (custom_id) =>
  JSON.stringify({
    custom_id,
    method: "POST",
    url: "/v1/chat/completions",
    body: { model: "gpt-4o", messages: [{ role: "user", content: QUESTION }], max_tokens: 6 },
  });

async function finished(batch, headers) {
  for (let polls = 0; batch.status !== "completed"; polls += 1) {
    if (polls === POLLS_MAX) throw new Error(`The batch is ${batch.status}`);
    await setTimeout(50);
    batch = await openai.batches.retrieve(batch.id, { headers });
  }
  return batch;
}

await run("openai_stored", {
  async files(headers) {
    const file = await toFile(Buffer.from("some words"), "notes.txt");
    const made = await openai.files.create({ file, purpose: "user_data" }, { headers });
    const content = await (await openai.files.content(made.id, { headers })).text();
    const listed = await collected(openai.files.list({}, { headers }));
    const gone = await openai.files.delete(made.id, { headers });
    const { status } = await failure(openai.files.retrieve(made.id, { headers }), (error) => ({
      status: error.status,
    }));
    return {
      content,
      listed: listed.some((one) => one.id === made.id),
      deleted: gone.deleted,
      status_after: status,
    };
  },
  async batches(headers) {
    const file = await toFile(Buffer.from(`${line("a")}\n${line("b")}\n`), "batch.jsonl");
    const input = await openai.files.create({ file, purpose: "batch" }, { headers });
    const asked = {
      input_file_id: input.id,
      endpoint: "/v1/chat/completions",
      completion_window: "24h",
    };
    const batch = await finished(await openai.batches.create(asked, { headers }), headers);
    const content = await openai.files.content(batch.output_file_id, { headers });
    const results = (await content.text()).trim().split("\n").map((one) => JSON.parse(one));
    return {
      custom_ids: results.map((one) => one.custom_id).sort(),
      words: results.map((one) => words(one.response.body.choices[0].message.content)),
    };
  },
  async stored_response(headers) {
    const made = await openai.responses.create({ model: "gpt-5-mini", input: QUESTION }, { headers });
    const again = await openai.responses.retrieve(made.id, {}, { headers });
    const next = await openai.responses.create(
      { model: "gpt-5-mini", input: QUESTION, previous_response_id: made.id },
      { headers },
    );
    await openai.responses.delete(made.id, { headers });
    return { same: again.output_text === made.output_text, next: words(next.output_text) };
  },
  async not_ours(headers) {
    return failure(openai.files.retrieve("file-of-somebody-else", { headers }), (error) => ({
      status: error.status,
      reason: error.headers.get("x-kaixu-reason"),
    }));
  },
});
