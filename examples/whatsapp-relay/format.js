// What the agent writes is Markdown; WhatsApp has a form of its own. Pure: no state.
import { lexer } from "marked";

/** @typedef {import("marked").Token} Token */

/** A text as WhatsApp shows it: https://faq.whatsapp.com/539178204879377. @param {string} markdown */
export function whatsAppText(markdown) {
  return blocksOf(lexer(markdown)).join("\n\n");
}

/** @param {Token[]} tokens @returns {string[]} */
function blocksOf(tokens) {
  return tokens.map(blockOf).filter((text) => text.trim());
}

/** @param {Token} token @returns {string} */
function blockOf(token) {
  switch (token.type) {
    case "heading":
      return `*${inline(token.tokens).replaceAll("*", "")}*`;
    case "code":
      return `\`\`\`\n${token.text}\n\`\`\``;
    case "blockquote":
      return prefixed("> ", "> ", blocksOf(token.tokens ?? []).join("\n\n"));
    case "list":
      return listOf(token);
    case "table":
      return [token.header, ...token.rows].map(rowOf).join("\n");
    case "hr":
      return "———";
    default:
      return "tokens" in token ? inline(token.tokens) : token.raw.trim();
  }
}

/** @param {any} list */
function listOf({ items, ordered, start, loose }) {
  const texts = items.map((/** @type {any} */ item, /** @type {number} */ i) => {
    const mark = ordered ? `${Number(start) + i}. ` : "- ";
    const box = item.task ? (item.checked ? "☑ " : "☐ ") : "";
    const parts = blocksOf(item.tokens.filter((/** @type {Token} */ { type }) => type !== "checkbox"));
    return prefixed(mark, "  ", box + parts.join("\n"));
  });
  return texts.join(loose ? "\n\n" : "\n");
}

/** The cells of a row; those of the head are bold. @param {any[]} cells */
function rowOf(cells) {
  const texts = cells.map(({ tokens, header }) => {
    const text = inline(tokens);
    return header && text ? `*${text.replaceAll("*", "")}*` : text;
  });
  return texts.join(" | ");
}

/** @param {string} first @param {string} rest @param {string} text */
function prefixed(first, rest, text) {
  return text.split("\n").map((line, i) => (i === 0 ? first : rest) + line).join("\n");
}

/** @param {Token[]} [tokens] @returns {string} */
function inline(tokens = []) {
  return tokens.map(inlineOf).join("");
}

/** @param {Token} token @returns {string} */
function inlineOf(token) {
  switch (token.type) {
    case "strong":
      return `*${inline(token.tokens)}*`;
    case "em":
      return `_${inline(token.tokens)}_`;
    case "del":
      return `~${inline(token.tokens)}~`;
    case "codespan":
      return `\`${token.text}\``;
    case "br":
      return "\n";
    case "link":
      return linked(inline(token.tokens), token.href);
    case "image":
      return linked(token.text, token.href);
    case "text":
    case "escape":
      return "tokens" in token && token.tokens ? inline(token.tokens) : token.text;
    default:
      return token.raw;
  }
}

/** @param {string} text @param {string} href */
function linked(text, href) {
  return !text || text === href || `mailto:${text}` === href ? text || href : `${text} (${href})`;
}
