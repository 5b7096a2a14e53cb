"""Drafting: prompts, seeds, policies for unusable drafts, and what is recorded of them."""

import asyncio
from dataclasses import replace

import pytest
from asking_tools import SETTINGS, numbered, solve

from aft_factory.asking.asker import Asker
from aft_factory.engines.engine import EngineError
from aft_factory.engines.sampling import Completion, Sampling, identity_seed
from aft_factory.engines.scripted import ScriptedEngine
from aft_factory.errors import NoAnswer
from aft_factory.inference.drafting import Drafting
from aft_factory.inference.drafting_options import DraftingOptions, Trace
from aft_factory.inference.policy import Policy
from aft_factory.prompts.fitting import Fitter
from aft_factory.prompts.markers import Markers
from aft_factory.prompts.prelude import chat_template
from aft_factory.prompts.rendering import load_template
from aft_factory.prompts.tokenizer import load_tokenizer, resolve_chat_template

QUESTION = {"role": "user", "content": "What is 1+1?"}


class CutThenEmpty(ScriptedEngine):
    """The first attempt is cut off, those that follow are empty."""

    async def sample(self, request):
        reply = await super().sample(request)
        first = request.seed == identity_seed(42, "q", 0, 0, 0, 0)
        ends = [
            replace(c, finish_reason="length") if first else replace(c, text=" ")
            for c in reply.completions
        ]
        return replace(reply, completions=tuple(ends))


class CutEngine(ScriptedEngine):
    """Replies that end by a word for being cut off, at the first attempt or at every one."""

    def __init__(self, *, always, word="length", script=None):
        super().__init__(script or numbered())
        self.always = always
        self.word = word

    async def sample(self, request):
        reply = await super().sample(request)
        cut = self.always or request.seed == identity_seed(42, "q", 0, 0, 0, 0)
        reason = self.word if cut else "stop"
        changed = tuple(replace(c, finish_reason=reason) for c in reply.completions)
        return replace(reply, completions=changed)


def draw(engine, *, policy=None, fitters=None, settings=SETTINGS, drafts=(), **more):
    trace = Trace()
    query, markers = more.pop("query", [QUESTION]), more.pop("markers", None)
    watch = more.pop("watch", None)

    async def run():
        asker = Asker({"": engine}, None, 10)
        sample = Drafting(
            "q",
            0,
            replace(settings, policy=policy or Policy()),
            asker,
            fitters or {},
            trace,
            markers or {},
            watch=watch,
        )
        return await sample(query, drafts, **{"layer": 0, "n": 2} | more)

    return [c.text for c in asyncio.run(run())], trace


def events(trace):
    return [(event["slot"], event["event"]) for event in trace.events]


def empty_first():
    """The second of the first two samples is empty."""
    count = numbered()
    return lambda r: ["fine", "  \n"] if r.n == 2 else count(r)


def test_the_seed_depends_on_run_query_turn_layer_and_slot_alone():
    _, engine, _ = solve("propose_and_aggregate", width=3, layers=2)
    assert [r.seed for r in engine.requests] == [
        identity_seed(42, "q", 0, layer, 0, 0) for layer in range(3)
    ]
    places = [(1, "q", 0), (2, "q", 0), (1, "p", 0), (1, "q", 1), (1, "q", 0, 0)]
    assert len({identity_seed(*place) for place in places}) == 5
    assert identity_seed(42, "q", 0, 0, 0, 0) == 1186403652  # the same in every version and machine


def test_an_empty_draft_is_resampled_under_another_seed():
    engine = ScriptedEngine(empty_first())
    texts, trace = draw(engine)
    assert texts == ["fine", "draft 0"]
    assert events(trace) == [(1, "empty"), (1, "resampled")]
    assert [(r.n, r.seed) for r in engine.requests] == [
        (2, identity_seed(42, "q", 0, 0, 0, 0)),
        (1, identity_seed(42, "q", 0, 0, 1, 1)),
    ]


def test_an_end_by_an_unknown_word_is_taken_for_whole_and_told():
    texts, trace = draw(CutEngine(always=True, word="ran_dry"))
    assert len(texts) == 2
    assert events(trace) == [
        (slot, "ended by 'ran_dry', an unknown word: taken for whole") for slot in (0, 1)
    ]
    assert draw(CutEngine(always=True, word="end_turn"))[1].events == []


