// The page: its frame, its three views and the live state.

import { call, onKey } from "./api.js";
import { Charts } from "./charts.js";
import { Chat } from "./chat.js";
import { Connect } from "./connect.js";
import { Confirm, KeyDialog } from "./dialogs.js";
import { Events } from "./events.js";
import { Figures, Grid } from "./grid.js";
import { follow } from "./live.js";
import { Requests } from "./requests.js";
import { Shapes } from "./shapes.js";
import { Storage } from "./storage.js";
import { Timing } from "./timing.js";
import { duration, html, render, State, useEffect, useState } from "./ui.js";

const VIEWS = [["cluster", "Cluster"], ["chat", "Chat"], ["connect", "Connect"]];
const OLD_S = 4; // a state older than this is marked

const viewOf = () => VIEWS.find(([name]) => `#${name}` === location.hash)?.[0] || "cluster";

function App() {
  const [view, setView] = useState(viewOf());
  const [cluster, setCluster] = useState("");
  const [clusters, setClusters] = useState([]);
  const [live, setLive] = useState({ state: null, link: "waiting", problem: "" });
  const [question, setQuestion] = useState(null);
  const [askKey, setAskKey] = useState(null); // why a key is asked for
  const [round, setRound] = useState(0);
  const [, tick] = useState(0);

  useEffect(() => {
    const turn = () => setView(viewOf());
    addEventListener("hashchange", turn);
    const timer = setInterval(() => tick((count) => count + 1), 1000);
    const unhook = onKey(() => setRound((count) => count + 1));
    return () => { removeEventListener("hashchange", turn); clearInterval(timer); unhook(); };
  }, []);
  useEffect(() => {
    setLive({ state: null, link: "waiting", problem: "" });
    call("/cluster/state").then((response) => response.json()).then((state) => setClusters(state.clusters)).catch(() => {});
    return follow(cluster, (news) => {
      setLive((before) => ({ ...before, ...news }));
      if (news.status === 401) setAskKey(news.problem);
    });
  }, [cluster, round]);
  useEffect(() => {
    document.title = live.state ? `${live.state.health.level === "good" ? "" : "▲ "}${live.state.target?.name || "SkyNet"} · SkyNet` : "SkyNet";
  }, [live.state?.health.level, live.state?.target?.name]);

  return html`<a class="skip" href="#main" onClick=${(event) => { event.preventDefault(); document.getElementById("main").focus(); }}>To the content</a>
    <header class="bar-top">
      <div class="brand"><img src="/static/icon.svg" alt="" width="26" height="26" /><h1>SkyNet</h1></div>
      <nav aria-label="Views">${VIEWS.map(([name, word]) => html`<a key=${name} href=${`#${name}`} aria-current=${view === name ? "page" : undefined}>${word}</a>`)}</nav>
      <div class="tools">
        ${clusters.length > 1 && html`<label class="hidden" for="cluster">Cluster</label>
          <select id="cluster" value=${cluster || clusters[0]} onChange=${(event) => setCluster(event.target.value)}>
            ${clusters.map((name) => html`<option key=${name} value=${name}>${name}</option>`)}</select>`}
        <${Link} live=${live} />
        <button class="small quiet" onClick=${() => setAskKey("")}>Key</button>
      </div>
    </header>
    <main id="main" tabindex="-1">
      ${view === "cluster" && html`<${Overview} live=${live} act=${setQuestion} />`}
      ${view === "chat" && html`<${Chat} key=${round} state=${live.state} />`}
      ${view === "connect" && html`<${Connect} key=${round} />`}
    </main>
    ${question && html`<${Confirm} question=${question} close=${() => setQuestion(null)} needKey=${(why) => { setQuestion(null); setAskKey(why); }} />`}
    ${askKey !== null && html`<${KeyDialog} problem=${askKey} close=${() => setAskKey(null)} />`}`;
}

function Link({ live }) {
  const age = live.at ? Date.now() / 1000 - live.at : 0;
  if (live.link === "live" && age < OLD_S) return html`<span class="link"><${State} state="good">live<//></span>`;
  if (live.link === "refused") return html`<span class="link"><${State} state="bad">no access<//></span>`;
  return html`<span class="link"><${State} state="warning">${live.at ? `${duration(age)} old` : "connecting"}<//></span>`;
}

function Overview({ live, act }) {
  const { state, problem, link } = live;
  if (!state) {
    const words = live.status === 401 ? "The gateway asks for a key." : link === "refused" ? problem : problem ? `The gateway does not answer: ${problem}` : "Connecting …";
    return html`<section class="health calm" role="status"><p class="sentence">${words}</p></section>`;
  }
  return html`<${Health} health=${state.health} />
    ${state.stages && html`<${Figures} state=${state} />
    <div class="cards">
      <${Grid} state=${state} />
      <${Timing} timings=${state.timings} />
      <${Shapes} state=${state} act=${act} />
      <${Charts} key=${state.cluster} history=${state.history} events=${state.events} />
      <${Requests} state=${state} act=${act} />
      <${Events} events=${state.events} />
      <${Storage} state=${state} act=${act} />
    </div>`}`;
}

function Health({ health }) {
  return html`<section class=${`health ${health.level}`} aria-label="Health">
    <p class="sentence" role="status"><${State} state=${health.level}><span class="hidden">${health.level}: </span><//>${health.sentence}</p>
    ${health.warnings.length > 0 && html`<ul>${health.warnings.map((text) => html`<li key=${text}>${text}</li>`)}</ul>`}
  </section>`;
}

const place = document.getElementById("app");
place.textContent = "";
render(html`<${App} />`, place);
