"use strict";
// One query: what was asked, the answer, and the grid of its drafts, layers by slots.

class QueryView {
  constructor(query) {
    this.query = query;
    this.several = modelsOf(query).length > 1;
    this.cells = new Map(); // by "turn/layer/slot"
    this.ends = new Map(); // by "turn/layer": the last element of its row
    this.selected = this.other = null;
    this.pane = el("section.pane");
    this.node = el("article.query", {}, this.parts());
  }

  parts() {
    const query = this.query, several = query.turns.length > 1;
    const parts = [];
    query.turns.forEach((said, turn) => {
      if (several) parts.push(el("h2.turn", {}, `Turn ${turn + 1}`));
      parts.push(this.question(said));
      if (query.reference !== null && turn === 0) parts.push(this.reference());
      if (query.answers[turn] !== undefined) parts.push(this.answer(turn));
      const layers = query.layers.filter(layer => layer.turn === turn);
      if (layers.length) parts.push(this.grid(layers));
    });
    if (query.problem !== null) parts.push(el("p.notice.bad", {}, `Rejected: ${visible(query.problem)}`));
    if (!query.done) parts.push(el("p.notice", {}, "The run has not ended this query: what is here is what it has so far."));
    if (!query.exact) parts.push(el("p.notice", {}, "The rows of this run are not known, so its seeds are not: which drafts were read may be another choice than the run's (name them by --data)."));
    return parts;
  }

  question(said) {
    return el("section.asked", {}, said.map((message, i) => {
      const text = prose(String(message.content));
      if (i === said.length - 1) return el("div.said", {}, el("span.role", {}, visible(message.role)), text);
      return el("details.said", {}, el("summary", {}, visible(message.role), " ", el("span.quiet", {}, plural(message.content.length, "character"))), text);
    }));
  }

  reference() {
    const {target, reference} = this.query;
    const title = target === null ? "Reference" : `Reference: ${visible(target)}`;
    if (reference.length < 80) return el("p.reference", {}, el("b", {}, "Reference"), " ", visible(reference));
    return el("details.reference", {}, el("summary", {}, title), prose(reference));
  }

  // The answer, its sentences shaded where a draft has them word for word.
  answer(turn) {
    const query = this.query, chosen = query.chosen[turn];
    const sources = query.layers.filter(layer => layer.turn === turn).flatMap(layer => layer.drafts
      .filter(draft => !draft.lost && !(chosen && chosen[0] === layer.layer && chosen[1] === draft.slot))
      .map(draft => ({layer: layer.layer, slot: draft.slot, text: head(draft.text, 200000)})));
    let taken = 0, all = 0;
    const whole = query.answers[turn], text = prose(whole, (at, shown) => {
      for (const [sentence, from] of sentencesFrom(shown, sources.map(source => source.text))) {
        all += sentence.length;
        if (!from.length) { at.append(visible(sentence)); continue; }
        taken += sentence.length;
        const where = from.map(i => sources[i]);
        at.append(el("mark", {
          title: `stands word for word in ${named(where)}`,
          onclick: () => this.select(turn, where[0].layer, where[0].slot),
        }, visible(sentence)));
      }
    });
    const verdict = query.right === null || turn ? null : el(`span.verdict.${query.right ? "right" : "wrong"}`, {}, query.right ? "\u2713 right" : "\u2717 wrong");
    const of = all < whole.length ? `its first ${count(all)} characters` : "it";
    const quoted = all && sources.length ? `${Math.round(100 * taken / all)}% of ${of} stands in a draft word for word` : "";
    const scored = query.verdicts.filter(([of]) => of === turn).map(([, what, value]) => `${what} ${Number(value.toFixed(3))}`);
    return el("section.answer", {},
      el("div.bar-line", {}, el("h3", {}, "Answer"), verdict,
        chosen ? el("button.link", {type: "button", onclick: () => this.select(turn, ...chosen)}, `layer ${chosen[0]}, draft ${chosen[1]}`) : null,
        scored.length ? el("span.quiet", {title: "by the benchmark's harness"}, visible(scored.join("  \u00b7  "))) : null,
        quoted ? el("span.quiet", {}, quoted) : null),
      text,
      Object.entries(query.details[turn] || {}).filter(([, value]) => value !== "").map(([name, value]) =>
        el("p.quiet", {}, `${name}: `, visible(said(value)))));
  }

