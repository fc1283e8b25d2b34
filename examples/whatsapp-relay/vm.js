// One person's VM: a command with its key, and what comes of one try to send it.
import { setTimeout as sleep } from "node:timers/promises";

/**
 * @typedef {import("./api.d.ts").components["schemas"]} Schemas
 * @typedef {{name: string, data: any}} Event
 * @typedef {object} Outcome what came of one try
 * @property {Schemas["Answer"]} [answer] the one answer
 * @property {Schemas["Rejection"]["error"]} [refusal] which the same request would get again
 * @property {string} [why] there is neither yet: a word for the person who waits
 * @property {number} [seconds] after which to try again, where the VM says so
 */

export class VM {
  /** @param {{url: string, token: string}} machine @param {number} retryMS */
  constructor({ url, token }, retryMS) {
    this.url = `${url.replace(/\/+$/, "")}/command`;
    this.token = token;
    this.retryMS = retryMS;
  }

  /**
   * Sends a command, or joins it; it runs or waits once it is accepted.
   * @param {string} key
   * @param {string} body
   * @param {{onAccepted: () => unknown, onEvent: (event: Event) => void}} listener
   * @returns {Promise<Outcome>}
   */
  async send(key, body, { onAccepted, onEvent }) {
    let response;
    try {
      response = await this.#fetch("POST", key, body);
    } catch {
      return { why: "The machine is not up yet. I keep trying." };
    }
    if (response.status !== 200) return refused(response);
    onAccepted();
    try {
      for await (const event of events(response)) {
        if (event.name !== "response") onEvent(event);
        else if (event.data.error?.code === "shutting_down") return { why: "The machine is restarting. I begin again then." };
        else return { answer: event.data };
      }
    } catch {
      // It broke off: the command goes on.
    }
    return { why: "The connection broke. I ask again." };
  }

  /** Stops a command: whether there was one, or undefined if nobody can say. @param {string} key */
  async stop(key) {
    const response = await this.#fetch("DELETE", key).catch(() => undefined);
    if (response?.status === 202) return true;
    if (response?.status === 404) return false;
  }

  /** @param {number} [seconds] */
  async pause(seconds) {
    await sleep(seconds ? 1000 * seconds : this.retryMS);
  }

  /** @param {string} method @param {string} key @param {string} [body] */
  #fetch(method, key, body) {
    const headers = {
      Accept: "text/event-stream",
      Authorization: `Bearer ${this.token}`,
      "Content-Type": "application/json",
      "Idempotency-Key": key,
    };
    return fetch(this.url, { method, headers, body });
  }
}

/** What a status other than 200 means. @param {Response} response @returns {Promise<Outcome>} */
async function refused(response) {
  /** @type {Schemas["Rejection"] | null} */
  const rejection = await response.json().catch(() => null);
  const error = rejection?.error;
  if (response.status === 429) {
    const seconds = Number(response.headers.get("Retry-After"));
    return { why: "I have too much to do just now. I keep trying.", seconds };
  }
  if (response.status === 401) {
    console.error("relay: a VM refuses its token: see people.json");
    return { why: "The machine doesn't let me in; its owner has to look. I keep trying." };
  }
  if (response.status >= 500 || !error) return { why: "The machine is restarting. I keep trying." }; // or a proxy's own error
  return { refusal: error };
}

/** The events of a stream. @param {Response} response @returns {AsyncGenerator<Event>} */
async function* events(response) {
  if (!response.body) return;
  let text = "";
  for await (const chunk of response.body.pipeThrough(new TextDecoderStream())) {
    let from = Math.max(0, text.length - 1); // before that there is no end
    text += chunk;
    for (let end; (end = text.indexOf("\n\n", from)) >= 0; from = 0) {
      const name = /^event: (.*)$/m.exec(text.slice(0, end))?.[1];
      const data = /^data: (.*)$/m.exec(text.slice(0, end))?.[1];
      text = text.slice(end + 2);
      if (name && data) yield { name, data: JSON.parse(data) };
    }
  }
}
