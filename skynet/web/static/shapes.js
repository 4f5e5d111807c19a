// What would be better: the planner's prediction for other shapes of the present workers.

import { call, named } from "./api.js";
import { bytes, Card, Empty, html, number, Scroll, seconds } from "./ui.js";

const SHOWN = 8;

export function Shapes({ state, act }) {
  const { shapes, stages } = state;
  const current = stages.length ? `${stages.length}x${stages[0].cells.length}` : "";
  const rebalance = () => act({
    title: "Rebalance now?",
    text: "The cluster changes to the fastest shape for its workers. Requests pause while weights load, and go on.",
    verb: "Rebalance",
    run: () => call(named("/cluster/rebalance", state.cluster), { method: "POST" }),
  });
  const rows = shapes ? shapes.shapes.filter((each, index) => index < SHOWN || each.shape === current) : [];
  return html`<${Card} id="shapes" title="What would be better" note="predicted for the workers that are here">
    ${rows.length === 0 ? html`<${Empty}>${shapes?.problem || "No prediction yet: it needs a model and workers that have measured their speed."}<//>` : html`
    <${Scroll} label="Predicted shapes"><table class="list">
      <thead><tr><th scope="col">Shape</th><th scope="col" class="num">Memory each</th>
        <th scope="col" class="num">Load</th><th scope="col" class="num">First token</th>
        <th scope="col" class="num">Tokens/s, 1</th><th scope="col" class="num">16 requests</th></tr></thead>
      <tbody>${rows.map((each) => html`<tr key=${each.shape} class=${each.shape === current ? "current" : ""}>
        <th scope="row">${each.shape.replace("x", " × ")}${each.shape === current && html` <span class="mark">now</span>`}${shapes.recommended?.shape === each.shape && html` <span class="mark good">recommended</span>`}</th>
        ${each.problem ? html`<td colspan="5" class="sub">${each.problem}</td>` : html`
        <td class="num">${bytes(each.memory_bytes)}</td><td class="num">${seconds(each.load_s)}</td>
        <td class="num">${seconds(each.first_token_s)}</td><td class="num">${number(each.one, 1)}</td>
        <td class="num">${number(each.many, 1)}</td>`}
      </tr>`)}</tbody>
    </table><//>
    ${shapes.recommended && html`<p class="sub reason">${shapes.recommended.shape.replace("x", " × ")}: ${shapes.recommended.reason}.</p>`}
    <button onClick=${rebalance}>Rebalance …</button>`}
  <//>`;
}
