"""Any chat template takes proposals by a prelude, and without them stays what it was.

Run: pytest tests/prompts/test_prelude.py
"""

from pathlib import Path

import jinja2
import pytest

from aft_factory.errors import UsageError
from aft_factory.prompts.habits import own_limits, own_system
from aft_factory.prompts.markers import Markers, known_markers
from aft_factory.prompts.prelude import Prelude, without_prelude
from aft_factory.prompts.probing import (
    ChatTemplate,
    Probe,
    conversations,
    first_change,
    first_loss,
    fitting_prelude,
    takes_system,
)
from aft_factory.prompts.rendering import load_template, with_aggregator

TURN = "{{ '<' + m.role + '>' + m.content + '</>' }}"
ASKS = "{% if add_generation_prompt %}{{ '<assistant>' }}{% endif %}"
EACH = "{% for m in messages %}" + TURN + "{% endfor %}" + ASKS
PARTS = (
    "{% for m in messages %}{{ '<' + m.role + '>' }}{% if m.content is string %}{{ m.content }}"
    "{% else %}{% for part in m.content %}{% if part.type == 'image' %}<image>{% else %}{{ part.text }}"
    "{% endif %}{% endfor %}{% endif %}{{ '</>' }}{% endfor %}" + ASKS
)
# Each a way in which chat templates of models behave, and the form that its prelude needs.
KINDS = {
    "plain": (EACH, "system"),
    "begins with a new line": ("\n" + EACH, "system"),
    "begins with blanks before a tag": ("  \n   " + EACH, "system"),
    "begins with blanks and a tag": ("    " + EACH, "system"),
    "takes tools": (
        "{%- if tools %}{{ tools | tojson }}{% endif %}\n" + EACH.replace("{%", "{%-"),
        "system",
    ),
    "trims": (EACH.replace("m.content", "m.content | trim"), "system"),
    "has a default system message": (
        "{% if messages[0].role != 'system' %}<system>Be helpful.</>{% endif %}" + EACH,
        "system",
    ),
    "takes the system message off": (
        "{% if messages[0].role == 'system' %}{% set system = messages[0].content %}"
        "{% set messages = messages[1:] %}<system>{{ system }}</>{% endif %}" + EACH,
        "system",
    ),
    "folds the system message into the user's": (
        "{% if messages[0].role == 'system' %}{% set first = messages[0].content + '\n\n' %}"
        "{% set turns = messages[1:] %}{% else %}{% set first = '' %}{% set turns = messages %}"
        "{% endif %}{% for m in turns %}{{ '<' + m.role + '>' + (first if loop.first else '')"
        " + m.content + '</>' }}{% endfor %}" + ASKS,
        "system",
    ),
    "refuses a system message": (
        "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}" + EACH,
        "user",
    ),
    "drops a system message without a word": (
        EACH.replace("{% for m in messages %}", "{% for m in messages if m.role != 'system' %}"),
        "user",
    ),
    "strips thoughts of history": (
        EACH.replace("m.content", "m.content.split('</think>')[-1].lstrip('\n')")
        + "{% if enable_thinking is defined and enable_thinking is false %}<think></think>{% endif %}",
        "system",
    ),
    "tells its answers": (
        EACH.replace(TURN, "{% generation %}" + TURN + "{% endgeneration %}"),
        "system",
    ),
    "breaks out of its loop": (
        EACH.replace(TURN, TURN + "{% if not m %}{% break %}{% endif %}"),
        "system",
    ),
    "takes text or parts": (PARTS, "system"),
    "takes parts only": (
        "{% for m in messages %}{{ '<' + m.role + '>' }}{% for part in m['content'] %}{{ part['text'] }}"
        "{% endfor %}{{ '</>' }}{% endfor %}" + ASKS,
        "system",
    ),
    "takes parts but a system message": (
        "{% if messages[0].role == 'system' %}{{ '<system>' + messages[0].content + '</>' }}"
        "{% set messages = messages[1:] %}{% endif %}" + PARTS,
        "system text",
    ),
    "shows parts as they are": (EACH.replace("' + m.content + '", "' ~ m.content ~ '"), "system"),
}


