// What a message asks of the agent.
import { setTimeout as sleep } from "node:timers/promises";

/**
 * @typedef {import("./store.js").Message} Message
 * @typedef {import("./api.d.ts").components["schemas"]} Schemas
 */

const PHOTO = /^image\/(jpeg|png|gif|webp)$/;
const MAX_PHOTOS = 8;
const MAX_BYTES = 5.5 * 1024 * 1024; // of all photos: as base64 they fit into VM_MAX_BODY

/**
 * The command of a message, or in words why there is none.
 * @param {Message} message
 * @param {{sid: string, token: string, api: string}} account whose photos they are
 * @returns {Promise<Schemas["Command"] | string>}
 */
export async function commandOf({ text, media }, account) {
  const photos = media.filter(({ type }) => PHOTO.test(type)).slice(0, MAX_PHOTOS);
  const others = media.filter(({ type }) => !PHOTO.test(type));
  if (!text.trim() && photos.length === 0) return unreadable(others);

  const images = [];
  let room = MAX_BYTES;
  for (const photo of photos) {
    const data = await download(photo.url, account, room);
    if (data === "too large") return "That photo is too large: 5 MB is what I can take. Send it smaller, please.";
    if (!data?.length) return "I couldn't load your photo. Send it again, please.";
    room -= data.length;
    images.push({ media_type: photo.type, data: data.toString("base64") });
  }
  const words = text.trim() ? text : "I sent you this photo without a word: look at it, and say what it is about.";
  const note = others.length > 0 ? "\n\n(I sent a file with this, which can't be passed on to you.)" : "";
  return { command: words + note, ...(images.length > 0 && { images }) };
}

/** @param {Message["media"]} media */
function unreadable(media) {
  if (media.some(({ type }) => type.startsWith("audio/"))) return "I can't listen to voice notes. Write it, please.";
  if (media.length > 0) return "I can't open such files. Send text or photos, please.";
  return "There was nothing in that which I can read. Send text or photos, please.";
}

/**
 * A medium's bytes, nothing if it can't be had. Twilio may need a moment to have it.
 * @param {string} url
 * @param {{sid: string, token: string, api: string}} account
 * @param {number} limit in bytes
 */
async function download(url, account, limit) {
  if (!URL.canParse(url) || new URL(url).origin !== new URL(account.api).origin) return; // the token is Twilio's alone
  const credentials = Buffer.from(`${account.sid}:${account.token}`).toString("base64");
  for (let tries = 0; tries < 3; tries++) {
    if (tries > 0) await sleep(1000);
    try {
      const signal = AbortSignal.timeout(20_000);
      const response = await fetch(url, { headers: { Authorization: `Basic ${credentials}` }, signal });
      if (response.ok && response.body) return await read(response.body, limit);
      await response.body?.cancel();
    } catch (error) {
      console.error("relay: cannot load a photo:", error instanceof Error ? error.message : error);
    }
  }
}

/** @param {ReadableStream<Uint8Array>} body @param {number} limit */
async function read(body, limit) {
  const chunks = [];
  let size = 0;
  for await (const chunk of body) {
    size += chunk.length;
    if (size > limit) return "too large"; // and the rest stays where it is
    chunks.push(chunk);
  }
  return Buffer.concat(chunks);
}
