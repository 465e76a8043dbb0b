// The OpenAI SDK for JavaScript: chat, streams, JSON schema, tools, completions, responses, models, errors.
import assert from "node:assert/strict";
import OpenAI from "openai";
import { BASE, EMBED_MODEL, MODEL, PIRATE, QUESTION, TOKEN, TOOL_MODEL, V1, call, raises } from "./tell.mjs";

const client = new OpenAI({ baseURL: V1, apiKey: TOKEN, maxRetries: 0 });
const HELLO = [{ role: "user", content: QUESTION }];
const ASK = { model: MODEL, messages: HELLO, temperature: 0, max_tokens: 40 };
const TOOLS = [
  {
    type: "function",
    function: {
      name: "tide_at",
      parameters: { type: "object", properties: { side: { enum: ["east", "west"] } }, required: ["side"] },
    },
  },
];

await call("chat", async () => {
  const said = await client.chat.completions.create(ASK);
  assert.equal(said.choices[0].message.content, BASE);
  assert(said.usage.completion_tokens > 0);
});

await call("chat with LoRA", async () => {
  const said = await client.chat.completions.create({ ...ASK, lora: "pirate" });
  assert.equal(said.choices[0].message.content, PIRATE);
});

await call("stream with usage", async () => {
  const stream = await client.chat.completions.create({
    ...ASK, lora: "pirate", stream: true, stream_options: { include_usage: true },
  });
  let text = "";
  const usages = [];
  for await (const chunk of stream) {
    text += chunk.choices[0]?.delta?.content ?? "";
    if (chunk.usage) usages.push(chunk.usage);
  }
  assert.equal(text, PIRATE);
  assert.equal(usages.length, 1);
});

await call("JSON schema", async () => {
  const schema = {
    type: "object", properties: { sells: { enum: ["wool", "salt"] } }, required: ["sells"], additionalProperties: false,
  };
  const said = await client.chat.completions.create({
    ...ASK, max_tokens: 100, response_format: { type: "json_schema", json_schema: { name: "sale", schema, strict: true } },
  });
  assert.deepEqual(Object.keys(JSON.parse(said.choices[0].message.content)), ["sells"]);
});

await call("tools", async () => {
  const said = await client.chat.completions.create({
    model: TOOL_MODEL, messages: HELLO, tools: TOOLS, tool_choice: "required", max_tokens: 800, seed: 1,
    parallel_tool_calls: false,
  });
  const [made] = said.choices[0].message.tool_calls;
  assert(["east", "west"].includes(JSON.parse(made.function.arguments).side));
});

await call("completions", async () => {
  const said = await client.completions.create({ model: MODEL, prompt: QUESTION, max_tokens: 8, temperature: 0 });
  assert.equal(said.object, "text_completion");
});

await call("responses", async () => {
  const ask = { model: MODEL, input: QUESTION, temperature: 0, max_output_tokens: 40, lora: "pirate" };
  assert.equal((await client.responses.create(ask)).output_text, PIRATE);
  const final = await client.responses.stream(ask).finalResponse();
  assert.equal(final.output_text, PIRATE);
});

await call("embeddings", async () => {
  const said = await client.embeddings.create({ model: EMBED_MODEL, input: ["which hall", "the tide"] });
  assert.deepEqual(said.data.map((row) => row.embedding.length), [32, 32]);
  const length = Math.hypot(...said.data[0].embedding);
  assert(Math.abs(length - 1) < 1e-4, String(length));
});

await call("models", async () => {
  const names = [];
  for await (const model of client.models.list()) names.push(model.id);
  assert(names.includes(MODEL));
  assert.equal((await client.models.retrieve(MODEL)).id, MODEL);
});

await call("error text", async () => {
  const gone = await raises(() => client.chat.completions.create({ ...ASK, lora: "nobody" }));
  assert(gone instanceof OpenAI.NotFoundError);
  assert.match(gone.message, /Finetune nobody not found/);
  const wrong = new OpenAI({ baseURL: V1, apiKey: "wrong", maxRetries: 0 });
  assert.match((await raises(() => wrong.chat.completions.create(ASK))).message, /Authentication error/);
});