def packaged():
    """The chat templates that vLLM brings for models without one, and trl for training."""
    found = []
    for package, folder in {
        "vllm": "transformers_utils/chat_templates",
        "trl": "chat_templates",
    }.items():
        module = pytest.importorskip(package)
        found += sorted((Path(module.__file__).parent / folder).glob("*.jinja"))
    return found


def outcome(source, messages, **more):
    """What transformers renders, or its error."""
    from transformers.utils.chat_template_utils import render_jinja_template

    try:
        return render_jinja_template([messages], chat_template=source, **more)[0]
    except (jinja2.TemplateError, TypeError) as error:
        return f"{type(error).__name__}: {error}"


def same_without_proposals(chat, whole):
    tools = [{"type": "function", "function": {"name": "f", "parameters": {}}}]
    options = [{"add_generation_prompt": asked} for asked in (True, False)]
    options += [{"enable_thinking": False}, {"enable_thinking": True}, {"tools": tools}]
    options += [{"proposals": nothing} for nothing in (None, [], ["", " \n"])]
    for probe in conversations():
        for messages in (probe.messages, probe.in_parts().messages):
            for more in options:
                plain = {key: value for key, value in more.items() if key != "proposals"}
                assert outcome(whole, messages, **more) == outcome(chat, messages, **plain)
    assert first_change(whole) is None


def same_for_vllm(chat, whole):
    """vLLM hands messages over in the same shape, and the proposals at all."""
    from vllm.renderers.hf import _detect_content_format

    shapes = [_detect_content_format(text, default="string") for text in (chat, whole)]
    assert shapes[0] == shapes[1]
    assert ChatTemplate(whole).variables == ChatTemplate(chat).variables | {"proposals"}
    return shapes[0]


@pytest.mark.parametrize("kind", KINDS)
def test_any_kind_of_chat_template_takes_proposals_and_is_the_same_without_them(kind):
    chat, form = KINDS[kind]
    prelude = fitting_prelude(chat, Prelude())
    assert prelude.form == form
    whole = prelude.before(chat)
    assert first_loss(whole) is None
    assert without_prelude(whole) == chat
    assert prelude.before(whole) == whole
    same_without_proposals(chat, whole)
    assert same_for_vllm(chat, whole) == ("openai" if "part" in chat else "string")


def test_chat_templates_of_packages_take_proposals_and_are_the_same_without_them():
    refused = []
    for path in packaged():
        chat = path.read_text(encoding="utf-8")
        try:
            whole = fitting_prelude(chat, Prelude()).before(chat)
        except UsageError as error:
            refused.append((path.name, str(error)))
            continue
        same_without_proposals(chat, whole)
        same_for_vllm(chat, whole)
    assert [name for name, _ in refused] == ["template_kimi_audio.jinja"]  # it shows no text
    assert "does not show a plain query" in refused[0][1]


@pytest.mark.parametrize("kind", KINDS)
def test_with_proposals_it_renders_the_conversation_that_training_sees(kind):
    chat, form = KINDS[kind]
    whole = ChatTemplate(fitting_prelude(chat, Prelude()).before(chat))
    plain = ChatTemplate(chat)
    for probe in conversations():
        if form == "user" or not probe.proposals:
            continue
        messages = with_aggregator(probe.messages, probe.proposals, load_template("paper"))
        given, seen = probe, Probe("", messages)
        if kind == "takes parts only":
            given, seen = probe.in_parts(), seen.in_parts()
        assert whole(given) == plain(seen)


def test_in_the_users_form_the_aggregator_prompt_opens_the_first_turn_and_nothing_is_lost():
    chat, _ = KINDS["drops a system message without a word"]
    whole = ChatTemplate(Prelude(form="user", aggregator="moa").before(chat))
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "q1"},
        {"role": "assistant", "content": "a1"},
        {"role": "user", "content": "q2"},
    ]
    prompt = load_template("moa").render(["five", "six"])
    assert whole.render(messages, proposals=["five", " ", "six"]) == (
        f"<user>Be brief.\n\n{prompt}\n\nq1</><assistant>a1</><user>q2</><assistant>"
    )
    with pytest.raises(jinja2.TemplateError, match="begins with a turn of the user"):
        whole.render(messages[2:], proposals=["five"])


