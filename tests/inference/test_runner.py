"""The runner: many queries at once, each on its own; accounting; what an outcome holds."""

import asyncio
import itertools
from dataclasses import replace

import pytest
from asking_tools import QUICK, answer, numbered, query, runner

from aft_factory.asking.asker import Asker
from aft_factory.asking.journal import Journal
from aft_factory.engines.engine import EngineError
from aft_factory.engines.sampling import Completion, Reply, Sampling, Usage
from aft_factory.engines.scripted import ScriptedEngine
from aft_factory.inference.accounting import ModelShape
from aft_factory.inference.drafting_options import CompletionPrompts
from aft_factory.inference.policy import Policy
from aft_factory.inference.runner import Runner, window
from aft_factory.inference.strategies import STRATEGIES
from aft_factory.inference.tasks import read_mt_bench
from aft_factory.prompts.fitting import Fitter
from aft_factory.prompts.markers import Markers
from aft_factory.prompts.rendering import load_template
from aft_factory.prompts.tokenizer import load_tokenizer, resolve_chat_template


def queries(count):
    return [query(f"Question {i}", f"q{i}") for i in range(count)]


def test_outcomes_do_not_depend_on_order_or_concurrency():
    first = answer(ScriptedEngine(), queries(30), in_flight=100)
    second = answer(ScriptedEngine(), queries(30)[::-1], in_flight=1)
    assert first == second
    assert len(first) == 30


def test_a_query_does_not_wait_for_another():
    """One query hangs in layer 0; all others end."""

    class Hanging(ScriptedEngine):
        async def sample(self, request):
            if request.prompt[-1]["content"] == "Question 0":
                await asyncio.sleep(3600)
            return await super().sample(request)

    ended = []

    async def run():
        one = runner(Hanging())
        task = asyncio.create_task(
            one.answer_all(queries(20), 100, lambda q, o: ended.append(q.id))
        )
        while len(ended) < 19:
            await asyncio.sleep(0.001)
        task.cancel()

    asyncio.run(asyncio.wait_for(run(), 60))
    assert sorted(ended) == sorted(f"q{i}" for i in range(1, 20))


def test_no_more_queries_are_read_than_are_admitted():
    under_way, most = set(), []

    def source():
        for one in queries(50):
            under_way.add(one.id)
            most.append(len(under_way))
            yield one

    async def run():
        one = runner(ScriptedEngine(delay=0.001))
        await one.answer_all(source(), 4, lambda q, o: under_way.remove(q.id))

    asyncio.run(run())
    assert max(most) == 5  # four are admitted and one is read to be the next


def test_a_run_that_is_stopped_says_whether_all_queries_ended():
    async def run(count, stop_after):
        one = runner(ScriptedEngine(delay=0.001))
        ended = []

        def on_outcome(query, outcome):
            ended.append(query)
            if len(ended) == stop_after:
                one.asker.stop()

        return await one.answer_all(queries(count), 1, on_outcome), len(ended)

    assert asyncio.run(run(5, 3)) == (False, 3)
    assert asyncio.run(run(5, 5)) == (True, 5)


def test_a_run_that_skips_rows_can_be_stopped():
    """Skipping what is done asks nobody, and must not keep Ctrl-C waiting."""

    async def run():
        one = runner(ScriptedEngine())
        asyncio.get_running_loop().call_later(0.01, one.asker.stop)
        return await one.answer_all(itertools.repeat(None), 1, lambda q, o: None)

    assert asyncio.run(asyncio.wait_for(run(), 60)) is False


