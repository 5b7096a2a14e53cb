"use strict";
// From texts to elements. What a model wrote only ever gets into the page as a text node.

const SHOWN = 20000; // characters of a text that are shown at first
const BLOCK = 50000; // characters of one element when all of it is shown

// Make an element: el("b.name", {title: "..."}, child, ...); texts become text nodes.
function el(kind, attributes, ...children) {
  const [tag, ...classes] = kind.split(".");
  const made = document.createElement(tag || "div");
  if (classes.length) made.className = classes.join(" ");
  for (const [name, value] of Object.entries(attributes || {})) {
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (value === true) made.setAttribute(name, "");
    else if (value !== false && value !== null && value !== undefined) made.setAttribute(name, value);
  }
  made.append(...children.flat(Infinity).filter(child => ![null, undefined, false, ""].includes(child)));
  return made;
}

// Characters that cannot be seen or that reorder what can: control characters get their pictures,
// the others their numbers. Tags are letters that only a model reads.
const UNSEEN = /[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u00ad\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\u3164\ufeff\ufff9-\ufffb\u{e0000}-\u{e007f}]/gu;
function visible(text) {
  return text.replace(UNSEEN, sign => {
    const code = sign.codePointAt(0);
    if (code === 127) return "\u2421";
    if (code < 32) return String.fromCharCode(0x2400 + code);
    return `\u27e8U+${code.toString(16).toUpperCase().padStart(4, "0")}\u27e9`;
  });
}

// Cut a text without halving a character.
function head(text, length) {
  if (text.length <= length) return text;
  const last = text.charCodeAt(length - 1);
  return text.slice(0, last >= 0xd800 && last < 0xdc00 ? length - 1 : length);
}

// A text to read: cut if it is very long, with a button that shows the rest.
// `fill(element, text)` puts the text in; by default as it stands.
function prose(text, fill = (at, shown) => at.append(visible(shown))) {
  if (!text.trim()) return el("div.prose.none", {}, text ? "(blank)" : "(empty)");
  const box = el("div.prose", {dir: "auto"});
  const shown = head(text, SHOWN);
  fill(box, shown);
  if (shown.length === text.length) return box;
  const more = el("button.more", {type: "button", onclick: () => {
    for (let at = shown.length; at < text.length;) {
      const block = head(text.slice(at), BLOCK);
      more.before(el("div.block", {dir: "auto"}, visible(block)));
      at += block.length;
    }
    more.remove();
  }}, `Show all ${count(text.length)} characters`);
  box.append(more);
  return box;
}

// Texts that are put in the page when they are unfolded.
function folded(kind, summary, ...texts) {
  const box = el(`details.${kind}`, {
    ontoggle: () => { if (box.children.length === 1) box.append(...texts.map(text => prose(text))); },
  }, el("summary", {}, summary));
  return box;
}

const count = number => number === null || number === undefined ? "?" : number.toLocaleString("en");
const share = number => number === null || number === undefined ? "\u2013" : `${(100 * number).toFixed(1)}%`;
const plural = (number, one, many = `${one}s`) => `${count(number)} ${number === 1 ? one : many}`;
function duration(seconds) {
  if (seconds === null || seconds === undefined) return "\u2013";
  if (seconds < 100) return `${Number(seconds.toPrecision(2))} s`;
  const minutes = Math.round(seconds / 60);
  return minutes < 100 ? `${minutes} min` : `${(seconds / 3600).toFixed(1)} h`;
}
const said = value => typeof value === "string" ? value : JSON.stringify(value);
