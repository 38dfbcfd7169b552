import OpenAI from "openai";
import { QUESTION, collected, failure, gateway, run, words } from "./scenarios.mjs";

const messages = [{ role: "user", content: QUESTION }];
const client = (apiKey) => new OpenAI({ apiKey, baseURL: `${gateway.url}/v1`, timeout: 30_000 });
const openai = client(gateway.token);

const chat = (headers, model, by = openai) =>
  by.chat.completions.create({ model, messages, max_completion_tokens: 6 }, { headers });
const refusal = (call) =>
  failure(call, (error) => ({
    status: error.status,
    reason: error.headers.get("x-kaixu-reason"),
    message: error.message,
  }));

await run("openai", {
  async chat(headers) {
    const answer = await chat(headers, "gpt-4o");
    const { prompt_tokens, completion_tokens } = answer.usage;
    return {
      words: words(answer.choices[0].message.content),
      usage: [prompt_tokens, completion_tokens],
    };
  },
  async chat_stream(headers) {
    const body = { model: "gpt-4o", messages, max_completion_tokens: 6, stream: true };
    const chunks = await collected(await openai.chat.completions.create(body, { headers }));
    return {
      words: words(chunks.map((chunk) => chunk.choices[0].delta.content ?? "").join("")),
      told_usage: chunks.some((chunk) => chunk.usage),
    };
  },
  async chat_stream_with_usage(headers) {
    const stream_options = { include_usage: true };
    const body = { model: "gpt-4o", messages, max_tokens: 6, stream: true, stream_options };
    const chunks = await collected(await openai.chat.completions.create(body, { headers }));
    const { prompt_tokens, completion_tokens } = chunks.at(-1).usage;
    return { choices: chunks.at(-1).choices, usage: [prompt_tokens, completion_tokens] };
  },
  async responses(headers) {
    const body = { model: "gpt-5-mini", input: QUESTION, max_output_tokens: 6 };
    const answer = await openai.responses.create(body, { headers });
    const { input_tokens, output_tokens } = answer.usage;
    return { words: words(answer.output_text), usage: [input_tokens, output_tokens] };
  },
  async responses_stream(headers) {
    const stream = openai.responses.stream({ model: "gpt-5-mini", input: QUESTION }, { headers });
    const events = await collected(stream);
    const deltas = events.filter((event) => event.type === "response.output_text.delta");
    const { input_tokens, output_tokens } = (await stream.finalResponse()).usage;
    return {
      words: words(deltas.map((event) => event.delta).join("")),
      usage: [input_tokens, output_tokens],
    };
  },
  async completions_stream(headers) {
    const body = { model: "gpt-3.5-turbo-instruct", prompt: QUESTION, max_tokens: 6, stream: true };
    const chunks = await collected(await openai.completions.create(body, { headers }));
    return { words: words(chunks.map((chunk) => chunk.choices[0].text).join("")) };
  },
  async embeddings(headers) {
    const body = { model: "text-embedding-3-small", input: ["two words", QUESTION] };
    const answer = await openai.embeddings.create(body, { headers });
    return { sizes: answer.data.map((row) => row.embedding.length) };
  },
  async moderations(headers) {
    const body = { model: "omni-moderation-latest", input: QUESTION };
    const answer = await openai.moderations.create(body, { headers });
    return { flagged: answer.results.map((result) => result.flagged) };
  },
  async images(headers) {
    const body = { model: "gpt-image-1", prompt: QUESTION };
    const answer = await openai.images.generate(body, { headers });
    return { png: Buffer.from(answer.data[0].b64_json, "base64").toString("latin1", 1, 4) };
  },
  async models() {
    const models = await collected(openai.models.list());
    return { found: models.some((model) => model.id === "gpt-4o") };
  },
  unknown_token: (headers) => refusal(chat(headers, "gpt-4o", client(gateway.unknown))),
  spent_month: (headers) => refusal(chat(headers, "gpt-4o", client(gateway.spent))),
  async repeated(headers) {
    return { words: words((await chat(headers, "sim-flaky-503")).choices[0].message.content) };
  },
  repeated_in_vain: (headers) => refusal(chat(headers, "sim-status-503")),
  not_repeated: (headers) => refusal(chat(headers, "sim-badkey")),
});
