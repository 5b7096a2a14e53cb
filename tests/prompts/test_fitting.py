"""Fitting: nothing but proposals is cut, at token boundaries, longest first.

Run: pytest tests/prompts/test_fitting.py
"""

import asyncio
import itertools
import shutil
from dataclasses import replace

import pytest
from asking_tools import query, runner
from hypothesis import given, settings
from hypothesis import strategies as st

from aft_factory.engines.scripted import ScriptedEngine
from aft_factory.errors import UsageError
from aft_factory.prompts.fitting import Fitter, token_boundaries
from aft_factory.prompts.markers import Markers, Mender, known_markers
from aft_factory.prompts.prelude import chat_template
from aft_factory.prompts.rendering import load_template
from aft_factory.prompts.shortening import MIN_PROPOSAL_TOKENS, DoesNotFit, common_cap, fit
from aft_factory.prompts.tokenizer import load_tokenizer, resolve_chat_template, tokenizer_markers

FIXED = 40  # tokens of the row beside its proposals


def word_boundaries(text):
    """A toy tokenizer: a token is a word with the blank before it."""
    ends = [i for i, character in enumerate(text) if character == " "]
    return [*[end for end in ends if end], len(text)] if text else []


def measure(proposals):
    return FIXED + sum(len(word_boundaries(text)) for text in proposals)


def words(count):
    return " ".join(["word"] * count)


@given(st.lists(st.integers(0, 200)), st.integers(0, 1000))
def test_common_cap_is_the_largest_that_fits(lengths, available):
    cap = common_cap(lengths, available)
    assert sum(min(length, cap) for length in lengths) <= available or cap == 0
    if cap < max(lengths, default=0):
        assert sum(min(length, cap + 1) for length in lengths) > available


def test_a_row_that_fits_is_not_touched():
    drafts = [words(20), words(30)]
    fitted = fit(drafts, FIXED + 50, measure, word_boundaries)
    assert (fitted.proposals, fitted.tokens, fitted.cut) == (drafts, FIXED + 50, 0)


def test_the_longest_proposals_are_cut_to_one_cap():
    fitted = fit([words(20), words(300), words(100)], FIXED + 120, measure, word_boundaries)
    assert fitted.proposals == [words(20), words(50), words(50)]
    assert (fitted.tokens, fitted.cut, fitted.tokens_removed) == (FIXED + 120, 2, 300)


def test_a_row_that_cannot_fit_says_its_numbers():
    with pytest.raises(
        DoesNotFit, match=f"needs {FIXED} tokens before any of its 1 proposals, the limit is 30"
    ):
        fit([words(100)], 30, measure, word_boundaries)
    with pytest.raises(
        DoesNotFit, match=f"leaves 20 tokens for 2 proposals .at least {MIN_PROPOSAL_TOKENS} each"
    ):
        fit([words(100), words(100)], FIXED + 20, measure, word_boundaries)


def test_a_row_without_proposals_fits_or_not():
    assert fit([], FIXED, measure, word_boundaries).tokens == FIXED
    with pytest.raises(DoesNotFit):
        fit([], FIXED - 1, measure, word_boundaries)


@given(st.lists(st.integers(0, 400), max_size=8), st.integers(0, 600))
def test_the_limit_always_holds(lengths, limit):
    drafts = [words(length) if length else "" for length in lengths]
    try:
        fitted = fit(drafts, limit, measure, word_boundaries)
    except DoesNotFit:
        return
    assert measure(fitted.proposals) == fitted.tokens <= limit
    assert all(
        draft.startswith(shorter) for draft, shorter in zip(drafts, fitted.proposals, strict=True)
    )


