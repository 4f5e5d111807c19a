// The dialogs: the key of this tab, and a question before an action.

import { key, setKey } from "./api.js";
import { html, useEffect, useRef, useState } from "./ui.js";

function Dialog({ title, close, children }) {
  const dialog = useRef(null);
  useEffect(() => {
    dialog.current.showModal();
    return () => dialog.current?.close();
  }, []);
  return html`<dialog ref=${dialog} aria-labelledby="dialog-title" onCancel=${close} onClose=${close}>
    <h2 id="dialog-title">${title}</h2>${children}</dialog>`;
}

export function KeyDialog({ problem, close }) {
  const [text, setText] = useState(key());
  const save = () => { setKey(text.trim()); close(); };
  return html`<${Dialog} title="Key" close=${close}>
    ${problem && html`<p class="problem">${problem}</p>`}
    <p>A key of the gateway shows the page and lets you chat. Cancelling, rebalancing, verifying and removing need an admin key. It stays in this tab and is forgotten with it.</p>
    <div class="field"><label for="key">Key</label>
      <input id="key" type="password" autocomplete="off" value=${text} onInput=${(event) => setText(event.target.value)}
        onKeyDown=${(event) => { if (event.key === "Enter") save(); }} /></div>
    <div class="buttons"><button class="primary" onClick=${save}>Use key</button>
      <button class="quiet" onClick=${close}>Close</button></div>
  <//>`;
}

// question: {title, text, verb, run}; run returns a promise.
export function Confirm({ question, close, needKey }) {
  const [problem, setProblem] = useState("");
  const [busy, setBusy] = useState(false);
  const go = async () => {
    setBusy(true);
    try {
      await question.run();
      close();
    } catch (error) {
      setBusy(false);
      if (error.status === 401 || error.status === 403) needKey(`This needs an admin key: ${error.message}`);
      else setProblem(error.message);
    }
  };
  return html`<${Dialog} title=${question.title} close=${close}>
    <p>${question.text}</p>
    ${problem && html`<p class="problem" role="alert">${problem}</p>`}
    <div class="buttons"><button class="primary" onClick=${go} disabled=${busy}>${question.verb}</button>
      <button class="quiet" onClick=${close}>Keep as it is</button></div>
  <//>`;
}
