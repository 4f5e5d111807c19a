// How to connect the tools that people already have.

import { call, key } from "./api.js";
import { Card, html, useEffect, useState } from "./ui.js";

const snippets = (base, model) => [
  ["curl", `curl ${base}/chat/completions \\
  -H "Authorization: Bearer $SKYNET_API_KEY" -H "Content-Type: application/json" \\
  -d '{"model": "${model}", "messages": [{"role": "user", "content": "Name three rivers"}]}'`],
  ["Python, openai", `from openai import OpenAI

client = OpenAI(base_url="${base}", api_key="...")
answer = client.chat.completions.create(
    model="${model}",
    messages=[{"role": "user", "content": "Name three rivers"}],
)
print(answer.choices[0].message.content)`],
  ["Node, openai", `import OpenAI from "openai";

const client = new OpenAI({ baseURL: "${base}", apiKey: "..." });
const answer = await client.chat.completions.create({
  model: "${model}",
  messages: [{ role: "user", content: "Name three rivers" }],
});
console.log(answer.choices[0].message.content);`],
  ["LangChain", `from langchain_openai import ChatOpenAI

llm = ChatOpenAI(model="${model}", base_url="${base}", api_key="...")
print(llm.invoke("Name three rivers").content)`],
  ["LiteLLM", `import litellm

answer = litellm.completion(
    model="openai/${model}", api_base="${base}", api_key="...",
    messages=[{"role": "user", "content": "Name three rivers"}],
)`],
  ["llm", `# ~/.config/io.datasette.llm/extra-openai-models.yaml
- model_id: skynet
  model_name: ${model}
  api_base: ${base}

$ llm -m skynet "Name three rivers"`],
  ["Open WebUI", `OPENAI_API_BASE_URL=${base}
OPENAI_API_KEY=...        # any text if the gateway has no keys
ENABLE_OLLAMA_API=false`],
  ["lm-eval", `lm_eval --model local-completions --tasks arc_easy \\
  --model_args model=${model},base_url=${base}/completions,tokenizer_backend=remote`],
];

export function Connect() {
  const [model, setModel] = useState("MODEL");
  useEffect(() => {
    call("/v1/models").then((response) => response.json())
      .then(({ data }) => data.length && setModel(data[0].id)).catch(() => {});
  }, []);
  const base = `${location.origin}/v1`;
  return html`<div class="stack">
    <${Card} id="connect" title="Connect" note="any client of OpenAI's API; no plug-in">
      <dl class="facts wide-facts">
        <div><dt>base URL</dt><dd><code>${base}</code></dd></div>
        <div><dt>model</dt><dd><code>${model}</code></dd></div>
        <div><dt>key</dt><dd>${key() ? "the one that you entered here" : "none entered; a gateway on this machine may need none"}</dd></div>
      </dl>
    <//>
    <div class="snippets">${snippets(base, model).map(([name, text]) => html`<${Snippet} key=${name} name=${name} text=${text} />`)}</div>
  </div>`;
}

function Snippet({ name, text }) {
  const [copied, setCopied] = useState(false);
  const copy = () => navigator.clipboard?.writeText(text).then(() => setCopied(true));
  return html`<section class="card snippet" aria-label=${name}>
    <header><h3>${name}</h3><button class="small quiet" onClick=${copy} aria-label=${`Copy the ${name} snippet`}>${copied ? "Copied" : "Copy"}</button></header>
    <pre tabindex="0"><code>${text}</code></pre>
  </section>`;
}
