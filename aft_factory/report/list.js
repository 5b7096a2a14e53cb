"use strict";
// The list of queries: searched, narrowed and sorted; only the rows in sight are in the page.

const ROW = 80; // pixels of a row, as in the style sheet
const ID = 0, WORDS = 1, FLAGS = 2, TOKENS = 3, SPREAD = 4, RIGHT = 5, CHUNK = 6, PLACE = 7;

const LABELS = {
  right: ["right", "the answer is that of the reference, or was scored so"],
  wrong: ["wrong", "the answer is not that of the reference, or was scored so"],
  fixed: ["fixed", "the vote of the first layer's drafts is wrong, the answer is right"],
  broke: ["broken", "the vote of the first layer's drafts is right, the answer is wrong"],
  agree: ["all agree", "all drafts of all layers have one final answer, or one text"],
  cut: ["cut off", "a draft ended at max_tokens or by a filter"],
  resampled: ["resampled", "a draft was asked for again"],
  shortened: ["shortened", "drafts were shortened to fit the context"],
  rejected: ["rejected", "there is no answer"],
  unfinished: ["not done", "the run has not ended it"],
};
const SORTS = {
  "as asked": null,
  "fewest drafts right": q => q[RIGHT] ?? 2,
  "most drafts right": q => -(q[RIGHT] ?? -1),
  "least agreement": q => q[SPREAD] ?? 2,
  "most agreement": q => -(q[SPREAD] ?? -1),
  "most tokens": q => -(q[TOKENS] ?? -1),
  "fewest tokens": q => q[TOKENS] ?? Infinity,
};

class List {
  // `open(number)` is called with the query that is chosen; `chunks` unpacks all of it.
  constructor(index, chunks, open) {
    this.all = index.queries;
    this.names = index.head.flags;
    this.hay = this.all.map(q => `${q[WORDS]}\n${q[ID]}`.toLowerCase());
    this.chunks = chunks;
    this.open = open;
    this.wanted = new Set();
    this.shown = [];
    this.current = null;
    this.search = 0;
    this.make(index.head.counts);
  }

  make(counts) {
    this.box = el("input.search", {
      type: "search", placeholder: "Search how queries begin  ( / )", "aria-label": "Search the beginnings of queries, and their ids",
      oninput: () => this.later(),
    });
    this.deep = el("input", {type: "checkbox", onchange: () => this.narrow()});
    this.sort = el("select", {"aria-label": "Sort", onchange: () => this.narrow()},
      Object.keys(SORTS).map(name => el("option", {}, name)));
    this.chips = this.names.filter(name => counts[name]).map(name => el("button.chip", {
      type: "button", title: LABELS[name][1], "aria-pressed": "false", "data-flag": name,
      onclick: () => this.toggle(name),
    }, LABELS[name][0], el("span.n", {}, count(counts[name]))));
    this.told = el("div.told", {"aria-live": "polite"});
    this.rows = el("div.rows");
    this.scroll = el("div.scroll", {role: "listbox", "aria-label": "Queries", onscroll: () => this.draw()}, this.rows);
    this.node = el("nav.list", {},
      el("div.tools", {},
        this.box,
        el("div.line", {}, el("label", {title: "in all of the queries, references, answers, drafts and thoughts"}, this.deep, "in whole texts"), el("label.sort", {}, "sort ", this.sort)),
        el("div.chips", {}, this.chips), this.told),
      this.scroll);
    new ResizeObserver(() => this.draw()).observe(this.scroll);
  }

  // Narrow the list to what has a flag, or no more; `only` to that and all of that.
  toggle(name, only = false) {
    if (only) {
      this.wanted.clear();
      this.box.value = "";
    }
    if (this.wanted.has(name)) this.wanted.delete(name);
    else this.wanted.add(name);
    for (const chip of this.chips) chip.setAttribute("aria-pressed", this.wanted.has(chip.dataset.flag));
    this.narrow();
  }

  later() {
    clearTimeout(this.timer);
    this.timer = setTimeout(() => this.narrow(), this.deep.checked ? 400 : 60);
  }

