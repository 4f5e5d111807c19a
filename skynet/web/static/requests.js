// What is being served: sizes and times of the unfinished requests, never their prompts.

import { call, named } from "./api.js";
import { Card, duration, Empty, html, many, NONE, number, Scroll, State } from "./ui.js";

const SHOWN = 50;

export function Requests({ state, act }) {
  const listed = Object.entries(state.requests.listed)
    .filter(([, each]) => each.state !== "done")
    .sort((a, b) => (a[1].arrival || 0) - (b[1].arrival || 0));
  const cancel = (id) => act({
    title: `Cancel request ${id.slice(0, 8)}?`,
    text: "It ends after its current step; its client gets the error RequestCancelled.",
    verb: "Cancel request",
    run: () => call(named(`/cluster/requests/${encodeURIComponent(id)}/cancel`, state.cluster), { method: "POST" }),
  });
  return html`<${Card} id="requests" wide title="Requests" note=${`${many(state.requests.open, "request")} not finished; prompts are never shown`}>
    ${listed.length === 0 ? html`<${Empty}>Nothing runs and nothing waits.<//>` : html`
    <${Scroll} label="Unfinished requests"><table class="list">
      <thead><tr><th scope="col">Id</th><th scope="col">State</th><th scope="col" class="num">Age</th>
        <th scope="col" class="num">Priority</th><th scope="col" class="num">Prompt</th>
        <th scope="col" class="num">Answer</th><th scope="col" class="num">Tokens/s</th><th scope="col"><span class="hidden">Action</span></th></tr></thead>
      <tbody>${listed.slice(0, SHOWN).map(([id, each]) => html`<tr key=${id}>
        <th scope="row"><code title=${id}>${id.slice(0, 8)}</code>${each.task && each.task !== "generate" && html` <span class="sub">${each.task}</span>`}</th>
        <td><${State} state=${each.state}>${each.state}${each.progress ? ` ${number(each.progress[0])} of ${number(each.progress[1])}` : ""}<//></td>
        <td class="num">${each.created ? duration(state.now - each.created) : NONE}</td>
        <td class="num">${each.priority ?? NONE}</td>
        <td class="num">${number(each.prompt_tokens)}</td>
        <td class="num">${each.max_tokens ? `${number(each.tokens)} of ${number(each.max_tokens)}` : NONE}</td>
        <td class="num">${each.tokens_per_s ? number(each.tokens_per_s, 1) : NONE}</td>
        <td class="num"><button class="small" onClick=${() => cancel(id)} disabled=${each.state === "cancelling"}
          aria-label=${`Cancel request ${id.slice(0, 8)}`}>Cancel</button></td>
      </tr>`)}</tbody>
    </table><//>
    ${state.requests.open > Math.min(SHOWN, listed.length) && html`<p class="more">and ${number(state.requests.open - Math.min(SHOWN, listed.length))} more; <code>skynet requests</code> lists them</p>`}`}
  <//>`;
}
