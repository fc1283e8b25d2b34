// What must survive a crash, in files: an open message until it is answered, the ids
// of answered ones for a day, each sender's conversation, and pictures for an hour.
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
 * @property {Reply[]} [replies] what is left to say, once there is an answer
 *
 * @typedef {{body?: string, picture?: string}} Reply
 */

export class Store {
  /** @param {string} folder */
  constructor(folder) {
    this.folder = path.resolve(folder);
    for (const name of ["open", "done", "media"]) fs.mkdirSync(this.#path(name), { recursive: true, mode: 0o700 });
    /** @type {Record<string, string>} session_id by sender */
    this.conversations = readJSON(this.#path("conversations.json")) ?? {};
  }

  /** The messages that a crash left open, in the order in which they came. */
  open() {
    const names = fs.readdirSync(this.#path("open")).filter((name) => name.endsWith(".json"));
    /** @type {Message[]} */
    const messages = names.map((name) => readJSON(this.#path("open", name)));
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
    this.#prune("done", 24 * HOUR);
    this.#prune("media", HOUR);
  }

  /** @param {string} sender @param {string} [session] none: the next message begins a new one */
  converse(sender, session) {
    if (this.conversations[sender] === session) return;
    if (session) this.conversations[sender] = session;
    else delete this.conversations[sender];
    this.#write(JSON.stringify(this.conversations), "conversations.json");
  }

  /** Keeps a picture under a name that nobody guesses. @param {Buffer} data @param {string} type */
  keep(data, type) {
    const name = `${randomBytes(32).toString("hex")}.${type === "image/png" ? "png" : "jpg"}`;
    this.#write(data, "media", name);
    return name;
  }

  /** The path of a picture that is at most an hour old. @param {string} name */
  picture(name) {
    if (!/^[0-9a-f]{64}\.(png|jpg)$/.test(name)) return;
    const file = this.#path("media", name);
    const kept = fs.statSync(file, { throwIfNoEntry: false });
    if (kept && Date.now() - kept.mtimeMs < HOUR) return file;
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

  /** @param {string} folder @param {number} age */
  #prune(folder, age) {
    for (const name of fs.readdirSync(this.#path(folder))) {
      const file = this.#path(folder, name);
      const kept = fs.statSync(file, { throwIfNoEntry: false });
      if (kept && Date.now() - kept.mtimeMs > age) fs.rmSync(file, { force: true });
    }
  }
}

/** @param {string} file */
function readJSON(file) {
  return fs.existsSync(file) ? JSON.parse(fs.readFileSync(file, "utf8")) : undefined;
}
