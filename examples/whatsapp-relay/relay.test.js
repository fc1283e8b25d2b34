// The relay as a process, between a Twilio and a VM that are both on loopback. What
// the real VM does with its commands is shown in ../../e2e/relay_test.go.
import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { mkdtempSync, readdirSync, renameSync, rmSync, utimesSync, writeFileSync } from "node:fs";
import { createServer } from "node:http";
import { tmpdir } from "node:os";
import path from "node:path";
import { after, test } from "node:test";
import { setTimeout as sleep } from "node:timers/promises";
import { account, post, publicURL, startTwilio } from "./fake-twilio.js";
import { whatsAppText } from "./format.js";
import { split, words } from "./words.js";

const ANN = "whatsapp:+15550100";
const STRANGER = "whatsapp:+15550999";
const PNG = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg==";

/** @type {(() => unknown)[]} */
const cleanups = [];
after(async () => {
  for (const cleanup of cleanups) await cleanup();
});

/** @param {string} what @param {() => unknown} condition */
async function eventually(what, condition) {
  for (const deadline = Date.now() + 60_000; !(await condition()); await sleep(10)) {
    if (Date.now() > deadline) assert.fail(`it never came that ${what}`);
  }
}

/** @typedef {{key: string, token: string, body: any, respond: (answer: object, ...events: object[]) => void, refuse: (status: number, body: string, headers?: object) => void, breakOff: () => void, page: () => void}} Request */

/** A VM whose answers a test gives, by a function or one by one. */
class FakeVM {
  url = "";
  /** @type {Map<string, Buffer>} what was put into inbox/, and what is in outbox/ */
  files = new Map();
  /** @type {number} the status that every file gets, if any */
  fileRefusal = 0;
  /** @type {Request[]} */
  requests = [];
  /** @type {string[]} keys */
  stops = [];
  /** @type {(request: Request) => void} */
  onCommand = ({ body, respond }) => respond({ status: "success", result: `${body.command}!`, session_id: "s1" });

  server = createServer(async (request, response) => {
    if (request.url?.startsWith("/files/")) return void (await this.serveFile(request, response));
    let text = "";
    for await (const chunk of request) text += chunk;
    const stream = (/** @type {string} */ name, /** @type {object} */ data) => response.write(`event: ${name}\ndata: ${JSON.stringify(data)}\n\n`);
    if (request.method === "DELETE") {
      this.stops.push(String(request.headers["idempotency-key"]));
      return void response.writeHead(202).end();
    }
    const seen = {
      key: String(request.headers["idempotency-key"]),
      token: String(request.headers.authorization),
      body: JSON.parse(text || "null"),
      respond: (/** @type {object} */ answer, /** @type {object[]} */ ...events) => {
        response.writeHead(200, { "Content-Type": "text/event-stream" });
        events.forEach((event) => stream("agent", event));
        stream("response", answer);
        response.end();
      },
      page: () => response.writeHead(200, { "Content-Type": "text/html" }).end("<h1>hello</h1>"),
      refuse: (/** @type {number} */ status, /** @type {string} */ body, headers = {}) => response.writeHead(status, headers).end(body),
      breakOff: () => response.writeHead(200, { "Content-Type": "text/event-stream" }).write(": half an ev", () => response.destroy()),
    };
    this.requests.push(seen);
    this.onCommand(seen);
  });

  /** @param {import("node:http").IncomingMessage} request @param {import("node:http").ServerResponse} response */
  async serveFile(request, response) {
    const name = decodeURIComponent(request.url?.replace("/files/", "") ?? "");
    if (request.method === "PUT") {
      const chunks = [];
      for await (const chunk of request) chunks.push(chunk);
      if (this.fileRefusal) return void response.writeHead(this.fileRefusal).end('{"error":{"code":"no_space","message":"the disk is full"}}');
      this.files.set(name, Buffer.concat(chunks));
      return void response.writeHead(201).end("{}");
    }
    const file = this.files.get(name);
    response.writeHead(file ? 200 : 404).end(file);
  }
}

async function startVM() {
  const vm = new FakeVM();
  await new Promise((resolve) => vm.server.listen(0, "127.0.0.1", () => resolve(undefined)));
  const { port } = /** @type {import("node:net").AddressInfo} */ (vm.server.address());
  vm.url = `http://127.0.0.1:${port}`;
  cleanups.push(() => vm.server.closeAllConnections(), () => vm.server.close());
  return vm;
}

