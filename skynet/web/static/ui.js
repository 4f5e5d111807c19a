// What every view uses: the renderer, icons, formats.
export { html, render, useCallback, useEffect, useMemo, useRef, useState } from "./vendor/htm-preact.js";
import { html } from "./vendor/htm-preact.js";

export const NONE = "–";

export function bytes(count) {
  if (count === null || count === undefined) return NONE;
  const units = ["B", "kB", "MB", "GB", "TB"];
  let unit = 0;
  while (count >= 999.5 && unit < units.length - 1) { count /= 1000; unit += 1; }
  return `${count.toFixed(unit === 0 || count >= 99.5 ? 0 : 1)} ${units[unit]}`;
}

export function seconds(value) {
  if (value === null || value === undefined) return NONE;
  if (value < 0.001) return `${(value * 1e6).toFixed(0)} µs`;
  if (value < 1) return `${(value * 1e3).toFixed(value < 0.01 ? 2 : value < 0.1 ? 1 : 0)} ms`;
  return value < 10 ? `${value.toFixed(2)} s` : duration(value);
}

export function duration(value) {
  const total = Math.max(0, Math.round(value));
  if (total < 120) return `${total} s`;
  if (total < 7200) return `${Math.floor(total / 60)} min`;
  if (total < 172800) return `${Math.floor(total / 3600)} h`;
  return `${Math.floor(total / 86400)} d`;
}

export const number = (value, digits = 0) =>
  value === null || value === undefined
    ? NONE
    : value.toLocaleString("en", { maximumFractionDigits: digits, minimumFractionDigits: digits });

export const percent = (share) => `${Math.round(share * 100)} %`;

export const clock = (at) =>
  new Date(at * 1000).toLocaleTimeString("en-GB", { hour: "2-digit", minute: "2-digit", second: "2-digit" });

export const span = (range) => (range && range[1] > range[0] ? `${range[0]}–${range[1] - 1}` : NONE);

export const many = (count, noun) => `${number(count)} ${noun}${count === 1 ? "" : "s"}`;

// A state has a sign and a word besides its colour.
const SIGNS = {
  good: "●", ready: "●", leading: "●", standby: "○", spare: "○", complete: "●", decoding: "●",
  warning: "▲", loading: "◔", starting: "◔", prefill: "◔", replaying: "◔", recovering: "◔",
  staging: "◔", leaving: "▷", waiting: "○", cancelling: "▷", lean: "●", half: "◐",
  bad: "■", silent: "▲", failed: "■", empty: "□", broken: "■", unreadable: "■", running: "◔",
};
const TONES = {
  good: "good", ready: "good", leading: "good", complete: "good", decoding: "good", lean: "good",
  standby: "calm", spare: "calm", waiting: "calm", warning: "warning", loading: "warning",
  starting: "warning", prefill: "warning", replaying: "warning", recovering: "warning",
  staging: "warning", running: "warning", leaving: "warning", cancelling: "warning",
  silent: "bad", bad: "bad", failed: "bad", empty: "bad", half: "bad", broken: "bad",
  unreadable: "bad",
};

export const tone = (state) => TONES[state] || "calm";

export const State = ({ state, children }) => html`
  <span class=${`state ${tone(state)}`}>
    <span class="sign" aria-hidden="true">${SIGNS[state] || "○"}</span>${children || state}
  </span>`;

export const Card = ({ title, note, id, wide, children }) => html`
  <section class=${`card ${wide ? "wide" : ""}`} aria-labelledby=${`${id}-title`} id=${id}>
    <header><h2 id=${`${id}-title`}>${title}</h2>${note && html`<p class="note">${note}</p>`}</header>
    ${children}
  </section>`;

export const Empty = ({ children }) => html`<p class="empty">${children}</p>`;

// A table that scrolls by itself where it is too wide; the keyboard reaches it.
export const Scroll = ({ label, children }) => html`
  <div class="scroll" tabindex="0" role="region" aria-label=${label}>${children}</div>`;