  grid(layers) {
    const slots = Math.max(...layers.flatMap(layer => layer.drafts.map(draft => draft.slot))) + 1;
    const grid = el("div.grid", {role: "group", "aria-label": "Drafts, layers by slots"});
    grid.style.setProperty("--slots", slots);
    for (const layer of layers) {
      const told = layer.drafts.filter(draft => !draft.lost).map(draft => draft.told);
      grid.append(el("div.layer", {},
        el("b", {}, `Layer ${layer.layer}`),
        el("span", {}, layer.drafts.some(draft => draft.given) ? "the row's own" : plural(layer.written, "token")),
        layer.seconds ? el("span", {title: "all requests' waiting added up"}, duration(layer.seconds)) : null,
        told.length > 1 && told.some(answer => answer != null) ? el("span", {title: "the commonest answer"}, vote(told)) : null));
      for (let slot = 0; slot < slots; slot++) {
        const draft = layer.drafts.find(one => one.slot === slot);
        grid.append(draft ? this.cell(layer, draft) : el("div.gap"));
      }
      this.ends.set(`${layer.turn}/${layer.layer}`, grid.lastChild);
    }
    return el("div.wide", {}, grid);
  }

  cell(layer, draft) {
    const {turn} = layer, chosen = this.query.chosen[turn];
    const answers = chosen && chosen[0] === layer.layer && chosen[1] === draft.slot;
    const {target} = this.query, graded = target !== null && draft.told !== undefined;
    const right = !graded ? "" : draft.told === target ? ".right" : ".wrong";
    const mark = {".right": "\u2713 ", ".wrong": "\u2717 "}[right] || "";
    const events = this.query.events.filter(event => event.turn === turn && event.layer === layer.layer && event.slot === draft.slot).map(event => event.event);
    const cell = el(`button.cell${draft.lost ? ".lost" : ""}${answers ? ".chosen" : ""}`, {
      type: "button", "data-place": `${turn}/${layer.layer}/${draft.slot}`,
      title: events.length ? visible(events.join("\n")) : null,
      onclick: event => this.select(turn, layer.layer, draft.slot, event.shiftKey),
    },
    el("span.top", {},
      el("span.slot", {}, String(draft.slot)),
      draft.told !== undefined ? el(`span.final${right}`, {}, mark, draft.told === null ? "no answer" : visible(draft.told)) : null,
      answers ? el("span.tag.star", {}, "answer") : null,
      draft.lost ? el("span.tag.bad", {}, "dropped") : null,
      draft.cut ? el("span.tag.bad", {}, draft.finish === "length" ? "cut off" : visible(draft.finish)) : null,
      draft.tries ? el("span.tag", {}, `${draft.tries.length + 1} tries`) : null,
      draft.thought ? el("span.tag", {}, "thought") : null,
      events.some(event => event.endsWith("shortened")) ? el("span.tag", {}, "read shortened") : null),
    el("span.preview", {dir: "auto"}, visible(head(draft.text.trim(), 600)) || "(empty)"),
    this.several ? el("span.model", {}, visible(brief(draft.model || ""))) : null);
    this.cells.set(`${turn}/${layer.layer}/${draft.slot}`, {cell, layer, draft});
    return cell;
  }

  // Show a draft below its layer; `beside` shows it beside the one that is open.
  select(turn, layer, slot, beside = false) {
    const place = `${turn}/${layer}/${slot}`, one = this.cells.get(place);
    if (!one) return;
    if (beside && this.selected && this.selected !== place) this.other = place;
    else if (this.selected === place && !this.other) return this.close();
    else [this.selected, this.other] = [place, null];
    this.mark();
    this.show();
    const end = this.ends.get(`${turn}/${layer}`);
    if (this.pane.previousElementSibling !== end) end.after(this.pane);
    this.cells.get(this.selected).cell.focus({preventScroll: true}); // who goes on by Tab goes on from here
    // So much of the pane is to be seen that its text begins.
    const below = this.pane.getBoundingClientRect().top + 160 > this.node.parentElement.getBoundingClientRect().bottom;
    one.cell.scrollIntoView({block: below ? "start" : "nearest", inline: "nearest"});
  }

