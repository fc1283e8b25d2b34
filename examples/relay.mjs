// A relay in plain Node.js: a chat message comes to POST /webhook as
// {"from": "…", "text": "…"}, is answered at once, and becomes a command; every
// word for the sender goes to REPLY_URL as {"to": "…", "text": "…"}.
//
//   VM_URL=http://127.0.0.1:3001 VM_TOKEN=… REPLY_URL=https://… node examples/relay.mjs
import { createServer } from "node:http";

const { VM_URL = "http://127.0.0.1:3001", VM_TOKEN = "", REPLY_URL, HOST = "127.0.0.1", PORT = "3000", RETRY_MS = "5000", RETRIES = "60" } = process.env;
if (!REPLY_URL) {
  console.error("relay: set REPLY_URL to where replies go");
  process.exit(1);
}

const sessions = new Map(); // sender → session_id of the conversation

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
      return `The machine is restarting and I had to stop. Say "go on" in a minute.${soFar}`;
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

// Sends one command to its end. A request is sent again only if it surely was
// never started: the server was not there, or refused it for now.
async function run(from, text) {
  for (let attempt = 0; ; attempt++) {
    let response;
    const retry = async (why) => {
      if (attempt >= Number(RETRIES)) throw new Error(why);
      if (attempt === 0) await reply(from, why);
      await new Promise((resolve) => setTimeout(resolve, RETRY_MS));
    };
    try {
      response = await fetch(`${VM_URL}/command`, {
        method: "POST",
        headers: { "Content-Type": "application/json", Accept: "text/event-stream", ...(VM_TOKEN && { Authorization: `Bearer ${VM_TOKEN}` }) },
        body: JSON.stringify({ command: text, ...(sessions.has(from) && { session_id: sessions.get(from) }) }),
      });
    } catch (error) {
      if (error.cause?.code !== "ECONNREFUSED") throw new Error("The connection broke; I can't know whether that was begun. Please look before you send it again.");
      await retry("The machine is not up yet. I keep trying.");
      continue;
    }
    if (response.status === 429 || response.status === 503) {
      await response.body.cancel();
      await retry(response.status === 429 ? "I have too much to do just now. I keep trying." : "The machine is restarting. I keep trying.");
      continue;
    }
    if (response.status !== 200) throw new Error(`That can't be sent: ${(await response.json()).error.message}`);
    let last = "";
    try {
      for await (const { event, data } of events(response.body)) {
        if (event === "queued") await reply(from, `Waiting; ${data.match(/\d+/)[0]} before you.`);
        if (event === "agent") {
          const step = progress(JSON.parse(data));
          if (step && step !== last) await reply(from, (last = step));
        }
        if (event === "response") {
          const answer = JSON.parse(data);
          if (answer.error?.code === "session_not_found") sessions.delete(from);
          else if (answer.session_id) sessions.set(from, answer.session_id);
          return words(answer);
        }
      }
    } catch {
      // Broken off: told below.
    }
    throw new Error("The connection broke while I worked; what was done so far is done. Please look before you send it again.");
  }
}

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
  response.writeHead(202).end(); // a webhook must not wait for an agent
  await reply(message.from, await run(message.from, message.text).catch((error) => error.message));
});
server.listen(Number(PORT), HOST, () => console.log(`relay: http://${HOST}:${server.address().port}/webhook`));