/** A relay with its own folder, Twilio and VM. @param {Record<string, string>} [env] */
async function start(env = {}) {
  const folder = mkdtempSync(path.join(tmpdir(), "relay-"));
  const fake = await startTwilio();
  const vm = await startVM();
  writeFileSync(path.join(folder, "people.json"), JSON.stringify({ [ANN]: { url: vm.url, token: "ann's" } }));
  const r = new RunningRelay(folder, fake, vm);
  cleanups.push(
    () => r.kill(),
    () => fake.server?.closeAllConnections(),
    () => fake.server?.close(),
    () => rmSync(folder, { recursive: true }),
  );
  r.env = env;
  await r.launch();
  return r;
}

class RunningRelay {
  url = "";
  /** @type {Record<string, string>} */
  env = {};
  log = "";
  /** @type {import("node:child_process").ChildProcess | undefined} */
  process;

  /** @param {string} folder @param {Awaited<ReturnType<typeof startTwilio>>} twilio @param {FakeVM} vm */
  constructor(folder, twilio, vm) {
    this.folder = folder;
    this.twilio = twilio;
    this.vm = vm;
  }

  async launch() {
    this.log = "";
    const env = {
      PATH: process.env.PATH,
      PORT: "0",
      DATA: path.join(this.folder, ".data"), // as folders are called that belong to a program
      PEOPLE: path.join(this.folder, "people.json"),
      PUBLIC_URL: publicURL,
      TWILIO_ACCOUNT_SID: account.sid,
      TWILIO_AUTH_TOKEN: account.token,
      TWILIO_API: this.twilio.url,
      PROGRESS_SECONDS: "0",
      RETRY_SECONDS: "0.1",
      MERGE_SECONDS: "0",
      ...this.env,
    };
    const child = spawn(process.execPath, [path.join(import.meta.dirname, "server.js")], { env });
    child.stdout.on("data", (data) => (this.log += data));
    child.stderr.on("data", (data) => (this.log += data));
    this.process = child;
    await eventually("the relay listens", () => /relay: (http\S+)\n/.test(this.log) || child.exitCode !== null);
    this.url = /relay: (http\S+)\n/.exec(this.log)?.[1] ?? "";
  }

  async kill() {
    if (this.process?.exitCode !== null || this.process.signalCode !== null) return;
    const ended = new Promise((resolve) => this.process?.once("exit", resolve));
    this.process.kill("SIGKILL");
    await ended;
  }

  /** @param {string} text @param {{from?: string, media?: import("./fake-twilio.js").Medium[], id?: string}} [more] */
  async say(text, more = {}) {
    const { id, status } = await this.twilio.say(this.url, { from: ANN, text, ...more });
    assert.equal(status, 200);
    return id;
  }

  async isDone() {
    await eventually("all is answered", () => readdirSync(path.join(this.folder, ".data/open")).length === 0);
  }

  /** What Ann reads next to what she read before. @param {...string} texts */
  async reads(...texts) {
    await eventually(`${texts.length} replies are there: ${JSON.stringify(this.twilio.said)}`, () => this.twilio.said.length >= texts.length);
    await this.isDone();
    assert.deepEqual(this.twilio.said.map(({ body }) => body), texts);
  }
}

test("a message becomes a command of its sender's VM, and its answer a reply", async () => {
  const r = await start();
  const id = await r.say("hello");
  await r.reads("hello!");
  const [{ key, token, body }] = r.vm.requests;
  assert.deepEqual({ key, token, body }, { key: id, token: "Bearer ann's", body: { command: "hello" } });
});

test("the conversation goes on, after a restart too, until the sender wants a new one", async () => {
  const r = await start();
  await r.say("one");
  await r.reads("one!");
  await r.kill();
  await r.launch();
  await r.say("two");
  await r.say("New");
  await r.say("three");
  await r.reads("one!", "two!", "What you send next begins a new conversation.", "three!");
  assert.deepEqual(r.vm.requests.map(({ body }) => body.session_id), [undefined, "s1", undefined]);
});

