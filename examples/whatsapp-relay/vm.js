// What a person's VM is asked, and what it says.

/**
 * @typedef {import("./api.d.ts").components["schemas"]} Schemas
 * @typedef {{url: string, token: string}} Machine
 * @typedef {{name: string, data: any}} Event
 * @typedef {object} Outcome what came of one try to send a command
 * @property {Schemas["Answer"]} [answer] the one answer
 * @property {Schemas["Refusal"]} [refusal] which the same request would get again
 * @property {string} [why] there is neither yet: a word for the person who waits
 * @property {number} [seconds] after which to try again, where the VM says so
 */

const MAX_EVENT = 32 * 1024 * 1024; // characters; a line of the CLI has half of it at most

/** Sends or joins (POST) or stops (DELETE) a key's command. @param {"POST" | "DELETE"} method @param {Machine} machine @param {string} key @param {string} [body] */
export function request(method, { url, token }, key, body) {
  const headers = {
    Accept: "text/event-stream",
    Authorization: `Bearer ${token}`,
    "Content-Type": "application/json",
    "Idempotency-Key": key,
  };
  return fetch(`${url.replace(/\/+$/, "")}/command`, { method, headers, body });
}

/** Streams a file into a machine's inbox. It says why that is refused, and throws where the machine is not up. @param {Machine} machine @param {string} name @param {Response} content */
export async function sendFile({ url, token }, name, content) {
  /** @type {RequestInit & {duplex: "half"}} */
  const options = { method: "PUT", headers: { Authorization: `Bearer ${token}` }, body: content.body, duplex: "half" };
  const response = await fetch(`${url.replace(/\/+$/, "")}/files/inbox/${encodeURIComponent(name)}`, options);
  const rejection = await response.json().catch(() => null);
  if (response.ok) return;
  if (response.status >= 500 && response.status !== 507) throw new Error(`the machine answers ${response.status}`);
  return String(rejection?.error?.message ?? `the machine answers ${response.status}`);
}

/** A file of a machine's outbox, nothing if it can't be had. @param {Machine} machine @param {string} name */
export async function takeFile({ url, token }, name) {
  const headers = { Authorization: `Bearer ${token}` };
  const response = await fetch(`${url.replace(/\/+$/, "")}/files/outbox/${encodeURIComponent(name)}`, { headers }).catch(() => undefined);
  return response?.ok ? Buffer.from(await response.arrayBuffer()) : undefined;
}

/** Whether a response is a VM's stream, and not a page of something else. @param {Response} response */
export function isStream(response) {
  return /^text\/event-stream\b/i.test(response.headers.get("Content-Type") ?? "");
}

/** What a status other than 200 means. @param {Response} response @returns {Promise<Outcome>} */
export async function refused(response) {
  /** @type {Schemas["Rejection"] | null} */
  const rejection = await response.json().catch(() => null);
  const error = rejection?.error;
  if (response.status === 429) {
    const seconds = Number(response.headers.get("Retry-After"));
    return { why: "I'm busy right now. I'll keep trying.", seconds };
  }
  if (response.status === 401) {
    console.error(`relay: ${new URL(response.url).origin} rejects its token: see people.json`);
    return { why: "The machine rejects my token; its owner has to look. I'll keep trying." };
  }
  const isTheVMs = response.status < 500 && error?.code && error.message; // and no proxy's on the way
  return isTheVMs ? { refusal: error } : { why: "The machine is restarting. I'll keep trying." };
}

/** The events of a stream. It throws where that breaks off. @param {Response} response @returns {AsyncGenerator<Event>} */
export async function* events(response) {
  /** @type {string[]} */
  let parts = []; // joined once an event is complete, as lines may be long
  let size = 0;
  for await (const chunk of response.body?.pipeThrough(new TextDecoderStream()) ?? []) {
    const isComplete = ((parts.at(-1)?.slice(-1) ?? "") + chunk).includes("\n\n");
    parts.push(chunk);
    size += chunk.length;
    if (size > MAX_EVENT) throw new Error("an event is too long");
    if (!isComplete) continue;

    const texts = parts.join("").split("\n\n");
    const rest = texts.pop() ?? "";
    [parts, size] = [[rest], rest.length];
    for (const text of texts) {
      const name = /^event: (.*)$/m.exec(text)?.[1];
      const data = /^data: (.*)$/m.exec(text)?.[1];
      if (name && data) yield { name, data: JSON.parse(data) };
    }
  }
}
