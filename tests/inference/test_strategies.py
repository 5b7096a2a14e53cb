"""Each strategy asks what its paper says: which prompts, how many samples, at which place."""

import asyncio
import random
from dataclasses import replace

import pytest
from asking_tools import SETTINGS, numbered, solve

from aft_factory.engines.engine import EngineError
from aft_factory.engines.sampling import Completion
from aft_factory.errors import NoAnswer
from aft_factory.inference.policy import Policy
from aft_factory.inference.strategies import STRATEGIES, rsa
from aft_factory.prompts.rendering import load_template

QUESTION = {"role": "user", "content": "What is 1+1?"}


def reads(request):
    """The drafts that a request aggregates, by their numbers."""
    if request.prompt[0]["role"] != "system":
        return []
    lines = request.prompt[0]["content"].split("Responses from models:\n")[1].split("\n")
    return [int(line.split("draft ")[1]) for line in lines]


def shape(engine):
    return [(request.n, reads(request)) for request in engine.requests]


def test_propose_and_aggregate_is_the_papers_recursion():
    answer, engine, _ = solve("propose_and_aggregate", width=3, layers=2)
    assert shape(engine) == [(3, []), (3, [0, 1, 2]), (1, [3, 4, 5])]
    assert answer.completion.text == "draft 6"


def test_the_prompts_are_the_query_and_the_aggregator_prompt_before_it():
    _, engine, _ = solve("propose_and_aggregate", lambda r: ["A", "B"][: r.n], width=2, layers=1)
    prompt = load_template("paper").render(["A", "B"])
    assert [request.prompt for request in engine.requests] == [
        [QUESTION],
        [{"role": "system", "content": prompt}, QUESTION],
    ]


def test_only_the_last_layer_uses_the_final_sampling():
    _, engine, _ = solve("propose_and_aggregate", width=2, layers=2)
    assert [request.sampling.temperature for request in engine.requests] == [0.7, 0.7, 0.9]


def test_no_layers_is_a_plain_answer():
    answer, engine, _ = solve("propose_and_aggregate", width=5, layers=0)
    assert shape(engine) == [(1, [])]
    assert answer.completion.text == "draft 0"


def test_sequential_revision_has_width_one():
    _, engine, _ = solve("sequential_revision", layers=3)
    assert shape(engine) == [(1, []), (1, [0]), (1, [1]), (1, [2])]


def test_parallel_sampling_has_one_layer():
    _, engine, _ = solve("parallel_sampling", width=4)
    assert shape(engine) == [(4, []), (1, [0, 1, 2, 3])]


def test_best_of_n_takes_the_draft_of_the_highest_score():
    async def score(query, texts):
        assert query == [QUESTION]
        return [float(text == "draft 2") for text in texts]

    answer, engine, _ = solve("best_of_n", width=4, score=score)
    assert answer.completion.text == "draft 2"
    assert answer.details == {"scores": [0.0, 0.0, 1.0, 0.0], "problem": ""}
    assert shape(engine) == [(4, [])]


NAN, INFINITY = float("nan"), float("inf")
NONE = EngineError("too long", "refused")


@pytest.mark.parametrize(
    ("scores", "best", "known"),
    [
        ([NAN, 1.0, 2.0], 2, [None, 1.0, 2.0]),
        ([1.0, NAN, 0.0], 0, [1.0, None, 0.0]),
        ([INFINITY, -1.0, -2.0], 1, [None, -1.0, -2.0]),
        ([-INFINITY, -3.0, -3.0], 1, [None, -3.0, -3.0]),
        ([NONE, NAN, -9.0], 2, [None, None, -9.0]),
    ],
)
def test_a_draft_without_a_finite_score_never_wins_and_is_counted(scores, best, known):
    async def score(query, texts):
        return scores

    answer, _, trace = solve("best_of_n", width=3, score=score)
    assert answer.completion.text == f"draft {best}"
    problem = next(str(s) for s, number in zip(scores, known, strict=True) if number is None)
    assert answer.details == {"scores": known, "problem": problem}
    assert [(event["slot"], event["event"]) for event in trace.events] == [
        (i, "proposal that cannot be scored left out") for i, s in enumerate(known) if s is None
    ]


def test_a_query_of_which_no_draft_has_a_score_has_no_answer():
    async def score(query, texts):
        return [NAN, NONE]

    with pytest.raises(NoAnswer, match="no proposal could be scored; the first: nan"):
        solve("best_of_n", width=2, score=score)


