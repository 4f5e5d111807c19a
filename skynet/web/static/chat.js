// The chat: a client of /v1/chat/completions like any other.

import { call } from "./api.js";
import { asCurl, asPython, body, stream } from "./completion.js";
import { Markdown } from "./markdown.js";
import { html, number, seconds, useEffect, useRef, useState } from "./ui.js";

const PAUSE_S = 1.5; // without a token: the answer has paused
const START = { model: "", system: "", temperature: "0", seed: "", maxTokens: "256", stop: "", schema: "", logprobs: false };

export function Chat({ state }) {
  const [settings, setSettings] = useState(START);
  const [models, setModels] = useState([]);
  const [turns, setTurns] = useState([]);
  const [draft, setDraft] = useState("");
  const [problem, setProblem] = useState("");
  const running = useRef(null);
  const end = useRef(null);
  const [, tick] = useState(0);

  useEffect(() => {
    call("/v1/models").then((response) => response.json()).then(({ data }) => {
      const names = data.map((model) => model.id);
      setModels(names);
      setSettings((now) => ({ ...now, model: names.includes(now.model) ? now.model : names[0] || "" }));
    }).catch((error) => setProblem(`No list of models: ${error.message}`));
    return () => running.current?.abort();
  }, []);

  const last = turns[turns.length - 1];
  const busy = last?.role === "assistant" && last.busy;
  useEffect(() => {
    if (!busy) return undefined;
    const timer = setInterval(() => tick((count) => count + 1), 250);
    return () => clearInterval(timer);
  }, [busy]);
  useEffect(() => { end.current?.scrollIntoView({ block: "nearest" }); }, [last?.text, turns.length]);

  async function send() {
    const text = draft.trim();
    if (!text || busy) return;
    const asked = [...turns.filter((turn) => !turn.failed), { role: "user", text }];
    let sent;
    try {
      sent = body(settings, asked);
    } catch (error) {
      setProblem(`JSON schema: ${error.message}`);
      return;
    }
    const answer = { role: "assistant", text: "", reasoning: "", tokens: [], busy: true, began: now(), newest: now(), pauses: [], sent };
    const show = () => setTurns([...asked, { ...answer }]);
    setDraft("");
    setProblem("");
    show();
    running.current = new AbortController();
    try {
      await stream(sent, running.current.signal, (part) => { take(answer, part); show(); });
    } catch (error) {
      if (error.name === "AbortError") answer.finish = "stopped";
      else Object.assign(answer, { failed: true, problem: error.message });
    }
    answer.busy = false;
    answer.ended = now();
    show();
  }

  const set = (name) => (event) =>
    setSettings({ ...settings, [name]: event.target.type === "checkbox" ? event.target.checked : event.target.value });
  return html`<div class="chat">
    <${Settings} settings=${settings} models=${models} set=${set} />
    <section class="talk card" aria-label="Chat">
      <div class="turns" aria-live="polite" tabindex="0" role="log" aria-label="Conversation">
        ${turns.length === 0 && html`<div class="hello"><h2>Ask ${settings.model || "the model"}</h2>
          <p>While it answers, kill a worker: <code>kill -9 PID</code> of any cell of the grid. The answer pauses and goes on, token for token as if nothing had happened.</p></div>`}
        ${turns.map((turn, index) => html`<${Turn} key=${index} turn=${turn} state=${state} />`)}
        <div ref=${end}></div>
      </div>
      ${problem && html`<p class="problem" role="alert">${problem}</p>`}
      <div class="compose">
        <label class="hidden" for="prompt">Message</label>
        <textarea id="prompt" rows="2" placeholder="Message; Enter sends, Shift+Enter is a new line" value=${draft}
          onInput=${(event) => setDraft(event.target.value)}
          onKeyDown=${(event) => { if (event.key === "Enter" && !event.shiftKey && !event.isComposing) { event.preventDefault(); send(); } }}></textarea>
        <div class="buttons">
          ${busy ? html`<button onClick=${() => running.current.abort()}>Stop</button>`
            : html`<button class="primary" onClick=${send} disabled=${!draft.trim()}>Send</button>`}
          <button class="quiet" onClick=${() => setTurns([])} disabled=${busy || !turns.length}>Clear</button>
        </div>
      </div>
    </section>
  </div>`;
}

const now = () => performance.now() / 1000;

// Adds a part of the stream to an answer, and notes a pause that it ends.
function take(answer, part) {
  const at = now();
  if (part.notice) answer.notice = part.notice;
  if (part.usage) answer.usage = part.usage;
  if (part.finish) answer.finish = part.finish;
  if (part.text || part.reasoning || part.tokens?.length) {
    if (answer.first && at - answer.newest > PAUSE_S) answer.pauses.push({ at: answer.text.length, seconds: at - answer.newest });
    answer.first = answer.first || at;
    answer.newest = at;
    answer.notice = "";
    answer.chunks = (answer.chunks || 0) + 1;
    answer.text += part.text || "";
    answer.reasoning += part.reasoning || "";
    answer.tokens.push(...(part.tokens || []));
  }
}