def test_a_draft_that_stays_empty_is_dropped_never_padded():
    engine = ScriptedEngine(lambda r: ["fine", ""] if r.n == 2 else [" "])
    texts, trace = draw(engine)
    assert texts == ["fine"]
    assert events(trace)[-1] == (1, "dropped")
    assert len(engine.requests) == 3


def test_an_empty_draft_can_be_dropped_at_once_or_reject_the_query():
    texts, trace = draw(ScriptedEngine(empty_first()), policy=Policy(empty="drop"))
    assert (texts, events(trace)) == (["fine"], [(1, "empty"), (1, "dropped")])
    with pytest.RaisesGroup(pytest.RaisesExc(NoAnswer, match="layer 0, draft 1: empty")):
        draw(ScriptedEngine(empty_first()), policy=Policy(empty="reject"))


def test_too_few_usable_drafts_reject_the_query():
    with pytest.raises(NoAnswer, match=r"1 of 2 drafts are unusable \(empty\), 2 wanted"):
        draw(ScriptedEngine(empty_first()), policy=Policy(empty="drop", min_drafts=2))


def test_an_empty_final_answer_is_resampled_and_then_rejects_the_query():
    engine = ScriptedEngine(lambda r: [""])
    with pytest.raises(NoAnswer, match="the final answer is empty"):
        draw(engine, n=1, final=True)
    assert len(engine.requests) == 3


def test_a_cut_off_draft_is_kept_and_noted_by_default():
    texts, trace = draw(CutEngine(always=True))
    assert texts == ["draft 0", "draft 1"]
    assert events(trace) == [(0, "truncated"), (1, "truncated")]


def test_a_cut_off_draft_can_be_resampled_and_is_kept_if_that_is_in_vain():
    texts, trace = draw(CutEngine(always=False), policy=Policy(truncated="resample"))
    assert texts == ["draft 2", "draft 3"]
    texts, trace = draw(CutEngine(always=True), policy=Policy(truncated="resample"), n=1)
    assert texts == ["draft 2"]
    assert events(trace) == [
        *((0, "truncated"), (0, "resampled"), (0, "truncated"), (0, "resampled")),
        (0, "truncated"),
    ]


def test_a_cut_off_draft_can_be_dropped():
    texts, _ = draw(CutEngine(always=True), policy=Policy(truncated="drop"), whole=False)
    assert texts == []


CUT = ["length", "LENGTH", "model_length", "MAX_TOKENS", "max_output_tokens", "FinishReason.MAX_TOKENS"]  # fmt: skip
FILTERED = ["content_filter", "CONTENT_FILTER", "content-filter", "SAFETY"]


@pytest.mark.parametrize("word", CUT)
def test_a_draft_is_cut_off_by_whatever_word_a_server_has_for_it(word):
    _, trace = draw(CutEngine(always=True, word=word), n=1)
    assert events(trace) == [(0, "truncated")]
    completion = Completion("so", word)
    assert (completion.cut_off, completion.filtered, completion.whole) == (True, False, False)


@pytest.mark.parametrize("word", ["stop", "eos_token", "end_turn", "STOP", "tool_calls", ""])
def test_other_words_are_for_an_end_of_the_models_own(word):
    assert Completion("so", word).whole
    assert events(draw(CutEngine(always=True, word=word), n=1)[1]) == []


@pytest.mark.parametrize("word", FILTERED)
def test_a_draft_that_a_filter_ended_is_resampled_and_in_vain_dropped(word):
    texts, trace = draw(CutEngine(always=False, word=word))
    assert texts == ["draft 2", "draft 3"]
    assert events(trace)[:2] == [(0, "filtered"), (0, "resampled")]
    engine = CutEngine(always=True, word=word)
    texts, trace = draw(engine, n=1, whole=False)
    assert (texts, len(engine.requests)) == ([], 3)
    assert [event for _, event in events(trace)] == [
        *("filtered", "resampled", "filtered", "resampled", "filtered", "dropped")
    ]
    assert Completion("so", word).filtered
    assert not Completion("so", word).cut_off


