"use strict";
// The head of the report: what was asked of whom, and what came of it.

function overview(head, narrow) {
  const left = [
    [head.rejected, "rejected"], [head.unfinished, "not done"], [head.not_begun, "rows not begun"],
    [head.unread, "rows cannot be read"], [head.repeated, "rows repeat an earlier one"],
    [head.elsewhere, "queries are not among the rows"],
  ].filter(([number]) => number);
  const seconds = head.sessions.reduce((sum, session) => sum + session.seconds, 0);
  const graded = (head.counts.right || 0) + (head.counts.wrong || 0);
  const option = Object.fromEntries(head.settings.map(([name, value]) => [name, value]));
  return el("article.overview", {},
    el("h1", {}, visible(head.name)),
    el("p.lead", {}, [head.strategy, option.model, option.width && `K = ${option.width}`,
      option.layers !== undefined && `L = ${option.layers}`].filter(Boolean).map(said).map(visible).join("  \u00b7  ")),
    head.full && el("p.notice", {}, `This page is full at ${head.full}: the first ${count(head.in_page)} of `
      + `${count(head.queries)} queries are in it. The numbers here are of all.`),
    el("div.cards", {},
      card(count(head.answered), `of ${plural(head.queries, "query", "queries")} answered`),
      graded > 0 && card(share((head.counts.right || 0) / graded), `right, of ${count(graded)} graded`),
      card(count(head.total.completion), "tokens written"),
      card(duration(seconds), `in ${plural(head.sessions.length, "session")}`)),
    left.length ? el("p.left", {}, left.map(([number, what]) => `${count(number)} ${what}`).join("; ")) : null,
    listing("How answers are graded", head.grading.map(([how, number]) => [how, plural(number, "query", "queries")])),
    el("h2", {}, "Layer by layer"),
    layerTable(head),
    found(head, narrow),
    listing("Policies", Object.entries(head.events).map(([name, number]) => [name, count(number)])),
    listing("Ends of answers", Object.entries(head.finish_reasons).map(([name, number]) => [name, count(number)])),
    listing("Rejects", Object.entries(head.rejects).map(([name, one]) => [`${name}: ${one.first}`, count(one.count)])),
    head.models.length ? listing("Models", head.models.map(one => [one.model || "the run's own", `${count(one.completion)} tokens written`])) : null,
    head.reward ? listing("Reward model", [["drafts scored", count(head.reward.pairs)], ["tokens read", count(head.reward.tokens)]]) : null,
    head.flops ? listing("FLOPs", Object.entries(head.flops).filter(([, n]) => n).map(([name, n]) => [name, n.toPrecision(3)])) : null,
    el("h2", {}, "Settings"),
    table(head.settings.filter(([, , own]) => own)),
    el("details", {}, el("summary", {}, "Settings left as they come"),
      table(head.settings.filter(([, , own]) => !own)),
      head.left_out.length ? el("p.quiet", {}, `Not shown, as they may hold places or secrets: ${head.left_out.map(visible).join(", ")}`) : null),
    el("p.quiet.keys", {}, "Keys: ", keys().map(([key, what]) => [el("kbd", {}, key), ` ${what}   `])));
}

const keys = () => [
  ["j k", "next, previous query"], ["/", "search"], ["arrows", "from draft to draft"], ["p", "prompt"],
  ["t", "thoughts"], ["c", "compare with the next draft"], ["f", "full texts"], ["m", "other font"],
  ["d", "dark, light"], ["o", "overview"], ["Esc", "back"],
];

const card = (number, what) => el("div.card", {}, el("b", {}, number), el("span", {}, what));

function found(head, narrow) {
  const names = ["fixed", "broke", "agree", "cut", "resampled", "shortened"].filter(name => head.counts[name]);
  if (!names.length) return null;
  return el("p.found", {}, names.map(name => el("button.chip", {
    type: "button", title: LABELS[name][1], onclick: () => narrow(name),
  }, {fixed: "aggregation fixed it", broke: "aggregation broke it"}[name] || LABELS[name][0],
  el("span.n", {}, count(head.counts[name])))));
}

function layerTable(head) {
  const graded = head.layers.some(layer => layer.graded), turns = head.layers.some(layer => layer.turn);
  const voting = head.layers.some(layer => layer.agreed !== null);
  const thought = head.layers.some(layer => layer.thought);
  const columns = [
    turns && ["turn", "", layer => layer.turn + 1],
    ["layer", "", layer => layer.layer],
    ["queries", "that have come so far", layer => count(layer.queries)],
    ["drafts", "that were used", layer => count(layer.drafts)],
    graded && ["drafts right", "the share of a layer's drafts that have the right answer, mean over queries", layer => meter(layer.right)],
    graded && ["vote right", "the share of queries whose commonest answer is right", layer => meter(layer.voted)],
    graded && ["pass@K", "the share of queries with at least one draft that is right", layer => meter(layer.passed)],
    voting && ["agreement", "the share of the vote: drafts with the commonest answer, mean over queries", layer => meter(layer.agreed, ".plain")],
    ["requests", "", layer => count(layer.requests)],
    ["prompt", "tokens read", layer => count(layer.prompt)],
    ["cached", "of the tokens read, those computed before", layer => count(layer.cached)],
    ["written", "tokens", layer => count(layer.completion)],
    thought && ["thought", "of the tokens written", layer => count(layer.thought)],
    ["time", "all requests' waiting added up, and the mean of one", layer => layer.seconds === null ? "\u2013"
      : `${duration(layer.seconds)}, ${duration(layer.requests ? layer.seconds / layer.requests : 0)} each`],
  ].filter(Boolean);
  return el("div.wide", {}, el("table.layers", {},
    el("thead", {}, el("tr", {}, columns.map(([name, title]) => el("th", {title: title || null}, name)))),
    el("tbody", {}, head.layers.map(layer => el("tr", {}, columns.map(([, , cell]) => el("td", {}, cell(layer))))))));
}

function meter(part, kind = "") {
  return part === null || part === undefined ? "\u2013" : el(`span.meter${kind}`, {}, bar(part, ""), share(part));
}

function listing(title, rows) {
  return rows.length ? el("section", {}, el("h2", {}, title), table(rows)) : null;
}

const table = rows => el("table.plain", {}, el("tbody", {}, rows.map(([name, value]) =>
  el("tr", {}, el("th", {}, visible(said(name))), el("td", {}, visible(said(value)))))));
