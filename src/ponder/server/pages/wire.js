// Requests to this server, the key that goes with them, and streams of server-sent events.

const PLACE = "ponder.key";

export const key = {
  get: () => { try { return sessionStorage.getItem(PLACE) ?? ""; } catch { return ""; } },
  set: (value) => {
    try {
      if (value) sessionStorage.setItem(PLACE, value); else sessionStorage.removeItem(PLACE);
    } catch { /* storage is switched off */ }
    dispatchEvent(new CustomEvent("ponder-key", { detail: value }));
  },
};

export class Failure extends Error {
  constructor(message, status = 0, param = null) {
    super(message);
    this.status = status;
    this.param = param;
  }
}

/** The response. Throws Failure with what the server says is wrong. */
export async function ask(path, { body, signal } = {}) {
  const headers = { accept: "application/json" };
  if (key.get()) headers.authorization = `Bearer ${key.get()}`;
  if (body !== undefined) headers["content-type"] = "application/json";
  const options = { method: body === undefined ? "GET" : "POST", headers, signal, cache: "no-store", credentials: "omit" };
  let response;
  try {
    response = await fetch(path, { ...options, body: body === undefined ? undefined : JSON.stringify(body) });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Failure("The server cannot be reached.");
  }
  if (response.ok) return response;
  const said = await response.json().catch(() => ({}));
  if (response.status === 401) dispatchEvent(new CustomEvent("ponder-locked"));
  throw new Failure(said.error?.message ?? `The server answered ${response.status}.`, response.status, said.error?.param);
}

export const get = async (path) => (await ask(path)).json();

/** The events of a response: {event, data}, the data as text. */
export async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "", event = "", data = [];
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      const lines = (rest + value).split("\n");
      rest = lines.pop();
      for (const raw of lines) {
        const line = raw.endsWith("\r") ? raw.slice(0, -1) : raw;
        if (line === "") {
          if (data.length) yield { event: event || "message", data: data.join("\n") };
          event = ""; data = [];
        } else if (!line.startsWith(":")) {
          const [, name, text] = /^([^:]*):? ?(.*)$/s.exec(line);
          if (name === "event") event = text;
          if (name === "data") data.push(text);
        }
      }
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}
