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
  async files(headers) {
    const httpOptions = { headers };
    // Without options of its own: the SDK leaves out how it uploads where there are some.
    const made = await google.files.upload({
      file: new Blob(["some words"], { type: "text/plain" }),
    });
    const answer = await google.models.generateContent({
      model,
      contents: [{ text: QUESTION }, { fileData: { fileUri: made.uri, mimeType: made.mimeType } }],
      config: { maxOutputTokens: 6, httpOptions },
    });
    const listed = await collected(await google.files.list({ config: { httpOptions } }));
    await google.files.delete({ name: made.name, config: { httpOptions } });
    const after = await failure(google.files.get({ name: made.name }), (error) => ({
      status: error.status,
    }));
    return {
      size: made.sizeBytes,
      listed: listed.some((one) => one.name === made.name),
      words: words(answer.text),
      status_after: after.status,
    };
  },
});
