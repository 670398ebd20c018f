// Calls to the services: tokens, waiting when one is busy, and errors in plain words.

/** A call that failed for good; the message is for people. */
export class CallError extends Error {}

const NOT_ALIGNED = "not_aligned"; // the code of an edge that does not draw without its update

const tokens = new Map();
let hooks = { waiting: () => {}, token: () => Promise.reject(new CallError("a token is needed")) };

/**
 * Who is told of a wait, `waiting(party, seconds)` with 0 at its end, and who asks the user for a token,
 * `token(party, another)`, where another one was not right.
 */
export function setHooks(given) {
  hooks = given;
}

export async function getJson(url) {
  return (await call(url, {})).json();
}

export async function getBytes(url) {
  return (await call(url, {})).arrayBuffer();
}

/** POST a JSON value; the answer's headers and body are the caller's. `party` is the service's name. */
export async function post(url, value, { party = "edge", signal } = {}) {
  return call(url, {
    party,
    signal,
    method: "POST",
    headers: { "content-type": "application/json" },
    body: JSON.stringify(value),
  });
}

async function call(url, { party = "edge", headers = {}, ...options }) {
  // relative to the page, which may lie below a prefix
  const { origin, href } = new URL(url, document.baseURI);
  for (;;) {
    const token = tokens.get(origin);
    const own = token ? { ...headers, authorization: `Bearer ${token}` } : headers;
    const response = await reach(href, { ...options, headers: own }, party);
    if (response.ok) return response;
    if (response.status === 429 || response.status === 503) {
      const { message, code } = await errorOf(response);
      if (code === NOT_ALIGNED) throw new CallError(`The ${party} draws nothing: it is ${message}.`);
      await wait(party, secondsOf(response), options.signal);
    } else if (response.status === 401) {
      // another call may have been given the token meanwhile
      if (tokens.get(origin) === token) tokens.set(origin, await hooks.token(party, Boolean(token)));
    } else {
      throw new CallError(`The ${party} refuses: ${(await errorOf(response)).message}`);
    }
  }
}

async function reach(url, options, party) {
  try {
    return await fetch(url, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new CallError(`The ${party} does not answer. Is it running, and is this device connected?`);
  }
}

function secondsOf(response) {
  const seconds = Number(response.headers.get("retry-after"));
  return Number.isFinite(seconds) && seconds > 0 ? Math.min(seconds, 60) : 1;
}

async function wait(party, seconds, signal) {
  hooks.waiting(party, seconds);
  try {
    await new Promise((resolve, reject) => {
      const timer = setTimeout(resolve, 1000 * seconds);
      signal?.addEventListener("abort", () => {
        clearTimeout(timer);
        reject(signal.reason);
      });
    });
  } finally {
    hooks.waiting(party, 0);
  }
}

async function errorOf(response) {
  try {
    return (await response.json()).error;
  } catch {
    return { message: `it answered with status ${response.status}.`, code: null };
  }
}
