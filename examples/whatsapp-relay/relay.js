// A message's life: taken to the disk, made a command in its sender's order, answered
// in words. Whatever breaks in between, it is answered, and once: README.md says how.
// A message is open until its answer was sent; its turn comes when those that the same
// sender wrote before are answered.
import { setTimeout as sleep } from "node:timers/promises";
import twilio from "twilio";
import { commandOf } from "./command.js";
import { events, isStream, refused, request, takeFile } from "./vm.js";
import { blocks, listed, progress, split, words } from "./words.js";

/**
 * @typedef {import("./store.js").Message} Message
 * @typedef {import("./store.js").Reply} Reply
 * @typedef {import("./vm.js").Machine} Machine
 * @typedef {(text?: string, isNews?: boolean) => void} Tell
 *
 * @typedef {object} Setup
 * @property {{sid: string, token: string, api: string, messaging: string}} account Twilio's
 * @property {string} publicURL where Twilio reaches this relay
 * @property {import("./store.js").Store} store
 * @property {Map<string, Machine>} people the VM of each sender
 * @property {import("./command.js").Transcriber} transcriber of voice notes
 * @property {number} mergeMS in which several messages are one
 * @property {number} progressMS between two words of progress
 * @property {number} retryMS between two tries
 */

const SCREENSHOT = "mcp__playwright__browser_take_screenshot";
const BEGINS_ANEW = new Set(["session_not_found", "conversation_unusable"]); // the next message does
const MAX_SCREENSHOTS = 3; // of an answer, the last ones
const MAX_SCREENSHOT_BYTES = 5 * 1024 * 1024; // WhatsApp's limit of a picture
const MAX_FILE_BYTES = 16 * 1024 * 1024; // and that of Twilio for any other file

