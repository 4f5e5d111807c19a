// Markdown as vnodes: marked's lexer only, so that no HTML is made from strings.

import { lexer } from "./vendor/marked.js";
import { html } from "./ui.js";

const MAX_CHARACTERS = 100_000; // longer answers are shown as they are

export function Markdown({ text }) {
  if (text.length > MAX_CHARACTERS) return html`<pre class="plain">${text}</pre>`;
  return html`<div class="markdown">${lexer(text).map(block)}</div>`;
}

function block(token) {
  switch (token.type) {
    case "space": case "def": return null;
    case "heading": return html`<${`h${Math.min(6, token.depth + 2)}`}>${inline(token.tokens)}<//>`;
    case "paragraph": return html`<p>${inline(token.tokens)}</p>`;
    case "code": return html`<pre><code>${token.text}</code></pre>`;
    case "blockquote": return html`<blockquote>${token.tokens.map(block)}</blockquote>`;
    case "hr": return html`<hr />`;
    case "list": {
      const items = token.items.map((item) => html`<li>${item.tokens.map(block)}</li>`);
      return token.ordered ? html`<ol start=${token.start || 1}>${items}</ol>` : html`<ul>${items}</ul>`;
    }
    case "table": return html`<div class="scroll"><table class="list">
      <thead><tr>${token.header.map((cell) => html`<th>${inline(cell.tokens)}</th>`)}</tr></thead>
      <tbody>${token.rows.map((row) => html`<tr>${row.map((cell) => html`<td>${inline(cell.tokens)}</td>`)}</tr>`)}</tbody>
    </table></div>`;
    case "text": return token.tokens ? html`<span>${inline(token.tokens)}</span>` : token.text;
    default: return token.raw; // html and what a later marked may add: as text
  }
}

const inline = (tokens = []) => tokens.map((token) => {
  switch (token.type) {
    case "strong": return html`<strong>${inline(token.tokens)}</strong>`;
    case "em": return html`<em>${inline(token.tokens)}</em>`;
    case "del": return html`<del>${inline(token.tokens)}</del>`;
    case "codespan": return html`<code>${token.text}</code>`;
    case "br": return html`<br />`;
    case "link": return /^https?:/i.test(token.href)
      ? html`<a href=${token.href} target="_blank" rel="noopener noreferrer">${inline(token.tokens)}</a>`
      : token.raw;
    case "escape": return token.text;
    case "text": return token.tokens ? inline(token.tokens) : token.text;
    default: return token.raw;
  }
});
