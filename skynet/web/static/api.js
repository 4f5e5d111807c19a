// Requests to the gateway, with the key of this browser tab.

const KEY = "skynet-key";
const listeners = new Set();

export const key = () => sessionStorage.getItem(KEY) || "";

export function setKey(value) {
  if (value) sessionStorage.setItem(KEY, value);
  else sessionStorage.removeItem(KEY);
  listeners.forEach((listener) => listener());
}

// Calls `listener` when the key has changed; returns a function that ends it.
export function onKey(listener) {
  listeners.add(listener);
  return () => listeners.delete(listener);
}

export class Refused extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

// The response, if its status is good. Raises Refused with the server's words.
export async function call(path, options = {}) {
  const headers = { ...options.headers };
  if (key()) headers.Authorization = `Bearer ${key()}`;
  if (options.json !== undefined) headers["Content-Type"] = "application/json";
  const response = await fetch(path, {
    method: options.method || "GET",
    headers,
    body: options.json === undefined ? undefined : JSON.stringify(options.json),
    signal: options.signal,
    cache: "no-store",
  });
  if (!response.ok) throw new Refused(response.status, await words(response));
  return response;
}

export const named = (path, cluster) =>
  cluster ? `${path}?cluster=${encodeURIComponent(cluster)}` : path;

async function words(response) {
  const text = await response.text().catch(() => "");
  try {
    const body = JSON.parse(text);
    const error = body.error ?? body.detail ?? text;
    return typeof error === "string" ? error : error.message || JSON.stringify(error);
  } catch {
    return text.slice(0, 300) || `${response.status} ${response.statusText}`;
  }
}