@pytest.mark.parametrize(
    ("fate", "texts", "told"),
    [
        ("keep", ["draft 0"], ["filtered"]),
        ("drop", [], ["filtered", "dropped"]),
        ("reject", None, []),
    ],
)
def test_the_fate_of_a_filtered_draft_is_a_policy_of_its_own(fate, texts, told):
    engine = CutEngine(always=True, word="content_filter")
    policy = Policy(filtered=fate, truncated="reject", empty="reject")
    if texts is None:
        with pytest.RaisesGroup(pytest.RaisesExc(NoAnswer, match="draft 0: filtered")):
            draw(engine, policy=policy, n=1)
        return
    found, trace = draw(engine, policy=policy, n=1, whole=False)
    assert (found, [event for _, event in events(trace)]) == (texts, told)


def test_a_filtered_draft_without_a_text_is_empty_where_it_would_be_kept():
    engine = CutEngine(always=True, word="content_filter", script=lambda r: [" "] * r.n)
    texts, trace = draw(engine, policy=Policy(filtered="keep", empty="drop"), n=1, whole=False)
    assert (texts, events(trace)) == ([], [(0, "empty"), (0, "dropped")])


def test_a_final_answer_that_a_filter_ended_rejects_the_query_in_these_words():
    engine = CutEngine(always=True, word="content_filter")
    with pytest.raises(NoAnswer, match="the final answer is cut off by a filter of contents"):
        draw(engine, n=1, final=True)
    with pytest.raises(
        NoAnswer, match=r"2 of 2 drafts are unusable \(cut off by a filter of contents\), 1 wanted"
    ):
        draw(engine, policy=Policy(filtered="drop"))


def test_what_resampled_drafts_took_is_counted():
    _, trace = draw(ScriptedEngine(empty_first()))
    [usage] = trace.usage.values()
    assert (usage.requests, usage.samples) == (2, 3)


def test_greedy_drafts_are_asked_for_once_and_are_as_many():
    settings = replace(SETTINGS, proposal=Sampling(temperature=0))
    engine = ScriptedEngine(numbered())
    texts, trace = draw(engine, settings=settings, n=3)
    assert texts == ["draft 0"] * 3
    assert [request.n for request in engine.requests] == [1]
    assert events(trace) == [(0, "3 greedy drafts are alike: asked for once")]
    assert [slot for slot, _ in trace.drafts[0, 0]] == [0, 1, 2]


def test_chance_depends_on_run_query_turn_layer_and_slot_alone():
    def chance(query="q", turn=0, seed=42, place=(0, 0)):
        settings = replace(SETTINGS, seed=seed)
        return Drafting(query, turn, settings, None, {}, Trace()).random(*place).random()

    places = [{}, {"query": "p"}, {"turn": 1}, {"seed": 1}, {"place": (1, 0)}, {"place": (0, 1)}]
    assert len({chance(**place) for place in places}) == len(places)
    assert chance() == chance()


def test_a_proposers_system_message_goes_to_plain_queries_without_one():
    settings = DraftingOptions(
        load_template("release"), Sampling(), Sampling(), proposer_system="\n"
    )
    _, engine, _ = solve("propose_and_aggregate", settings=settings, width=1, layers=1)
    assert engine.requests[0].prompt == [{"role": "system", "content": "\n"}, QUESTION]
    assert engine.requests[1].prompt == [
        {"role": "system", "content": load_template("release").render(["draft 0"])},
        QUESTION,
    ]
    own = [{"role": "system", "content": "Be brief."}, QUESTION]
    _, engine, _ = solve("propose_and_aggregate", settings=settings, messages=own, layers=0)
    assert engine.requests[0].prompt == own


def test_control_tokens_in_a_draft_are_broken():
    engine = ScriptedEngine()
    draw(engine, drafts=[Completion("so <|eot_id|> [INST]")], layer=1)
    system = engine.requests[0].prompt[0]["content"]
    assert "<\u200b|eot_id|>" in system
    assert "<|eot_id|>" not in system