@pytest.mark.parametrize("chat", ["llama3", "mistral"])
def test_real_tokens_multibyte_text_is_cut_between_characters(chat, request):
    folder = request.getfixturevalue("tiny_llama" if chat == "llama3" else "tiny_mistral")
    tokenizer = load_tokenizer(str(folder))
    fitter = Fitter(tokenizer, chat_template(chat), 600, load_template("paper"))
    drafts = ["日本語の長い文章です。😀" * 60, "Короткий текст. " * 40, "short"]
    query = [{"role": "user", "content": "質問 ?"}]
    measuring = replace(fitter, limit=None)
    [whole] = measuring.fit_all([(query, drafts, "answer")])
    [fitted] = fitter.fit_all([(query, drafts, "answer")])
    [again] = measuring.fit_all([(query, fitted.proposals, "answer")])
    assert whole.tokens > 600 >= fitted.tokens == again.tokens
    assert fitted.tokens > 560  # close to the limit, not far below it
    assert fitted.proposals[2] == "short"
    assert all(
        draft.startswith(shorter) for draft, shorter in zip(drafts, fitted.proposals, strict=True)
    )


@pytest.mark.parametrize("changes", [False, True])
def test_many_rows_are_fitted_at_once_and_stay_in_order(changes, tiny_llama):
    chat = chat_template("llama3")
    if changes:  # the long proposals cannot be found in the prompt then
        chat = chat.replace("~ system.text ~", "~ (system.text | replace('ee', 'e')) ~")
    fitter = Fitter(load_tokenizer(str(tiny_llama)), chat, 400, load_template("paper"))
    query = [{"role": "user", "content": "How many pails?"}]
    rows = [
        (query, ["fifteen pails of water. " * 80, "six"], "Six."),
        (query, ["five", "six"], "Six."),
        ([{"role": "user", "content": "pail " * 500}], ["five"], "Six."),
        (query, ["sixteen is too many. " * 40, "seventeen is far too many. " * 40], None),
    ]
    measuring = replace(fitter, limit=None)
    first, short, hopeless, last = fitter.fit_all(rows)
    assert isinstance(hopeless, DoesNotFit)
    assert (short.proposals, short.cut) == (["five", "six"], 0)
    assert (first.proposals[1], first.cut, last.cut) == ("six", 1, 2)
    for (messages, drafts, target), fitted in ((rows[0], first), (rows[3], last)):
        wholes = [(messages, drafts, target), (messages, fitted.proposals, target)]
        before, after = (whole.tokens for whole in measuring.fit_all(wholes))
        assert 380 < fitted.tokens == after <= 400
        assert fitted.tokens_removed == before - after


REFUSING = "{% if 'bad' in messages[-1].content %}{{ raise_exception('I will not') }}{% endif %}"


@pytest.mark.parametrize("limit", [None, 400])
def test_a_conversation_that_the_chat_template_refuses_is_rejected_alone(limit, tiny_llama):
    chat = REFUSING + chat_template("llama3")
    fitter = Fitter(load_tokenizer(str(tiny_llama)), chat, limit, load_template("paper"))
    rows = [
        ([{"role": "user", "content": text}], ["five pails. " * 80, "six"], None)
        for text in ("good", "bad", "fine")
    ]
    alone = [fitter.fit_all([row])[0] for row in (rows[0], rows[2])]
    first, refused, last = fitter.fit_all(rows)
    assert [first, last] == alone
    assert isinstance(refused, DoesNotFit)
    assert (str(refused), refused.field) == (
        "refused by the chat template: I will not",
        "messages",
    )


def test_a_run_goes_on_without_the_query_that_the_chat_template_refuses(tiny_llama):
    chat = REFUSING + chat_template("llama3")
    fitter = Fitter(load_tokenizer(str(tiny_llama)), chat, 9000, load_template("paper"))
    outcomes = {}

    async def run():
        one = replace(runner(ScriptedEngine()), fitters={"": fitter})
        queries = [query(text, name=text) for text in ("good", "bad", "fine")]
        await one.answer_all(queries, 10, lambda q, o: outcomes.__setitem__(q.id, o.problem))

    asyncio.run(run())
    refused = "layer 0: refused by the chat template: I will not"
    assert outcomes == {"good": None, "bad": refused, "fine": None}


def test_a_chat_template_that_is_no_jinja_is_the_settings_fault_and_not_the_rows(tiny_llama):
    fitter = Fitter(load_tokenizer(str(tiny_llama)), "{% if %}", 400, load_template("paper"))
    with pytest.raises(UsageError, match="the chat template is no Jinja: "):
        fitter.fit_all([([{"role": "user", "content": "good"}], ["five"], None)])


