"""A twin of every template that the installed LLaMA-Factory registers, exact on texts.

Run: pytest tests/plugin/test_twins.py
"""

import copy
import itertools

import pytest
from llamafactory.data.template import TEMPLATES, Template, register_template

from aft_factory.errors import UsageError
from aft_factory.plugin.slots import TextTokenizer, chat_template_of, thinks, written
from aft_factory.plugin.templates import aggregator_of
from aft_factory.plugin.twin import Training, chat_template_for, prelude_for
from aft_factory.prompts.prelude import FORMS, Prelude, has_prelude, made_by, without_prelude
from aft_factory.prompts.probing import ChatTemplate, conversations, first_change, first_loss
from aft_factory.prompts.rendering import load_template

STOCK = [name for name in TEMPLATES if aggregator_of(name) is None]
# Templates without a twin, and why; a test below holds that there are no others.
WITHOUT = {
    "chatglm3": "it writes the token '[gMASK]' by its number",
    "yuan": "it writes the token '<sep>' by its number",
}
TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}


class Tokenizer:
    """As much of a tokenizer as a chat template needs."""

    bos_token, eos_token, special_tokens_map, added_tokens_decoder = "<s>", "</s>", TOKENS, {}

    def __init__(self, chat_template=None):
        self.chat_template = chat_template


class DataArguments:
    """As much of LLaMA-Factory's as its templates look at."""

    train_on_prompt, tool_format, default_system = False, None, None
    enable_thinking, preserve_thinking = True, False

    def __init__(self, template):
        self.template = template


def settings(name):
    """The template in all its settings of thoughts."""
    template = TEMPLATES[name]
    ways = [(True, False)]
    if thinks(template):
        ways = itertools.product((True, False, None), (False, True))
    for enable, preserve in ways:
        template = copy.copy(template)
        template.enable_thinking, template.preserve_thinking = enable, preserve
        yield template


def made(template):
    """The chat template that is made from one of LLaMA-Factory's, with our prelude."""
    prelude = prelude_for(template, Tokenizer(), "paper", "aft_test")
    text, why = chat_template_for(template, prelude, Tokenizer(), None, "test")
    assert why == "made from LLaMA-Factory's 'test': the model has none"
    return prelude, text


def test_every_template_has_twins_or_stands_in_the_short_list():
    assert len(STOCK) > 100
    for name in STOCK:
        twins = {f"aft_{name}", f"aft_{name}_moa", f"aft_{name}_release"}
        assert twins & set(TEMPLATES) == (set() if name in WITHOUT else twins)
    assert aggregator_of("aft_qwen") == "paper"
    assert aggregator_of("aft_qwen_moa") == "moa"


@pytest.mark.parametrize("name", [name for name in STOCK if name not in WITHOUT])
def test_a_twin_writes_what_its_template_writes(name):
    """No system message, one, several turns, each with and without proposals, thinking or not."""
    for template in settings(name):
        prelude, text = made(template)
        training = Training(template, TextTokenizer.of(Tokenizer()), prelude)
        rendered = ChatTemplate(text, TOKENS)
        assert len(training.probes()) >= 8
        for probe in training.probes():
            assert rendered(probe) == training(probe), probe.about
        assert first_loss(text, TOKENS) is None
        assert first_change(text, TOKENS) is None


@pytest.mark.parametrize("name", [name for name in STOCK if name not in WITHOUT])
def test_whole_conversations_agree_whatever_the_answers_hold(name):
    for template in settings(name):
        rendered = ChatTemplate(made(template)[1], TOKENS)
        begins, ends = template.thought_words
        answers = ["six", " \nsix\n", f"{begins}Hm.{ends}six"]
        if thinks(template):
            answers += [f"{begins}{ends}\n\nsix", f"{begins}open", f"x{ends}closed"]
            answers += [f"a{begins}b{begins}c{ends}d{ends}\ne{begins}f{ends}g{begins.strip()}"]
        for first, last in itertools.product(answers, answers):
            turns = [
                {"role": role, "content": text}
                for role, text in zip(
                    ("user", "assistant") * 2, ("\nq ", first, "r\n", last), strict=True
                )
            ]
            for system in ([], [{"role": "system", "content": " s'\\\n"}]):
                whole = "".join(
                    written(
                        template, TextTokenizer(*TOKENS.values()), turns, " s'\\\n" * len(system)
                    )
                )
                assert rendered.render([*system, *turns], add_generation_prompt=False) == whole