function Turn({ turn, state }) {
  if (turn.role === "user") return html`<div class="turn user"><p>${turn.text}</p></div>`;
  const silent = turn.busy ? now() - turn.newest : 0;
  return html`<div class=${`turn assistant ${turn.busy ? "busy" : ""}`} data-busy=${String(Boolean(turn.busy))}>
    ${turn.reasoning && html`<details><summary>Reasoning</summary><p class="plain">${turn.reasoning}</p></details>`}
    ${turn.tokens.length ? html`<${Tokens} tokens=${turn.tokens} />` : html`<${Markdown} text=${turn.text} />`}
    ${turn.busy && silent > PAUSE_S && html`<p class="pause" role="status">◔ ${pauseWords(turn, state)} ${silent.toFixed(0)} s</p>`}
    ${turn.pauses.map((pause, index) => html`<p class="pause done" key=${index}>Paused for ${seconds(pause.seconds)} after ${number(pause.at)} characters, then went on.</p>`)}
    ${turn.problem && html`<p class="problem" role="alert">${turn.problem}</p>`}
    ${!turn.busy && html`<${Foot} turn=${turn} />`}
  </div>`;
}

function pauseWords(turn, state) {
  if (turn.notice === "reconnecting") return "The gateway is gone: connecting again.";
  if (/recover/i.test(turn.notice || "")) return "Recovering: the answer goes on where it paused.";
  if (state && state.health.level !== "good" && state.health.sentence) return state.health.sentence;
  return turn.first ? "Waiting for the next token." : "Waiting for the first token.";
}

// Each token with its probability as a shade and in its title; unlikely ones are underlined.
function Tokens({ tokens }) {
  return html`<p class="tokens">${tokens.map((token, index) => {
    const share = Math.exp(token.logprob);
    const others = (token.top_logprobs || []).map((each) => `${JSON.stringify(each.token)} ${(100 * Math.exp(each.logprob)).toFixed(1)} %`);
    const band = share >= 0.9 ? "sure" : share >= 0.5 ? "likely" : share >= 0.1 ? "unsure" : "unlikely";
    return html`<span key=${index} class=${`token ${band}`} title=${`${(100 * share).toFixed(1)} %; ${others.join(", ")}`}>${token.token}</span>`;
  })}</p>`;
}

function Foot({ turn }) {
  const [copied, setCopied] = useState("");
  const base = `${location.origin}/v1`;
  const copy = (what, text) => navigator.clipboard?.writeText(text).then(() => setCopied(what));
  const count = turn.usage?.completion_tokens ?? turn.tokens.length;
  const rate = count > 1 && turn.first ? (count - 1) / Math.max(1e-3, turn.newest - turn.first) : 0;
  const facts = [
    count ? `${number(count)} tokens` : "",
    rate ? `${number(rate, 1)} tokens/s` : "",
    turn.first ? `first after ${seconds(turn.first - turn.began)}` : "",
    turn.usage?.prompt_tokens ? `prompt ${number(turn.usage.prompt_tokens)}` : "",
    turn.finish && turn.finish !== "stop" ? `ended: ${turn.finish}` : "",
  ].filter(Boolean);
  return html`<footer class="foot"><span class="sub">${facts.join(" · ")}</span>
    <span class="buttons">
      <button class="small quiet" onClick=${() => copy("curl", asCurl(turn.sent, base))}>${copied === "curl" ? "Copied" : "Copy as curl"}</button>
      <button class="small quiet" onClick=${() => copy("python", asPython(turn.sent, base))}>${copied === "python" ? "Copied" : "Copy as Python"}</button>
    </span></footer>`;
}

function Settings({ settings, models, set }) {
  const field = (id, label, input) => html`<div class="field"><label for=${id}>${label}</label>${input}</div>`;
  return html`<details class="card settings" open=${matchMedia("(min-width: 56rem)").matches}>
    <summary>Settings</summary><div class="fields">
    ${field("model", "Model", html`<select id="model" value=${settings.model} onChange=${set("model")}>${models.map((name) => html`<option key=${name} value=${name}>${name}</option>`)}</select>`)}
    ${field("system", "System prompt", html`<textarea id="system" rows="3" value=${settings.system} onInput=${set("system")}></textarea>`)}
    <div class="pair">
      ${field("temperature", "Temperature", html`<input id="temperature" type="number" min="0" max="2" step="0.1" value=${settings.temperature} onInput=${set("temperature")} />`)}
      ${field("seed", "Seed", html`<input id="seed" type="number" min="0" step="1" placeholder="random" value=${settings.seed} onInput=${set("seed")} />`)}
    </div>
    ${field("max-tokens", "Longest answer, tokens", html`<input id="max-tokens" type="number" min="1" placeholder="to the end of the context" value=${settings.maxTokens} onInput=${set("maxTokens")} />`)}
    ${field("stop", "Stop texts, one a line", html`<textarea id="stop" rows="2" value=${settings.stop} onInput=${set("stop")}></textarea>`)}
    ${field("schema", "JSON schema of the answer", html`<textarea id="schema" rows="4" class="code" spellcheck="false" placeholder=${'{"type": "object", …}'} value=${settings.schema} onInput=${set("schema")}></textarea>`)}
    <label class="check"><input type="checkbox" checked=${settings.logprobs} onChange=${set("logprobs")} /> Show how likely each token was</label>
    <p class="sub">Temperature 0 is exact: the same tokens in every shape of the cluster.</p>
  </div></details>`;
}
