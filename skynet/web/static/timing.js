// Where a step's time goes, by stage.

import { Card, Empty, html, Scroll, seconds } from "./ui.js";

const PARTS = [
  ["compute_s", "compute"],
  ["exchange_s", "exchange"],
  ["chord_s", "chord"],
  ["idle_s", "idle"],
];

export function Timing({ timings }) {
  return html`<${Card} id="timing" title="Where a step's time goes" note="the average of the last steps, by stage">
    ${timings ? html`<${Bars} timings=${timings} />` : html`<${Empty}>No data yet: it comes with the first steps.<//>`}
  <//>`;
}

function Bars({ timings }) {
  const totals = timings.map((stage) => PARTS.reduce((sum, [name]) => sum + (stage[name] || 0), 0));
  const longest = Math.max(...totals, 1e-9);
  return html`<div class="bars">
    <ul class="legend">${PARTS.map(([name, word]) => html`
      <li key=${name}><span class=${`swatch part-${word}`} aria-hidden="true"></span>${word}</li>`)}</ul>
    <div aria-hidden="true">${timings.map((stage, index) => html`<div class="bar" key=${stage.stage}>
      <span class="name">Stage ${stage.stage}</span>
      <div class="track">${PARTS.map(([name, word]) => stage[name] > 0 && html`
        <div key=${name} class=${`part part-${word}`} title=${`${word} ${seconds(stage[name])}`}
          style=${{ width: `${(100 * stage[name]) / longest}%` }}></div>`)}</div>
      <span class="total">${seconds(totals[index])}</span>
    </div>`)}</div>
    <${Scroll} label="A step's time by stage"><table class="list">
      <thead><tr><th scope="col">Stage</th>${PARTS.map(([name, word]) => html`
        <th scope="col" class="num" key=${name}>${word}</th>`)}<th scope="col">Slowest shard</th></tr></thead>
      <tbody>${timings.map((stage) => html`<tr key=${stage.stage}>
        <th scope="row">${stage.stage}</th>
        ${PARTS.map(([name]) => html`<td class="num" key=${name}>${seconds(stage[name])}</td>`)}
        <td>${slowest(stage)}</td></tr>`)}</tbody>
    </table><//>
  </div>`;
}

function slowest(stage) {
  if (stage.slowest === null) return "–";
  const shard = stage.shards.find((each) => each.shard === stage.slowest);
  return `${stage.slowest}, computes ${seconds(shard.compute_s)}`;
}
