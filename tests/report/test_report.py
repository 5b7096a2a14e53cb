"""What a page has of a run: every draft, what it read, and how it ended.

Run: pytest tests/report/test_report.py
"""

import re
from pathlib import Path

import pytest
from asking_tools import babble, fails, read_lines, write_lines
from report_tools import HOSTILE, page, report, run

from aft_factory.asking.journal import Journal
from aft_factory.engines.engine import EngineError
from aft_factory.engines.sampling import Completion, Usage
from aft_factory.inference.outcome import Outcome
from aft_factory.inference.queries import Query
from aft_factory.report.describing import _parts, described
from aft_factory.report.grading import NUMBERS, Grading
from aft_factory.run.__main__ import main as answer
from aft_factory.run.replaying import Attempt, Replayed
from aft_factory.sample.__main__ import main as sample

ROWS = [
    {"id": f"q{i}", "query": f"What is {i} + {i}?", "reference": f"#### {2 * i}"} for i in range(4)
]


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def made(monkeypatch, capsys):
    """Run rows, report on them; returns (head, queries)."""

    def made(rows, *flags, script=None, of="out.jsonl", data=()):
        run(monkeypatch, capsys, rows, *flags, script=script)
        code, _, err = report(capsys, of, *data)
        assert code == 0, err
        head, queries, _ = page()
        return head, queries

    return made


def by_numbers(*numbers):
    """A script that answers the samples of each layer by these final numbers, in turn."""
    answers = iter(numbers)
    return lambda request: [f"The answer is {next(answers)}." for _ in range(request.n)]


def places(layers):
    return {
        (layer["layer"], draft["slot"]): [tuple(read) for read in draft["reads"]]
        for layer in layers
        for draft in layer["drafts"]
    }


def test_numbers_by_layer_are_those_computed_by_hand(made):
    # q1 (2): two of three drafts right, then one, and the answer wrong. q2 (4): none, then all.
    numbers = [2, 2, 9, 2, 8, 8, 8, 7, 8, 9, 4, 4, 4, 4]
    flags = ("--width", "3", "--in-flight", "1", "--admit", "1", "--layers", "2")
    head, queries = made(ROWS[1:3], *flags, script=by_numbers(*numbers))
    first, second, last = head["layers"]
    assert [first[k] for k in ("right", "voted", "passed")] == [(2 / 3 + 0) / 2, 0.5, 0.5]
    assert [second[k] for k in ("right", "voted", "passed")] == [(1 / 3 + 1) / 2, 0.5, 1.0]
    assert [last[k] for k in ("right", "voted", "passed")] == [0.5, 0.5, 0.5]
    assert first["agreed"] == (2 / 3 + 1 / 3) / 2
    assert [query["flags"] for query in queries] == [["wrong", "broke"], ["right", "fixed"]]
    assert [d["told"] for d in queries[0]["layers"][0]["drafts"]] == ["2", "2", "9"]
    assert head["counts"] == {"wrong": 1, "broke": 1, "right": 1, "fixed": 1}


def test_tokens_policies_and_settings_are_those_of_the_summary(made):
    head, _ = made(ROWS, "--width", "2", "--layers", "1")
    import json

    summary = json.loads(Path("out.summary.json").read_text())
    for name in ("total", "events", "finish_reasons", "models"):
        assert head[name] == summary[name]
    for mine, theirs in zip(head["layers"], summary["layers"], strict=True):
        assert {name: mine[name] for name in theirs} == theirs
        assert mine["seconds"] >= 0
    settings = {name: value for name, value, _ in head["settings"]}
    assert (settings["width"], settings["layers"], settings["seed"]) == (2, 1, 42)
    assert "base_url" not in settings