def test_a_template_that_fails_for_a_querys_drafts_fails_that_query_alone(
    tmp_path, llama3_tokenizer_dir
):
    path, tokenizer = tmp_path / "own.jinja", load_tokenizer(str(llama3_tokenizer_dir))
    path.write_text("{{ proposals[1] }}")
    own = load_template(str(path))
    fitter = Fitter(tokenizer, resolve_chat_template("llama3", tokenizer), 8192, own)
    for fitters in ({}, {"": fitter}):
        with pytest.raises(NoAnswer, match="layer 1: "):
            draw(
                ScriptedEngine(numbered()),
                drafts=[Completion("the only one")],
                layer=1,
                fitters=fitters,
                settings=replace(SETTINGS, template=own),
            )


def test_overlong_drafts_are_shortened_to_the_context_and_noted(llama3_tokenizer_dir):
    tokenizer = load_tokenizer(str(llama3_tokenizer_dir))
    chat = resolve_chat_template("llama3", tokenizer)
    fitters = {"": Fitter(tokenizer, chat, 4096 + 700, load_template("paper"))}
    long = Completion("one two three four five " * 200)
    engine = ScriptedEngine()
    _, trace = draw(engine, fitters=fitters, drafts=[long, Completion("short"), long], layer=1)
    assert events(trace) == [(0, "2 drafts shortened")]
    [shortened] = trace.shortened  # by as many characters as a report is to mark
    first, second, third = shortened.pop("kept")
    assert shortened == {"turn": 0, "layer": 1, "slot": 0}
    assert (second, first) == (len("short"), third)
    assert f"1. {long.text[:first]}\n" in engine.requests[0].prompt[0]["content"]
    sent = tokenizer.apply_chat_template(
        engine.requests[0].prompt, chat_template=chat, add_generation_prompt=True, tokenize=False
    )
    length = len(tokenizer(sent, add_special_tokens=False)["input_ids"])
    assert 600 < length <= 700
    assert engine.requests[0].prompt[-1] == QUESTION
    assert "\n2. short\n" in engine.requests[0].prompt[0]["content"]


def test_prompts_are_fitted_as_the_engine_will_render_them(llama3_tokenizer_dir):
    tokenizer = load_tokenizer(str(llama3_tokenizer_dir))
    chat = "{{ messages[-1].content }} {{ 'yes' if enable_thinking else 'no' }}"
    for thinking_on, word in ((True, "yes"), (False, "no")):
        extra = {"chat_template_kwargs": {"enable_thinking": thinking_on}}
        settings = replace(SETTINGS, proposal=Sampling(extra=extra))
        engine = ScriptedEngine()
        fitters = {"": Fitter(tokenizer, chat, 6000, load_template("paper"))}
        draw(engine, fitters=fitters, settings=settings, n=1)
        assert tokenizer.decode(engine.requests[0].prompt_ids).endswith(f" {word}")


def test_the_final_layer_is_fitted_beside_its_own_answers_length(llama3_tokenizer_dir):
    tokenizer = load_tokenizer(str(llama3_tokenizer_dir))
    chat = resolve_chat_template("llama3", tokenizer)
    template = load_template("paper")
    settings = replace(SETTINGS, final=Sampling(max_tokens=4296))
    fitters = {"": Fitter(tokenizer, chat, 4096 + 900, template)}
    long = Completion("one two three four five " * 400)
    lengths = []
    for final in (False, True):
        engine = ScriptedEngine()
        draw(engine, fitters=fitters, settings=settings, drafts=[long], layer=1, n=1, final=final)
        sent = tokenizer.apply_chat_template(
            engine.requests[0].prompt,
            chat_template=chat,
            add_generation_prompt=True,
            tokenize=False,
        )
        lengths.append(len(tokenizer(sent, add_special_tokens=False)["input_ids"]))
    assert 800 < lengths[0] <= 900
    assert 600 < lengths[1] <= 700


# Of the 305 tokens of the context, 256 are left for an answer at least; of 105, all that was wanted.
@pytest.mark.parametrize(("wanted", "limit"), [(300, 49), (100, 5)])
def test_a_query_that_does_not_fit_at_all_is_rejected_with_its_numbers(
    llama3_tokenizer_dir, wanted, limit
):
    tokenizer = load_tokenizer(str(llama3_tokenizer_dir))
    chat = resolve_chat_template("llama3", tokenizer)
    settings = replace(SETTINGS, proposal=Sampling(max_tokens=wanted))
    fitters = {"": Fitter(tokenizer, chat, wanted + 5, load_template("paper"))}
    engine = ScriptedEngine()
    with pytest.raises(NoAnswer, match=rf"layer 0: needs .* tokens .* the limit is {limit}$"):
        draw(
            engine,
            fitters=fitters,
            settings=settings,
            query=[{"role": "user", "content": "a " * 50}],
        )
    assert engine.requests == []


