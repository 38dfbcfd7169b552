import { createAnthropic } from "@ai-sdk/anthropic";
import { createGoogleGenerativeAI } from "@ai-sdk/google";
import { createOpenAI } from "@ai-sdk/openai";
import { embedMany, generateText, streamText } from "ai";
import { QUESTION, failure, gateway, run, words } from "./scenarios.mjs";

const openai = (apiKey) => createOpenAI({ apiKey, baseURL: `${gateway.url}/v1` });
const anthropic = createAnthropic({ apiKey: gateway.token, baseURL: `${gateway.url}/v1` });
const google = createGoogleGenerativeAI({
  apiKey: gateway.token,
  baseURL: `${gateway.url}/v1beta`,
});

const asked = (headers, model) => ({ model, headers, prompt: QUESTION, maxOutputTokens: 16 });
const usage = ({ inputTokens, outputTokens }) => [inputTokens, outputTokens];

async function generated(headers, model) {
  const answer = await generateText(asked(headers, model));
  return { words: words(answer.text), usage: usage(answer.usage) };
}

async function streamed(headers, model) {
  let text = "";
  const failures = [];
  const stream = streamText({ ...asked(headers, model), onError: (one) => failures.push(one) });
  for await (const piece of stream.textStream) text += piece;
  if (failures.length) throw failures[0].error;
  return { words: words(text), usage: usage(await stream.usage) };
}

// A refusal that was repeated in vain comes wrapped, with the last of them inside.
const refusal = (call) =>
  failure(call, (error) => {
    const { statusCode, message, responseHeaders } = error.lastError ?? error;
    return { status: statusCode, message, reason: responseHeaders["x-kaixu-reason"] ?? null };
  });

await run("ai", {
  openai_responses: (headers) => generated(headers, openai(gateway.token)("gpt-5-mini")),
  openai_responses_stream: (headers) => streamed(headers, openai(gateway.token)("gpt-5-mini")),
  openai_chat: (headers) => generated(headers, openai(gateway.token).chat("gpt-4o")),
  openai_chat_stream: (headers) => streamed(headers, openai(gateway.token).chat("gpt-4o")),
  async openai_embeddings(headers) {
    const model = openai(gateway.token).embedding("text-embedding-3-small");
    const answer = await embedMany({ model, headers, values: ["two words", QUESTION] });
    return { sizes: answer.embeddings.map((vector) => vector.length), tokens: answer.usage.tokens };
  },
  anthropic_messages: (headers) => generated(headers, anthropic("claude-sonnet-5")),
  anthropic_messages_stream: (headers) => streamed(headers, anthropic("claude-sonnet-5")),
  google_generate: (headers) => generated(headers, google("gemini-2.5-flash")),
  google_generate_stream: (headers) => streamed(headers, google("gemini-2.5-flash")),
  unknown_token: (headers) => refusal(generated(headers, openai(gateway.unknown)("gpt-5-mini"))),
  spent_month: (headers) => refusal(generated(headers, openai(gateway.spent)("gpt-5-mini"))),
  repeated: (headers) => generated(headers, openai(gateway.token)("sim-flaky-503")),
  repeated_in_vain: (headers) => refusal(generated(headers, anthropic("sim-status-529"))),
});
