// The `cloudflare` SDK for TypeScript: identity, catalogue, finetunes, inference, logs.
import assert from "node:assert/strict";
import fs from "node:fs";
import Cloudflare from "cloudflare";
import { ACCOUNT, ADAPTERS, BASE, MODEL, PIRATE, QUESTION, TOKEN, V4, call, raises } from "./tell.mjs";

const client = new Cloudflare({ apiToken: TOKEN, baseURL: V4, maxRetries: 0 });
const ASK = { account_id: ACCOUNT, prompt: QUESTION, temperature: 0, max_tokens: 40 };

async function all(pages) {
  const rows = [];
  for await (const row of pages) rows.push(row);
  return rows;
}

await call("identity", async () => {
  assert.equal((await client.user.tokens.verify()).status, "active");
  assert.deepEqual((await all(client.accounts.list())).map((row) => row.id), [ACCOUNT]);
  assert.deepEqual((await all(client.memberships.list())).map((row) => row.account.id), [ACCOUNT]);
});

await call("global key", async () => {
  const other = new Cloudflare({ apiKey: TOKEN, apiEmail: "a@example.org", apiToken: null, baseURL: V4 });
  assert.deepEqual((await all(other.accounts.list())).map((row) => row.id), [ACCOUNT]);
});

await call("create and upload", async () => {
  const made = await client.ai.finetunes.create({ account_id: ACCOUNT, model: MODEL, name: "by-typescript" });
  for (const name of ["adapter_config.json", "adapter_model.safetensors"]) {
    const file = fs.createReadStream(`${ADAPTERS}/tides-pirate/${name}`);
    const answer = await client.ai.finetunes.assets.create(made.id, { account_id: ACCOUNT, file, file_name: name });
    assert.equal(answer.success, true);
  }
  assert.equal((await client.ai.run(MODEL, { ...ASK, lora: "by-typescript" })).response, PIRATE);
});

await call("list finetunes", async () => {
  const names = (await client.ai.finetunes.list({ account_id: ACCOUNT })).map((row) => row.name);
  assert(names.includes("pirate") && names.includes("by-typescript"));
});

await call("run", async () => assert.equal((await client.ai.run(MODEL, ASK)).response, BASE));
await call("run with LoRA", async () =>
  assert.equal((await client.ai.run(MODEL, { ...ASK, lora: "pirate" })).response, PIRATE),
);

await call("stream", async () => {
  const answer = await client.ai.run(MODEL, { ...ASK, lora: "pirate", stream: true }).asResponse();
  const events = (await answer.text()).split("\n\n").filter(Boolean).map((event) => event.replace("data: ", ""));
  assert.equal(events.pop(), "[DONE]");
  assert.equal(events.map((event) => JSON.parse(event).response).join(""), PIRATE);
});

await call("models, schema, tasks, authors", async () => {
  const names = (await all(client.ai.models.list({ account_id: ACCOUNT }))).map((row) => row.name);
  assert(names.includes(MODEL));
  assert.equal(new Set(names).size, names.length);
  assert(await client.ai.models.schema.get({ account_id: ACCOUNT, model: MODEL }));
  assert((await all(client.ai.tasks.list({ account_id: ACCOUNT }))).length > 0);
  assert((await all(client.ai.authors.list({ account_id: ACCOUNT }))).length > 0);
});

await call("errors", async () => {
  const gone = await raises(() => client.ai.run(MODEL, { ...ASK, lora: "nobody" }));
  assert.equal(gone.status, 404);
  assert.equal(gone.errors[0].code, 3037);
  const bad = await raises(() => client.ai.run(MODEL, { ...ASK, temperature: 9 }));
  assert.equal(bad.errors[0].code, 5006);
});

await call("logs", async () => {
  const where = { account_id: ACCOUNT };
  const log = (await client.aiGateway.logs.list("default", { ...where, per_page: 5 })).result[0];
  const detail = await client.aiGateway.logs.get(log.id, { ...where, gateway_id: "default" });
  assert.equal(detail.id, log.id);
  const filters = [
    { key: "success", operator: "eq", value: [true] },
    { key: "model", operator: "eq", value: [MODEL] },
  ];
  const found = (await client.aiGateway.logs.list("default", { ...where, filters })).result;
  assert(found.length > 0 && found.every((row) => row.success && row.model === MODEL));
  await client.aiGateway.logs.edit(log.id, { ...where, gateway_id: "default", feedback: 1 });
});