@pytest.mark.parametrize(("name", "why"), WITHOUT.items())
def test_who_asks_for_a_twin_that_cannot_be_is_told_why(name, why):
    from llamafactory.data.template import get_template_and_fix_tokenizer

    for asked in (f"aft_{name}", f"aft_{name}_moa", f"aft_{name}:mine.jinja"):
        with pytest.raises(UsageError) as caught:
            get_template_and_fix_tokenizer(Tokenizer(), DataArguments(asked))
        assert str(caught.value).startswith(f"no template {asked!r}: LLaMA-Factory's {name!r}")
        assert why in str(caught.value)


def test_a_wrong_name_is_refused_with_a_suggestion(tmp_path):
    from llamafactory.data.template import get_template_and_fix_tokenizer

    for asked, told in {
        "aft_qwen3_mao": "did you mean 'aft_qwen3_moa'",
        "aft_qwenn:paper": "did you mean 'aft_qwen'",
        f"aft_qwen:{tmp_path}/none.jinja": "no aggregator template",
    }.items():
        with pytest.raises(UsageError, match=told):
            get_template_and_fix_tokenizer(Tokenizer(), DataArguments(asked))
        assert asked not in TEMPLATES
    with pytest.raises(ValueError, match="Template qwenn does not exist"):
        get_template_and_fix_tokenizer(Tokenizer(), DataArguments("qwenn"))


def test_a_users_own_aggregator_prompt(tmp_path):
    path = tmp_path / "mine.jinja"
    path.write_text("\n  Drafts:{% for p in proposals %}\n{{ p }}{% endfor %}\n\nAnswer: \n  ")
    name = f"aft_chatml:{path}"
    from llamafactory.data.template import get_template_and_fix_tokenizer

    twin = get_template_and_fix_tokenizer(tokenizer := tokenizer_of(), DataArguments(name))
    assert aggregator_of(name) == str(path)
    prompt = ChatTemplate(tokenizer.chat_template, TOKENS).render(
        [{"role": "user", "content": "q"}], proposals=["a", "b"]
    )
    text = load_template(str(path)).render(["a", "b"])
    assert text == "\n  Drafts:ab\nAnswer: \n  "  # to the last blank
    assert prompt == (
        f"<|im_start|>system\n{text}<|im_end|>\n"
        "<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\n"
    )
    assert twin is TEMPLATES.pop(name)


def tokenizer_of(chat_template=None):
    """A real, small tokenizer."""
    from tokenizers import Tokenizer as Core
    from tokenizers import models
    from transformers import PreTrainedTokenizerFast

    core = Core(models.BPE())
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, **TOKENS)
    tokenizer.chat_template = chat_template
    return tokenizer


def test_templates_that_are_registered_later_have_twins_too():
    class Shouting(Template):
        """Of a class that nobody has seen."""

        def _encode(self, tokenizer, messages, system, tools):
            encoded = super()._encode(tokenizer, messages, system, tools)
            return [[f"!{text}" for text in turn] for turn in encoded]

    class Counting(Template):
        """Writes a number before each turn, which a chat template of ours does not."""

        def _encode(self, tokenizer, messages, system, tools):
            encoded = super()._encode(tokenizer, messages, system, tools)
            return [[f"{i}:", *turn] for i, turn in enumerate(encoded)]

    try:
        register_template("later", template_class=Shouting)
        register_template("counting", template_class=Counting)
        assert made(TEMPLATES["aft_later"])[1].endswith("{%- endfor -%}\n\n")
        assert "aft_counting" not in TEMPLATES
        with pytest.raises(UsageError, match="it writes later turns otherwise than earlier ones"):
            chat_template_of(TEMPLATES["counting"], TextTokenizer())
    finally:
        for name in [name for name in TEMPLATES if "later" in name or name == "counting"]:
            del TEMPLATES[name]


BODY = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


@pytest.mark.parametrize(
    ("own", "why"),
    [
        (BODY, "the model's own, which writes what 'chatml' trains"),
        (f"{{# tools #}}\n{BODY}", "the model's own, which writes what 'chatml' trains"),
        (
            BODY.replace("m.content", "m.content | trim"),
            "the model's own writes something else: for",
        ),
        ("Today is {{ strftime_now('%d') }}." + BODY, "the model's own writes something else: for"),
        (
            "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
            + BODY,
            "1 turns, proposals it fails: no system",
        ),
        (
            BODY.replace(
                "{% for m in messages %}", "{% for m in messages if m.role != 'system' %}"
            ),
            "for",
        ),
        (
            "{% for %}",
            "the model's own writes something else: the chat template is no Jinja: Expected",
        ),
    ],
)
def test_the_models_own_chat_template_stays_where_it_writes_what_is_trained(own, why):
    template = TEMPLATES["chatml"]
    prelude = prelude_for(template, Tokenizer(), "moa", "aft_chatml_moa")
    text, told = chat_template_for(template, prelude, Tokenizer(), own, "chatml")
    assert why in told
    assert made_by(text) == "aft_chatml_moa"
    assert (without_prelude(text) == own) == told.startswith("the model's own, which")
    training = Training(template, TextTokenizer.of(Tokenizer()), prelude)
    assert training.difference(text, TOKENS) is None
    again, _ = chat_template_for(template, prelude, Tokenizer(), text, "chatml")
    assert again == text  # one prelude, however often a model is trained