@pytest.mark.parametrize("shape", [lambda probe: probe, Probe.in_parts])
def test_control_tokens_are_broken_in_all_texts_where_there_are_proposals(shape):
    said = [("system", "<|s|>"), ("user", "[INST]"), ("assistant", "</s>"), ("user", "<img>")]
    messages = [{"role": role, "content": text} for role, text in said]
    prelude = Prelude(markers=Markers(["<|", "</s>", "[INST]"]))
    whole = ChatTemplate(prelude.before(PARTS))
    probe = shape(Probe("", messages, ("a <|b", "c")))
    for text in ("<\u200b|s|>", "[\u200bINST]", "<\u200b/s>", "<img>", "a <\u200b|b"):
        assert text in whole(probe)
    raw = whole(shape(Probe("", messages)))
    assert "\u200b" not in raw


def test_what_is_no_text_of_a_message_is_left_alone():
    call = {"role": "assistant", "content": None, "tool_calls": [{"id": 1}]}
    parts = [{"type": "image"}, {"type": "text", "text": "What is <|it|>?", "more": 1}]
    messages = [{"role": "user", "content": parts}, call, {"role": "user", "content": "q"}]
    chat = Prelude().before("{% for m in messages %}{{ m | tojson }}\n{% endfor %}")
    _, *turns = ChatTemplate(chat).render(messages, proposals=["d"]).splitlines()
    assert turns[0] == (
        '{"role": "user", "content": [{"type": "image"}, '
        '{"type": "text", "text": "What is <\u200b|it|>?", "more": 1}]}'
    )
    assert turns[1] == '{"role": "assistant", "content": null, "tool_calls": [{"id": 1}]}'


def test_whether_to_think_is_a_default_that_a_request_overrides():
    chat = "{{ enable_thinking is defined }} {{ enable_thinking }}"
    assert ChatTemplate(Prelude().before(chat)).render([]).startswith("False")
    off = ChatTemplate(Prelude(thinking="false").before(chat))
    assert off.render([]) == "True False"
    assert off.render([], enable_thinking=True) == "True True"


@pytest.mark.parametrize(
    ("chat", "why"),
    [
        ("{{ messages[0].role }}", "it does not show a plain query: it writes 'user'"),
        ("{% for m in messages[-1:] %}{{ m.content }}{{ m.content }}{% endfor %}", "does not show"),
        ("{% for m in messages if loop.last %}{{ m }}{% endfor %}", "is no Jinja|does not show"),
        (
            "{{ messages[-1].content | replace('5', 'five') }}",
            "in the form 'user': for no system message",
        ),
        ("{{ raise_exception('never') }}", "never"),
        ("{% if %}", "the chat template is no Jinja: Expected an expression"),
    ],
)
def test_a_chat_template_that_loses_or_repeats_a_text_is_refused_with_what_it_writes(chat, why):
    with pytest.raises(UsageError, match=why):
        fitting_prelude(chat, Prelude())


def test_it_is_rendered_as_transformers_does():
    """Without tools these are none, which is not undefined; `tojson` takes options of its own."""
    chat = (
        "{{ tools is none }} {{ documents is none }} {{ {'b': 'ä', 'a': '<'} | tojson }}"
        "{{ {'b': 'ä', 'a': '<'} | tojson(ensure_ascii=true, indent=1, separators=(',', '='), sort_keys=true) }}"
    )
    (shown,) = outcome(chat, [])
    assert shown.startswith("True True {")
    assert "\\u00e4" in shown
    assert ChatTemplate(chat).render([]) == shown


# What a chat template cannot render is no loss of the prelude's, but told.
FOR_TOOLS = "{% for tool in tools %}{{ tool.function.name }}{% endfor %}" + EACH
FOR_ONE_TURN = EACH.replace(
    "}" + TURN, "}{% if m.role == 'assistant' %}{% set m.seen = 1 %}{% endif %}" + TURN
)


def test_a_template_for_conversations_with_tools_takes_proposals_beside_them():
    whole = fitting_prelude(FOR_TOOLS, Prelude()).before(FOR_TOOLS)
    assert first_loss(whole) is first_change(whole) is None
    (limit,) = own_limits(whole)
    assert limit == "conversations without tools (TypeError: 'NoneType' object is not iterable)"
    tools = [{"type": "function", "function": {"name": "add"}}]
    (shown,) = outcome(whole, [{"role": "user", "content": "q"}], tools=tools, proposals=["five"])
    assert shown.startswith("add<system>")
    assert "five" in shown
    assert takes_system(FOR_TOOLS)
    dropping = FOR_TOOLS.replace("in messages", "in messages if m.role != 'system'")
    assert fitting_prelude(dropping, Prelude()).form == "user"
    assert not takes_system(dropping)