@pytest.mark.parametrize(
    ("strategy", "flags", "reads"),
    [
        (
            "propose_and_aggregate",
            ("--width", "2", "--layers", "1"),
            {(0, 0): [], (0, 1): [], (1, 0): [(0, 0), (0, 1)]},
        ),
        ("sequential_revision", (), {(0, 0): [], (1, 0): [(0, 0)], (2, 0): [(1, 0)]}),
        (
            "self_moa_seq",
            ("--width", "4", "--window", "3"),
            {
                **{(0, i): [] for i in range(4)},
                (1, 0): [(0, 0), (0, 1), (0, 2)],
                (2, 0): [(1, 0), (0, 3)],
            },
        ),
        (
            "moa",
            ("--proposers", "a", "b", "--layers", "1"),
            {(0, 0): [], (0, 1): [], (1, 0): [(0, 0), (0, 1)]},
        ),
    ],
)
def test_which_drafts_each_has_read(made, strategy, flags, reads):
    _, [query] = made(ROWS[:1], "--strategy", strategy, *flags)
    assert places(query["layers"]) == reads
    assert query["exact"]
    last = max(reads)
    assert query["chosen"] == [list(last)]


def test_greedy_drafts_are_one_at_several_places_and_each_is_read(made):
    flags = ("--width", "2", "--layers", "1", "--temperature", "0")
    _, [query] = made(ROWS[:1], *flags)
    assert places(query["layers"]) == {(0, 0): [], (0, 1): [], (1, 0): [(0, 0), (0, 1)]}


def test_members_of_a_population_have_read_what_their_prompts_hold(made):
    asked = []

    def noted(request):
        asked.append(request)
        return babble(request)

    flags = ("--strategy", "rsa", "--width", "4", "--subset", "2", "--layers", "2")
    _, [query] = made(ROWS[:1], *flags, script=noted)
    text = {
        (layer["layer"], draft["slot"]): draft["text"]
        for layer in query["layers"]
        for draft in layer["drafts"]
    }
    sent = [request.prompt[0]["content"] for request in asked if len(request.prompt) == 2]
    told = [reads for reads in places(query["layers"]).values() if reads]
    assert len(told) == 8
    assert {len(reads) for reads in told} == {2}
    for reads in told:
        assert any(all(text[place] in prompt for place in reads) for prompt in sent)
    assert query["chosen"][0] in [[2, slot] for slot in range(4)]


def test_prompts_put_together_are_those_that_were_sent(made):
    asked = []

    def noted(request):
        asked.append(request.prompt)
        return babble(request)

    _, [query] = made(ROWS[:1], "--width", "3", "--layers", "2", script=noted)
    text = {(la["layer"], d["slot"]): d["text"] for la in query["layers"] for d in la["drafts"]}
    shown = [
        [
            {
                "role": message["role"],
                "content": "".join(
                    part if isinstance(part, str) else text[tuple(part)]
                    for part in message["parts"]
                ),
            }
            for message in prompt["messages"]
        ]
        for layer in query["layers"]
        for prompt in layer["prompts"]
    ]
    assert shown == asked
    aggregating = query["layers"][1]["prompts"][0]["messages"][0]["parts"]
    assert [part for part in aggregating if not isinstance(part, str)] == [[0, 0], [0, 1], [0, 2]]


def test_a_draft_that_was_shortened_says_how_much_of_it_was_sent():
    drafts = [((0, 0), Completion("short")), ((0, 1), Completion("a longer draft"))]
    parts = _parts("1. short\n2. a longer draft\nend", drafts, [5, 8])
    assert parts == ["1. ", [0, 0], "\n2. ", [0, 1, 8], "\nend"]


def test_tries_that_were_not_used_are_there_and_dropped_drafts_too(made):
    def script(request):
        first = request.n == 3
        return ["", "fine", "fine too"] if first else [""] if len(request.prompt) == 1 else ["end"]

    _, [query] = made(ROWS[:1], "--width", "3", "--layers", "1", script=script)
    lost, *used = query["layers"][0]["drafts"]
    assert lost["lost"]
    assert len(lost["tries"]) == 2
    assert [draft["text"] for draft in used] == ["fine", "fine too"]
    assert places(query["layers"])[1, 0] == [(0, 1), (0, 2)]
    assert "resampled" in query["flags"]


