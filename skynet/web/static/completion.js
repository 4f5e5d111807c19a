// One streamed chat completion: what is sent, and what comes back.

import { call } from "./api.js";
import { events } from "./sse.js";

// The body of the request. Settings that are empty are left out.
export function body(settings, turns) {
  const messages = turns.map(({ role, text }) => ({ role, content: text }));
  if (settings.system.trim()) messages.unshift({ role: "system", content: settings.system });
  const sent = { model: settings.model, messages, stream: true, stream_options: { include_usage: true } };
  const given = (name, text) => { if (String(text).trim() !== "") sent[name] = Number(text); };
  given("temperature", settings.temperature);
  given("seed", settings.seed);
  given("max_completion_tokens", settings.maxTokens);
  const stop = settings.stop.split("\n").filter(Boolean);
  if (stop.length) sent.stop = stop;
  if (settings.logprobs) Object.assign(sent, { logprobs: true, top_logprobs: 5 });
  if (settings.schema.trim()) {
    const schema = JSON.parse(settings.schema);
    sent.response_format = { type: "json_schema", json_schema: { name: "answer", schema, strict: true } };
  }
  return sent;
}

const PATIENCE_S = 60; // for a gateway that does not answer, in the middle of an answer

// Streams an answer; a connection that breaks is taken up again after the last token.
// `tell` gets parts of: {text, reasoning, tokens, usage, finish, notice}.
export async function stream(sent, signal, tell) {
  const at = { id: "", event: "", lost: 0 };
  let response = await call("/v1/chat/completions", { method: "POST", json: sent, signal });
  for (;;) {
    try {
      if (await read(response, at, tell)) return;
      throw new TypeError("the stream ended early");
    } catch (error) {
      if (!(error instanceof TypeError) || !at.id || signal.aborted) throw error; // not the network's
    }
    at.lost = at.lost || Date.now();
    response = await again(at, signal, tell);
  }
}

// Reads a stream to its end; false if it broke off before.
async function read(response, at, tell) {
  for await (const event of events(response)) {
    if (event.comment !== undefined) {
      if (event.comment) tell({ notice: event.comment });
      continue;
    }
    if (event.data === "[DONE]") return true;
    const chunk = JSON.parse(event.data);
    if (chunk.error) throw new Error(chunk.error.message || "the answer broke off");
    at.id = chunk.id || at.id;
    at.event = event.id || at.event;
    at.lost = 0;
    if (chunk.usage) tell({ usage: chunk.usage });
    const choice = chunk.choices?.[0];
    if (!choice) continue;
    const text = choice.delta?.content || "";
    const reasoning = choice.delta?.reasoning_content || "";
    const tokens = choice.logprobs?.content || [];
    if (text || reasoning || tokens.length) tell({ text, reasoning, tokens });
    if (choice.finish_reason) tell({ finish: choice.finish_reason });
  }
  return false;
}

// The rest of a broken stream, once a gateway answers again.
async function again(at, signal, tell) {
  for (;;) {
    tell({ notice: "reconnecting" });
    await new Promise((resolve) => setTimeout(resolve, 500));
    const headers = at.event ? { "Last-Event-ID": at.event } : {};
    try {
      return await call(`/v1/chat/completions/${at.id}?stream=true&include_usage=true`, { headers, signal });
    } catch (error) {
      const over = Date.now() - at.lost > PATIENCE_S * 1000;
      if (error.status || error.name === "AbortError" || over) throw error;
    }
  }
}

// The same request for a shell and for Python.
export function asCurl(sent, base) {
  const text = JSON.stringify(sent, null, 2).replace(/'/g, "'\\''");
  return `curl ${base}/chat/completions \\\n  -H "Authorization: Bearer $SKYNET_API_KEY" \\\n  -H "Content-Type: application/json" \\\n  -d '${text}'`;
}

export function asPython(sent, base) {
  const { stream: _, stream_options: __, ...fields } = sent;
  const lines = Object.entries(fields).map(([name, value]) => `    ${name}=${python(value, 4)},`);
  return [
    "import os",
    "from openai import OpenAI",
    "",
    `client = OpenAI(base_url=${JSON.stringify(base)}, api_key=os.environ.get("SKYNET_API_KEY", "none"))`,
    "answer = client.chat.completions.create(", ...lines, ")",
    "print(answer.choices[0].message.content)",
  ].join("\n");
}

function python(value, indent) {
  if (value === true) return "True";
  if (value === false) return "False";
  if (value === null) return "None";
  if (Array.isArray(value)) return `[${value.map((item) => python(item, indent)).join(", ")}]`;
  if (typeof value === "object")
    return `{${Object.entries(value).map(([name, item]) => `${JSON.stringify(name)}: ${python(item, indent)}`).join(", ")}}`;
  return JSON.stringify(value);
}