def test_a_query_that_fits_beside_a_shorter_answer_is_asked_for_that(llama3_tokenizer_dir):
    tokenizer = load_tokenizer(str(llama3_tokenizer_dir))
    chat = resolve_chat_template("llama3", tokenizer)
    fitters = {"": Fitter(tokenizer, chat, 4096 + 5, load_template("paper"))}
    engine = ScriptedEngine()
    _, trace = draw(engine, fitters=fitters)
    [asked] = engine.requests
    lowered = 4096 + 5 - len(asked.prompt_ids)
    assert asked.sampling == replace(SETTINGS.proposal, max_tokens=lowered)
    assert 256 <= lowered < 4096
    assert events(trace) == [(0, f"max_tokens lowered to {lowered}")]


MARKED = "Stop at <|eot_id|> or <s>."
BROKEN = "Stop at <\u200b|eot_id|> or <\u200bs>."


def test_all_texts_that_are_sent_hold_no_control_token():
    engine = ScriptedEngine(numbered())
    talk = [{"role": role, "content": MARKED} for role in ("system", "user", "assistant", "user")]
    draw(engine, query=talk, drafts=[Completion(MARKED)])
    system, *turns = engine.requests[0].prompt
    assert MARKED not in system["content"]
    assert system["content"].count(BROKEN) == 2  # the system message, and the draft
    assert [turn["content"] for turn in turns] == [BROKEN] * 3


def test_markers_of_a_known_model_are_its_own():
    engine = ScriptedEngine(numbered())
    html = {"role": "user", "content": "<|eot_id|> <s>old</s>"}
    draw(engine, query=[html], markers={"": Markers(["<|eot_id|>"])})
    assert engine.requests[0].prompt[-1]["content"] == "<\u200b|eot_id|> <s>old</s>"


def test_what_a_model_writes_broken_is_restored():
    texts, trace = draw(ScriptedEngine(lambda request: [BROKEN] * request.n))
    assert texts == [MARKED] * 2
    assert [completion.text for _, completion in trace.drafts[0, 0]] == [MARKED] * 2


@pytest.mark.parametrize("empty", ["resample", "drop", "reject"])
def test_a_cut_off_draft_is_kept_where_resampling_gave_none(empty):
    policy = Policy(truncated="resample", empty=empty, resamples=2)
    texts, trace = draw(CutThenEmpty(numbered()), policy=policy, n=1)
    assert texts == ["draft 0"]
    assert trace.drafts[0, 0][0][1].cut_off
    assert "dropped" not in [event["event"] for event in trace.events]


@pytest.mark.parametrize("limit", [4000, 700])  # with room for the drafts, and without
def test_a_request_has_the_very_tokens_of_its_prompt_so_that_it_is_encoded_once(tiny_llama, limit):
    tokenizer = load_tokenizer(str(tiny_llama))
    chat = resolve_chat_template("llama3", tokenizer)
    fitters = {"": Fitter(tokenizer, chat, 4096 + limit, load_template("paper"))}
    engine = ScriptedEngine(numbered())
    drafts = [Completion("six pails <|eot_id|> " * 100), Completion("seven")]
    draw(engine, drafts=drafts, fitters=fitters)
    [asked] = engine.requests
    own = tokenizer.apply_chat_template(
        asked.prompt, chat_template=chat, add_generation_prompt=True, return_dict=False
    )
    assert list(asked.prompt_ids) == own
    assert (len(own) > 700) == (limit == 4000)
    assert replace(asked, prompt_ids=None).key("m") == asked.key("m")


# Thoughts