def test_thoughts_stand_apart_and_models_are_told(made):
    flags = ("--strategy", "moa", "--proposers", "a", "b", "--layers", "1")
    thinks = lambda request: ["<think>hm</think>The answer is 0."] * request.n  # noqa: E731
    _, [query] = made(ROWS[:1], *flags, script=thinks)
    drafts = query["layers"][0]["drafts"]
    assert [draft["thought"] for draft in drafts] == ["hm", "hm"]
    assert [draft["text"] for draft in drafts] == ["The answer is 0."] * 2


def test_turns_of_a_benchmark_are_apart(made):
    rows = [{"question_id": 7, "category": "math", "turns": ["First?", "Second?"]}]
    _, [query] = made(rows, "--width", "2", "--layers", "1")
    assert [(la["turn"], la["layer"]) for la in query["layers"]] == [(0, 0), (0, 1), (1, 0), (1, 1)]
    assert len(query["answers"]) == len(query["turns"]) == 2
    assert query["chosen"] == [[1, 0], [1, 0]]
    said = query["layers"][2]["prompts"][0]["messages"]
    assert "".join(said[-2]["parts"]) == query["answers"][0]


def test_the_rows_own_proposals_are_the_first_layer(made):
    rows = [{"id": "q", "query": "Hm?", "proposals": ["one", "two"]}]
    _, [query] = made(rows, "--use-proposals", "--width", "2", "--layers", "1")
    first = query["layers"][0]
    assert [(d["text"], d["given"]) for d in first["drafts"]] == [("one", True), ("two", True)]
    assert places(query["layers"])[1, 0] == [(0, 0), (0, 1)]


def test_rows_of_one_id_and_other_proposals_are_each_their_own(made):
    rows = [{"id": "q", "query": "Hm?", "proposals": [text, text * 2]} for text in "ab"]
    for data in ((), ("--data", "in.jsonl")):
        _, queries = made(rows, "--use-proposals", "--layers", "1", "--overwrite", data=data)
        assert [q["layers"][0]["drafts"][0]["text"] for q in queries] == ["a", "b"]
        assert len({q["answers"][0] for q in queries}) == 2
        assert [q["layers"][1]["drafts"][0]["text"] for q in queries] == [
            q["answers"][0] for q in queries
        ]


@pytest.mark.parametrize("strategy", ["best_of_n", "majority_vote"])
def test_how_one_of_several_was_chosen_is_told(made, strategy):
    _, [query] = made(ROWS[:1], "--strategy", strategy, "--width", "3")
    [layer] = query["layers"]
    assert len(layer["drafts"]) == 3
    assert query["details"][0]["scores" if strategy == "best_of_n" else "votes"]


def test_greedy_votes_of_a_benchmark_are_one_draft_for_all(made):
    rows = [{"question": "What is 1 + 1?", "answer": "#### 2"}]
    script = by_numbers(2)
    head, [query] = made(rows, "--strategy", "majority_vote", "--width", "3", script=script)
    assert query["right"] is True
    assert head["layers"][0]["passed"] == 1.0


def test_rejects_and_what_is_not_done_are_in_the_page(made, monkeypatch, capsys):
    head, queries = made(ROWS, "--width", "2", "--layers", "1", script=fails("What is 2"))
    assert head["rejected"] == 1
    assert head["rejects"]["refused"]["count"] == 1
    assert [query["problem"] is None for query in queries] == [True, True, False, True]
    assert queries[2]["flags"] == ["wrong", "rejected"]  # as accuracy has it


def test_a_run_that_was_killed_shows_what_it_has(monkeypatch, capsys):
    def dies(request):
        aggregates = request.prompt[0]["role"] == "system"
        return (
            EngineError("gone", "fatal")
            if aggregates and "1 + 1" in str(request.prompt)
            else babble(request)
        )

    run(monkeypatch, capsys, ROWS[:2], "--width", "2", "--layers", "1", "--admit", "1", script=dies)
    assert not Path("out.jsonl").exists()
    for data in ((), ("--data", "in.jsonl")):
        assert report(capsys, "out.jsonl.journal", *data)[0] == 0
        head, [done, begun], _ = page()
        assert (done["done"], begun["done"]) == (True, False)
        assert (head["answered"], head["unfinished"]) == (1, 1)
        assert begun["flags"] == ["unfinished"]
        assert [len(layer["drafts"]) for layer in begun["layers"]] == [2]


