// Vercel's `ai` with workers-ai-provider: the host is fixed in the provider, so its own `fetch` option swaps the origin.
import assert from "node:assert/strict";
import { embed, generateText, streamText } from "ai";
import { createWorkersAI } from "workers-ai-provider";
import { ACCOUNT, BASE, EMBED_MODEL, MODEL, PIRATE, QUESTION, TOKEN, V4, call, raises } from "./tell.mjs";

const seen = [];
const workersai = createWorkersAI({
  accountId: ACCOUNT,
  apiKey: TOKEN,
  fetch: (url, init) => {
    seen.push(String(url));
    return fetch(String(url).replace("https://api.cloudflare.com/client/v4", V4), init);
  },
});
const ASK = { prompt: QUESTION, temperature: 0, maxOutputTokens: 40, maxRetries: 0 };

await call("text", async () => {
  const said = await generateText({ ...ASK, model: workersai(MODEL) });
  assert.equal(said.text, BASE);
  assert(said.usage.outputTokens > 0);
});

await call("LoRA in the query", async () => {
  const said = await generateText({ ...ASK, model: workersai(MODEL, { lora: "pirate" }) });
  assert.equal(said.text, PIRATE);
  assert.match(seen.at(-1), /[?&]lora=pirate/);
});

await call("stream", async () => {
  const said = streamText({ ...ASK, model: workersai(MODEL, { lora: "pirate" }) });
  let text = "";
  for await (const piece of said.textStream) text += piece;
  assert.equal(text, PIRATE);
  assert.equal(await said.finishReason, "stop");
});

await call("embeddings", async () => {
  const said = await embed({ model: workersai.textEmbeddingModel(EMBED_MODEL), value: "which hall", maxRetries: 0 });
  assert.equal(said.embedding.length, 32);
});

await call("errors", async () => {
  const error = await raises(() => generateText({ ...ASK, model: workersai(MODEL, { lora: "nobody" }) }));
  assert.match(String(error.message) + JSON.stringify(error), /Finetune nobody not found|3037|404/);
});
