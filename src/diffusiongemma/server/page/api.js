// The wire: requests to this server and its server-sent events.

import { key } from "./store.js";

/** The server answered with an error. */
export class ServerError extends Error {
  constructor(status, message, param = null, retryAfter = null) {
    super(message);
    this.status = status;
    this.param = param;
    this.retryAfter = retryAfter;
  }
}

/** The server could not be reached, or went away before the answer was whole. */
export class BrokenError extends Error {
  constructor(message, began) {
    super(message);
    this.began = began;
  }
}

async function request(path, options) {
  const headers = { ...options.headers };
  const secret = key.get();
  if (secret) headers.Authorization = `Bearer ${secret}`;
  let response;
  try {
    response = await fetch(path, { ...options, headers });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new BrokenError("The server does not answer.", false);
  }
  if (!response.ok) throw await refusal(response);
  return response;
}

async function refusal(response) {
  let message = "";
  let param = null;
  try {
    const body = await response.json();
    message = body.error?.message ?? "";
    param = body.error?.param ?? null;
  } catch {
    // A proxy's page, or nothing: the status has to do.
  }
  const after = Number.parseFloat(response.headers.get("Retry-After") ?? "");
  return new ServerError(response.status, message || `The server answered ${response.status}.`, param, Number.isFinite(after) ? after : null);
}

export async function models(signal) {
  const response = await request("v1/models", { signal });
  return (await response.json()).data;
}

/**
 * Post a request and yield its events as {event, data}, data parsed.
 * Throws ServerError for a refusal or an error event, BrokenError where the stream ends before its [DONE].
 */
export async function* stream(path, body, signal) {
  const response = await request(path, {
    method: "POST",
    headers: { "Content-Type": "application/json", Accept: "text/event-stream" },
    body: JSON.stringify(body),
    signal,
  });
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  while (true) {
    let part;
    try {
      part = await reader.read();
    } catch (error) {
      if (error.name === "AbortError" || signal?.aborted) throw new DOMException("stopped", "AbortError");
      throw new BrokenError("The connection broke.", true);
    }
    if (part.done) throw new BrokenError("The server closed the connection before the answer was whole.", true);
    rest += part.value;
    // A line break split over two parts leaves a lone \r at the end, which the next part completes.
    const blocks = rest.split(/\r?\n\r?\n/);
    rest = blocks.pop();
    for (const block of blocks) {
      const message = parse(block);
      if (message === null) continue;
      if (message.data === "[DONE]") return void reader.cancel().catch(() => {});
      let data;
      try {
        data = JSON.parse(message.data);
      } catch {
        throw new BrokenError("The server sent something that is no JSON.", true);
      }
      if (data.error) throw new ServerError(data.error.code ?? 500, data.error.message ?? "The server reports an error.", data.error.param ?? null);
      yield { event: message.event, data };
    }
  }
}

function parse(block) {
  let event = "message";
  const data = [];
  for (const line of block.split(/\r?\n/)) {
    if (line.startsWith("data:")) data.push(line.slice(line[5] === " " ? 6 : 5));
    else if (line.startsWith("event:")) event = line.slice(6).trim();
  }
  return data.length ? { event, data: data.join("\n") } : null;
}