def test_journal_output_and_rows_tell_of_the_same_queries(made, capsys):
    _, of_output = made(ROWS, "--width", "2", "--layers", "1")
    report(capsys, "out.jsonl.journal", "--data", "in.jsonl")
    assert page()[1] == of_output
    # Without its input, the references are those of the output's own columns.
    Path("in.jsonl").unlink()
    report(capsys, "out.jsonl")
    assert page()[1] == of_output
    # Of the journal alone, there are none.
    Path("out.jsonl").unlink()
    report(capsys, "out.jsonl.journal")
    alone = page()[1]
    assert [q["reference"] for q in alone] == [None] * 4
    assert [q["layers"][0]["drafts"][0]["text"] for q in alone] == [
        q["layers"][0]["drafts"][0]["text"] for q in of_output
    ]


def test_rows_that_are_others_are_told(made, capsys):
    made(ROWS[:2])
    write_lines(Path("more.jsonl"), [*ROWS[1:], {"no": "query"}])
    _, told, _ = report(capsys, "out.jsonl", "--data", "more.jsonl")
    assert "2 queries, 2 of all 4 answered" in told
    assert "1 rows cannot be read" in told
    assert "2 rows are not begun" in told
    assert "1 queries of the run are not in more.jsonl" in told
    assert [query["id"] for query in page()[1]] == ["q1", "q0"]


def test_a_journal_of_which_nothing_is_answered_yet_is_told_as_such(capsys):
    write_lines(Path("in.jsonl"), ROWS)
    Journal(Path("out.jsonl.journal")).close()  # as a stop before the first answer leaves it
    wanted = "error: out.jsonl.journal: nothing is answered yet; start it again by the same command"
    assert report(capsys, "out.jsonl.journal")[2].strip() == wanted
    assert answer(["in.jsonl", "--output", "out.jsonl", "--export"]) == 2
    assert capsys.readouterr().err.strip() == wanted


def test_the_page_is_full_at_its_cap_and_says_so_while_numbers_are_of_all(made, capsys):
    made(ROWS)
    code, _, err = report(capsys, "out.jsonl", "--most", "3")
    assert code == 0
    assert "the page is full at 3 queries: 1 queries are not in it" in err
    head, queries, _ = page()
    assert (head["in_page"], head["queries"], len(queries)) == (3, 4, 3)
    assert head["full"] == "3 queries"
    assert sum(head["counts"].get(name, 0) for name in ("right", "wrong")) == 4


def test_hostile_texts_are_data(made):
    rows = [{"id": "</script>", "query": HOSTILE[0]}]
    made(rows, "--width", "4", "--layers", "1", script=lambda r: HOSTILE[: r.n])
    _, [query], text = page()
    assert query["id"] == "</script>"
    assert [d["text"] for d in query["layers"][0]["drafts"][:3]] == HOSTILE[:3]
    assert "half a pair: ?" in query["layers"][0]["drafts"][3]["text"]
    body = re.sub(r"<style>.*?</style>|<script>.*?</script>", "", text, flags=re.DOTALL)
    assert body.count("<script") == 2  # one chunk, and the index
    assert "pwned" not in body.replace("\\u003cscript>window.pwned = 1", "")


def test_the_page_asks_nobody(made):
    made(ROWS[:1])
    text = page()[2]
    assert "default-src 'none'" in text
    assert not re.search(r"https?://|\bsrc=|\bhref=|@import|url\(", text)


def test_no_text_is_put_into_a_page_as_markup():
    folder = Path(__file__).parents[2] / "aft_factory" / "report"
    for path in folder.glob("*.js"):
        script = path.read_text()
        assert not re.search(
            r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(", script
        )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nowhere.jsonl"], "nowhere.jsonl: no such journal"),
        (["in.jsonl"], "in.jsonl.journal: no such journal"),
        (["out.jsonl", "--output", "page.txt"], "expected a name that ends in .html"),
        (
            ["s.jsonl"],
            "expected the journal of `aft run` or `aft eval`, got that of `aft sample`",
        ),
    ],
)
def test_what_cannot_be_reported_on_is_told(made, capsys, words, message):
    from aft_factory.report.__main__ import main

    made(ROWS[:1])
    sample(["in.jsonl", "--output", "s.jsonl", "--scripted", "--quiet"])
    given = words if "--output" in words else [*words, "--output", "other.html"]
    assert main(given) == 2
    assert message in capsys.readouterr().err
    assert not Path("other.html").exists()


