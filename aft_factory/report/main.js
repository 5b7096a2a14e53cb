"use strict";
// The page as a whole: the list, what is open, and the keys.

const index = JSON.parse(document.getElementById("index").textContent);
const unpacked = new Map(); // the last few chunks, by number

async function chunk(number) {
  if (!unpacked.has(number)) {
    const packed = atob(document.getElementById(`chunk${number}`).textContent);
    const bytes = Uint8Array.from(packed, sign => sign.charCodeAt(0));
    const plain = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
    unpacked.set(number, await new Response(plain).json());
    if (unpacked.size > 4) unpacked.delete(unpacked.keys().next().value);
  }
  return unpacked.get(number);
}

const list = new List(index, chunk, number => { location.hash = number; });
const main = el("main", {tabindex: "-1"});
const place = el("span.place");
const back = el("button.chip.back", {type: "button", onclick: () => { location.hash = ""; }}, "\u2190 list");
const topline = el("header", {},
  back,
  el("button.title", {type: "button", title: "overview (o)", onclick: () => { location.hash = "overview"; }}, visible(index.head.name)),
  place, el("span.grow"),
  el("button.chip", {type: "button", title: "previous (k)", onclick: () => go(-1)}, "\u2191"),
  el("button.chip", {type: "button", title: "next (j)", onclick: () => go(1)}, "\u2193"),
  el("button.chip", {type: "button", title: "full texts (f)", onclick: () => full()}, "full"),
  el("button.chip", {type: "button", title: "other font (m)", onclick: () => font()}, "font"),
  el("button.chip", {type: "button", title: "dark or light (d)", onclick: () => dark()}, "\u25d0"));
document.body.append(topline, el("div.body", {}, list.node, main));
document.title = `${index.head.name} \u00b7 aft report`;

let view = null, opening = 0;

async function route() {
  const at = location.hash.slice(1), number = /^\d+$/.test(at) && Number(at) < index.queries.length ? Number(at) : null;
  const mine = ++opening;
  document.body.classList.toggle("reading", at !== "");
  if (number === null) {
    view = null;
    list.choose(null);
    place.textContent = "";
    main.replaceChildren(overview(index.head, name => {
      list.toggle(name, true);
      location.hash = "";
    }));
    return;
  }
  list.choose(number);
  const listed = index.queries[number], queries = await chunk(listed[CHUNK]);
  if (mine !== opening) return; // another one was opened meanwhile
  view = new QueryView(queries[listed[PLACE]]);
  place.textContent = `${visible(listed[ID])}  \u00b7  ${count(number + 1)} of ${count(index.queries.length)}`;
  main.replaceChildren(view.node);
  main.scrollTop = 0;
  main.focus({preventScroll: true}); // keys scroll it
}

function go(by) {
  const next = list.beside(by);
  if (next === null) return;
  list.choose(next); // the next key may come before the page hears of its new address
  location.hash = next;
}
const full = () => document.body.classList.toggle("full");
const font = () => document.body.classList.toggle("mono");
function dark() {
  const root = document.documentElement, is = getComputedStyle(root).colorScheme;
  const now = is === "dark" || (is !== "light" && matchMedia("(prefers-color-scheme: dark)").matches);
  root.style.colorScheme = now ? "light" : "dark";
}

const KEYS = {
  j: () => go(1), k: () => go(-1), o: () => { location.hash = "overview"; }, f: full, m: font, d: dark,
  p: () => view?.togglePrompt(), c: () => view?.compareNext(),
  t: () => {
    const all = [...document.querySelectorAll("details.thought")], open = all.some(one => !one.open);
    for (const one of all) one.open = open;
  },
  "/": () => { list.box.focus(); list.box.select(); },
  Escape: () => view?.close() || (location.hash = ""),
  ArrowRight: () => view?.step(1, 0), ArrowLeft: () => view?.step(-1, 0),
  ArrowDown: () => view?.selected && view.step(0, 1), ArrowUp: () => view?.selected && view.step(0, -1),
};
addEventListener("keydown", event => {
  const at = event.target;
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  if (at.matches?.("input[type=search]")) {
    if (event.key === "Escape" || event.key === "Enter") at.blur();
    if (event.key === "Enter") list.narrow().then(() => go(0));
    return;
  }
  if (at.matches?.("select")) return;
  const act = KEYS[event.key];
  if (!act) return;
  const scrolls = event.key === "ArrowDown" || event.key === "ArrowUp";
  if (!scrolls || view?.selected) event.preventDefault();
  act();
});
addEventListener("hashchange", route);
list.narrow();
route();
