// A relay in plain Node.js: a chat message comes to POST /webhook as
// {"id": "…", "from": "…", "text": "…"}, is answered at once, and becomes a command;
// every word for the sender goes to REPLY_URL as {"to": "…", "text": "…"}. The text
// "stop" stops what the sender's other messages began.
//
//   VM_URL=http://127.0.0.1:3001 VM_TOKEN=… REPLY_URL=https://… node examples/relay.mjs
//
// The message's id is the command's Idempotency-Key. What is open is in STATE, a
// file: a relay that starts again sends it again, and joins what runs.
import { createServer } from "node:http";
import { existsSync, readFileSync, renameSync, writeFileSync } from "node:fs";

const { VM_URL = "http://127.0.0.1:3001", VM_TOKEN, REPLY_URL, HOST = "127.0.0.1", PORT = "3000", RETRY_MS = "5000", STATE = "relay.json" } = process.env;
if (!VM_TOKEN || !REPLY_URL) {
  console.error("relay: set VM_TOKEN to the server's, and REPLY_URL to where replies go");
  process.exit(1);
}

const saved = existsSync(STATE) ? JSON.parse(readFileSync(STATE, "utf8")) : {};
const sessions = new Map(saved.sessions); // sender → session_id of the conversation
const open = new Map(saved.open); // id → {from, body, isStopped} of a command, as it was sent: the same key wants the same bytes
const done = new Set(saved.done); // the last ids that were answered, as a chat may deliver a message again

function save() {
  writeFileSync(`${STATE}.new`, JSON.stringify({ sessions: [...sessions], open: [...open], done: [...done].slice(-1000) }));
  renameSync(`${STATE}.new`, STATE);
}

async function reply(to, text) {
  try {
    await fetch(REPLY_URL, { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify({ to, text }) });
  } catch (error) {
    console.error("relay: cannot reply:", error.cause?.code ?? error.message);
  }
}

// What an event of the agent means to a person who waits; nothing for most.
function progress(event) {
  for (const part of event.message?.content ?? []) {
    if (event.type !== "assistant" || part.type !== "tool_use") continue;
    if (part.name === "Bash") return `⚙ ${part.input.description ?? part.input.command}`.slice(0, 120);
    if (part.name.startsWith("mcp__playwright__")) return `🌐 ${part.name.slice(17).replaceAll("_", " ")} ${part.input.url ?? ""}`.trim().slice(0, 120);
    return `⚙ ${part.name}`;
  }
}

// The answer of an accepted command in words.
function words({ status, result, error }) {
  const soFar = result ? `\n\nThe last it said: ${result}` : "";
  switch (status) {
    case "success":
      return result || "Done.";
    case "timeout":
      return `That took too long, so I stopped it. Say "go on" to continue.${soFar}`;
    case "canceled":
      return `I stopped. Say "go on" to continue.${soFar}`;
    default:
      return `That failed: ${error.message}${soFar}`;
  }
}

// The events of a stream: {event, data} for each.
async function* events(body) {
  let text = "";
  for await (const chunk of body.pipeThrough(new TextDecoderStream())) {
    text += chunk;
    for (let end; (end = text.indexOf("\n\n")) >= 0; text = text.slice(end + 2)) {
      const event = {};
      for (const line of text.slice(0, end).split("\n")) {
        const colon = line.indexOf(": ");
        if (colon > 0) event[line.slice(0, colon)] = line.slice(colon + 2);
      }
      if (event.event) yield event;
    }
  }
}

const send = (method, id, body) =>
  fetch(`${VM_URL}/command`, {
    method,
    headers: { Authorization: `Bearer ${VM_TOKEN}`, "Idempotency-Key": id, "Content-Type": "application/json", Accept: "text/event-stream" },
    body,
  });