def thinking(*texts, cut=()):
    """Replies in turn; those of which the numbers are in `cut` are cut off."""

    class Engine(ScriptedEngine):
        async def sample(self, request):
            reply = await super().sample(request)
            at = len(self.requests) - 1
            ends = [replace(c, finish_reason="length", instead=None) for c in reply.completions]
            return replace(reply, completions=tuple(ends)) if at in cut else reply

    given = iter(texts)
    return Engine(lambda request: [next(given)] * request.n)


THOUGHT = "<think>\n6 of 7 it is.\n</think>\n\nThe answer is 42."


def test_of_a_draft_the_answer_is_kept_and_the_thought_beside_it_and_counted():
    texts, trace = draw(thinking(THOUGHT), n=1)
    assert texts == ["The answer is 42."]
    [(_, draft)] = trace.drafts[0, 0]
    assert draft.thought == "6 of 7 it is."
    assert trace.usage[0, 0].thought == 4  # of four characters each


@pytest.mark.parametrize(
    ("form", "read"),
    [
        ("answer", "The answer is 42."),
        ("full", "6 of 7 it is.\n\nThe answer is 42."),
        ("tail:3", " answer is 42."[-12:]),
    ],
)
def test_what_the_next_layer_reads_of_a_draft_is_a_setting(form, read):
    engine = thinking("So be it.")
    drafts = [Completion("The answer is 42.", thought="6 of 7 it is."), Completion("Plain.")]
    draw(engine, settings=replace(SETTINGS, reads=form), drafts=drafts, layer=1, n=1)
    prompt = engine.requests[0].prompt[0]["content"]
    assert read in prompt
    assert ("6 of 7" in prompt) == (form == "full")
    assert "Plain." in prompt


def test_a_tail_is_cut_at_tokens_where_the_tokenizer_is_known(llama3_tokenizer_dir):
    tokenizer = load_tokenizer(str(llama3_tokenizer_dir))
    fitter = Fitter(tokenizer, chat_template("llama3"), 4000, load_template("paper"))
    text = "The pails are six and the answer is 42."
    ids = tokenizer.encode(text, add_special_tokens=False)
    assert fitter.tail(text, 5) == tokenizer.decode(ids[-5:])
    assert fitter.tail(text, len(ids)) == fitter.tail(text, 10**6) == text
    engine, tail = ScriptedEngine(numbered()), replace(SETTINGS, reads="tail:5")
    fitters = {"": fitter.but(limit=8192)}
    draw(engine, settings=tail, fitters=fitters, drafts=[Completion(text)], layer=1, n=1)
    assert f"1. {tokenizer.decode(ids[-5:])}" in engine.requests[0].prompt[0]["content"]


def test_a_summary_is_asked_for_once_and_counted_and_read_in_the_drafts_place():
    engine = thinking("In short: 42.", "So be it.", "In short: 42.", "So be it.")
    drafts = [Completion("The answer is 42 <|eot_id|>.", thought="6 of 7.")]
    settings = replace(SETTINGS, reads="summary")
    _, trace = draw(engine, settings=settings, drafts=drafts, layer=1, n=1)
    summary, aggregation = engine.requests
    assert "6 of 7.\n\nThe answer is 42 <\u200b|eot_id|>." in summary.prompt[0]["content"]
    assert "In short: 42." in aggregation.prompt[0]["content"]
    assert "6 of 7" not in aggregation.prompt[0]["content"]
    assert (trace.usage[0, 1].requests, trace.usage[0, 1].samples) == (2, 2)


def test_long_drafts_that_are_all_the_same_are_told():
    """A server may draw the n samples of a request under one seed."""
    for texts, told in (["y" * 200] * 3, 1), (["y" * 199] * 3, 0), (["y" * 200] * 2 + ["z"], 0):
        drafts, trace = draw(ScriptedEngine(lambda _, texts=texts: texts), n=3)
        assert (drafts, events(trace)) == (texts, [(0, "all the same")] * told)


def test_a_thought_that_does_not_end_is_resampled_with_twice_the_tokens():
    engine = thinking("<think>Hm", "<think>Hm, hm", THOUGHT, cut=(0, 1))
    texts, trace = draw(engine, n=1)
    assert texts == ["The answer is 42."]
    assert [request.sampling.max_tokens for request in engine.requests] == [4096, 8192, 16384]
    assert len({request.seed for request in engine.requests}) == 3
    assert events(trace) == [(0, "unfinished"), (0, "resampled")] * 2


