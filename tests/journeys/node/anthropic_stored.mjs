import Anthropic, { toFile } from "@anthropic-ai/sdk";
import { QUESTION, collected, failure, gateway, run, words } from "./scenarios.mjs";

const anthropic = new Anthropic({
  apiKey: gateway.token,
  baseURL: gateway.url,
  timeout: 30_000,
});

await run("anthropic_stored", {
  async batches(headers) {
    const params = {
      model: "claude-sonnet-5",
      max_tokens: 6,
      messages: [{ role: "user", content: QUESTION }],
    };
    const requests = ["a", "b"].map((custom_id) => ({ custom_id, params }));
    const made = await anthropic.messages.batches.create({ requests }, { headers });
    // Goes where `results_url` says: to the gateway, as everything else.
    const results = await collected(
      await anthropic.messages.batches.results(made.id, {}, { headers }),
    );
    const listed = await collected(anthropic.messages.batches.list({}, { headers }));
    return {
      custom_ids: results.map((one) => one.custom_id).sort(),
      words: results.map((one) => words(one.result.message.content[0].text)),
      listed: listed.some((one) => one.id === made.id),
    };
  },
  async files(headers) {
    const file = await toFile(Buffer.from("some words"), "notes.txt", { type: "text/plain" });
    const made = await anthropic.beta.files.upload({ file }, { headers });
    const content = await (await anthropic.beta.files.download(made.id, {}, { headers })).text();
    await anthropic.beta.files.delete(made.id, {}, { headers });
    const { status } = await failure(
      anthropic.beta.files.retrieveMetadata(made.id, {}, { headers }),
      (error) => ({ status: error.status }),
    );
    return { content, status_after: status };
  },
});
