import OpenAI, { toFile } from "openai";
import { QUESTION, collected, gateway, run, words } from "./scenarios.mjs";

const openai = new OpenAI({
  apiKey: gateway.token,
  baseURL: `${gateway.url}/v1`,
  timeout: 30_000,
});
const sound = () => toFile(Buffer.alloc(2_000), "speech.wav", { type: "audio/wav" });

await run("openai_audio", {
  async speech(headers) {
    const body = { model: "gpt-4o-mini-tts", voice: "alloy", input: QUESTION };
    const spoken = await openai.audio.speech.create(body, { headers });
    return { has_sound: (await spoken.arrayBuffer()).byteLength > 0 };
  },
  async transcription(headers) {
    const body = { model: "gpt-4o-transcribe", file: await sound() };
    const heard = await openai.audio.transcriptions.create(body, { headers });
    return { words: words(heard.text) };
  },
  async transcription_stream(headers) {
    const body = { model: "gpt-4o-transcribe", file: await sound(), stream: true };
    const events = await collected(await openai.audio.transcriptions.create(body, { headers }));
    return { last: events.at(-1).type, words: words(events.at(-1).text) };
  },
});