class TestTheTokenizer:
    """What a tokenizer, and the processor that is saved after it, carry."""

    def fixed(
        self, monkeypatch, tokenizer, template="aft_chatml", processor=None, trained=None, **more
    ):
        from llamafactory.data.template import get_template_and_fix_tokenizer

        from aft_factory.plugin import templates

        monkeypatch.setitem(templates._loaded, tokenizer, templates._Loaded(processor, trained))
        arguments = DataArguments(template)
        for name, value in more.items():
            setattr(arguments, name, value)
        get_template_and_fix_tokenizer(tokenizer, arguments)
        return tokenizer.chat_template

    @pytest.fixture
    def told(self):
        import logging

        lines = []
        handler = logging.Handler()
        handler.emit = lambda record: lines.append(record.getMessage())
        logger = logging.getLogger("llamafactory")
        logger.addHandler(handler)
        yield lines
        logger.removeHandler(handler)

    def test_the_processor_carries_the_same_and_its_own_counts(self, monkeypatch, told):
        processor = Tokenizer(BODY)
        text = self.fixed(monkeypatch, tokenizer_of("something else"), processor=processor)
        assert without_prelude(text) == BODY
        assert processor.chat_template == text
        assert any("takes `proposals`, is the model's own, which writes" in line for line in told)

    def test_others_that_a_model_has_by_name_take_proposals_too(self, monkeypatch, told):
        named = {"default": "{{ messages }}", "tool_use": BODY, "odd": "{{ 1 }}"}
        texts = self.fixed(monkeypatch, tokenizer_of(named))
        assert without_prelude(texts["default"]) != named["default"]
        assert has_prelude(texts["default"])
        assert without_prelude(texts["tool_use"]) == BODY
        assert has_prelude(texts["tool_use"])
        assert texts["odd"] == named["odd"]
        assert any("'odd' stays as it is: proposals do not get through" in line for line in told)

    def test_what_training_has_saved_is_exported_as_it_is(self, monkeypatch):
        saved = self.fixed(monkeypatch, tokenizer_of(), "aft_qwen3", enable_thinking=False)
        monkeypatch.setattr(TEMPLATES["aft_qwen3"], "enable_thinking", True)
        exported = self.fixed(monkeypatch, tokenizer_of(), "aft_qwen3", trained=saved)
        assert exported == saved
        assert "set enable_thinking = false" in exported
        other = self.fixed(monkeypatch, tokenizer_of(), "aft_qwen3_moa", trained=saved)
        assert made_by(other) == "aft_qwen3_moa"
        assert "set enable_thinking = true" in other

    @pytest.mark.parametrize("enable", [True, False])
    def test_thinking_is_by_default_as_it_was_trained_and_a_request_can_say_otherwise(
        self, enable, monkeypatch
    ):
        text = self.fixed(monkeypatch, tokenizer_of(), "aft_qwen3", enable_thinking=enable)
        chat = ChatTemplate(text, TOKENS)
        plain = chat.render([{"role": "user", "content": "q"}])
        empty = "<think>\n\n</think>\n\n"
        assert plain.endswith(empty) != enable
        said = [
            chat.render([{"role": "user", "content": "q"}], enable_thinking=b)
            for b in (True, False)
        ]
        assert [text.endswith(empty) for text in said] == [False, True]


@pytest.mark.parametrize("form", FORMS)
def test_a_prelude_is_found_and_taken_off(form):
    text = Prelude(form=form, name="aft_x {# odd #}").before("\n  {% if 1 %}x{% endif %}")
    assert made_by(text) == "aft_x odd "
    assert without_prelude(text) == "\n  {% if 1 %}x{% endif %}"
    assert not has_prelude(without_prelude(text))
    assert made_by("x") is None


@pytest.mark.parametrize("probe", conversations(), ids=lambda probe: probe.about)
def test_default_system_messages_give_way_to_proposals(probe):
    template = copy.copy(TEMPLATES["qwen"])
    template.default_system = default = (
        "Say \"yes\" or 'no' \\ {{ x }} %} #}\r\nbitte, 😀\u2028\t\x7f."
    )
    text = ChatTemplate(made(template)[1], TOKENS)(probe)
    assert text.count(default) == (probe.messages[0]["role"] == "user" and not probe.proposals)
