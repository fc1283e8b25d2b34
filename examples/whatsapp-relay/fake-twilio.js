// A Twilio on loopback for tests: it signs webhooks as Twilio's library expects it,
// serves media to who knows the account, and keeps what is to be said to people.
//
//   node fake-twilio.js          prints its URL; to drive it:
//
//   POST /say   {"relay": URL, "from", "text", "media": [{"type", "data"}], "id"}
//               delivers a message; answers {"id", "status"}
//   GET /said   what people were told: [{"to", "body", "media"}]
import { randomUUID } from "node:crypto";
import { setTimeout as sleep } from "node:timers/promises";
import express from "express";
import twilio from "twilio";

export const account = { sid: `AC${"0".repeat(32)}`, token: "the account's token" };
export const publicURL = "https://relay.example"; // which only signatures and links name

/** @typedef {{type: string, data: string, name?: string}} Medium its data in base64 */

/** @returns {Promise<FakeTwilio>} */
export async function startTwilio() {
  const fake = new FakeTwilio();
  await new Promise((resolve) => (fake.server = fake.app.listen(0, "127.0.0.1", () => resolve(undefined))));
  const { port } = /** @type {import("node:net").AddressInfo} */ (fake.server?.address());
  fake.url = `http://127.0.0.1:${port}`;
  return fake;
}

class FakeTwilio {
  url = "";
  /** @type {import("node:http").Server | undefined} */
  server;
  /** @type {{to: string, body: string, media?: string, receipts?: string}[]} */
  said = [];
  /** @type {Map<string, Medium>} */
  media = new Map();
  /** @type {string[]} the messages at which somebody was shown to write */
  typing = [];
  hasTyping = true;
  failures = 0; // how many replies are still to fail
  refusal = 0; // the status that every reply gets, if any
  delayMS = 0; // of the next reply

  constructor() {
    const app = (this.app = express());
    app.post("/say", express.json({ limit: "20mb" }), async (request, response) => {
      response.json(await this.say(request.body.relay, request.body));
    });
    app.get("/said", (_request, response) => void response.json(this.said));
    app.use((request, response, next) => {
      const credentials = Buffer.from(`${account.sid}:${account.token}`).toString("base64");
      if (request.get("Authorization") !== `Basic ${credentials}`) return void response.sendStatus(401);
      next();
    });
    app.post("/v2/Indicators/Typing.json", express.urlencoded({ extended: false }), (request, response) => {
      this.typing.push(request.body.messageId);
      response.status(this.hasTyping ? 200 : 404).json({});
    });
    app.get("/media/:id", (request, response) => {
      const medium = this.media.get(request.params.id);
      if (!medium) return void response.sendStatus(404);
      if (medium.name) response.set("Content-Disposition", `inline; filename="${encodeURI(medium.name) === medium.name ? medium.name : Buffer.from(medium.name).toString("latin1")}"`);
      response.type(medium.type).send(Buffer.from(medium.data, "base64"));
    });
    app.post("/2010-04-01/Accounts/:sid/Messages.json", express.urlencoded({ extended: false }), async (request, response) => {
      const delay = this.delayMS;
      this.delayMS = 0;
      await sleep(delay);
      const { To: to, Body: body = "", MediaUrl: media, StatusCallback: receipts } = request.body;
      if (!body.trim() && !media) return void response.status(400).json({ status: 400, message: "a message needs a body" });
      if (body.length > 1600) return void response.status(400).json({ status: 400, message: "the body is too long" });
      if (this.refusal) return void response.status(this.refusal).json({ status: this.refusal, message: "no such number" });
      if (this.failures-- > 0) return void response.sendStatus(503);
      this.failures = 0;
      this.said.push({ to, body, media, receipts });
      response.status(201).json({ sid: `SM${"0".repeat(32)}` });
    });
  }

  /**
   * Delivers a message, as often as it is called.
   * @param {string} relay its webhook
   * @param {{from: string, text?: string, media?: Medium[], id?: string}} message
   */
  async say(relay, { from, text = "", media = [], id = `SM${randomUUID().replaceAll("-", "")}` }) {
    /** @type {Record<string, string>} */
    const form = { MessageSid: id, From: from, To: "whatsapp:+15550199", Body: text, NumMedia: String(media.length) };
    media.forEach((medium, i) => {
      const name = `${id}-${i}`;
      this.media.set(name, medium);
      form[`MediaUrl${i}`] = `${this.url}/media/${name}`;
      form[`MediaContentType${i}`] = medium.type;
    });
    const { status } = await post(relay, form);
    return { id, status };
  }
}

/** Sends a signed form. @param {string} relay @param {Record<string, string>} form */
export function post(relay, form) {
  const path = new URL(relay).pathname;
  const signature = twilio.getExpectedTwilioSignature(account.token, publicURL + path, form);
  return fetch(relay, { method: "POST", headers: { "X-Twilio-Signature": signature }, body: new URLSearchParams(form) });
}

if (process.argv[1] === import.meta.filename) console.log((await startTwilio()).url);