// One try of a command: its answer, or in words why there is none yet, and perhaps
// for how long to wait. It throws what trying again would not change.
async function attempt(id, tell) {
  const command = open.get(id);
  let response;
  try {
    response = await send("POST", id, command.body);
  } catch {
    return { why: "The machine is not up yet. I keep trying." };
  }
  if (response.status !== 200) {
    const error = (await response.json().catch(() => null))?.error;
    if (response.status === 429) return { why: "I have too much to do just now. I keep trying.", seconds: Number(response.headers.get("Retry-After")) };
    if (response.status === 401) console.error("relay: the server refuses VM_TOKEN");
    if (response.status === 401 || response.status >= 500 || !error) return { why: "The machine is restarting. I keep trying." };
    throw new Error(`That can't be sent: ${error.message}`);
  }
  if (command.isStopped) await send("DELETE", id).catch(() => {}); // it had not begun before
  try {
    for await (const { event, data } of events(response.body)) {
      if (event === "queued") await tell(`Waiting; ${data.match(/\d+/)[0]} before you.`);
      if (event === "agent") await tell(progress(JSON.parse(data)));
      if (event !== "response") continue;
      const answer = JSON.parse(data);
      if (answer.error?.code === "shutting_down") return { why: "The machine is restarting. I begin again then." };
      return { answer };
    }
  } catch {
    // Broken off: the command goes on.
  }
  return { why: "The connection broke. I ask again." };
}

// Sends a command until it has its answer, in words. A stopped one is not begun again.
async function run(id) {
  const { from } = open.get(id);
  let last = "";
  const tell = async (text) => {
    if (text && text !== last) await reply(from, (last = text));
  };
  for (;;) {
    const { answer, why, seconds } = await attempt(id, tell);
    if (answer?.error?.code === "session_not_found") sessions.delete(from);
    else if (answer?.session_id) sessions.set(from, answer.session_id);
    if (answer) return words(answer);
    await tell(why);
    await new Promise((resolve) => setTimeout(resolve, seconds ? 1000 * seconds : RETRY_MS));
    while (open.get(id).isStopped) {
      const stop = await send("DELETE", id).catch(() => null);
      if (stop?.status === 404) return "I stopped, before it was begun or after it was over.";
      if (stop?.status === 202) break; // its answer is to come
      await new Promise((resolve) => setTimeout(resolve, RETRY_MS));
    }
  }
}

// Runs an open command to its end, whatever that is.
async function finish(id) {
  const { from } = open.get(id);
  const text = await run(id).catch((error) => error.message);
  await reply(from, text); // before it is forgotten, or a crash would lose it
  open.delete(id);
  done.add(id);
  save();
}

// Stops all that the sender began; what is being tried again is seen to by run.
async function stopAll(sender) {
  const own = [...open].filter(([, command]) => command.from === sender);
  if (own.length === 0) await reply(sender, "Nothing runs.");
  for (const [, command] of own) command.isStopped = true;
  save();
  for (const [id] of own) await send("DELETE", id).catch(() => {});
}

const isMessage = (message) => ["id", "from", "text"].every((name) => typeof message?.[name] === "string" && message[name]) && /^[!-~]{1,200}$/.test(message.id);

const server = createServer(async (request, response) => {
  if (request.method !== "POST" || request.url !== "/webhook") return response.writeHead(404).end();
  let message;
  try {
    let body = "";
    for await (const chunk of request.setEncoding("utf8")) body += chunk;
    message = JSON.parse(body);
  } catch {
    return response.writeHead(400).end();
  }
  if (!isMessage(message)) return response.writeHead(400).end();
  const { id, from, text } = message;
  const isKnown = open.has(id) || done.has(id); // sent twice by the chat's service
  const isStop = text.trim().toLowerCase() === "stop";
  if (!isKnown && !isStop) {
    open.set(id, { from, body: JSON.stringify({ command: text, session_id: sessions.get(from) }) });
    save();
  }
  response.writeHead(202).end(); // a webhook must not wait for an agent
  if (isStop) await stopAll(from);
  else if (!isKnown) await finish(id);
});
server.listen(Number(PORT), HOST, () => {
  console.log(`relay: http://${HOST}:${server.address().port}/webhook`);
  [...open.keys()].forEach(finish);
});