def test_a_page_that_is_there_is_kept(made, capsys):
    from aft_factory.report.__main__ import main

    made(ROWS[:1])
    before = Path("page.html").read_bytes()
    assert main(["out.jsonl", "--output", "page.html"]) == 2
    assert "page.html exists; pass --overwrite" in capsys.readouterr().err
    assert report(capsys, "out.jsonl")[0] == 0
    assert Path("page.html").read_bytes() == before  # the same run, the same bytes
    assert [row["id"] for row in read_lines(Path("out.jsonl"))] == ["q0"]


def evaluated(monkeypatch, capsys, tmp_path, script, rows, *flags):
    """Evaluate by a script; return (results, a function that reports on a file of it)."""
    from evaluate_tools import answering, evaluate, write_rows

    answering(monkeypatch, script)
    [(name, found)] = rows.items()
    data = f"{name}={write_rows(tmp_path / 'rows.jsonl', found)}"
    results = evaluate(tmp_path, name, "--data", data, *flags)[1]

    def reported(of):
        code, _, err = report(capsys, str(tmp_path / "out" / of))
        assert code == 0, err
        return page()[:2]

    return results, reported


def test_of_several_runs_in_one_journal_an_output_is_its_own(monkeypatch, capsys):
    for name, width in (("wide.jsonl", "3"), ("narrow.jsonl", "2")):
        flags = ("--journal", "both.journal", "--width", width, "--layers", "1")
        run(monkeypatch, capsys, ROWS[:2], *flags, output=name)
    for name, width in (("wide.jsonl", 3), ("narrow.jsonl", 2), ("both.journal", 2)):
        assert report(capsys, name)[0] == 0
        head, queries, _ = page()
        assert {name: value for name, value, _ in head["settings"]}["width"] == width
        assert [len(query["layers"][0]["drafts"]) for query in queries] == [width] * 2
        assert len(head["sessions"]) == 1


def test_a_folder_that_was_moved_is_read_where_it_is(monkeypatch, capsys):
    Path("a").mkdir()
    flags = ("--journal", "a/own.journal", "--width", "2", "--layers", "1")
    run(monkeypatch, capsys, ROWS[:2], *flags, output="a/out.jsonl")
    Path("a").rename("b")
    assert report(capsys, "b/out.jsonl")[0] == 0
    assert len(page()[1]) == 2


def test_how_each_query_is_graded_is_said_and_so_is_that_it_cannot_be(made):
    rows = [
        {"id": "number", "query": "Hm?", "reference": "#### 2"},
        {"id": "text", "query": "Hm? Hm?", "reference": "In words."},
        {"id": "none", "query": "Hm? Hm? Hm?"},
        {"id": "no text", "query": "Hm? Hm?", "answer": 2, "solution": True},
    ]
    head, queries = made(rows, "--layers", "0")
    assert head["grading"] == [
        ["final numbers", 2],
        ["the reference is a text, no number", 1],
        ["no reference", 1],
    ]
    assert [query["right"] for query in queries] == [False, None, None, False]


def test_of_a_benchmark_that_a_judge_scores_it_is_said_that_nothing_is_graded(made):
    alpaca = [{"dataset": "x", "instruction": "Hm?", "output": "3", "generator": "another"}]
    head, [query] = made(alpaca, "--layers", "0")
    assert head["grading"] == [["its scorer is not run here (alpaca_eval)", 1]]
    assert (query["right"], query["reference"]) == (None, None)