  async narrow() {
    clearTimeout(this.timer);
    const search = ++this.search, words = this.box.value.toLowerCase().split(/\s+/).filter(Boolean);
    const mask = [...this.wanted].reduce((sum, name) => sum | 1 << this.names.indexOf(name), 0);
    let found = [...this.all.keys()].filter(i => (this.all[i][FLAGS] & mask) === mask);
    if (words.length && this.deep.checked) found = await this.within(words, found, search);
    else if (words.length) found = found.filter(i => words.every(word => this.hay[i].includes(word)));
    if (search !== this.search) return; // another one has begun
    const by = SORTS[this.sort.value];
    if (by) found.sort((i, j) => by(this.all[i]) - by(this.all[j]) || i - j);
    this.shown = found;
    this.told.textContent = found.length === this.all.length
      ? plural(found.length, "query", "queries")
      : `${count(found.length)} of ${count(this.all.length)}`;
    this.rows.style.height = `${found.length * ROW}px`;
    this.scroll.scrollTop = 0;
    this.reveal();
    this.draw();
  }

  // Search in all that the queries hold, one chunk after the other.
  async within(words, among, search) {
    const found = [];
    let begun = -1, texts = [];
    for (const [at, i] of among.entries()) {
      if (this.all[i][CHUNK] !== begun) {
        begun = this.all[i][CHUNK];
        this.told.textContent = `searching: ${Math.floor(100 * at / among.length)}%`;
        texts = (await this.chunks(begun)).map(query => textsOf(query).join("\n").toLowerCase());
        if (search !== this.search) return [];
      }
      const hay = `${this.hay[i]}\n${texts[this.all[i][PLACE]]}`;
      if (words.every(word => hay.includes(word))) found.push(i);
    }
    return found;
  }

  draw() {
    const first = Math.max(0, Math.floor(this.scroll.scrollTop / ROW) - 4);
    const last = Math.min(this.shown.length, first + Math.ceil(this.scroll.clientHeight / ROW) + 9);
    this.rows.replaceChildren(...this.shown.slice(first, last).map((i, at) => this.row(i, first + at)));
  }

  row(i, at) {
    const query = this.all[i], has = name => query[FLAGS] & 1 << this.names.indexOf(name);
    const mark = has("right") ? "right" : has("wrong") ? "wrong" : has("rejected") ? "lost" : "none";
    const row = el(`div.row.${mark}`, {
      role: "option", "aria-posinset": at + 1, "aria-setsize": this.shown.length, "aria-selected": String(i === this.current), title: visible(query[ID]),
      onclick: () => this.open(i),
    },
    el("div.words", {dir: "auto"}, visible(query[WORDS]) || "(blank)"),
    el("div.facts", {},
      query[RIGHT] === null ? null : bar(query[RIGHT], "of the first layer's drafts are right"),
      ["fixed", "broke", "agree", "cut", "resampled", "shortened", "rejected", "unfinished"].filter(has)
        .map(name => el(`span.flag.${name}`, {}, LABELS[name][0])),
      el("span.tokens", {title: "written"}, `${count(query[TOKENS])} tokens`)));
    row.style.top = `${at * ROW}px`;
    return row;
  }

  choose(i) {
    this.current = i;
    this.reveal();
    this.draw();
  }

  reveal() {
    const at = this.shown.indexOf(this.current), top = at * ROW, box = this.scroll;
    if (at < 0) return;
    if (top < box.scrollTop) box.scrollTop = top;
    else if (top + ROW > box.scrollTop + box.clientHeight) box.scrollTop = top + ROW - box.clientHeight;
  }

  // The query that is so many rows further on.
  beside(by) {
    const at = this.shown.indexOf(this.current);
    return this.shown[at < 0 ? 0 : Math.min(this.shown.length - 1, Math.max(0, at + by))] ?? null;
  }
}

function bar(part, what) {
  const filled = el("span");
  filled.style.width = `${100 * part}%`;
  return el("span.bar", {title: `${share(part)} ${what}`}, filled);
}

function textsOf(query) {
  const drafts = query.layers.flatMap(layer => layer.drafts).flatMap(draft => [draft, ...(draft.tries || [])]);
  return [
    ...query.turns.flat().map(message => message.content), query.reference || "", ...query.answers,
    ...drafts.flatMap(draft => [draft.text, draft.thought || ""]),
  ];
}
