// Where each stage's time goes, as shares of the last seconds.

import { Card, Empty, html, NONE, Scroll } from "./ui.js";

const PARTS = ["compute", "exchange", "chord", "idle"];
const share = (value) => (value === null ? NONE : `${(100 * value).toFixed(value < 0.0995 ? 1 : 0)} %`);

export function Timing({ timings }) {
  return html`<${Card} id="timing" title="Where a step's time goes" note="of the last seconds, by stage">
    ${timings ? html`<${Bars} timings=${timings} />` : html`<${Empty}>No data yet: it comes with the first steps.<//>`}
  <//>`;
}

function Bars({ timings }) {
  return html`<div class="bars">
    <ul class="legend">${PARTS.map((part) => html`
      <li key=${part}><span class=${`swatch part-${part}`} aria-hidden="true"></span>${part}</li>`)}</ul>
    <div aria-hidden="true">${timings.map((stage) => html`<div class="bar" key=${stage.stage}>
      <span class="name">Stage ${stage.stage}</span>
      <div class="track">${PARTS.map((part) => stage[part] > 0 && html`
        <div key=${part} class=${`part part-${part}`} title=${`${part} ${share(stage[part])}`}
          style=${{ width: `${100 * stage[part]}%` }}></div>`)}</div>
    </div>`)}</div>
    <${Scroll} label="Shares of time by stage"><table class="list">
      <thead><tr><th scope="col">Stage</th>${PARTS.map((part) => html`
        <th scope="col" class="num" key=${part}>${part}</th>`)}<th scope="col">Slowest shard</th></tr></thead>
      <tbody>${timings.map((stage) => html`<tr key=${stage.stage}>
        <th scope="row">${stage.stage}</th>
        ${PARTS.map((part) => html`<td class="num" key=${part}>${share(stage[part])}</td>`)}
        <td>${slowest(stage)}</td></tr>`)}</tbody>
    </table><//>
  </div>`;
}

function slowest(stage) {
  if (stage.slowest === null) return NONE;
  const slow = stage.shards.find((each) => each.shard === stage.slowest);
  const others = stage.shards.filter((each) => each !== slow).map((each) => each.compute);
  const most = Math.max(...others);
  const more = most > 0 ? slow.compute / most - 1 : 0;
  return more >= 0.01 ? `${stage.slowest}, ${share(more)} more than the next` : `${stage.slowest}, by a hair`;
}
