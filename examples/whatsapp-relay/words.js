// What a person reads. Pure: no network, no state.
import { whatsAppText } from "./format.js";

/** @typedef {import("./api.d.ts").components["schemas"]} Schemas */

const GO_ON = 'Say "go on" to continue.';

/** An answer in words. @param {Schemas["Answer"]} answer @param {number} [now] */
export function words(answer, now = Date.now()) {
  if (answer.status === "success") {
    const notes = (answer.warnings ?? []).map((warning) => `\n\n(Note: ${warning}.)`);
    return (whatsAppText(answer.result) || "Done.") + notes.join("");
  }
  const soFar = answer.result ? `\n\nThe last I said: ${whatsAppText(answer.result)}` : "";
  return reason(answer, now) + soFar;
}

/** Why there is no good answer. @param {Schemas["Answer"]} answer @param {number} now */
function reason({ error }, now) {
  switch (error?.code) {
    case "timeout":
      return `That took too long, so I stopped it. ${GO_ON}`;
    case "stopped":
      return `I stopped. ${GO_ON}`;
    case "usage_limit":
      return `You have reached your limit with Claude.${again(error.retry_at, now)}`;
    case "overloaded":
      return `Claude is overloaded right now.${again(error.retry_at, now) || " Try again in a few minutes."}`;
    case "authentication_failed":
    case "no_credentials":
      return "The machine can't log in to Claude; its owner has to look at its key.";
    case "session_not_found":
      return "I can't find our conversation any more. Send that again to start a new one.";
    case "conversation_unusable":
      return "Our conversation has become too long, or has too many pictures. Send that again to start a new one.";
    case "agent_crashed":
      return `Something broke while I worked on that. ${GO_ON}`;
    default:
      return `That failed: ${error?.message ?? "nobody knows why."}`;
  }
}

/** When to try again. @param {string | undefined} time @param {number} now */
function again(time, now) {
  const minutes = time ? Math.ceil((Date.parse(time) - now) / 60000) : NaN;
  if (!(minutes > 0)) return "";
  const format = new Intl.RelativeTimeFormat("en");
  if (minutes < 100) return ` Try again ${format.format(minutes, "minute")}.`;
  if (minutes < 48 * 60) return ` Try again ${format.format(Math.ceil(minutes / 60), "hour")}.`;
  return ` Try again ${format.format(Math.ceil(minutes / 60 / 24), "day")}.`;
}

/** A sender's conversations, the latest first. @param {import("./store.js").Conversation[]} conversations @param {number} [now] */
export function listed(conversations, now = Date.now()) {
  if (conversations.length === 0) return "There is no conversation yet.";
  const lines = conversations.map(({ words, time }, i) => {
    const hours = Math.floor((now - time) / 3_600_000);
    const age = hours < 1 ? "just now" : hours < 48 ? `${hours} h ago` : `${Math.floor(hours / 24)} days ago`;
    return `${i + 1}. ${clip(words.replace(/\s+/g, " ")).slice(0, 60)} (${age})`;
  });
  return [...lines, 'Send "resume 2" to go on with the second.'].join("\n");
}

/** What an event means to a person who waits; nothing for most. @param {import("./vm.js").Event} event */
export function progress({ name, data }) {
  if (name === "queued") return `Waiting; ${data.position} before you.`;
  for (const block of blocks(data)) {
    if (block.type !== "tool_use") continue;
    const { description, command, url = "" } = block.input ?? {};
    const tool = String(block.name);
    if (tool === "Bash") return clip(`⚙ ${description ?? command}`);
    if (!tool.startsWith("mcp__playwright__")) return clip(`⚙ ${tool}`);
    return clip(`🌐 ${tool.slice(17).replaceAll("_", " ")} ${url}`.trim());
  }
}

/** @param {string} text */
function clip(text) {
  return [...text.slice(0, 200)].slice(0, 120).join(""); // whole characters
}

/** The parts of what the model or a tool said in an event. @param {any} line @returns {any[]} */
export function blocks(line) {
  const content = line?.message?.content;
  return Array.isArray(content) ? content.filter(Boolean) : [];
}

const FENCE = "```"; // of code

/** A text in parts of WhatsApp's length. Code that is cut is code in both parts. @param {string} text @param {number} [limit] */
export function split(text, limit = 1600) {
  const parts = [];
  text = text.trim();
  while (text.length > limit) {
    const at = cut(text, limit);
    const isInCode = text.slice(0, at).split(FENCE).length % 2 === 0;
    if (isInCode) {
      const end = cut(text, limit - FENCE.length - 1);
      parts.push(`${text.slice(0, end)}\n${FENCE}`);
      text = `${FENCE}\n${text.slice(end).replace(/^\n/, "")}`;
    } else {
      parts.push(text.slice(0, at));
      text = text.slice(at).trimStart();
    }
  }
  return [...parts, text];
}

/** Where a text is cut before a limit, where it hurts least. @param {string} text @param {number} limit */
function cut(text, limit) {
  const head = text.slice(0, limit + 1);
  const cuts = [head.lastIndexOf("\n\n"), head.lastIndexOf("\n"), head.lastIndexOf(" ")];
  const at = cuts.find((place) => place > limit / 2) ?? limit;
  return /[\ud800-\udbff]$/.test(text.slice(0, at)) ? at - 1 : at; // a character of two halves
}