  close() {
    if (!this.selected) return false;
    const {cell} = this.cells.get(this.selected);
    this.selected = this.other = null;
    this.mark();
    this.pane.remove();
    cell.focus();
    return true;
  }

  // Mark what the selected draft has read, and who has read it.
  mark() {
    const open = this.selected && this.cells.get(this.selected);
    const turn = open && open.layer.turn, at = open ? [open.layer.layer, open.draft.slot] : null;
    const among = (reads, place) => reads.some(([layer, slot]) => layer === place[0] && slot === place[1]);
    for (const [place, {cell, layer, draft}] of this.cells) {
      const here = at !== null && layer.turn === turn;
      cell.classList.toggle("open", place === this.selected);
      cell.classList.toggle("beside", place === this.other);
      cell.classList.toggle("read", here && among(open.draft.reads, [layer.layer, draft.slot]));
      cell.classList.toggle("reader", here && among(draft.reads, at));
    }
  }

  show() {
    const one = this.cells.get(this.selected), other = this.other && this.cells.get(this.other);
    const drafts = [...this.cells].filter(([place]) => place !== this.selected);
    const choice = el("select", {"aria-label": "Compare with", onchange: event => {
      this.other = event.target.value || null;
      this.mark();
      this.show();
    }}, el("option", {value: ""}, "compare with \u2026"), drafts.map(([place, {layer, draft}]) =>
      el("option", {value: place, selected: place === this.other}, label(this.query, layer, draft))));
    const prompt = prompted(one);
    const asked = el("button.chip", {
      type: "button", "aria-pressed": String(Boolean(this.prompt)), disabled: !prompt, onclick: () => this.togglePrompt(),
    }, "prompt");
    this.pane.replaceChildren(
      el("div.bar-line", {}, el("h3", {}, label(this.query, one.layer, one.draft)), this.reads(one), el("span.grow"),
        asked, choice, el("button.chip", {type: "button", title: "Esc", onclick: () => this.close()}, "close")),
      this.prompt && prompt && !other ? this.promptOf(one, prompt) : "",
      other ? this.comparison(one, other) : this.draftOf(one.draft));
  }

  togglePrompt() {
    this.prompt = !this.prompt;
    if (this.selected) { this.other = null; this.mark(); this.show(); }
  }

  compareNext() {
    const places = [...this.cells.keys()];
    if (!this.selected || places.length < 2) return;
    let at = places.indexOf(this.other || this.selected);
    do at = (at + 1) % places.length; while (places[at] === this.selected);
    this.other = places[at];
    this.mark();
    this.show();
  }

  // Go from draft to draft by arrows.
  step(right, down) {
    if (!this.selected) {
      const first = this.cells.keys().next().value;
      return first && this.select(...first.split("/").map(Number));
    }
    const [turn, layer, slot] = this.selected.split("/").map(Number);
    for (let k = 1; k < 1000; k++) {
      const place = [turn, layer + down * k, slot + right * k];
      if (this.cells.has(place.join("/"))) return this.select(...place);
      const row = down && [...this.cells.values()].filter(one => one.layer.turn === turn && one.layer.layer === layer + down * k);
      if (row && row.length) return this.select(turn, layer + down * k, row[row.length - 1].draft.slot);
      if (place[1] < 0 || place[2] < 0) return;
    }
  }

  reads(one) {
    const reads = one.draft.reads;
    if (!reads.length) return el("span.quiet", {}, one.draft.given ? "a proposal of the row" : "reads no drafts");
    return el("span.reads", {}, "reads ", reads.map(([layer, slot]) => el("button.link", {
      type: "button", title: `layer ${layer}, draft ${slot}`, onclick: () => this.select(one.layer.turn, layer, slot),
    }, `${layer}.${slot}`)));
  }

