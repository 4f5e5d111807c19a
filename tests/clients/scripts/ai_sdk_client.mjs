// The AI SDK's provider for compatible servers: an answer, a stream, an object.
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { generateObject, generateText, streamText } from "ai";
import { z } from "zod";

const { MODEL, QUESTION, NEW, OPENAI_BASE_URL: baseURL, OPENAI_API_KEY: apiKey } = process.env;
const provider = createOpenAICompatible({
  name: "served",
  baseURL,
  apiKey,
  includeUsage: true,
  supportsStructuredOutputs: true,
});
const common = { model: provider(MODEL), prompt: QUESTION, temperature: 0, maxRetries: 0 };
const ask = { ...common, maxOutputTokens: Number(NEW) };

const whole = await generateText(ask);
const stream = streamText(ask);
let streamed = "";
for await (const part of stream.textStream) streamed += part;
const { object } = await generateObject({
  ...common,
  schema: z.object({ name: z.enum(["Paris", "Rome", "Berlin"]), is_capital: z.boolean() }),
});
console.log(
  JSON.stringify({
    answers: [whole.text, streamed],
    tokens: [whole.usage.outputTokens, (await stream.usage).outputTokens],
    city: object,
  }),
);
