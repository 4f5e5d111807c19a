// The live state of a cluster: a snapshot, then patches, and connecting again for ever.

import { call, named } from "./api.js";
import { events } from "./sse.js";

const QUIET_S = 10; // without an event: connect again
const MAX_PAUSE_S = 10;

// Applies a JSON Patch as the gateway makes it; returns a new document, and shares what is equal.
export function patched(document, operations) {
  let root = document;
  for (const { op, path, value } of operations) {
    const names = path.split("/").slice(1).map((name) => name.replace(/~1/g, "/").replace(/~0/g, "~"));
    root = changed(root, names, op, value);
  }
  return root;
}

function changed(node, names, op, value) {
  if (names.length === 0) return value;
  const [name, ...rest] = names;
  const copy = Array.isArray(node) ? [...node] : { ...node };
  if (rest.length > 0) copy[name] = changed(node[name], rest, op, value);
  else if (op === "remove") delete copy[name];
  else copy[name] = value;
  return copy;
}

// Follows a cluster. `tell` gets {state, link, problem}: link is live, waiting or refused.
// Returns a function that ends it.
export function follow(cluster, tell) {
  let ended = false;
  let state = null;
  let lastId = "";
  let pause = 0.5;
  let abort = new AbortController();
  let quiet = 0;

  function watch() {
    clearTimeout(quiet);
    const mine = abort;
    quiet = setTimeout(() => mine.abort(), QUIET_S * 1000);
  }

  async function once() {
    abort = new AbortController();
    watch();
    const headers = lastId ? { "Last-Event-ID": lastId } : {};
    const response = await call(named("/cluster/events", cluster), { headers, signal: abort.signal });
    for await (const event of events(response)) {
      if (ended) return;
      watch();
      if (!event.data) continue;
      const data = JSON.parse(event.data);
      state = event.event === "snapshot" ? data : patched(state, data);
      lastId = event.id || lastId;
      pause = 0.5;
      tell({ state, link: "live", problem: "", at: Date.now() / 1000 });
    }
  }

  async function run() {
    while (!ended) {
      try {
        await once();
      } catch (error) {
        if (ended) return;
        const refused = error.status === 401 || error.status === 403 || error.status === 404;
        if (error.status) lastId = "";
        tell({ state, link: refused ? "refused" : "waiting", problem: error.message, status: error.status });
        if (refused) return;
      }
      if (!ended) tell({ link: "waiting", state });
      await new Promise((resolve) => setTimeout(resolve, pause * 1000));
      pause = Math.min(MAX_PAUSE_S, pause * 2);
    }
  }

  run();
  return () => {
    ended = true;
    clearTimeout(quiet);
    abort.abort();
  };
}