  draftOf(draft) {
    const facts = [
      draft.model && visible(draft.model), draft.tokens != null && `${count(draft.tokens)} tokens`, visible(draft.finish),
      draft.temperature != null && `temperature ${draft.temperature}`,
    ].filter(Boolean).join("  \u00b7  ");
    return el("div.draft", {},
      el("p.quiet", {}, facts),
      draft.thought ? folded("thought", ["Thought ", el("span.quiet", {}, plural(draft.thought.length, "character"))], draft.thought) : null,
      prose(draft.text),
      (draft.tries || []).map((one, i) => folded("try", [`Try ${i + 1}, not used `, el("span.quiet", {}, visible(one.finish))],
        ...[one.thought, one.text].filter((text, k) => k || text))));
  }

  comparison(one, other) {
    const sides = [el("div.prose", {dir: "auto"}), el("div.prose", {dir: "auto"})];
    const texts = [head(one.draft.text, 10 * SHOWN), head(other.draft.text, 10 * SHOWN)];
    let same = 0, all = 0;
    const {runs, whole} = compared(...texts);
    for (const [kind, left, right] of runs) {
      if (kind === "same") { same += left.length + right.length; sides[0].append(visible(left)); sides[1].append(visible(right)); }
      else {
        [[left, "del"], [right, "ins"]].forEach(([words, kind], i) => {
          const blank = words.match(/^\s*/)[0];
          sides[i].append(blank, words ? el(kind, {}, visible(words.slice(blank.length))) : "");
        });
      }
      all += left.length + right.length;
    }
    const cut = texts[0].length < one.draft.text.length || texts[1].length < other.draft.text.length;
    return el("div", {},
      el("p.quiet", {}, `${all ? Math.round(100 * same / all) : 100}% of both in common, word by word`,
        cut ? `; compared in their first ${count(10 * SHOWN)} characters` : "",
        whole ? "" : `; of what differs, the first ${count(MOST_WORDS)} words of each were compared, the rest is marked as a whole`),
      el("div.sides", {}, [one, other].map((side, i) => el("div.side", {},
        el("h4", {}, label(this.query, side.layer, side.draft)), sides[i]))));
  }

  // What the model was asked, with the drafts where they stood in it.
  promptOf(one, prompt) {
    return el("div.prompt", {}, prompt.messages.map(message => el("div.said", {},
      message.role ? el("span.role", {}, visible(message.role)) : null,
      message.parts.map(part => typeof part !== "string" ? this.quoted(one.layer.turn, part) : part.trim() ? prose(part) : null))));
  }

  quoted(turn, [layer, slot, kept]) {
    const source = this.cells.get(`${turn}/${layer}/${slot}`), text = source ? source.draft.text : "";
    const cut = kept === undefined ? null : text.slice(kept);
    return el("details.quoted", {open: cut !== null}, el("summary", {},
      `layer ${layer}, draft ${slot} `, el("span.quiet", {}, cut === null ? head(visible(text), 90)
        : `shortened: ${count(cut.length)} of its ${count(text.length)} characters were not sent`)),
    prose(cut === null ? text : text.slice(0, kept)),
    cut === null ? null : el("div.unsent", {title: "not sent"}, prose(cut)));
  }
}

const modelsOf = query => [...new Set(query.layers.flatMap(layer => layer.drafts.map(draft => draft.model)).filter(Boolean))];
const brief = model => model.split("/").pop();
const prompted = one => one.layer.prompts.find(prompt => prompt.slots.includes(one.draft.slot));
const named = where => where.map(one => `layer ${one.layer}, draft ${one.slot}`).join("; ");
const label = (query, layer, draft) => `${query.turns.length > 1 ? `Turn ${layer.turn + 1}, layer` : "Layer"} ${layer.layer}, draft ${draft.slot}`;

// The commonest of answers, the first of equals; there is one.
function vote(told) {
  const votes = new Map();
  for (const answer of told) if (answer != null) votes.set(answer, (votes.get(answer) || 0) + 1);
  const [answer, most] = [...votes].reduce((best, one) => one[1] > best[1] ? one : best);
  return `${visible(head(answer, 12))}: ${most} of ${told.length}`;
}
