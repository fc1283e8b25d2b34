// The relay's outside: Twilio's webhook comes in at POST /whatsapp, pictures go out at
// GET /media/NAME, and all else is in the environment (README.md).
import { readFileSync } from "node:fs";
import express from "express";
import twilio from "twilio";
import { Relay } from "./relay.js";
import { Store } from "./store.js";

const env = {
  HOST: "127.0.0.1",
  PORT: "3000",
  DATA: "data",
  PEOPLE: "people.json",
  PROGRESS_SECONDS: "20",
  RETRY_SECONDS: "5",
  MERGE_SECONDS: "2",
  TWILIO_API: "https://api.twilio.com",
  ...process.env,
};

/** @param {string} name */
function needed(name) {
  const value = process.env[name];
  if (value) return value;
  console.error(`relay: ${name} is not set: see README.md`);
  process.exit(1);
}

/** Who may write, and the VM of each. @param {string} file @returns {Map<string, import("./vm.js").Machine>} */
function readPeople(file) {
  const people = Object.entries(JSON.parse(readFileSync(file, "utf8")));
  for (const [name, machine] of people) {
    if (URL.canParse(machine?.url) && typeof machine.token === "string") continue;
    console.error(`relay: ${file}: ${JSON.stringify(name)} needs a url and a token: see people.example.json`);
    process.exit(1);
  }
  return new Map(people);
}

/** @param {"PROGRESS_SECONDS" | "RETRY_SECONDS" | "MERGE_SECONDS"} name */
function milliseconds(name) {
  const seconds = Number(env[name]);
  if (seconds >= 0) return 1000 * seconds;
  console.error(`relay: cannot use ${name}=${JSON.stringify(env[name])}: give a number of seconds`);
  process.exit(1);
}

const account = {
  sid: needed("TWILIO_ACCOUNT_SID"),
  token: needed("TWILIO_AUTH_TOKEN"),
  api: env.TWILIO_API,
  messaging: process.env.TWILIO_API ?? "https://messaging.twilio.com",
};
const publicURL = needed("PUBLIC_URL").replace(/\/+$/, "");
const store = new Store(env.DATA);
const relay = new Relay({
  account,
  publicURL,
  store,
  people: readPeople(env.PEOPLE),
  progressMS: milliseconds("PROGRESS_SECONDS"),
  retryMS: milliseconds("RETRY_SECONDS"),
  mergeMS: milliseconds("MERGE_SECONDS"),
  transcriber: { url: process.env.TRANSCRIBE_URL?.replace(/\/+$/, ""), key: process.env.TRANSCRIBE_KEY, model: process.env.TRANSCRIBE_MODEL ?? "whisper-1" },
});

/** Only Twilio, which knows the account's token, can sign a form. @type {express.RequestHandler} */
const isTwilio = (request, response, next) => {
  if (!request.body) return void response.sendStatus(400); // no form
  const signature = request.get("X-Twilio-Signature") ?? "";
  const url = publicURL + request.originalUrl;
  if (!twilio.validateRequest(account.token, signature, url, request.body)) {
    console.error(`relay: rejected a request without Twilio's signature for ${url}: is that the address that Twilio calls?`);
    return void response.sendStatus(403);
  }
  next();
};

const app = express();
app.disable("x-powered-by");
app.post("/whatsapp", express.urlencoded({ extended: false, limit: "64kb" }), isTwilio, (request, response) => {
  const isReceipt = "MessageStatus" in request.body; // of what the relay sent
  if (isReceipt) relay.note(request.body);
  else if (!relay.take(request.body)) return void response.sendStatus(400);
  response.type("text/xml").send("<Response/>"); // an agent takes longer than Twilio waits
});
app.get("/media/:name", (request, response) => {
  const { name } = request.params;
  if (!store.has(name)) return void response.sendStatus(404);
  if (!/\.(png|jpg)$/.test(name)) response.attachment(name); // no page of this address
  response.set("X-Content-Type-Options", "nosniff").sendFile(name, { root: store.media });
});
app.use(
  /** @param {any} error @param {express.Request} _request @param {express.Response} response @param {express.NextFunction} _next */
  (error, _request, response, _next) => {
    const isTheirs = error.status >= 400 && error.status < 500; // what no parser takes
    if (!isTheirs) console.error("relay:", error);
    response.sendStatus(isTheirs ? 400 : 500);
  },
);

const server = app.listen(Number(env.PORT), env.HOST, (error) => {
  if (error) throw error;
  const address = /** @type {import("node:net").AddressInfo} */ (server.address());
  console.log(`relay: http://${address.address}:${address.port}/whatsapp`);
  relay.resume();
});