def test_what_was_cut_off_without_any_text_was_a_thought_that_is_not_shown():
    engine = thinking("", "", "The answer is 42.", cut=(0, 1))
    texts, trace = draw(engine, n=1)
    assert texts == ["The answer is 42."]
    assert [request.sampling.max_tokens for request in engine.requests] == [4096, 8192, 16384]
    assert events(trace) == [(0, "unfinished"), (0, "resampled")] * 2
    blanks = thinking("\n", "The answer is 42.", cut=(0,))
    assert events(draw(blanks, n=1)[1]) == [(0, "empty"), (0, "resampled")]


def test_a_text_of_stop_in_a_thought_ends_no_answer():
    """A server ends the thought at it: asked anew without, and the answer is cut here."""
    engine = thinking("<think>The", "<think>The Q: is 6 of 7.</think>It is 42.\nQ: Another?")
    settings = replace(SETTINGS, proposal=replace(SETTINGS.proposal, stop=("Q:", "\n")))
    texts, trace = draw(engine, settings=settings, n=1)
    assert texts == ["It is 42."]
    assert [request.sampling.stop for request in engine.requests] == [("Q:", "\n"), ()]
    assert events(trace) == [(0, "stopped"), (0, "resampled")]


@pytest.mark.parametrize(("stopped", "asked"), [(None, 2), (True, 2), (False, 1)])
def test_a_thought_that_ended_by_itself_is_not_asked_for_anew(stopped, asked):
    def ended(engine):
        real = engine.sample

        async def sample(request):
            reply = await real(request)
            first = replace(reply.completions[0], stopped=stopped)
            return replace(reply, completions=(first,))

        engine.sample = sample
        return engine

    engine = ended(thinking("<think>The", "<think>The</think>It is 42."))
    settings = replace(SETTINGS, proposal=replace(SETTINGS.proposal, stop=("Q:",)))
    if stopped is False:
        with pytest.raises(NoAnswer, match="a thought without an answer"):
            draw(engine, settings=settings, n=1)
    else:
        assert draw(engine, settings=settings, n=1)[0] == ["It is 42."]
    assert len(engine.requests) == asked


def test_a_server_that_knows_no_stop_is_cut_off_by_us():
    settings = replace(SETTINGS, proposal=replace(SETTINGS.proposal, stop=("Q:",)))
    assert draw(thinking("It is 42. Q: Another?"), settings=settings, n=1)[0] == ["It is 42. "]


def test_an_answer_that_we_cut_is_not_told_while_it_is_written():
    """What was told to a client cannot be taken back."""

    class Hears:
        said = ""

        def asked(self, layer, slot, *, answers):
            return lambda piece: setattr(self, "said", self.said + piece.text)

        def used(self, *args, **more):
            pass

    engine = thinking("<think>The", "<think>The Q: is 6 of 7.</think>It is 42. Q: Another?")
    settings = replace(SETTINGS, proposal=replace(SETTINGS.proposal, stop=("Q:",)))
    watch = Hears()
    assert draw(engine, settings=settings, watch=watch, n=1)[0] == ["It is 42. "]
    assert "Another" not in watch.said


def test_a_text_of_stop_is_kept_where_the_sampling_says_so():
    extra = {"include_stop_str_in_output": True}
    proposal = replace(SETTINGS.proposal, stop=("Q:",), extra=extra)
    engine = thinking("It is 42. Q: Another?")
    settings = replace(SETTINGS, proposal=proposal)
    assert draw(engine, settings=settings, n=1)[0] == ["It is 42. Q:"]


@pytest.mark.parametrize("fate", ["resample", "drop", "reject"])
def test_the_fate_of_an_unfinished_thought_is_a_policy_of_its_own(fate):
    engine = thinking(*["<think>Hm"] * 3, cut=(0, 1, 2))
    policy = Policy(unfinished=fate, empty="reject", truncated="reject")
    if fate == "reject":
        with pytest.RaisesGroup(pytest.RaisesExc(NoAnswer, match="layer 0, draft 0: unfinished")):
            draw(engine, policy=policy, n=1)
    else:
        with pytest.raises(NoAnswer, match=r"1 of 1 drafts are unusable \(an unfinished thought\)"):
            draw(engine, policy=policy, n=1)
    assert len(engine.requests) == (3 if fate == "resample" else 1)


