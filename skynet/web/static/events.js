// What happened: the cluster's event log, the newest first.

import { Card, clock, Empty, html, seconds, useState } from "./ui.js";

const KINDS = {
  lost: "bad", redis: "bad", wait: "warning", leaving: "warning", prepare: "warning", replay: "good",
  ready: "good", joined: "good", plan: "calm", leader: "calm", left: "calm", model: "calm", admin: "calm",
};
const FEW = 12;

export function Events({ events }) {
  const [all, setAll] = useState(false);
  const newest = [...events].reverse();
  return html`<${Card} id="events" title="What happened">
    ${newest.length === 0 ? html`<${Empty}>Nothing yet.<//>` : html`<ol class="events">
      ${(all ? newest : newest.slice(0, FEW)).map((event) => html`<li key=${`${event.at} ${event.text}`}>
        <time datetime=${new Date(event.at * 1000).toISOString()}>${clock(event.at)}</time>
        <span class=${`kind ${KINDS[event.kind] || "calm"}`}>${event.kind}</span>
        <span class="what">${event.text}${event.duration_s > 0 && html` <span class="took">${seconds(event.duration_s)}</span>`}</span>
      </li>`)}
    </ol>
    ${newest.length > FEW && html`<button class="small" aria-expanded=${all} onClick=${() => setAll(!all)}>
      ${all ? "Show fewer" : `Show all ${newest.length}`}</button>`}`}
  <//>`;
}
