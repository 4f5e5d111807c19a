// Who is where: the stages x shards, and the members beside them.

import { bytes, Card, duration, Empty, html, many, NONE, number, percent, Scroll, seconds, span, State } from "./ui.js";

function linkText(cells) {
  const kinds = {};
  for (const link of cells.flatMap((cell) => cell.links || []))
    kinds[link.kind] = Math.max(kinds[link.kind] || 0, link.round_trip_s);
  return Object.entries(kinds).map(([kind, trip]) => `${kind} ${seconds(trip)}`).join(", ");
}

function Cell({ cell, slow }) {
  if (cell.state === "empty")
    return html`<td class="cell vacant" data-address=${cell.address}>
      <${State} state="empty">no worker<//>
      <span class="sub">heads ${span(cell.heads)}</span>
    </td>`;
  const loading = cell.state === "loading" || cell.state === "starting";
  const word = cell.state === "silent" ? `silent ${cell.silent_s.toFixed(1)} s` : cell.state;
  return html`<td class=${`cell is-${cell.state}`} data-address=${cell.address}
      data-state=${cell.state} data-host=${cell.host} data-pid=${cell.pid}>
    <div class="top">
      <${State} state=${cell.state}>${loading ? `${cell.state} ${percent(cell.loaded_share)}` : word}<//>
      ${slow && html`<span class="mark" title="The others of its stage wait for it">slowest</span>`}
    </div>
    ${loading && html`<progress max="1" value=${cell.loaded_share}
      aria-label=${`weights of ${cell.address} loaded`}></progress>`}
    <div class="host">${cell.host} <span class="pid">pid ${cell.pid}</span></div>
    <dl class="facts">
      <div><dt>heads</dt><dd>${span(cell.heads)}</dd></div>
      <div><dt>weights</dt><dd>${bytes(cell.weight_bytes)}</dd></div>
      <div><dt>memory</dt><dd>${bytes(cell.resident_bytes)}</dd></div>
      <div><dt>${cell.device}</dt><dd>${cell.threads} of ${many(cell.cores, "core")}</dd></div>
    </dl>
    ${cell.problem && html`<p class="problem">${cell.problem}</p>`}
  </td>`;
}

export function Grid({ state }) {
  const { stages, plan, timings } = state;
  const note = plan
    ? `plan ${plan.epoch} · ${plan.dtype}${plan.quantisation ? `, ${plan.quantisation} weights` : plan.weight_dtype !== plan.dtype ? `, ${plan.weight_dtype} weights` : ""} · a chord per ${plan.chord_span === "auto" ? "stage or layer" : plan.chord_span}`
    : "no plan is in force";
  const slowest = Object.fromEntries((timings || []).map((each) => [each.stage, each.slowest]));
  const shards = stages.length ? stages[0].cells.length : 0;
  return html`<${Card} id="grid" wide title="Stages × shards" note=${note}>
    ${shards === 0
      ? html`<${Empty}>No shape yet. Split a model: <code>skynet split MODEL --stages 2 --shards 2</code><//>`
      : html`<${Scroll} label="Stages and shards">
        <table class="grid">
          <caption class="hidden">The worker of each shard of each stage</caption>
          <thead><tr><td></td>${stages.map((stage) => html`
            <th scope="col" key=${stage.stage}>Stage ${stage.stage}
              <span class="sub">${stage.layers ? `layers ${span(stage.layers)}` : ""}${linkText(stage.cells) && ` · ${linkText(stage.cells)}`}</span>
            </th>`)}</tr></thead>
          <tbody>${Array.from({ length: shards }, (_, shard) => html`<tr key=${shard}>
            <th scope="row"><span class="wide-only">Shard </span>${shard}</th>
            ${stages.map((stage) => html`<${Cell} key=${stage.stage} cell=${stage.cells[shard]}
              slow=${slowest[stage.stage] === shard} />`)}
          </tr>`)}</tbody>
        </table><//>`}
    <${Beside} state=${state} />
  <//>`;
}

function Beside({ state }) {
  const { orchestrators, others, now } = state;
  const rows = [
    ...orchestrators.map((each) => ({ ...each, role: "orchestrator", why: each.state === "leading" ? "leads" : each.state === "standby" ? "stands by" : each.problem })),
    ...others.map((each) => ({ ...each, role: "worker" })),
  ];
  if (rows.length === 0) return html`<${Empty}>No orchestrator: start one with <code>celery -A skynet worker -Q orchestrator</code><//>`;
  return html`<${Scroll} label="Orchestrators and workers without a place">
    <table class="list beside">
      <caption>Beside the grid</caption>
      <thead><tr><th scope="col">Member</th><th scope="col">State</th><th scope="col">Host</th>
        <th scope="col" class="num">Memory</th><th scope="col" class="num">Up</th><th scope="col">Why</th></tr></thead>
      <tbody>${rows.map((each) => html`<tr key=${each.id}>
        <th scope="row">${each.role}</th>
        <td><${State} state=${each.state} /></td>
        <td>${each.host} <span class="pid">pid ${each.pid}</span></td>
        <td class="num">${each.resident_bytes ? bytes(each.resident_bytes) : NONE}</td>
        <td class="num">${each.joined ? duration(now - each.joined) : NONE}</td>
        <td>${each.why}</td>
      </tr>`)}</tbody>
    </table><//>`;
}

// The figures above the grid.
export function Figures({ state }) {
  const { engine, requests, redis } = state;
  const figures = [
    ["tokens/s", number(engine.tokens_per_s ?? 0, 1)],
    ["running", number(engine.running ?? 0)],
    ["waiting", number(engine.waiting ?? Math.max(0, requests.open - (engine.running ?? 0)))],
    ["steps", number(engine.steps ?? null)],
    ["prompt tokens reused", engine.prompt_tokens ? percent((engine.cached_tokens || 0) / engine.prompt_tokens) : NONE],
    ["Redis memory", bytes(redis.memory_bytes)],
  ];
  return html`<dl class="figures">${figures.map(([name, value]) => html`
    <div key=${name}><dt>${name}</dt><dd>${value}</dd></div>`)}</dl>`;
}
