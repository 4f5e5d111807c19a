// openai for Node: an answer, a stream, a parsed object, embeddings' refusal, a named error.
import OpenAI from "openai";

const { MODEL: model, QUESTION, NEW } = process.env;
const client = new OpenAI({ maxRetries: 0 });
const messages = [{ role: "user", content: QUESTION }];
const ask = { model, messages, temperature: 0, max_completion_tokens: Number(NEW) };

const whole = await client.chat.completions.create(ask);
const stream = await client.chat.completions.create({
  ...ask,
  stream: true,
  stream_options: { include_usage: true },
});
let streamed = "";
let usage = null;
for await (const chunk of stream) {
  streamed += chunk.choices[0]?.delta?.content ?? "";
  usage = chunk.usage ?? usage;
}
const response = await client.responses.create({
  model,
  input: QUESTION,
  temperature: 0,
  max_output_tokens: Number(NEW),
});
const models = [];
for await (const each of client.models.list()) models.push(each.id);
let error = null;
try {
  await client.chat.completions.create({ ...ask, model: "nobodys" });
} catch (caught) {
  error = [caught instanceof OpenAI.NotFoundError, caught.code, caught.param];
}
console.log(
  JSON.stringify({
    answers: [whole.choices[0].message.content, streamed, response.output_text],
    tokens: [whole.usage.completion_tokens, usage.completion_tokens],
    models,
    error,
  }),
);