@pytest.mark.parametrize(
    ("strategy", "options"),
    [
        ("propose_and_aggregate", {"width": 5, "layers": 2}),
        ("propose_and_aggregate", {"width": 5, "layers": 0}),
        ("self_moa_seq", {"width": 6, "window": 2}),
    ],
)
def test_the_queries_under_way_keep_the_limit_full_whatever_the_strategy(strategy, options):
    """Requests end one by one, when all that can be sent has been: no clock decides."""

    class Gated(ScriptedEngine):
        async def sample(self, request):
            gate = asyncio.get_running_loop().create_future()
            gates.append(gate)
            await gate
            return await super().sample(request)

    gates, taken = [], []

    async def run():
        one = runner(Gated(), strategy=strategy, options=options, in_flight=40)
        work = asyncio.create_task(one.answer_all(queries(200), window(40), lambda q, o: None))
        while not work.done():
            for _ in range(50):  # until nothing moves any more
                await asyncio.sleep(0)
            if gates:
                taken.append(one.asker.limiter.taken)
                gates.pop(0).set_result(None)

    asyncio.run(asyncio.wait_for(run(), 120))
    amid = taken[len(taken) // 5 : -len(taken) // 5]
    assert sum(amid) / len(amid) > 0.8 * 40


def test_samples_in_flight_stay_under_the_limit_and_reach_it():
    async def run():
        one = runner(ScriptedEngine(delay=0.002), in_flight=7)
        await one.answer_all(queries(20), 100, lambda q, o: None)
        return one.asker.limiter.most

    assert asyncio.run(run()) in (6, 7)  # 3 + 3 + 1


def test_a_failing_query_fails_alone_with_the_engines_words_and_its_usage():
    def script(request):
        if "3" in request.prompt[-1]["content"] and request.prompt[0]["role"] == "system":
            return EngineError("prompt of 9999 tokens is too long", "refused")
        return ["fine"] * request.n

    outcomes = answer(ScriptedEngine(script), queries(5))
    assert [o.problem for _, o in sorted(outcomes.items())] == [
        None,
        None,
        None,
        "prompt of 9999 tokens is too long",
        None,
    ]
    assert (outcomes["q3"].about, outcomes["q3"].answers) == ("refused", [])
    assert [row["samples"] for row in outcomes["q3"].usage] == [3]


def test_a_query_that_the_engine_fails_may_be_answered_another_time():
    outcomes = answer(ScriptedEngine(lambda r: EngineError("busy", "retry")), queries(1))
    assert (outcomes["q0"].about, "no answer after 4" in outcomes["q0"].problem) == ("engine", True)


@pytest.mark.parametrize("first", [0, 10, 17], ids=["first", "amid", "last"])
def test_neighbouring_queries_that_a_healthy_engine_fails_are_rejected_alone(first):
    bad = {f"Question {i}" for i in range(first, first + 3)}

    class Server(ScriptedEngine):
        async def sample(self, request):
            if request.prompt[-1]["content"] in bad:
                raise EngineError("500: out of luck", "retry")
            return await super().sample(request)

    outcomes = {}

    async def run():
        one = runner(Server(), in_flight=1)
        await one.answer_all(queries(20), window(1), lambda q, o: outcomes.update({q.id: o.about}))

    asyncio.run(run())
    assert outcomes == {
        f"q{i}": "engine" if i in range(first, first + 3) else None for i in range(20)
    }


@pytest.mark.parametrize("in_flight", [1, 8])
def test_an_engine_that_fails_every_query_ends_the_run_early(in_flight):
    engine = ScriptedEngine(lambda r: EngineError("500: broken", "retry"))
    outcomes = []

    async def run():
        one = runner(engine, in_flight=in_flight)
        await one.answer_all(queries(10000), window(in_flight), lambda q, o: outcomes.append(o))

    with pytest.raises(EngineError, match="the model scripted has answered nothing for") as caught:
        asyncio.run(run())
    assert caught.value.kind == "fatal"
    assert len(outcomes) == 1
    assert len(engine.requests) <= 4 * (window(in_flight) + 3)


@pytest.mark.parametrize("there", [False, True], ids=["gone", "broken"])
def test_a_dead_proposer_ends_the_run_though_all_others_answer(there):
    class Dead(ScriptedEngine):
        async def reachable(self):
            return there

    dead = Dead(lambda r: EngineError("no route", "retry"), model="dead-8b")
    engines = {"": ScriptedEngine(), "alive": ScriptedEngine(), "dead": dead}
    options = {"models": ["alive", "dead"], "width": 2, "layers": 1}
    outcomes = []

    async def run():
        one = runner(engines[""], strategy="moa", options=options)
        one = replace(one, asker=Asker(engines, None, 8, QUICK))
        await one.answer_all(queries(10000), window(8), lambda q, o: outcomes.append(o))

    with pytest.raises(EngineError, match=r"the model dead-8b has answered nothing for .*no route"):
        asyncio.run(run())
    assert len(outcomes) == 1


def test_an_error_that_is_fatal_ends_the_run():
    engine = ScriptedEngine(lambda r: EngineError("wrong key", "fatal"))
    with pytest.raises(EngineError, match="wrong key"):
        answer(engine, queries(50))


def test_an_error_of_ours_is_not_taken_for_a_models():
    def script(request):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        answer(ScriptedEngine(script), queries(3))


def test_each_turn_has_the_answers_before_it_as_history():
    row = {"question_id": 81, "category": "math", "turns": ["First?", "Second?"]}
    engine = ScriptedEngine(numbered())
    outcome = answer(engine, [read_mt_bench(row)], options={"width": 2, "layers": 1})["81"]
    assert outcome.answers == ["draft 2", "draft 5"]
    history = [
        {"role": "user", "content": "First?"},
        {"role": "assistant", "content": "draft 2"},
        {"role": "user", "content": "Second?"},
    ]
    assert engine.requests[2].prompt == history
    assert engine.requests[3].prompt[1:] == history
    assert engine.requests[3].prompt[0]["role"] == "system"
    # The task sets the temperature of the final layer by category; the drafts keep the run's.
    assert [r.sampling.temperature for r in engine.requests] == [0.7, 0.0, 0.7, 0.0]
    assert len({r.seed for r in engine.requests}) == 4
    assert [(row["turn"], row["layer"]) for row in outcome.usage] == [
        (0, 0),
        (0, 1),
        (1, 0),
        (1, 1),
    ]
    assert row == {"question_id": 81, "category": "math", "turns": ["First?", "Second?"]}


def test_drafts_of_all_layers_are_kept_on_request():
    async def run():
        one = replace(runner(ScriptedEngine(numbered())), keep_drafts=True)
        return await one.answer(query())

    layers = asyncio.run(run()).layers
    assert [[d["text"] for d in layer["drafts"]] for layer in layers] == [
        ["draft 0", "draft 1", "draft 2"],
        ["draft 3", "draft 4", "draft 5"],
        ["draft 6"],
    ]


def test_the_fingerprint_names_all_that_decides_an_outcome(llama3_tokenizer_dir):
    policies = [
        *(Policy(empty="drop"), Policy(truncated="drop"), Policy(filtered="drop")),
        *(Policy(resamples=1), Policy(min_drafts=2), Policy(unfinished="drop")),
    ]
    tokenizer = load_tokenizer(str(llama3_tokenizer_dir))
    chat = resolve_chat_template("llama3", tokenizer)
    some = Fitter(tokenizer, chat, 700, load_template("paper"))
    fitters = [{"": some}, {"other": some}, {"": some.but(limit=701)}]

    async def run():
        engine = ScriptedEngine()
        runners = [
            runner(engine),
            runner(engine, seed=1),
            runner(engine, proposer_system="\n"),
            runner(engine, options={"width": 4, "layers": 2}),
            runner(engine, strategy="majority_vote", options={"width": 3}),
            runner(ScriptedEngine(model="other")),
            replace(runner(engine), scorer="another reward model"),
            replace(runner(engine), keep_drafts=True),
            replace(runner(engine), use_proposals=True),
            replace(runner(engine), no_system=frozenset({""})),
            *(
                replace(runner(engine), markers={"": Markers(words)})
                for words in (["<a>"], ["<b>"])
            ),
            *(runner(engine, policy=policy) for policy in policies),
            *(runner(engine, final_policy=policy) for policy in policies),
            *(replace(runner(engine), answers=count) for count in (2, 3)),
            runner(engine, final_policy=policies[0], capped=True),
            runner(engine, middle=Sampling(temperature=0.5)),
            runner(engine, reads="summary"),
            runner(engine, template=load_template("moa")),
            runner(engine, proposal=Sampling(temperature=0.5)),
            runner(engine, final=Sampling(temperature=0.5)),
            runner(engine, completion=CompletionPrompts("urial", str, str)),
            *(replace(runner(engine), fitters=fitting) for fitting in fitters),
        ]
        assert runner(engine).fingerprint == runners[0].fingerprint
        return [one.fingerprint for one in runners]

    fingerprints = asyncio.run(run())
    assert len(set(fingerprints)) == len(fingerprints)


def test_a_query_may_have_a_seed_and_options_of_its_own():
    """As a run has that is given these: its requests are the same, its outcome is another's."""
    own = [replace(query("Question", "q"), seed=7, options={"width": 2})]
    given, said = ScriptedEngine(), ScriptedEngine()
    answer(given, own)
    answer(said, [query("Question", "q")], seed=7, options={"width": 2, "layers": 2})
    assert given.requests == said.requests
    assert given.requests[0].n == 2
    keys = {
        Runner.outcome_key(one, "")
        for one in (
            own[0],
            replace(own[0], seed=8),
            replace(own[0], options={}),
            query("Question", "q"),
        )
    }
    assert len(keys) == 4


def test_replay_asks_nothing_and_gives_the_same(tmp_path):
    with Journal(tmp_path / "j") as journal:
        first = answer(ScriptedEngine(), queries(10), journal=journal)
        again = ScriptedEngine()
        assert answer(again, queries(10), journal=journal) == first
        assert again.requests == []
        assert len(list(journal.replies())) == 30


def test_more_layers_reuse_the_drafts_that_are_there(tmp_path):
    with Journal(tmp_path / "j") as journal:
        answer(ScriptedEngine(), queries(4), journal=journal, options={"width": 3, "layers": 1})
        more = ScriptedEngine()
        answer(more, queries(4), journal=journal, options={"width": 3, "layers": 2})
    assert [request.n for request in more.requests] == [3] * 4 + [1] * 4  # layer 0 is not asked


def test_usage_is_counted_by_layer_with_the_prompt_once():
    drafts = (Completion("a", tokens=2), Completion("b", tokens=4))
    usage = Reply.of(drafts, prompt=10, cached=4, written=6).usage
    # positions 5..10 of the prompt, 11..12 of the first sample, 11..14 of the second
    attended = sum(range(5, 11)) + 11 + 12 + sum(range(11, 15))
    assert usage == Usage(1, 2, 10, 4, 6, attended)
    assert usage.computed == 12
    assert usage + Usage(1, 1, None, 0, 1, None) == Usage(2, 3, None, 4, 7, None)


def test_flops_are_those_of_appendix_c():
    shape = ModelShape(parameters=1000, layers=2, hidden=8)
    assert shape.flops(computed=10, attended=100) == 2 * (1000 * 10 + 2 * 2 * 8 * 100)
    vanilla = 50 * 2 * (1000 + 2 * 2 * 8 * 30)
    assert shape.appendix_c(written=50, context=30) == vanilla
    for name, factor in [
        ("propose_and_aggregate", 2 * 2 * 5 + 1),  # L x 2KF + F
        ("sequential_revision", 2 * 2 + 1),
        ("parallel_sampling", 2 * 5 + 1),
        ("best_of_n", 2 * 5),
        ("majority_vote", 5),
    ]:
        strategy = STRATEGIES[name]
        own = {
            key: value
            for key, value in {"width": 5, "layers": 2}.items()
            if key in strategy.options
        }
        assert strategy.flops(**strategy.settled(own)) == factor
    assert STRATEGIES["rsa"].flops is None


def test_the_shape_of_a_model_is_read_without_its_weights(tiny_llama):
    import torch
    from safetensors.torch import load_file

    weights = load_file(tiny_llama / "model.safetensors").values()
    shape = ModelShape.load(str(tiny_llama))
    assert shape == ModelShape(sum(w.numel() for w in weights), 2, 64)
    assert torch.get_default_device().type == "cpu"


def test_proposals_that_a_query_brings_are_drafts_of_its_first_turn_only():
    engine, outcomes = ScriptedEngine(numbered()), []
    one = replace(query(proposals=["a", "b"]), turns=[[said("One?")], [said("Two?")]])

    async def run():
        given = replace(runner(engine, options={"width": 2, "layers": 1}), use_proposals=True)
        outcomes.append(await given.answer(one))

    asyncio.run(run())
    assert [usage["layer"] for usage in outcomes[0].usage] == [1, 0, 1]
    assert [len(request.prompt) for request in engine.requests] == [2, 3, 4]
    assert outcomes[0].given == ["a", "b"]


def said(text):
    return {"role": "user", "content": text}