test("what Twilio has not signed is refused", async () => {
  const r = await start();
  const form = { MessageSid: "SM1", From: ANN, To: "x", Body: "hello" };
  const unsigned = await fetch(r.url, { method: "POST", body: new URLSearchParams(form) });
  const headers = { "X-Twilio-Signature": "nonsense" };
  const wrong = await fetch(r.url, { method: "POST", headers, body: new URLSearchParams(form) });
  assert.deepEqual([unsigned.status, wrong.status], [403, 403]);
  assert.match(r.log, /without Twilio's signature for https:\/\/relay\.example\/whatsapp:/);
  assert.equal((await post(r.url, form)).status, 200); // the control
  await r.reads("hello!");
});

test("a malformed body is a 400, and the relay goes on", async () => {
  const r = await start();
  const bodies = [
    ["application/json", "null"],
    ["application/json", "{"],
    ["text/plain", "hello"],
    ["application/x-www-form-urlencoded; charset=nonsense", "a=b"],
    ["application/x-www-form-urlencoded", "x".repeat(100_000)],
    ["application/x-www-form-urlencoded", Array(2000).fill("a=b").join("&")],
  ];
  for (const [type, body] of bodies) {
    const response = await fetch(r.url, { method: "POST", headers: { "Content-Type": type }, body });
    assert.equal(response.status, 400, type);
  }
  const forms = [{ Body: "no id", From: ANN, To: "x" }, { MessageSid: "SM1", Body: "nobody", To: "x" }, { MessageSid: "../x", From: ANN, To: "x" }];
  for (const form of forms) {
    assert.equal((await post(r.url, /** @type {any} */ (form))).status, 400, JSON.stringify(form));
  }
  await r.say("hello");
  await r.reads("hello!");
});

test("a message that is delivered again, at once or later, is answered once", async () => {
  const r = await start();
  const id = await r.say("hello");
  await r.say("hello", { id });
  await r.reads("hello!");
  await r.say("hello", { id });
  await r.kill();
  await r.launch();
  await r.say("hello", { id });
  await r.say("then");
  await r.reads("hello!", "then!");
});

test("a sender's messages are answered in their order, though the first takes longer", async () => {
  const r = await start();
  /** @type {Request[]} */
  const waiting = [];
  r.vm.onCommand = (request) => waiting.push(request);
  await r.say("first");
  await r.say("second");
  await eventually("the first is sent", () => waiting.length === 1);
  r.vm.onCommand = ({ body, respond }) => respond({ status: "success", result: `${body.command}!` });
  await sleep(100);
  assert.equal(waiting.length, 1);
  waiting[0].respond({ status: "success", result: "first!" });
  await r.reads("first!", "second!");
});

test("a photo comes to the VM byte for byte, with words of the relay's own if it had none", async () => {
  const r = await start();
  await r.say("", { media: [{ type: "image/png", data: PNG }] });
  await r.say("this looks broken", { media: [{ type: "image/png", data: PNG }] });
  await eventually("both are sent", () => r.vm.requests.length === 2);
  const image = { media_type: "image/png", data: PNG };
  assert.deepEqual(r.vm.requests[0].body.images, [image]);
  assert.match(r.vm.requests[0].body.command, /without a word/);
  assert.deepEqual(r.vm.requests[1].body, { command: "this looks broken", images: [image], session_id: "s1" });
});

test("what can't be passed on is said, and nothing is started", async () => {
  const r = await start();
  const large = Buffer.alloc(6 * 1024 * 1024).toString("base64");
  r.vm.fileRefusal = 507;
  await r.say("", { media: [{ type: "application/pdf", data: PNG }] });
  await r.say("", { media: [{ type: "image/jpeg", data: large }] });
  await r.say("  ");
  await r.say("hello", { from: STRANGER });
  await eventually("all is said", () => r.twilio.said.length === 4);
  const said = r.twilio.said.map(({ body }) => body).join("\n");
  for (const wanted of [/I can't take file-.*\.pdf: the disk is full/, /too large/, /nothing in that/, /know this number/]) assert.match(said, wanted);
  assert.equal(r.vm.requests.length, 0);
});

test("other media come into the machine's inbox, byte for byte", async () => {
  const r = await start();
  const id = await r.say("read these", { media: [{ type: "application/pdf", data: PNG, name: "a report ü.pdf" }, { type: "text/csv", data: "YSxi" }, { type: "audio/ogg", data: "T2dn" }] });
  await eventually("it is sent", () => r.vm.requests.length === 1);
  const end = id.slice(-8);
  const names = ["inbox/a report ü.pdf", `inbox/file-${end}-2.csv`, `inbox/file-${end}-3.ogg`];
  assert.deepEqual([...r.vm.files.keys()], names);
  assert.equal(r.vm.files.get(names[0])?.toString("base64"), PNG);
  const { command } = r.vm.requests[0].body;
  assert.match(command, /^read these\n\n/);
  for (const name of names) assert.ok(command.includes(JSON.stringify(name)), command);
});

test("an odd name is not the file's", async () => {
  const r = await start();
  for (const name of ["../../etc/passwd", ".bashrc", "a/b", "-rf", "x;y"]) await r.say("", { media: [{ type: "text/plain", data: "YQ==", name }] });
  await eventually("all are sent", () => r.vm.requests.length === 5);
  assert.ok([...r.vm.files.keys()].every((name) => /^inbox\/file-[0-9a-f]{8}-1\.txt$/.test(name)), [...r.vm.files.keys()].join());
});

test("a voice note is transcribed where there is an API for it, and is a file where that fails", async () => {
  /** @type {string[]} */
  const asked = [];
  let status = 200;
  const api = createServer(async (request, response) => {
    let text = "";
    for await (const chunk of request) text += chunk.toString("latin1");
    asked.push(`${request.method} ${request.url} ${request.headers.authorization} ${/name="model"\r\n\r\n(\S+)/.exec(text)?.[1]} ${text.includes("OggS")}`);
    response.writeHead(status).end('{"text":" buy milk "}');
  });
  await new Promise((resolve) => api.listen(0, "127.0.0.1", () => resolve(undefined)));
  cleanups.push(() => api.close());
  const { port } = /** @type {import("node:net").AddressInfo} */ (api.address());
  const r = await start({ TRANSCRIBE_URL: `http://127.0.0.1:${port}/`, TRANSCRIBE_KEY: "k", TRANSCRIBE_MODEL: "m" });
  const note = { type: "audio/ogg", data: Buffer.from("OggS").toString("base64") };
  await r.say("", { media: [note] });
  await eventually("it is sent", () => r.vm.requests.length === 1);
  assert.deepEqual(asked, ["POST /v1/audio/transcriptions Bearer k m true"]);
  assert.equal(r.vm.requests[0].body.command, "(A voice note, transcribed:) buy milk");
  assert.equal(r.vm.files.size, 0);

  status = 500;
  await r.say("", { media: [note] });
  await eventually("it is sent as a file", () => r.vm.requests.length === 2);
  assert.match(r.vm.requests[1].body.command, /inbox\/file-.*\.ogg/);
  assert.match(r.log, /cannot transcribe a voice note: the API answers 500/);
});

test("a file waits for a machine that is not up", async () => {
  const r = await start();
  r.vm.fileRefusal = 502;
  await r.say("look", { media: [{ type: "text/csv", data: "YSxi" }] });
  await eventually("it is tried", () => r.log.includes("the machine answers 502"));
  r.vm.fileRefusal = 0;
  await eventually("it is sent", () => r.vm.requests.length === 1);
});

test("files of an answer come back, and a large one is told of", async () => {
  const r = await start();
  const page = Buffer.from("<script>");
  r.vm.files.set("outbox/report ü.html", page);
  const files = [{ name: "report ü.html", size: 8, modified: "" }, { name: "gone.txt", size: 1, modified: "" }, { name: "video.mp4", size: 17_000_000, modified: "" }];
  r.vm.onCommand = ({ respond }) => respond({ status: "success", result: "made", session_id: "s1", files });
  await r.say("make it");
  await r.reads("made", "📎 report ü.html", "📎 gone.txt (1 MB) can't be sent here. It is in outbox/ on your machine.", "📎 video.mp4 (17 MB) can't be sent here. It is in outbox/ on your machine.");
  const link = r.twilio.said[1].media ?? "";
  assert.match(link, /\/media\/[0-9a-f]{64}\.html$/);
  const response = await fetch(new URL(new URL(link).pathname, r.url));
  assert.equal(Buffer.from(await response.arrayBuffer()).toString(), "<script>");
  assert.match(response.headers.get("Content-Disposition") ?? "", /^attachment/); // no page that runs at the relay's address
});

test("messages that come within moments are one command, and the relay's death in it changes nothing", async () => {
  const r = await start({ MERGE_SECONDS: "1" });
  const photo = { type: "image/png", data: PNG };
  const id = await r.say("", { media: [photo] });
  await r.say("", { media: [photo] });
  await r.say("what are these?", { media: [photo] });
  await r.reads("what are these?!");
  assert.deepEqual(r.vm.requests.map(({ key, body }) => [key, body.images.length]), [[id, 3]]);

  r.vm.onCommand = () => {};
  await r.say("one");
  await r.say("two");
  await eventually("it is sent", () => r.vm.requests.length === 2);
  await r.kill();
  r.vm.onCommand = ({ body, respond }) => respond({ status: "success", result: `${body.command}!` });
  await r.launch();
  await r.reads("what are these?!", "one\ntwo!");
  assert.equal(r.vm.requests[1].key, r.vm.requests[2].key);
});

test("what comes later, or is a word for the relay, is a message of its own", async () => {
  const r = await start({ MERGE_SECONDS: "0.3" });
  await r.say("one");
  await r.say("new");
  await sleep(600);
  await r.say("two");
  await r.reads("one!", "What you send next begins a new conversation.", "two!");
});

test("an exclamation mark stops what runs, and goes on in its conversation", async () => {
  const r = await start();
  /** @type {Request[]} */
  const waiting = [];
  r.vm.onCommand = (request) => waiting.push(request);
  const first = await r.say("count to a million");
  await eventually("it is sent", () => waiting.length === 1);
  r.vm.onCommand = ({ body, respond }) => respond({ status: "success", result: `${body.command}!`, session_id: body.session_id });
  await r.say("! to a hundred only");
  await eventually("it is stopped", () => r.vm.stops.includes(first));
  waiting[0].respond({ status: "canceled", result: "", session_id: "s7", error: { code: "stopped", message: "m" } });
  await r.reads('I stopped. Say "go on" to continue.', "to a hundred only!");
  assert.equal(r.vm.requests[1].body.session_id, "s7");
});

test("a sign comes at once where Twilio has one, and is not missed where it has none", async () => {
  const r = await start();
  const ids = [await r.say("one")];
  r.twilio.hasTyping = false;
  ids.push(await r.say("two"));
  await r.reads("one!", "two!");
  assert.deepEqual(r.twilio.typing, ids);
});

test("a sender's conversations are listed, and one of them goes on", async () => {
  const r = await start();
  let count = 0;
  r.vm.onCommand = ({ body, respond }) => respond({ status: "success", result: "ok", session_id: body.session_id ?? `s${++count}` });
  await r.say("sessions");
  for (const text of ["about the roof", "New", "about the cellar", "sessions", "resume 2", "and then?", "resume 9"]) await r.say(text);
  const begins = "What you send next begins a new conversation.";
  const list = '1. about the cellar (just now)\n2. about the roof (just now)\nSend "resume 2" to go on with the second.';
  const none = 'There is no conversation 9. Send "sessions" to see them.';
  await r.reads("There is no conversation yet.", "ok", begins, "ok", list, "We go on with: about the roof", "ok", none);
  assert.equal(r.vm.requests.at(-1)?.body.session_id, "s1");
});

test("a photo is loaded from Twilio alone, as the account's token goes with it", async () => {
  const r = await start();
  const elsewhere = await startTwilio();
  cleanups.push(() => elsewhere.server?.close());
  let asked = 0;
  elsewhere.server?.prependListener("request", () => asked++);
  const form = { MessageSid: "SM2", From: ANN, To: "x", Body: "", MediaUrl0: `${elsewhere.url}/media/x`, MediaContentType0: "image/png" };
  await post(r.url, form);
  await r.reads("I couldn't load your photo. Send it again, please.");
  assert.equal(asked, 0);
});

/** @param {string} tool @param {string} id */
const call = (tool, id) => ({ type: "assistant", message: { content: [{ type: "tool_use", id, name: tool, input: {} }] } });
/** @param {string} id */
const pictureOf = (id) => {
  const image = { type: "image", source: { type: "base64", media_type: "image/png", data: PNG } };
  return { type: "user", message: { content: [{ type: "tool_result", tool_use_id: id, content: [{ type: "text", text: "taken" }, image] }] } };
};

test("a screenshot comes as a picture under a name that nobody guesses, for an hour", async () => {
  const r = await start();
  const screenshot = "mcp__playwright__browser_take_screenshot";
  r.vm.onCommand = ({ respond }) =>
    respond({ status: "success", result: "look" }, call("Read", "t1"), pictureOf("t1"), call(screenshot, "t2"), pictureOf("t2"));
  await r.say("show me");
  await r.reads("⚙ Read", "look", "");
  const link = r.twilio.said.at(-1)?.media ?? "";
  assert.match(link, /^https:\/\/relay\.example\/media\/[0-9a-f]{64}\.png$/);
  const here = new URL(new URL(link).pathname, r.url);
  const response = await fetch(here);
  assert.equal(response.headers.get("Content-Type"), "image/png");
  assert.equal(Buffer.from(await response.arrayBuffer()).toString("base64"), PNG);
  assert.equal(readdirSync(path.join(r.folder, ".data/media")).length, 1); // what the agent read is not shown

  const old = new Date(Date.now() - 3601 * 1000);
  utimesSync(path.join(r.folder, ".data/media", path.basename(link)), old, old);
  assert.equal((await fetch(here)).status, 404);
  for (const name of ["..%2fconversations.json", "x.png", `${"0".repeat(64)}.png`]) {
    assert.equal((await fetch(new URL(`/media/${name}`, r.url))).status, 404, name);
  }
});

test("a reply that Twilio can't take now is sent until it can, a refused one is let go", async () => {
  const r = await start();
  r.twilio.failures = 3;
  await r.say("hello");
  await r.reads("hello!");
  r.twilio.refusal = 400;
  await r.say("to nobody");
  await eventually("it is let go", () => /no such number/.test(r.log));
  r.twilio.refusal = 0;
  await r.say("again");
  await r.reads("hello!", "again!");
});

test("an answer that was not said before a crash is said after it, and the VM is not asked again", async () => {
  const r = await start();
  r.twilio.failures = Infinity;
  await r.say("hello");
  await eventually("the VM has answered, and Twilio was asked", () => /cannot reply|relay: SM/.test(r.log));
  await r.kill();
  r.twilio.failures = 0;
  await r.launch();
  await r.reads("hello!");
  assert.equal(r.vm.requests.length, 1);
});

test("an odd event harms nobody", async () => {
  const r = await start();
  const screenshot = call("mcp__playwright__browser_take_screenshot", "t1");
  const returned = [null, { type: "image", source: { data: { length: 8 } } }, { type: "image", source: { data: 7 } }, { type: "image" }];
  const odd = [
    {},
    { message: null },
    { message: { content: [null, 7, { type: "tool_use" }, { type: "tool_result", content: "x" }] } },
    screenshot,
    { message: { content: [{ type: "tool_result", tool_use_id: "t1", content: returned }] } },
  ];
  r.vm.onCommand = ({ respond }) => respond({ status: "success", result: "well" }, ...odd);
  await r.say("hello");
  await r.isDone();
  assert.equal(r.twilio.said.at(-1)?.body, "well"); // and no picture behind it
  assert.equal(r.vm.requests.length, 1);
});

test("a word of progress comes before the answer, though Twilio takes its time with it", async () => {
  const r = await start();
  r.twilio.delayMS = 1000;
  r.vm.onCommand = ({ respond }) => respond({ status: "success", result: "done" }, call("Read", "t1"));
  await r.say("hello");
  await r.reads("⚙ Read", "done");
});

test("a receipt of what the relay sent is no message", async () => {
  const r = await start();
  const receipt = { MessageSid: "SM3", MessageStatus: "delivered", From: ANN, To: "x" };
  assert.equal((await post(r.url, receipt)).status, 200);
  await r.say("hello");
  await r.reads("hello!");
});

test("what a person hears while the relay tries is no flood", async () => {
  const r = await start();
  r.twilio.delayMS = 300;
  r.vm.onCommand = ({ body, respond, refuse, breakOff }) => {
    const tries = r.vm.requests.length;
    if (tries > 20) respond({ status: "success", result: body.command });
    else if (tries % 2 === 0) refuse(502, "<html>Bad Gateway</html>");
    else breakOff();
  };
  await r.say("hello");
  await r.reads("The machine is restarting. I'll keep trying.", "hello");

  r.vm.onCommand = ({ refuse }) => refuse(400, JSON.stringify({ status: "rejected", error: { code: "invalid_request", message: "bad" } }));
  await r.say("this can't be sent");
  await r.reads("The machine is restarting. I'll keep trying.", "hello", "That can't be sent: bad");
});

test("what a proxy refuses is tried again, whatever it looks like", async () => {
  const r = await start();
  const odd = [() => [403, '{"error":"nope"}'], () => [403, '{"error":{}}'], () => [404, "<html>"], () => [502, "null"]];
  r.vm.onCommand = ({ respond, refuse }) => {
    const [status, body] = odd.shift()?.() ?? [];
    if (status) refuse(Number(status), String(body));
    else respond({ status: "success", result: "well" });
  };
  await r.say("hello");
  await r.reads("The machine is restarting. I'll keep trying.", "well");
});

test("stop ends a wait of any length", async () => {
  const r = await start();
  r.vm.onCommand = ({ refuse }) => refuse(429, "{}", { "Retry-After": "9999999999" });
  const id = await r.say("hello");
  await eventually("it waits", () => r.twilio.said.length === 1);
  r.vm.onCommand = ({ respond }) => respond({ status: "canceled", result: "", error: { code: "stopped", message: "m" } });
  await r.say("halt");
  await eventually("it is answered", () => r.twilio.said.length === 3);
  assert.deepEqual(r.vm.stops.includes(id), true);
  assert.equal(r.vm.requests.length, 2);
});

test("stop stops although the disk is full, and what waits is never sent", async () => {
  const r = await start();
  r.vm.onCommand = () => {};
  const id = await r.say("hello");
  await r.say("next");
  await eventually("the VM has it", () => r.vm.requests.length === 1);
  const open = path.join(r.folder, ".data/open");
  renameSync(open, `${open}.away`); // nothing can be written there
  const { status } = await r.twilio.say(r.url, { from: ANN, text: "stop" });
  assert.equal(status, 500); // so that Twilio delivers it again
  await eventually("the VM is told", () => r.vm.stops.includes(id));
  renameSync(`${open}.away`, open);
});

test("a file that is broken keeps nobody from starting, and nobody else's message from its answer", async () => {
  const r = await start();
  await r.kill();
  writeFileSync(path.join(r.folder, ".data/open/SM1.json"), "");
  writeFileSync(path.join(r.folder, ".data/conversations.json"), "{");
  await r.launch();
  await r.say("hello");
  await eventually("it is answered", () => r.twilio.said.at(-1)?.body === "hello!");
  assert.match(r.log, /SM1\.json\.bad/);
});

test("a reply that Twilio refuses for the account's sake waits for that to be mended", async () => {
  const r = await start();
  r.twilio.refusal = 401;
  await r.say("hello");
  await eventually("it is told", () => /no such number/.test(r.log));
  r.twilio.refusal = 0;
  await r.reads("hello!");
});

test("nobody is anybody by a name that JavaScript knows", async () => {
  const r = await start();
  for (const from of ["__proto__", "constructor", "toString"]) await r.say("hello", { from });
  await eventually("all are told", () => r.twilio.said.length === 3);
  assert.ok(r.twilio.said.every(({ body }) => body === "I don't know this number."));
});

test("people.json is checked at the start", async () => {
  const r = await start();
  await r.kill();
  writeFileSync(path.join(r.folder, "people.json"), JSON.stringify({ [ANN]: { url: "nowhere" } }));
  await r.launch().catch(() => {});
  assert.match(r.log, /needs a url and a token/);
});

test("what was sent late by a clock that goes back keeps its order", async () => {
  const r = await start();
  await r.kill();
  const message = { from: ANN, to: "whatsapp:+15550199", media: [], screenshots: [] };
  const save = (/** @type {string} */ id, /** @type {number} */ place) =>
    writeFileSync(path.join(r.folder, `.data/open/${id}.json`), JSON.stringify({ ...message, id, place, text: id }));
  save("SM1", Date.now() + 3_600_000);
  r.vm.onCommand = () => {};
  await r.launch();
  await r.say("SM2");
  await r.kill();
  r.vm.onCommand = ({ body, respond }) => respond({ status: "success", result: body.command });
  await r.launch();
  await r.reads("SM1", "SM2");
});

test("an answer is said in words, limits with the time until they end", () => {
  const now = Date.parse("2026-11-26T12:00:00Z");
  /** @param {any} answer */
  const said = (answer) => words(answer, now);
  const failed = (/** @type {string} */ code, retry_at = "") => said({ status: "failed", result: "", error: { code, message: "m", ...(retry_at && { retry_at }) } });
  assert.equal(said({ status: "success", result: "\n" }), "Done.");
  assert.equal(said({ status: "success", result: "# done", warnings: ["a", "b"] }), "*done*\n\n(Note: a.)\n\n(Note: b.)");
  assert.match(failed("conversation_unusable"), /too long.*start a new one/);
  assert.match(said({ status: "timeout", result: "half", error: { code: "timeout", message: "m" } }), /too long[^]*The last I said: half/);
  assert.match(said({ status: "canceled", result: "", error: { code: "stopped", message: "m" } }), /^I stopped/);
  assert.match(failed("usage_limit", "2026-11-26T14:40:00Z"), /limit.* Try again in 3 hours\./);
  assert.match(failed("usage_limit", "2026-11-29T14:40:00Z"), /Try again in 4 days\./);
  assert.match(failed("usage_limit"), /limit with Claude\.$/);
  assert.match(failed("overloaded", "2026-11-26T12:00:30Z"), /Try again in 1 minute\./);
  assert.match(failed("overloaded", "2026-11-26T11:00:00Z"), /in a few minutes/);
  assert.match(failed("authentication_failed"), /owner/);
  assert.match(failed("no_credentials"), /owner/);
  assert.match(failed("session_not_found"), /start a new one/);
  assert.match(failed("agent_crashed"), /broke/);
  assert.match(failed("agent_error"), /failed: m/);
});

test("a long answer is split where it hurts least, at 1,600 characters at most", () => {
  assert.deepEqual(split("short"), ["short"]);
  const paragraphs = split(`${"a".repeat(1000)}\n\n${"b ".repeat(700)}\n\n`);
  assert.deepEqual(paragraphs.map((part) => part[0] + part.length), ["a1000", "b1399"]);
  const wide = split("😀".repeat(2001));
  assert.equal(wide.join(""), "😀".repeat(2001));
  assert.ok(wide.every((part) => part.length <= 1600 && part.isWellFormed()));
  assert.deepEqual(split("x".repeat(3201)).map((part) => part.length), [1600, 1600, 1]);
});

test("code that is cut is code in each part", () => {
  const code = Array.from({ length: 200 }, (_, i) => `line ${i} of the code`).join("\n");
  const parts = split(`Look:\n\n\`\`\`\n${code}\n\`\`\`\n\nThat was it.`);
  assert.ok(parts.length > 2 && parts.every((part) => part.length <= 1600 && part.split("```").length % 2 === 1));
  const lines = parts.join("\n").split("\n").filter((line) => line.startsWith("line "));
  assert.deepEqual(lines, code.split("\n"));
});

test("Markdown becomes WhatsApp's own form", () => {
  for (const [markdown, want] of [
    ["# A **title**", "*A title*"],
    ["**bold**, *italic* and ~~gone~~", "*bold*, _italic_ and ~gone~"],
    ["`a && b` and a & b <c>", "`a && b` and a & b <c>"],
    ["[the docs](https://d.example/) and https://d.example", "the docs (https://d.example/) and https://d.example"],
    ["- one\n- **two**\n  - three", "- one\n- *two*\n  - three"],
    ["3. three\n4. four", "3. three\n4. four"],
    ["- [x] done\n- [ ] not yet", "- ☑ done\n- ☐ not yet"],
    ["> said\n> before", "> said\n> before"],
    ["```js\nconst a = '**b**';\n```", "```\nconst a = '**b**';\n```"],
    ["| a | b |\n|---|---|\n| 1 | **2** |", "*a* | *b*\n1 | *2*"],
    ["one\n\ntwo\nthree", "one\n\ntwo\nthree"],
    ["a snake_case_name and 2 * 3 * 4", "a snake_case_name and 2 * 3 * 4"],
    ["", ""],
  ]) {
    assert.equal(whatsAppText(markdown), want);
  }
});

test("a page at the machine's address is told and logged, and not asked again", async () => {
  const r = await start();
  r.vm.onCommand = ({ page }) => page();
  await r.say("hello");
  await r.reads("That can't be sent: something else answers at my machine's address; its owner has to look.");
  assert.equal(r.vm.requests.length, 1);
  assert.match(r.log, /answers 200 with text\/html/);
});

test("what did not reach a person is logged", async () => {
  const r = await start();
  for (const [status, isLogged] of /** @type {[string, boolean][]} */ ([["delivered", false], ["failed", true], ["undelivered", true]])) {
    const form = { MessageSid: "SM1", MessageStatus: status, To: ANN, ErrorCode: "63016" };
    assert.equal((await post(`${r.url}`, form)).status, 200);
    assert.equal(r.log.includes(`SM1 to ${ANN} was not delivered: ${status}, Twilio's error 63016`), isLogged);
  }
  await r.say("hello");
  await r.reads("hello!");
  assert.equal(r.twilio.said[0].receipts, `${publicURL}/whatsapp`);
});