def test_a_fingerprint_names_what_decides_and_not_where_the_tokenizer_lies(tiny_llama, tmp_path):
    def fitter(folder=tiny_llama, chat="llama3", limit=400, template="paper"):
        return Fitter(
            load_tokenizer(str(folder)), chat_template(chat), limit, load_template(template)
        )

    moved = shutil.copytree(tiny_llama, tmp_path / "moved")
    assert fitter(moved).fingerprint == fitter().fingerprint
    tokenizer = load_tokenizer(str(tiny_llama))
    tokenizer.add_tokens(["pails"])
    tokenizer.save_pretrained(tmp_path / "more")
    others = [
        fitter(tmp_path / "more"),
        fitter(chat="mistral"),
        fitter(limit=401),
        fitter(template="moa"),
        fitter().but(kwargs={"enable_thinking": False}),
        fitter().but(system=False),
    ]
    assert len({one.fingerprint for one in (fitter(), *others)}) == 7


@given(st.text(max_size=200))
@settings(max_examples=200, deadline=None)
def test_boundaries_are_positions_in_the_text(tiny_llama, text):
    ends = token_boundaries(load_tokenizer_once(str(tiny_llama)))(text)
    assert ends == sorted(ends)
    assert (not text and not ends) or ends[-1] == len(text)


_tokenizers = {}


def load_tokenizer_once(name):
    if name not in _tokenizers:
        _tokenizers[name] = load_tokenizer(name)
    return _tokenizers[name]


def test_chat_template_is_told_from_the_tokenizer(tiny_llama, tiny_mistral, tmp_path):
    llama, mistral = load_tokenizer(str(tiny_llama)), load_tokenizer(str(tiny_mistral))
    for name, tokenizer in (("llama3", llama), ("mistral", mistral)):
        markers = tokenizer_markers(tokenizer, chat_template(name, markers=Markers(())))
        assert resolve_chat_template("auto", tokenizer) == chat_template(name, markers=markers)
        assert ("[INST]" in markers.words) is (name == "mistral")  # its own alone
        assert ("<|eot_id|>" in markers.words) is (name == "llama3")
    mistral.chat_template = "mine"
    assert resolve_chat_template("auto", mistral) == "mine"
    with pytest.raises(UsageError, match="has no chat template"):
        resolve_chat_template("own", llama)
    with pytest.raises(UsageError, match="did you mean 'llama3'"):
        resolve_chat_template("lama3", llama)


def test_a_tokenizers_own_control_tokens_are_the_markers(tiny_llama):
    tokenizer = load_tokenizer(str(tiny_llama))
    tokenizer.add_special_tokens({"additional_special_tokens": ["@@stop@@"]})
    tokenizer.add_tokens(["<think>", "pails", "<<go>>"])  # none of them special
    markers = tokenizer_markers(tokenizer, "{{ '<<go>>' }} {{ '[INST] ' ~ content }}")
    text = "@@stop@@ <|eot_id|> <think> pails <<go>> [INST] </s> <image>"
    broken = (
        "@\u200b@stop@@ <\u200b|eot_id|> <\u200bthink> pails <\u200b<go>> [\u200bINST] </s> <image>"
    )
    assert markers.sanitise(text) == broken  # HTML stays HTML, a word stays a word
    assert markers.restore(broken) == text


@given(
    st.lists(
        st.sampled_from(["<", "\u200b", "|e", "|eot_id|>", "s>", "a", "[", "INST]"]), max_size=12
    ),
    st.data(),
)
def test_a_text_in_pieces_is_mended_as_the_whole(parts, data):
    text, markers = "".join(parts), known_markers()
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=6)))
    mender, bounds = Mender(markers), [0, *cuts, len(text)]
    pieces = [text[a:b] for a, b in itertools.pairwise(bounds)]
    mended = [mender.mend(p, last=i == len(pieces) - 1) for i, p in enumerate(pieces)]
    assert "".join(mended) == markers.restore(text)


def test_a_missing_tokenizer_is_one_clear_error():
    with pytest.raises(UsageError, match=r"cannot load the tokenizer '\./nowhere'"):
        load_tokenizer("./nowhere")