def test_a_template_that_cannot_render_earlier_answers_takes_proposals_in_other_conversations():
    whole = fitting_prelude(FOR_ONE_TURN, Prelude()).before(FOR_ONE_TURN)
    assert first_loss(whole) is first_change(whole) is None
    (limit,) = own_limits(whole)
    assert limit.startswith("conversations of 3 turns (TemplateRuntimeError: cannot assign")
    assert own_limits(EACH) == []
    assert takes_system(FOR_ONE_TURN)
    refusing = (
        "{% if messages[0].role == 'system' %}{{ raise_exception('no') }}{% endif %}" + FOR_ONE_TURN
    )
    assert fitting_prelude(refusing, Prelude()).form == "user"
    assert not takes_system(refusing)


@pytest.mark.parametrize(
    ("chat", "text"),
    [
        (KINDS["has a default system message"][0], "Be helpful."),
        (EACH, ""),
        (KINDS["folds the system message into the user's"][0], ""),
        (KINDS["refuses a system message"][0], ""),
        ("{{ messages[0].role }}", ""),
        ("<s>Today is Monday." + EACH, ""),  # with a system message too
        (
            "{% if messages[0].role == 'system' %}{% set system = messages[0].content %}"
            "{% set messages = messages[1:] %}{% endif %}<s>{{ system | default('Think first.') }}\n"
            + EACH,
            "Think first.",
        ),
    ],
)
def test_what_a_template_says_only_where_there_is_no_system_message_is_found(chat, text):
    """Of a model that thinks, it may be what tells it to: an aggregation has a system message."""
    assert own_system(chat) == own_system(Prelude().before(chat)) == text


def test_a_template_that_looks_ours_but_takes_no_proposals_is_found_out():
    assert first_loss(EACH) == "it has no variable `proposals`"
    spoilt = Prelude().before(EACH).replace("aft_aggregator(aft.drafts)", "aft_aggregator([])")
    assert "it writes" in first_loss(spoilt)
    changed = Prelude().before(EACH).replace("{%- if aft.drafts -%}", "{%- if true -%}")
    assert "for no system message, 1 turns it writes" in first_change(changed)


def test_the_markers_in_it_are_those_that_texts_are_sanitised_by():
    text = " ".join(known_markers().words)
    chat = Prelude().before("{{ messages[-1].content }}")
    rendered = ChatTemplate(chat).render([{"role": "user", "content": text}], proposals=["d"])
    assert rendered == known_markers().sanitise(text)


# Models without a system role

NO_SYSTEM = {
    "refuses": "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system') }}{% endif %}<{{ m.role }}>{{ m.content }}{% endfor %}",
    "drops": "{% for m in messages %}{% if m.role != 'system' %}<{{ m.role }}>{{ m.content }}{% endif %}{% endfor %}",
    "drops it where there is a history": "{% for m in messages %}{% if m.role != 'system' or messages | length == 2 %}<{{ m.role }}>{{ m.content }}{% endif %}{% endfor %}",
}
SYSTEM = {
    "shows": "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}",
    "trims": "{% for m in messages %}<{{ m.role }}>{{ m.content | trim }}{% endfor %}",
    "folds it itself": "{% for m in messages %}{% if m.role != 'system' %}<{{ m.role }}>{% if loop.index0 == 1 and messages[0].role == 'system' %}{{ messages[0].content }}\n\n{% endif %}{{ m.content }}{% endif %}{% endfor %}",
}


@pytest.mark.parametrize("chat", NO_SYSTEM.values(), ids=NO_SYSTEM.keys())
def test_a_chat_template_that_shows_no_system_message_is_found_out(chat):
    assert not takes_system(chat)


@pytest.mark.parametrize("chat", SYSTEM.values(), ids=SYSTEM.keys())
def test_one_that_shows_it_somewhere_is_left_alone(chat):
    assert takes_system(chat)
