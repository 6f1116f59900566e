// OpenAI's own JavaScript client against the server: node conformance.mjs URL, with `openai` in node_modules.
import assert from "node:assert/strict";
import OpenAI from "openai";

const client = new OpenAI({ baseURL: `${process.argv[2]}/v1`, apiKey: "none", maxRetries: 0 });
const ask = (text, more = {}) => ({ model: "m", messages: [{ role: "user", content: text }], ...more });
const parameters = { type: "object", properties: { city: { type: "string" } }, required: ["city"] };
const tools = [{ type: "function", function: { name: "weather", parameters } }];

const whole = await client.chat.completions.create(ask("2+2?", { reasoning_effort: "low" }));
assert.equal(whole.choices[0].message.content, "The answer is 4.");
assert.equal(whole.choices[0].message.reasoning_content, "2 + 2 is 4.");
assert.ok(whole.usage.completion_tokens_details.reasoning_tokens > 0);

let text = "";
let usage = null;
const options = { reasoning_effort: "low", stream: true, stream_options: { include_usage: true } };
for await (const chunk of await client.chat.completions.create(ask("2+2?", options))) {
  text += chunk.choices[0]?.delta?.content ?? "";
  usage = chunk.usage ?? usage;
}
assert.equal(text, "The answer is 4.");
assert.ok(usage.total_tokens > 0);

const called = await client.chat.completions.create(ask("weather", { tools }));
assert.equal(called.choices[0].finish_reason, "tool_calls");
const cities = called.choices[0].message.tool_calls.map((call) => JSON.parse(call.function.arguments).city);
assert.deepEqual(cities, ["Köln", "Rom"]);

const gathered = await client.chat.completions.stream(ask("weather", { tools })).finalChatCompletion();
assert.equal(gathered.choices[0].message.tool_calls.length, 2);

const aborted = await client.chat.completions.create(ask("long", { stream: true }));
for await (const _ of aborted) break; // leaves in mid-stream

const response = await client.responses.create({ model: "m", input: "2+2?", reasoning: { effort: "low" } });
assert.equal(response.output_text, "The answer is 4.");
const next = await client.responses.create({ model: "m", input: "And?", previous_response_id: response.id });
assert.equal(next.status, "completed");
const streamed = client.responses.stream({ model: "m", input: "2+2?", reasoning: { effort: "low" } });
assert.equal((await streamed.finalResponse()).output_text, "The answer is 4.");
assert.equal((await client.responses.inputItems.list(response.id)).data.length, 1);
await client.responses.delete(response.id);

const names = [];
for await (const model of client.models.list()) names.push(model.id);
assert.ok(names.includes("m"));
assert.equal((await client.models.retrieve("org/plain")).id, "org/plain");

await assert.rejects(client.chat.completions.create(ask("x", { model: "nobody" })), OpenAI.NotFoundError);
await assert.rejects(client.chat.completions.create(ask("x", { temperature: 9 })), OpenAI.BadRequestError);
await assert.rejects(client.responses.retrieve("resp_none"), OpenAI.NotFoundError);
await assert.rejects(client.chat.completions.create(ask("x", { stream: true, frobnicate: 1 })), (error) => {
  return error.param === "frobnicate" && error.requestID?.startsWith("req_");
});
console.log("conforms");
