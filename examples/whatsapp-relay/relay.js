// A message's life: taken to the disk, made a command in its sender's order, answered
// in words. Whatever breaks in between, it is answered, and once: README.md says how.
import { setTimeout as sleep } from "node:timers/promises";
import twilio from "twilio";
import { commandOf } from "./command.js";
import { VM } from "./vm.js";
import { blocks, progress, split, words } from "./words.js";

/**
 * @typedef {import("./store.js").Message} Message
 * @typedef {import("./store.js").Reply} Reply
 *
 * @typedef {object} Setup
 * @property {{sid: string, token: string, api: string}} account Twilio's
 * @property {string} publicURL where Twilio reaches this relay
 * @property {import("./store.js").Store} store
 * @property {Record<string, {url: string, token: string}>} people the VM of each sender
 * @property {number} progressMS between two words of progress
 * @property {number} retryMS between two tries
 */

const SCREENSHOT = "mcp__playwright__browser_take_screenshot";
const MAX_SCREENSHOTS = 3; // of an answer, the last ones
const MAX_SCREENSHOT_BYTES = 5 * 1024 * 1024; // WhatsApp's limit of a picture

export class Relay {
  /** @type {Map<string, Message>} what is not answered yet, by id */
  #open = new Map();
  /** @type {Map<string, Promise<void>>} the last turn of each sender */
  #turns = new Map();
  #lastPlace = 0;

  /** @param {Setup} setup */
  constructor(setup) {
    this.setup = setup;
    this.store = setup.store;
    this.twilio = twilio(setup.account.sid, setup.account.token);
    this.twilio.api.baseUrl = setup.account.api;
  }

  /** Takes Twilio's form, unless it is no message. When this returns the message is safe. @param {Record<string, unknown>} form */
  take(form) {
    const message = this.#messageOf(form);
    if (!message) return false;
    if (this.store.knows(message.id)) return true; // Twilio delivers it again
    if (says(message, "stop")) message.replies = [{ body: this.#stopAll(message.from) }];
    this.store.save(message);
    this.#begin(message);
    return true;
  }

  /** Goes on with what a crash left open. */
  resume() {
    for (const message of this.store.open()) this.#begin(message);
  }

  /** @param {Record<string, unknown>} form @returns {Message | undefined} */
  #messageOf(form) {
    const { MessageSid: id, From: from, To: to, Body: text = "" } = form;
    if (typeof id !== "string" || !/^[0-9A-Za-z]{1,64}$/.test(id)) return;
    if (typeof from !== "string" || typeof to !== "string" || typeof text !== "string") return;
    const media = [];
    for (let i = 0; `MediaUrl${i}` in form; i++) {
      media.push({ url: String(form[`MediaUrl${i}`]), type: String(form[`MediaContentType${i}`]) });
    }
    this.#lastPlace = Math.max(this.#lastPlace + 1, Date.now());
    return { id, place: this.#lastPlace, from, to, text, media, screenshots: [] };
  }

  /** @param {Message} message */
  #begin(message) {
    this.#open.set(message.id, message);
    if (message.replies) return void this.#finish(message); // that needs no turn
    const before = this.#turns.get(message.from) ?? Promise.resolve();
    this.#turns.set(message.from, before.then(() => this.#finish(message)));
  }

  /** Answers a message, however long that takes. @param {Message} message */
  async #finish(message) {
    for (;;) {
      try {
        message.replies ??= await this.#answer(message);
        this.store.save(message);
        await this.#say(message, message.replies);
        this.store.close(message);
        this.#open.delete(message.id);
        return;
      } catch (error) {
        console.error(`relay: ${message.id}:`, error); // a full disk, for example
        await sleep(this.setup.retryMS);
      }
    }
  }

