// Redis and the models that are staged in it.

import { call, named } from "./api.js";
import { bytes, Card, Empty, html, NONE, percent, Scroll, seconds, State } from "./ui.js";

export function Storage({ state, act }) {
  const { redis, models } = state;
  const share = redis.limit_bytes ? redis.memory_bytes / redis.limit_bytes : null;
  const facts = [
    ["memory", bytes(redis.memory_bytes)],
    ["limit", redis.limit_bytes ? `${bytes(redis.limit_bytes)}, ${percent(share)} used` : "none"],
    ["when full", redis.policy || NONE],
    ["append-only file", redis.append_only === null ? NONE : redis.append_only ? `on, ${redis.append_only_status || "ok"}` : "off"],
    ["round trip", seconds(redis.round_trip_s)],
    ["server", redis.version || NONE],
  ];
  return html`<${Card} id="storage" title="Redis and models" note=${redis.url}>
    ${share !== null && html`<progress max="1" value=${share} aria-label="memory of Redis used"></progress>`}
    <dl class="facts wide-facts">${facts.map(([name, value]) => html`<div key=${name}><dt>${name}</dt><dd>${value}</dd></div>`)}</dl>
    <${Models} models=${models} cluster=${state.cluster} act=${act} />
  <//>`;
}

function Models({ models, cluster, act }) {
  const listed = Object.values(models).sort((a, b) => a.name.localeCompare(b.name));
  if (listed.length === 0) return html`<${Empty}>No model is staged.<//>`;
  const verify = (model) => act({
    title: `Verify ${model.name}?`,
    text: `Every tile is read and compared with its checksum: ${bytes(model.num_bytes)} from Redis. Requests go on, slower.`,
    verb: "Verify",
    run: () => call(named(`/cluster/models/${model.digest}/verify`, cluster), { method: "POST" }),
  });
  const remove = (model) => act({
    title: `Remove ${model.name}?`,
    text: `${bytes(model.num_bytes)} of Redis are free then; the model has to be split again to be used.`,
    verb: "Remove model",
    run: () => call(named(`/cluster/models/${model.digest}`, cluster), { method: "DELETE" }),
  });
  return html`<ul class="models">${listed.map((model) => html`<li key=${model.digest}>
    <div class="model">
      <strong>${model.name}</strong> <code>${model.digest.slice(0, 12)}</code>
      ${model.in_force && html` <span class="mark">in force</span>`}
      <div class="sub"><${State} state=${model.state}>${words(model)}<//> · ${model.weights} · ${bytes(model.num_bytes)}</div>
      ${model.check && html`<${Check} check=${model.check} />`}
    </div>
    <div class="buttons">
      <button class="small" onClick=${() => verify(model)} disabled=${model.check?.state === "running"}>Verify</button>
      <button class="small danger" onClick=${() => remove(model)} disabled=${model.in_force}
        title=${model.in_force ? "The cluster runs it: split another model first" : ""}>Remove</button>
    </div>
  </li>`)}</ul>`;
}

function words(model) {
  const tiles = model.tiles_wanted ? `${model.tiles} of ${model.tiles_wanted} tiles` : `${model.tiles} tiles, no manifest`;
  return {
    complete: "complete", staging: `being staged, ${tiles}`, lean: "on the workers' disks",
    half: `incomplete, ${tiles}`, broken: `${model.broken} broken tiles reported`,
  }[model.state] || model.state;
}

function Check({ check }) {
  if (check.state === "running")
    return html`<progress max=${check.total || 1} value=${check.done} aria-label="verified"></progress>`;
  const state = { good: "good", bad: "broken", failed: "failed" }[check.state] || "warning";
  return html`<div class="sub"><${State} state=${state}>verified: ${check.text}<//></div>`;
}
