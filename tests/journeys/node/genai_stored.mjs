import { GoogleGenAI } from "@google/genai";
import { QUESTION, collected, failure, gateway, run, words } from "./scenarios.mjs";

const google = new GoogleGenAI({
  apiKey: gateway.token,
  httpOptions: { baseUrl: gateway.url, timeout: 30_000 },
});
const model = "gemini-2.5-flash";

await run("genai_stored", {
  async caches(headers) {
    const httpOptions = { headers };
    const config = { contents: QUESTION, ttl: "60s", httpOptions };
    const made = await google.caches.create({ model, config });
    const answer = await google.models.generateContent({
      model,
      contents: QUESTION,
      config: { cachedContent: made.name, maxOutputTokens: 6, httpOptions },
    });
    const listed = await collected(await google.caches.list({ config: { httpOptions } }));
    await google.caches.delete({ name: made.name, config: { httpOptions } });
    return { words: words(answer.text), listed: listed.some((one) => one.name === made.name) };
  },
  async files() {
    // The SDK knows no other way than Google's resumable one, and the gateway takes files whole.
    const file = new Blob(["some words"], { type: "text/plain" });
    return failure(google.files.upload({ file }), (error) => ({ status: error.status }));
  },
});