  /** @param {Message} message @returns {Promise<Reply[]>} */
  async #answer(message) {
    const text = await this.#answerInWords(message);
    const pictures = message.screenshots.slice(-MAX_SCREENSHOTS);
    return [...split(text).map((body) => ({ body })), ...pictures.map((picture) => ({ picture }))];
  }

  /** @param {Message} message */
  async #answerInWords(message) {
    const machine = this.setup.people[message.from];
    if (!machine) {
      console.error(`relay: ${message.from} is not in people.json`);
      return "I don't know this number.";
    }
    if (says(message, "new")) {
      this.store.converse(message.from);
      return "What you send next begins a new conversation.";
    }
    if (!message.body && !message.isStopped) {
      const command = await commandOf(message, this.setup.account);
      if (typeof command === "string") return command;
      message.body = JSON.stringify({ ...command, session_id: this.store.conversations[message.from] });
    }
    if (!message.body) return "I stopped before I began that.";
    this.store.save(message);
    return this.#run(message, message.body, new VM(machine, this.setup.retryMS));
  }

  /** Sends a command until it has its answer. @param {Message} message @param {string} body @param {VM} vm */
  async #run(message, body, vm) {
    const tell = this.#teller(message);
    /** @type {Set<unknown>} */
    const calls = new Set(); // of the screenshot tool
    for (;;) {
      if (message.isStopped && !(await stop(message, vm))) return "I stopped that, before it was begun or after it was over.";
      const outcome = await vm.send(message.id, body, {
        onAccepted: () => message.isStopped && void stop(message, vm),
        onEvent: (event) => {
          tell(progress(event), event.name === "queued");
          this.#keepScreenshots(message, event.data, calls);
        },
      });
      const { answer, refusal, why, seconds } = outcome;
      if (answer) {
        const isLost = answer.error?.code === "session_not_found";
        if (isLost || answer.session_id) this.store.converse(message.from, isLost ? undefined : answer.session_id);
        await tell();
        return words(answer);
      }
      if (refusal) return `That can't be sent: ${refusal.message}`;
      tell(why, true);
      await vm.pause(seconds);
    }
  }

  /** Keeps what the screenshot tool says; a picture that the agent reads looks alike. @param {Message} message @param {any} line @param {Set<unknown>} calls */
  #keepScreenshots(message, line, calls) {
    for (const block of blocks(line)) {
      if (block.type === "tool_use" && block.name === SCREENSHOT) calls.add(block.id);
      if (block.type !== "tool_result" || !calls.has(block.tool_use_id) || !Array.isArray(block.content)) continue;
      for (const { type, source } of block.content) {
        if (type !== "image") continue;
        const picture = Buffer.from(source.data, "base64");
        if (picture.length <= MAX_SCREENSHOT_BYTES) message.screenshots.push(this.store.keep(picture, source.media_type));
      }
      this.store.save(message);
    }
  }

  /** Tells progress in order: what is urgent at once, the rest now and then, nothing twice. @param {Message} message */
  #teller(message) {
    let last = "";
    let next = Date.now() + this.setup.progressMS;
    let said = Promise.resolve();
    /** @param {string} [text] @param {boolean} [isUrgent] */
    return (text, isUrgent) => {
      const isDue = isUrgent || Date.now() >= next;
      if (text && text !== last && isDue) {
        last = text;
        next = Date.now() + this.setup.progressMS;
        said = said.then(() => this.#send(message, { body: text })).catch(complain);
      }
      return said;
    };
  }

  /** Says what is left to say. @param {Message} message @param {Reply[]} replies */
  async #say(message, replies) {
    while (replies.length > 0) {
      await this.#send(message, replies[0]).catch((error) => {
        const isFinal = error.status >= 400 && error.status < 500 && error.status !== 429;
        if (!isFinal) throw error;
        complain(error); // such as a number that has left
      });
      replies.shift();
      this.store.save(message);
    }
  }

  /** @param {Message} message @param {Reply} reply */
  async #send({ from, to }, { body, picture }) {
    const mediaUrl = picture ? [`${this.setup.publicURL}/media/${picture}`] : undefined;
    await this.twilio.messages.create({ from: to, to: from, body, mediaUrl });
  }

  /** Stops all that a sender began. @param {string} sender */
  #stopAll(sender) {
    const own = [...this.#open.values()].filter(({ from, replies }) => from === sender && !replies);
    for (const message of own) {
      message.isStopped = true;
      this.store.save(message);
      const isSent = message.body !== undefined;
      if (isSent) void stop(message, new VM(this.setup.people[sender], this.setup.retryMS));
    }
    return own.length > 0 ? "I stop." : "Nothing runs.";
  }
}

/** Stops a command, if it waits or runs. @param {Message} message @param {VM} vm */
async function stop(message, vm) {
  while (!message.replies) {
    const was = await vm.stop(message.id);
    if (was !== undefined) return was;
    await vm.pause();
  }
  return false;
}

/** @param {Message} message @param {string} word */
function says(message, word) {
  return message.media.length === 0 && message.text.trim().toLowerCase() === word;
}

/** @param {Error} error */
function complain(error) {
  console.error("relay: cannot reply:", error.message);
}