export class Relay {
  /** @type {Map<string, Message>} the open messages, by id */
  #open = new Map();
  /** @type {Map<string, Promise<void>>} the end of each sender's last turn */
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
    if (says(message, "stop", "halt")) message.replies = [{ body: this.#stopAll(message.from) }];
    if (/^!./s.test(message.text)) {
      this.#stopAll(message.from);
      message.text = message.text.slice(1).trim();
    }
    this.store.save(message);
    this.#begin(message);
    return true;
  }

  /** Logs that something did not reach a person. @param {Record<string, unknown>} form Twilio's receipt */
  note({ MessageSid: id, MessageStatus: status, To: to, ErrorCode: code }) {
    if (status !== "failed" && status !== "undelivered") return;
    console.error(`relay: ${id} to ${to} was not delivered: ${status}, Twilio's error ${code ?? "unknown"}`);
  }

  /** Goes on with what a crash left open. */
  resume() {
    const open = this.store.open();
    const merged = new Set(open.flatMap((message) => message.merged ?? []));
    for (const message of open) {
      this.#lastPlace = message.place;
      if (merged.has(message.id)) message.replies = [];
      this.#begin(message);
    }
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
    void this.#showTyping(message);
    const before = this.#turns.get(message.from) ?? Promise.resolve();
    this.#turns.set(message.from, before.then(() => this.#finish(message)));
  }

  /** Shows that somebody is writing, where Twilio has that. @param {Message} message */
  async #showTyping({ id }) {
    const { sid, token, messaging } = this.setup.account;
    const headers = { Authorization: `Basic ${Buffer.from(`${sid}:${token}`).toString("base64")}` };
    const body = new URLSearchParams({ messageId: id, channel: "whatsapp" });
    await fetch(`${messaging}/v2/Indicators/Typing.json`, { method: "POST", headers, body }).catch(() => {}); // no harm
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
        console.error(`relay: ${message.id}:`, error); // a full disk, or a Twilio that can't be reached
        await sleep(this.setup.retryMS);
      }
    }
  }

  /** @param {Message} message @returns {Promise<Reply[]>} */
  async #answer(message) {
    const text = await this.#answerInWords(message);
    const pictures = message.screenshots.map((media) => ({ media }));
    return [...split(text).map((body) => ({ body })), ...pictures, ...(message.files ?? [])];
  }

  /** @param {Message} message */
  async #answerInWords(message) {
    const machine = this.setup.people.get(message.from);
    if (!machine) {
      console.error(`relay: ${message.from} is not in people.json`);
      return "I don't know this number.";
    }
    if (!message.body && !message.isStopped) {
      const reply = this.#converse(message);
      if (reply) return reply;
      await this.#merge(message);
      const command = await commandOf(message, this.setup, machine);
      if (typeof command === "string") return command;
      if (!message.isStopped) {
        message.body = JSON.stringify({ ...command, session_id: this.store.conversations.get(message.from) });
      }
    }
    if (!message.body) return "I stopped before I began that.";
    this.store.save(message);

    const { tell, told } = this.#teller(message);
    try {
      return await this.#run(message, message.body, machine, tell);
    } finally {
      await told(); // or it would come after the answer
    }
  }

  /** What a message says of conversations themselves, if it does. @param {Message} message */
  #converse(message) {
    const conversations = this.store.history.get(message.from) ?? [];
    if (says(message, "sessions")) return listed(conversations);
    const number = /^\s*resume\s+(\d+)\s*$/i.exec(message.text)?.[1];
    if (number) {
      const chosen = conversations[Number(number) - 1];
      if (chosen) this.store.converse(message.from, chosen.session);
      return chosen ? `We go on with: ${chosen.words}` : `There is no conversation ${number}. Send "sessions" to see them.`;
    }
    if (!says(message, "new")) return;
    this.store.converse(message.from);
    return "What you send next begins a new conversation.";
  }

  /** Waits for what a sender adds at once, such as photos that are forwarded one by one, and makes it part of the message. @param {Message} message */
  async #merge(message) {
    for (let last = message.place; this.setup.mergeMS > 0; ) {
      await sleep(Math.max(0, last + this.setup.mergeMS - Date.now()));
      const next = [...this.#open.values()].find((other) => {
        const isLater = other.from === message.from && other.place > last && other.place - last <= this.setup.mergeMS;
        return isLater && !other.body && !other.replies && !this.#isKeyword(other);
      });
      if (!next) return;
      last = next.place;
      message.text = [message.text, next.text].filter((text) => text.trim()).join("\n");
      message.media.push(...next.media);
      message.merged = [...(message.merged ?? []), next.id];
      this.store.save(message); // and only then the other is done
      next.replies = [];
    }
  }

  /** @param {Message} message */
  #isKeyword(message) {
    return says(message, "new", "sessions") || /^\s*resume\s+\d+\s*$/i.test(message.text);
  }

  /** Files of an answer, as replies. @param {{name: string, size: number}[]} files @param {Machine} machine @returns {Promise<Reply[]>} */
  async #takeFiles(files, machine) {
    const replies = [];
    for (const { name, size } of files) {
      const data = size <= MAX_FILE_BYTES ? await takeFile(machine, name) : undefined;
      const extension = name.toLowerCase().split(".").at(-1) ?? "";
      if (data) replies.push({ body: `📎 ${name}`, media: this.store.keep(data, extension) });
      else replies.push({ body: `📎 ${name} (${Math.ceil(size / 1e6)} MB) can't be sent here. It is in outbox/ on your machine.` });
    }
    return replies;
  }

  /** Sends a command until it has its answer. @param {Message} message @param {string} body @param {Machine} machine @param {Tell} tell */
  async #run(message, body, machine, tell) {
    for (;;) {
      // A stopped command is joined only if it is there: sent anew it would begin.
      if (message.isStopped && !(await this.#stop(message, machine))) return "I stopped that, before it was begun or after it was over.";
      const { answer, refusal, why, seconds } = await this.#attempt(message, body, machine, tell);
      if (answer?.error && BEGINS_ANEW.has(answer.error.code)) this.store.converse(message.from);
      else if (answer?.session_id) {
        this.store.converse(message.from, answer.session_id);
        this.store.note(message.from, answer.session_id, message.text);
      }
      if (answer) {
        message.files = await this.#takeFiles(answer.files ?? [], machine);
        return words(answer);
      }
      if (refusal) return `That can't be sent: ${refusal.message}`;
      tell(why, true);
      await this.#pause(message, seconds);
    }
  }

  /** One try. @param {Message} message @param {string} body @param {Machine} machine @param {Tell} tell @returns {Promise<import("./vm.js").Outcome>} */
  async #attempt(message, body, machine, tell) {
    const response = await request("POST", machine, message.id, body).catch(() => undefined);
    if (!response) return { why: "The machine is not up yet. I'll keep trying." };
    if (response.status !== 200) return refused(response);
    if (!isStream(response)) {
      console.error(`relay: ${message.id}: ${machine.url} answers 200 with ${response.headers.get("Content-Type")}: no vm-server is there; see people.json`);
      await response.body?.cancel();
      return { refusal: { code: "not_found", message: "something else answers at my machine's address; its owner has to look." } };
    }
    if (message.isStopped) void this.#stop(message, machine); // a stop that came before it found nothing
    /** @type {Set<unknown>} */
    const calls = new Set(); // of the screenshot tool
    try {
      for await (const event of events(response)) {
        if (event.name !== "response") this.#look(message, event, calls, tell);
        else if (event.data.error?.code === "shutting_down") return { why: "The machine is restarting. I'll start again then." };
        else return { answer: event.data };
      }
    } catch (error) {
      console.error(`relay: ${message.id}: the connection broke, and I join again:`, error);
    }
    return {};
  }

  /** Shows a person what is to see of an event. @param {Message} message @param {import("./vm.js").Event} event @param {Set<unknown>} calls @param {Tell} tell */
  #look(message, event, calls, tell) {
    try {
      tell(progress(event), event.name === "queued");
      this.#keepScreenshots(message, event.data, calls);
    } catch (error) {
      console.error(`relay: ${message.id}: cannot show an event:`, error); // the answer will come all the same
    }
  }

  /** Keeps what the screenshot tool returns; a picture that the agent reads looks alike. @param {Message} message @param {any} line @param {Set<unknown>} calls */
  #keepScreenshots(message, line, calls) {
    for (const block of blocks(line)) {
      if (block.type === "tool_use" && block.name === SCREENSHOT) calls.add(block.id);
      const isScreenshot = block.type === "tool_result" && calls.has(block.tool_use_id) && Array.isArray(block.content);
      for (const part of isScreenshot ? block.content : []) {
        if (part?.type !== "image" || typeof part.source?.data !== "string") continue;
        const picture = Buffer.from(part.source.data, "base64");
        if (picture.length > MAX_SCREENSHOT_BYTES) continue;
        const extension = part.source.media_type === "image/png" ? "png" : "jpg";
        message.screenshots = [...message.screenshots, this.store.keep(picture, extension)].slice(-MAX_SCREENSHOTS);
        this.store.save(message);
      }
    }
  }

  /** Tells progress: news at once, the rest now and then; nothing twice, and nothing while a word is on its way. @param {Message} message */
  #teller(message) {
    const said = new Set();
    let next = performance.now() + this.setup.progressMS;
    /** @type {Promise<void> | undefined} */
    let onItsWay;
    /** @type {Tell} */
    const tell = (text, isNews) => {
      const isDue = isNews || performance.now() >= next;
      if (!text || said.has(text) || onItsWay || !isDue) return;
      said.add(text);
      next = performance.now() + this.setup.progressMS;
      onItsWay = this.#send(message, { body: text }).catch(complain).finally(() => (onItsWay = undefined));
    };
    return { tell, told: async () => onItsWay };
  }

  /** Says what is left to say. @param {Message} message @param {Reply[]} replies */
  async #say(message, replies) {
    while (replies.length > 0) {
      await this.#send(message, replies[0]).catch((error) => {
        const isFinal = error.status === 400 || error.status === 404; // such as a number that has left
        if (!isFinal) throw error;
        complain(error);
      });
      replies.shift();
      this.store.save(message);
    }
  }

  /** @param {Message} message @param {Reply} reply */
  async #send({ from, to }, { body, media }) {
    const mediaUrl = media ? [`${this.setup.publicURL}/media/${media}`] : undefined;
    const statusCallback = `${this.setup.publicURL}/whatsapp`;
    await this.twilio.messages.create({ from: to, to: from, body, mediaUrl, statusCallback });
  }

  /** Stops all that a sender began: first, as a full disk must not keep it from that. @param {string} sender */
  #stopAll(sender) {
    const machine = this.setup.people.get(sender);
    const own = [...this.#open.values()].filter(({ from, replies }) => from === sender && !replies);
    for (const message of own) {
      message.isStopped = true;
      if (message.body && machine) void this.#stop(message, machine);
    }
    for (const message of own) this.store.save(message);
    return own.length > 0 ? "Stopping…" : "Nothing is running.";
  }

  /** Stops a command, and says whether it waited or ran. @param {Message} message @param {Machine} machine */
  async #stop(message, machine) {
    while (!message.replies) {
      const response = await request("DELETE", machine, message.id).catch(() => undefined);
      if (response?.status === 202) return true;
      if (response?.status === 404) return false;
      console.error(`relay: ${message.id}: cannot stop it yet: ${response?.status ?? "the machine is not up"}`);
      await sleep(this.setup.retryMS);
    }
    return false;
  }

  /** Waits before the next try; a stop ends that. @param {Message} message @param {number} [seconds] */
  async #pause(message, seconds = 0) {
    const length = seconds > 0 ? 1000 * Math.min(seconds, 60) : this.setup.retryMS;
    const wasStopped = message.isStopped;
    const end = performance.now() + length;
    while (performance.now() < end && message.isStopped === wasStopped) await sleep(Math.min(length, 500));
  }
}

/** @param {Message} message @param {string[]} commands */
function says(message, ...commands) {
  return message.media.length === 0 && commands.includes(message.text.trim().toLowerCase());
}

/** @param {Error} error */
function complain(error) {
  console.error("relay: cannot reply:", error.message);
}
