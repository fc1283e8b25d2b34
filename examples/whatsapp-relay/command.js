// What a message asks of the agent: its words, its photos as images, and everything else as
// files in the inbox of the agent's machine.
import { setTimeout as sleep } from "node:timers/promises";
import { sendFile } from "./vm.js";

/**
 * @typedef {import("./store.js").Message} Message
 * @typedef {import("./vm.js").Machine} Machine
 * @typedef {import("./api.d.ts").components["schemas"]} Schemas
 * @typedef {{url: string, type: string}} Medium
 * @typedef {{sid: string, token: string, api: string}} Account whose media they are
 * @typedef {{url?: string, key?: string, model: string}} Transcriber an API of OpenAI's form
 */

const PHOTO = /^image\/(jpeg|png|gif|webp)$/;
const MAX_PHOTOS = 8;
const MAX_BYTES = 5.5 * 1024 * 1024; // of all photos: as base64 they fit into VM_MAX_BODY
const SAFE_NAME = /^[\p{L}\p{N}][\p{L}\p{M}\p{N} ._()-]{0,99}$/u;
/** @type {Record<string, string>} */
const EXTENSIONS = { "audio/mpeg": "mp3", "text/plain": "txt", "video/quicktime": "mov", document: "docx", sheet: "xlsx", presentation: "pptx", msword: "doc", "ms-excel": "xls" };

/**
 * The command of a message, or in words why there is none. It throws where the machine is not up.
 * @param {Message} message
 * @param {{account: Account, transcriber: Transcriber}} setup
 * @param {Machine} machine
 * @returns {Promise<Schemas["Command"] | string>}
 */
export async function commandOf({ id, text, media }, { account, transcriber }, machine) {
  const isPhoto = (/** @type {Medium} */ { type }) => PHOTO.test(type);
  const photos = media.filter(isPhoto).slice(0, MAX_PHOTOS);
  const others = media.filter((medium) => !photos.includes(medium));
  if (!text.trim() && media.length === 0) return "There was nothing in that which I can read. Send text, photos or files, please.";

  const images = [];
  let room = MAX_BYTES;
  for (const photo of photos) {
    const data = await read(await open(photo, account), room);
    if (data === "too large") return "That photo is too large: 5 MB is what I can take. Send it smaller, please.";
    if (!data?.length) return "I couldn't load your photo. Send it again, please.";
    room -= data.length;
    images.push({ media_type: photo.type, data: data.toString("base64") });
  }

  const words = text.trim() ? [text] : [];
  for (const [i, medium] of others.entries()) {
    const response = await open(medium, account);
    if (!response) return "I couldn't load your file. Send it again, please.";
    const spoken = medium.type.startsWith("audio/") && transcriber.url && (await transcribe(response.clone(), medium, transcriber));
    if (spoken) {
      await response.body?.cancel();
      words.push(`(A voice note, transcribed:) ${spoken}`);
      continue;
    }
    const name = nameOf(response, medium, `${id.slice(-8)}-${i + 1}`);
    const refusal = await sendFile(machine, name, response);
    if (refusal) return `I can't take ${name}: ${refusal}`;
    words.push(`(I sent you a file, which is ${JSON.stringify(`inbox/${name}`)} in your workspace: ${medium.type}.)`);
  }
  if (words.length === 0) words.push("I sent you this photo without a word: look at it, and say what it is about.");
  return { command: words.join("\n\n"), ...(images.length > 0 && { images }) };
}

/** Its own name where that is safe, else one that no other message's file has. @param {Response} response @param {Medium} medium @param {string} id */
function nameOf(response, { type }, id) {
  const given = /filename="([^"]+)"/.exec(response.headers.get("Content-Disposition") ?? "")?.[1];
  if (given && SAFE_NAME.test(given)) return given;
  const last = type.split(/[/.]/).at(-1) ?? "";
  return `file-${id}.${EXTENSIONS[type] ?? EXTENSIONS[last] ?? (last.replace(/[^a-z0-9]/g, "").slice(0, 8) || "bin")}`;
}

/**
 * A medium, nothing if it can't be had. Twilio may need a moment to have it.
 * @param {Medium} medium
 * @param {Account} account
 */
async function open({ url }, account) {
  if (!URL.canParse(url) || new URL(url).origin !== new URL(account.api).origin) return; // the token is Twilio's alone
  const credentials = Buffer.from(`${account.sid}:${account.token}`).toString("base64");
  for (let tries = 0; tries < 3; tries++) {
    if (tries > 0) await sleep(1000);
    try {
      const response = await fetch(url, { headers: { Authorization: `Basic ${credentials}` }, signal: AbortSignal.timeout(120_000) });
      if (response.ok && response.body) return response;
      await response.body?.cancel();
    } catch (error) {
      console.error("relay: cannot load a medium:", error instanceof Error ? error.message : error);
    }
  }
}

/** @param {Response | undefined} response @param {number} limit in bytes */
async function read(response, limit) {
  const chunks = [];
  let size = 0;
  for await (const chunk of response?.body ?? []) {
    size += chunk.length;
    if (size > limit) return "too large"; // and the rest stays where it is
    chunks.push(chunk);
  }
  return Buffer.concat(chunks);
}

/** What is said in a recording, nothing if that can't be told. @param {Response} response @param {Medium} medium @param {Transcriber} transcriber */
async function transcribe(response, { type }, { url, key, model }) {
  const form = new FormData();
  form.set("model", model);
  form.set("file", new Blob([await response.arrayBuffer()], { type }), "voice.ogg");
  try {
    const headers = { ...(key && { Authorization: `Bearer ${key}` }) };
    const answer = await fetch(`${url}/v1/audio/transcriptions`, { method: "POST", headers, body: form, signal: AbortSignal.timeout(120_000) });
    if (answer.ok) return String((await answer.json()).text ?? "").trim();
    console.error(`relay: cannot transcribe a voice note: the API answers ${answer.status}`);
  } catch (error) {
    console.error("relay: cannot transcribe a voice note:", error instanceof Error ? error.message : error);
  }
}