def test_no_more_tokens_are_asked_for_than_the_context_has_room_for(tiny_llama):
    tokenizer = load_tokenizer(str(tiny_llama))
    chat = chat_template("llama3")
    fitters = {"": Fitter(tokenizer, chat, 4096 + 1000, load_template("paper"))}
    engine = thinking("<think>Hm", "<think>Hm", THOUGHT, cut=(0, 1))
    draw(engine, fitters=fitters, n=1)
    prompt = len(engine.requests[0].prompt_ids)
    assert [r.sampling.max_tokens for r in engine.requests] == [4096, 5096 - prompt, 5096 - prompt]


@pytest.mark.parametrize("kind", ["refused", "fatal"])
def test_where_twice_the_tokens_are_refused_the_draft_is_dropped(kind):
    def script(request):
        if request.sampling.max_tokens > 4096:
            return EngineError("too long", kind)
        return ["<think>Hm"]

    class Engine(ScriptedEngine):
        async def sample(self, request):
            reply = await super().sample(request)
            ends = [replace(c, finish_reason="length") for c in reply.completions]
            return replace(reply, completions=tuple(ends))

    if kind == "fatal":
        with pytest.raises(ExceptionGroup):
            draw(Engine(script), n=1, whole=False)
        return
    texts, trace = draw(Engine(script), n=1, whole=False)
    assert texts == []
    assert events(trace)[-1] == (0, "dropped")


def test_control_tokens_that_a_thought_copies_are_mended_in_it_too():
    engine = thinking("<think>It ends in <\u200b|eot_id|>.</think>\nIn <\u200b|eot_id|>.")
    texts, trace = draw(engine, n=1)
    [(_, draft)] = trace.drafts[0, 0]
    assert (texts, draft.thought) == (["In <|eot_id|>."], "It ends in <|eot_id|>.")


def test_a_summary_that_several_read_is_counted_once():
    drafts = [Completion("The answer is 42.", thought="6 of 7.")] * 2
    settings = replace(SETTINGS, reads="summary")
    engine = thinking(*["In short: 42."] * 3, "So be it.")
    _, trace = draw(engine, settings=settings, drafts=drafts, layer=1, n=1)
    assert trace.usage[0, 1].requests == 2


def test_a_thought_that_ends_without_an_answer_is_not_resampled_in_vain():
    engine = thinking("<think>Hm.</think>")
    with pytest.raises(NoAnswer, match="a thought without an answer"):
        draw(engine, n=1)
    assert len(engine.requests) == 1


# Models without a system role


def folded(query, drafts, **more):
    engine = ScriptedEngine(numbered())

    async def run():
        sample = Drafting(
            *("q", 0, SETTINGS, Asker({"": engine}, None, 10), more.get("fitters", {}), Trace()),
            no_system=frozenset({""}),
        )
        await sample(query, drafts, layer=1)

    asyncio.run(run())
    return engine.requests[0].prompt


@pytest.mark.parametrize("fitted", [False, True])
def test_where_there_is_no_system_message_the_aggregator_prompt_opens_the_first_turn(
    tiny_llama, fitted
):
    fitters = {}
    if fitted:
        tokenizer, chat = load_tokenizer(str(tiny_llama)), chat_template("llama3")
        fitter = Fitter(tokenizer, chat, 4096 + 2000, load_template("paper"), system=False)
        fitters = {"": fitter}
    answer = {"role": "assistant", "content": "Five."}
    query = [{"role": "system", "content": "Be brief."}, QUESTION, answer, QUESTION]
    opening, *rest = folded(query, [Completion("It is two.")], fitters=fitters)
    prompt = load_template("paper").render(["It is two."])
    assert opening == {"role": "user", "content": f"Be brief.\n\n{prompt}\n\n{QUESTION['content']}"}
    assert rest == [answer, QUESTION]
    assert folded([QUESTION], [], fitters=fitters) == [QUESTION]
    assert folded(query, [], fitters=fitters)[0]["content"] == f"Be brief.\n\n{QUESTION['content']}"