def test_majority_vote_takes_the_first_draft_with_the_commonest_number():
    texts = ["It is 7.", "#### 8", "I cannot say", "So the answer is 8", "7.5"]
    answer, _, _ = solve("majority_vote", lambda r: texts, width=5)
    assert answer.completion.text == "#### 8"
    assert answer.details == {"votes": ["7", "8", None, "8", "7.5"]}


def test_majority_vote_without_any_number_takes_the_first_draft():
    answer, _, trace = solve("majority_vote", lambda r: ["a", "b"], width=2)
    assert answer.completion.text == "a"
    event = "no draft has an answer to vote by: the first was taken"
    assert trace.events == [{"turn": 0, "layer": 0, "slot": 0, "event": event}]
    options = {"width": 2, "subset": 1, "layers": 1}
    last = solve("rsa", lambda r: ["a"], **options)[2]
    assert [(one["layer"], one["event"]) for one in last.events] == [(1, event)]
    assert solve("majority_vote", lambda r: ["a", "0"], width=2)[2].events == []


def test_votes_and_rewards_see_answers_and_nothing_of_the_thoughts_before_them():
    said = (("It is 7.", "#### 8"), ("It is 9.", "#### 8"), ("So 9.", "#### 7"))
    drafts, scored = [Completion(text, thought=thought) for text, thought in said], []

    class Sample:
        async def __call__(self, query, read=(), *, layer, slot=0, n=1, **more):
            return drafts[slot : slot + n]

        def require(self, *args, **more):
            pass

    async def score(query, texts):
        scored.extend(texts)
        return [1.0, 3.0, 2.0]

    def answered(name, **more):
        options = STRATEGIES[name].settled({"width": 3}) | more
        return asyncio.run(STRATEGIES[name].run([QUESTION], Sample(), **options))

    assert answered("majority_vote").details == {"votes": ["7", "9", "9"]}
    assert answered("best_of_n", score=score).completion is drafts[1]
    assert scored == [text for text, _ in said]


@pytest.mark.parametrize("strategy", ["majority_vote", "rsa"])
@pytest.mark.parametrize("reason", ["length", "MAX_TOKENS", "content_filter"])
def test_a_draft_that_was_cut_off_before_its_answer_has_no_vote(strategy, reason):
    drafts = [Completion(text, reason) for text in ("So 3", "3 more", "#### 8\nAlso 3")]
    drafts.append(Completion("It is 8."))

    class Sample:
        async def __call__(self, query, read=(), *, layer, slot=0, n=1, **more):
            return drafts[slot : slot + n]

        def require(self, *args, **more):
            pass

    options = {"layers": 0} if strategy == "rsa" else {}
    answer = asyncio.run(
        STRATEGIES[strategy].run(
            [QUESTION], Sample(), **STRATEGIES[strategy].settled({"width": 4, **options})
        )
    )
    assert answer.details == {"votes": [None, None, "8", "8"]}
    assert answer.completion == drafts[2]


def test_self_moa_seq_carries_the_synthesis_through_windows():
    _, engine, _ = solve("self_moa_seq", width=7, window=3)
    assert shape(engine) == [(7, []), (1, [0, 1, 2]), (1, [7, 3, 4]), (1, [8, 5, 6])]
    assert [request.sampling.temperature for request in engine.requests] == [0.7, 0.7, 0.7, 0.9]


def test_self_moa_seq_of_one_window_aggregates_once():
    _, engine, _ = solve("self_moa_seq", width=3, window=6)
    assert shape(engine) == [(3, []), (1, [0, 1, 2])]


def test_moa_asks_every_proposer_in_every_layer_and_the_runs_model_last():
    _, engine, _ = solve("moa", models=["a", "b"], width=2, layers=2)
    assert [(r.model, r.n, reads(r)) for r in engine.requests] == [
        ("a", 2, []),
        ("b", 2, []),
        ("a", 2, [0, 1, 2, 3]),
        ("b", 2, [0, 1, 2, 3]),
        (None, 1, [4, 5, 6, 7]),
    ]


def test_moa_goes_on_without_a_proposer_that_wrote_nothing():
    script = numbered()
    answer, engine, _ = solve(
        "moa", lambda r: [""] if r.model == "a" else script(r), models=["a", "b"]
    )
    assert answer.completion.text == "draft 2"
    assert reads(engine.requests[-1]) == [1]


