import { GoogleGenAI } from "@google/genai";
import { QUESTION, collected, failure, gateway, run, words } from "./scenarios.mjs";

// Without options it repeats nothing.
const retryOptions = { attempts: 3, initialDelay: 0.1, jitter: 0.1 };
const client = (apiKey, more = {}) =>
  new GoogleGenAI({ apiKey, httpOptions: { baseUrl: gateway.url, timeout: 30_000, ...more } });
const google = client(gateway.token);
const patient = client(gateway.token, { retryOptions });

const asked = (headers, model) => ({
  model,
  contents: QUESTION,
  config: { maxOutputTokens: 6, httpOptions: { headers } },
});
const usage = ({ usageMetadata }) => [
  usageMetadata.promptTokenCount,
  usageMetadata.candidatesTokenCount,
];
const refusal = (call) =>
  failure(call, (error) => ({ status: error.status, message: error.message }));

await run("genai", {
  async generate(headers) {
    const answer = await google.models.generateContent(asked(headers, "gemini-2.5-flash"));
    return { words: words(answer.text), usage: usage(answer) };
  },
  async generate_stream(headers) {
    const stream = await google.models.generateContentStream(asked(headers, "gemini-2.5-flash"));
    const chunks = await collected(stream);
    return {
      words: words(chunks.map((chunk) => chunk.text ?? "").join("")),
      usage: usage(chunks.at(-1)),
    };
  },
  async count_tokens() {
    const body = { model: "gemini-2.5-flash", contents: QUESTION };
    return { tokens: (await google.models.countTokens(body)).totalTokens };
  },
  async models() {
    const models = await collected(await google.models.list());
    return { found: models.some((model) => model.name === "models/gemini-2.5-flash") };
  },
  unknown_token: (headers) =>
    refusal(client(gateway.unknown).models.generateContent(asked(headers, "gemini-2.5-flash"))),
  spent_month: (headers) =>
    refusal(client(gateway.spent).models.generateContent(asked(headers, "gemini-2.5-flash"))),
  async repeated(headers) {
    const answer = await patient.models.generateContent(asked(headers, "sim-flaky-503"));
    return { words: words(answer.text) };
  },
  repeated_in_vain: (headers) =>
    refusal(patient.models.generateContent(asked(headers, "sim-status-503"))),
});