def test_a_worked_answer_is_graded_as_the_runs_accuracy_is(made, capsys):
    long = "She has 3 boxes and opens them, and in the end there are 72 of them"
    script = by_numbers(72)
    head, [query] = made([{"question": "Hm?", "answer": long}], "--layers", "0", script=script)
    assert query["right"] is True
    assert head["counts"]["right"] == 1


def test_a_dropped_draft_has_no_vote():
    def attempt(text, finish):
        request = {"key": text, "model": "m", "sampling": {"temperature": 1.0}, "seconds": 1.0}
        return Attempt(0, Completion(text, finish_reason=finish), request, Usage(1))

    cut = [attempt(f"The answer is 9. {i}", "length") for i in range(2)]
    used, last = Completion("The answer is 2."), Completion("The answer is 2.")
    found = Replayed(
        drafts={(0, 0): {2: used}, (0, 1): {0: last}},
        attempts={(0, 0): {i: [one] for i, one in enumerate(cut)}},
        chosen=[(1, 0)],
    )
    query = Query("q", [[{"role": "user", "content": "Hm?"}]], {})
    grading = Grading("final numbers", NUMBERS, "2")
    shown = described(query, Outcome(answers=[last.text]), found, grading)
    assert [draft["told"] for draft in shown["layers"][0]["drafts"]] == ["9", "9", "2"]
    assert shown["voted"] is True


def test_unknown_tokens_are_no_zeros():
    from aft_factory.report.reporting import _listed

    layers = [{"written": 5, "drafts": []}, {"written": None, "drafts": []}]
    query = {"turns": [[{"content": "Hm?"}]], "flags": [], "layers": layers, "target": None}
    assert _listed({**query, "id": "q", "seed": None})[3] is None


@pytest.mark.slow  # loads lm-eval
def test_an_evaluation_has_its_questions_of_each_seed(monkeypatch, capsys, tmp_path):
    pytest.importorskip("lm_eval")
    from evaluate_tools import gsm8k_rows

    results, reported = evaluated(
        *(monkeypatch, capsys, tmp_path, lambda request: f"The answer is {request.seed % 2}."),
        *({"gsm8k": gsm8k_rows(2)}, "--width", "2", "--layers", "1", "--repeats", "2"),
    )
    for name in ("", "answers.jsonl", "journal.sqlite"):
        head, queries = reported(name)
        assert (head["answered"], len(queries)) == (4, 4)
        assert head["grading"] == [["gsm8k: gsm8k_cot_zeroshot, flexible-extract", 4]]
        assert all(query["exact"] for query in queries)
        assert [query["seed"] for query in queries] == [42, 42, 43, 43]
        assert [query["target"] for query in queries] == ["0", "1", "0", "1"]
        for query in queries:
            drafts = [draft["text"] for draft in query["layers"][0]["drafts"]]
            assert len(set(drafts)) == 1  # one request's
            assert places(query["layers"])[1, 0] == [(0, 0), (0, 1)]
    [metric] = results["benchmarks"][0]["metrics"]
    assert 100 * head["counts"]["right"] / 4 == metric["value"]


@pytest.mark.slow  # loads lm-eval
def test_letters_are_told_as_lm_eval_tells_them(monkeypatch, capsys, tmp_path):
    pytest.importorskip("lm_eval")
    from evaluate_tools import mmlu_rows

    said = iter(
        ["the best answer is B.", "Sure: the best answer is C", "It is B", "best answer is b"]
    )
    _, reported = evaluated(
        *(monkeypatch, capsys, tmp_path, lambda request: next(said) if request.n == 1 else ""),
        *({"mmlu": mmlu_rows()[:1]}, "--width", "3", "--layers", "1", "--split-samples"),
    )
    head, [query] = reported("")
    [drafts, [last]] = [[d["told"] for d in layer["drafts"]] for layer in query["layers"]]
    assert query["target"] == "B"
    assert sorted(drafts, key=str) == ["B", "C", None]  # "It is B" is none to lm-eval
    assert last is None  # nor is a small letter
    assert query["right"] is False
    assert query["verdicts"] == [[0, "exact_match,strict_match", 0.0]]
    assert head["layers"][0]["right"] == pytest.approx(1 / 3)