def test_min_drafts_of_moa_counts_the_layer_and_not_each_proposer():
    settings = replace(SETTINGS, policy=Policy(min_drafts=2))
    script = lambda r: ["" if r.model == "a" else "fine"] * r.n  # noqa: E731
    with pytest.raises(NoAnswer, match=r"layer 0: 1 of 2 drafts are unusable \(empty\), 2 wanted"):
        solve("moa", script, models=["a", "b"], settings=settings)
    solve("moa", script, models=["a", "b", "c"], settings=settings)


def test_rsa_aggregates_k_members_drawn_from_the_population_before():
    _, engine, trace = solve("rsa", width=5, subset=2, layers=2)
    assert len(engine.requests) == 15
    by_layer = {layer: drafts for (_, layer), drafts in trace.drafts.items()}
    assert {layer: len(drafts) for layer, drafts in by_layer.items()} == {0: 5, 1: 5, 2: 5}
    numbers = {
        layer: {int(c.text.split()[1]) for _, c in drafts} for layer, drafts in by_layer.items()
    }
    aggregating = [set(reads(request)) for request in engine.requests if reads(request)]
    assert all(len(parents) == 2 for parents in aggregating)
    assert all(parents <= numbers[0] or parents <= numbers[1] for parents in aggregating)


def test_rsa_draws_the_same_parents_in_every_run():
    script = lambda request: [f"draft {request.seed % 1000}"]  # noqa: E731
    first, second = (solve("rsa", script, width=6, subset=3, layers=2)[1] for _ in range(2))
    assert sorted(map(reads, first.requests)) == sorted(map(reads, second.requests))


def test_rsa_starts_a_member_when_its_own_parents_are_done():
    """Member 0 of the first population never ends; all that do not descend from it are asked."""
    asked = []

    class Sample:
        async def __call__(self, query, drafts=(), *, layer, slot=0, **_):
            asked.append((layer, slot))
            if (layer, slot) == (0, 0):
                await asyncio.sleep(3600)
            return [Completion(f"{layer}-{slot}")]

        def random(self, layer, slot):
            return random.Random(f"{layer}-{slot}")

    def parents(layer, slot):
        return random.Random(f"{layer}-{slot}").sample(range(6), 2)

    async def run():
        task = asyncio.create_task(rsa([QUESTION], Sample(), width=6, subset=2, layers=2))
        before = -1
        while len(asked) > before:  # until nothing moves any more
            before = len(asked)
            for _ in range(100):
                await asyncio.sleep(0)
        task.cancel()

    asyncio.run(asyncio.wait_for(run(), 60))
    waiting_1 = {slot for slot in range(6) if 0 in parents(1, slot)}
    waiting_2 = {slot for slot in range(6) if waiting_1 & set(parents(2, slot))}
    expected = {(0, slot) for slot in range(6)}
    expected |= {(1, slot) for slot in range(6) if slot not in waiting_1}
    expected |= {(2, slot) for slot in range(6) if slot not in waiting_2}
    assert waiting_1
    assert waiting_2 != set(range(6))
    assert set(asked) == expected


def test_rsa_goes_on_without_a_member_that_came_out_empty():
    count = numbered()
    script = lambda r: [""] if r.prompt == [QUESTION] and r.seed % 2 else count(r)  # noqa: E731
    answer, _, _ = solve("rsa", script, width=6, subset=3, layers=1)
    assert answer.completion.text.startswith("draft")


def test_rsa_without_any_member_has_no_answer():
    with pytest.raises(NoAnswer, match="2 of 2 drafts are unusable"):
        solve("rsa", lambda r: [""], width=2, subset=1, layers=1)


@pytest.mark.parametrize("name", STRATEGIES)
def test_no_strategy_changes_the_query_or_loses_its_history(name):
    history = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": "Hi"},
        QUESTION,
    ]
    before = [dict(message) for message in history]
    options = {"moa": {"models": ["a"]}}.get(name, {})

    async def score(query, drafts):
        return [0.0] * len(drafts)

    _, engine, _ = solve(
        name, messages=history, score=score if name == "best_of_n" else None, **options
    )
    assert history == before
    for request in engine.requests:
        system, *turns = request.prompt
        assert turns == before[1:]
        assert system["content"].split("\n\n")[0] == "Be brief."
