import Anthropic from "@anthropic-ai/sdk";
import { QUESTION, collected, failure, gateway, run, words } from "./scenarios.mjs";

const messages = [{ role: "user", content: QUESTION }];
const client = (apiKey) => new Anthropic({ apiKey, baseURL: gateway.url, timeout: 30_000 });
const anthropic = client(gateway.token);

const create = (headers, model, by = anthropic) =>
  by.messages.create({ model, messages, max_tokens: 6 }, { headers });
const refusal = (call) =>
  failure(call, (error) => ({
    status: error.status,
    reason: error.headers.get("x-kaixu-reason"),
    message: error.message,
  }));

await run("anthropic", {
  async messages(headers) {
    const answer = await create(headers, "claude-sonnet-5");
    const { input_tokens, output_tokens } = answer.usage;
    return { words: words(answer.content[0].text), usage: [input_tokens, output_tokens] };
  },
  async messages_stream(headers) {
    const body = { model: "claude-sonnet-5", messages, max_tokens: 6 };
    const stream = anthropic.messages.stream(body, { headers });
    let text = "";
    stream.on("text", (piece) => (text += piece));
    const { usage, stop_reason } = await stream.finalMessage();
    return { words: words(text), usage: [usage.input_tokens, usage.output_tokens], stop_reason };
  },
  async count_tokens() {
    const counted = await anthropic.messages.countTokens({ model: "claude-sonnet-5", messages });
    return { tokens: counted.input_tokens };
  },
  async models() {
    const models = await collected(anthropic.models.list());
    return { found: models.some((model) => model.id === "claude-sonnet-5") };
  },
  unknown_token: (headers) => refusal(create(headers, "claude-sonnet-5", client(gateway.unknown))),
  spent_month: (headers) => refusal(create(headers, "claude-sonnet-5", client(gateway.spent))),
  async error_in_a_stream(headers) {
    const body = { model: "sim-error", messages, max_tokens: 6, stream: true };
    const stream = await anthropic.messages.create(body, { headers });
    return failure(collected(stream), (error) => ({ message: error.message }));
  },
  async repeated(headers) {
    return { words: words((await create(headers, "sim-flaky-529")).content[0].text) };
  },
  repeated_in_vain: (headers) => refusal(create(headers, "sim-status-529")),
  not_repeated: (headers) => refusal(create(headers, "sim-badkey")),
});
