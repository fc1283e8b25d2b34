// What must survive a crash, in files: an open message until it is answered, the ids
// of answered ones for a day, each sender's conversations, and what is shown for an hour.
// All is written at once, as nothing may be confirmed before it is on the disk.
import { randomBytes } from "node:crypto";
import fs from "node:fs";
import path from "node:path";

const HOUR = 3600 * 1000;

/**
 * A message that is not answered yet.
 * @typedef {object} Message
 * @property {string} id Twilio's MessageSid, and the command's Idempotency-Key
 * @property {number} place in the order in which messages came
 * @property {string} from
 * @property {string} to whom replies come from
 * @property {string} text
 * @property {{url: string, type: string}[]} media
 * @property {string[]} screenshots names of pictures that the agent took
 * @property {boolean} [isStopped]
 * @property {string} [body] of the request: the same key wants the same bytes
 * @property {Reply[]} [files] that came with the answer
 * @property {string[]} [merged] ids of later messages that are part of this one
 * @property {Reply[]} [replies] what is left to say, once there is an answer
 *
 * @typedef {{body?: string, media?: string}} Reply
 * @typedef {{session: string, words: string, time: number}} Conversation
 */

export class Store {
  /** @param {string} folder */
  constructor(folder) {
    this.folder = path.resolve(folder);
    this.media = this.#path("media");
    for (const name of ["open", "done", "media"]) fs.mkdirSync(this.#path(name), { recursive: true, mode: 0o700 });
    /** @type {Map<string, string>} session_id by sender */
    this.conversations = new Map(readJSON(this.#path("conversations.json")));
    /** @type {Map<string, Conversation[]>} by sender, the latest first */
    this.history = new Map(readJSON(this.#path("history.json")));
    this.#prune();
  }

  /** The messages that a crash left open, in the order in which they came. */
  open() {
    /** @type {Message[]} */
    const messages = [];
    for (const name of fs.readdirSync(this.#path("open"))) {
      const message = name.endsWith(".json") && readJSON(this.#path("open", name));
      if (message) messages.push(message);
    }
    return messages.sort((a, b) => a.place - b.place);
  }

  /** Whether a message came before, as Twilio may deliver it again. @param {string} id */
  knows(id) {
    return fs.existsSync(this.#path("open", `${id}.json`)) || fs.existsSync(this.#path("done", id));
  }

  /** @param {Message} message */
  save(message) {
    this.#write(JSON.stringify(message), "open", `${message.id}.json`);
  }

  /** Forgets an answered message, but for its id. @param {Message} message */
  close(message) {
    this.#write("", "done", message.id);
    fs.rmSync(this.#path("open", `${message.id}.json`));
    this.#prune();
  }

  /** @param {string} sender @param {string} [session] none: the next message begins a new one */
  converse(sender, session) {
    if (this.conversations.get(sender) === session) return;
    if (session) this.conversations.set(sender, session);
    else this.conversations.delete(sender);
    this.#write(JSON.stringify([...this.conversations]), "conversations.json");
  }

  /** Notes that a conversation went on. @param {string} sender @param {string} session @param {string} words its first ones */
  note(sender, session, words) {
    const all = this.history.get(sender) ?? [];
    const known = all.find((conversation) => conversation.session === session);
    const latest = { session, words: known?.words ?? words, time: Date.now() };
    this.history.set(sender, [latest, ...all.filter((conversation) => conversation !== known)].slice(0, 10));
    this.#write(JSON.stringify([...this.history]), "history.json");
  }

  /** Keeps a file under a name that nobody guesses. @param {Buffer} data @param {string} extension */
  keep(data, extension) {
    const name = `${randomBytes(32).toString("hex")}.${/^[a-z0-9]{1,8}$/.test(extension) ? extension : "bin"}`;
    this.#write(data, "media", name);
    return name;
  }

  /** Whether there is a file by that name, at most an hour old. @param {string} name */
  has(name) {
    return /^[0-9a-f]{64}\.[a-z0-9]{1,8}$/.test(name) && ageOf(path.join(this.media, name)) < HOUR;
  }

  /** @param {string[]} names */
  #path(...names) {
    return path.join(this.folder, ...names);
  }

  /** @param {string | Buffer} data @param {string[]} names */
  #write(data, ...names) {
    const file = this.#path(...names);
    fs.writeFileSync(`${file}.new`, data, { mode: 0o600, flush: true });
    fs.renameSync(`${file}.new`, file);
  }

  #prune() {
    const ages = { done: 24 * HOUR, media: HOUR };
    for (const [folder, age] of Object.entries(ages)) {
      for (const name of fs.readdirSync(this.#path(folder))) {
        const file = this.#path(folder, name);
        if (ageOf(file) > age) fs.rmSync(file, { force: true });
      }
    }
  }
}

/** In milliseconds; of what isn't there Infinity. @param {string} file */
function ageOf(file) {
  const kept = fs.statSync(file, { throwIfNoEntry: false });
  return kept ? Date.now() - kept.mtimeMs : Infinity;
}

/** What a file holds, if it is whole; else it is put aside. @param {string} file */
function readJSON(file) {
  if (!fs.existsSync(file)) return;
  try {
    return JSON.parse(fs.readFileSync(file, "utf8"));
  } catch (error) {
    console.error(`relay: cannot read ${file}, which is ${file}.bad now:`, error);
    fs.renameSync(file, `${file}.bad`);
  }
}
