"""Thoughts: told apart from answers, by the words of the model's own template. Run: pytest tests/prompts/test_thoughts.py"""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aft_factory.prompts.thought_probes import Thoughts, thought_words
from aft_factory.prompts.thoughts import ThoughtWords
from aft_factory.prompts.tokenizer import load_tokenizer

USUAL = ThoughtWords()
OPENED = ThoughtWords("[T]", "[/T]", opened=True, own=True)
HARMONY = ThoughtWords("<c>analysis<m>", "<e><c>final<m>", own=True)
FRAMED = ThoughtWords(frame=("<say>", "</say>"), own=True)
# The word before an answer is the only one behind a thought, which nothing opens.
BEGUN = ThoughtWords("", "[BEGIN IT]", opened=True, own=True, frame=("", "[END IT]"))
SPLIT = {
    "a thought and an answer": (USUAL, "<think>\nHm.\n</think>\n\nSix.\n", False, ("Hm.", "Six.\n")),
    "an empty thought": (USUAL, "<think>\n\n</think>\n\nSix.", False, ("", "Six.")),
    "no thought": (USUAL, " Six.\n", False, ("", " Six.\n")),
    "a thought that does not end": (USUAL, "<think>\nHm", True, ("Hm", "")),
    "a thought without an answer": (USUAL, "\n<think>Hm.</think>\n", False, ("Hm.", "")),
    "only the closing word": (USUAL, "Hm.\n</think>\n\nSix.", False, ("Hm.", "Six.")),
    "an answer about the word": (USUAL, "Write </think> at the end.", False, ("", "Write </think> at the end.")),
    "an answer about both": (USUAL, "Use <think> and\n</think>\nfor it.", False, ("", "Use <think> and\n</think>\nfor it.")),
    "a later thought": (USUAL, "<think>a</think>b <think>c</think>d", False, ("a", "b <think>c</think>d")),
    "an answer that was cut off": (USUAL, "Six and", True, ("", "Six and")),
    "own words": (OPENED, "Hm.[/T] Six.", False, ("Hm.", "Six.")),
    "the prompt opened it, and it was cut off": (OPENED, "Hm", True, ("Hm", "")),
    "the prompt opened it, and it is none": (OPENED, "Six.", False, ("", "Six.")),
    "opened once more": (OPENED, "[T]Hm.[/T]Six.", False, ("Hm.", "Six.")),
    "an answer without a thought, behind its header": (HARMONY, "<c>final<m>Six.", False, ("", "Six.")),
    "a thought, and the header": (HARMONY, "<c>analysis<m>Hm.<e><c>final<m>Six.", False, ("Hm.", "Six.")),
    "a thought that was cut off before the header": (HARMONY, "<c>analysis<m>Hm.<e>", True, ("Hm.<e>", "")),
    "an answer between words": (FRAMED, "<think>Hm.</think>\n<say>\nSix.\n</say>\n", False, ("Hm.", "Six.")),
    "no thought, an answer between words": (FRAMED, "<say>Six.</say>", False, ("", "Six.")),
    "an answer between words, that was cut off": (FRAMED, "<think>Hm.</think><say>Six </sa", True, ("Hm.", "Six </sa")),
    "an answer without its words": (FRAMED, "<think>Hm.</think> Six.\n", False, ("Hm.", "Six.\n")),
    "neither a thought nor words": (FRAMED, " Six.\n", False, ("", " Six.\n")),
    "an answer that goes on behind its words": (FRAMED, "<say>Six</say> <b>", False, ("", "Six</say> <b>")),
    "an answer about its words": (FRAMED, "<say>a </say> b</say>", False, ("", "a </say> b")),
    "no word before the thought": (BEGUN, "Hm.\n[BEGIN IT]\nSix.\n[END IT]\n", False, ("Hm.", "Six.")),
    "no word before the thought, and none in it": (BEGUN, "[BEGIN IT] Six. [END IT]", False, ("", "Six.")),
    "no word before the thought, which was cut off": (BEGUN, "Hm.", True, ("Hm.", "")),
    "no word before the thought, and it is none": (BEGUN, "Six.", False, ("", "Six.")),
    "the usual words are nothing to it": (OPENED, "<think>a</think>b", False, ("", "<think>a</think>b")),
}  # fmt: skip


@pytest.mark.parametrize(("words", "text", "cut_off", "parts"), SPLIT.values(), ids=SPLIT.keys())
def test_what_a_model_wrote_is_a_thought_and_an_answer(words, text, cut_off, parts):
    assert words.split(text, cut_off=cut_off) == parts


TEXTS = st.text(st.sampled_from("ab .\n<>/"), max_size=12)


@given(TEXTS, TEXTS)
def test_what_was_joined_is_split_again(thought, answer):
    thought, answer = thought.strip(), answer.lstrip()
    text = f"<think>\n{thought}\n</think>\n\n{answer}" if thought else answer
    assert USUAL.split(text) == (thought, answer)


# Chat templates of each manner, shortened from published ones.
TURN = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{% endfor %}"
PROMPT = "{% if add_generation_prompt %}<|assistant|>{% endif %}"
KEEPS = (
    "{% for m in messages %}<|{{ m.role }}|>{% if m.reasoning_content %}<think>\n{{ m.reasoning_content }}\n</think>\n\n"
    "{% endif %}{{ m.content }}{% endfor %}"
)
CHANNELS = (
    "{% for m in messages %}<|start|>{{ m.role }}{% if m.thinking %}<|channel|>analysis<|message|>{{ m.thinking }}<|end|>"
    "<|start|>assistant<|channel|>final{% endif %}<|message|>{{ m.content }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant{% endif %}"
)
DROPS = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content.split('</mull>')[-1] if m.role == 'assistant' else m.content }}"
    "{% endfor %}"
)
OPENS = "{% if add_generation_prompt %}<|assistant|>{{ '<mull>\n' if enable_thinking is not defined or enable_thinking }}{% endif %}"
# As GLM-4.7's: the closing word alone says that it is not to think.
CLOSES = (
    "{% for m in messages %}<|{{ m.role }}|>{% if m.role == 'assistant' %}{{ '<think>' + m.reasoning_content if m.reasoning_content }}"
    "</think>{% endif %}{{ m.content }}{% endfor %}{% if add_generation_prompt %}<|assistant|>"
    "{{ '</think>' if enable_thinking is defined and not enable_thinking else '<think>' }}{% endif %}"
)
# Qwen 3's way in one line: an empty thought in a prompt that is not to think.
EMPTY = "{% if add_generation_prompt %}<|assistant|>{{ '<mull></mull>' if not enable_thinking }}{% endif %}"
# Nemotron's: an empty thought in prompts and answers alike.
BOTH = (
    "{% for m in messages %}<|{{ m.role }}|>{% if m.role == 'assistant' %}<think>{{ m.reasoning_content }}</think>{% endif %}"
    "{{ m.content }}{% endfor %}{% if add_generation_prompt %}<|assistant|>"
    "{{ '<think></think>' if enable_thinking is defined and not enable_thinking else '<think>' }}{% endif %}"
)
PARTS = (
    "{% for m in messages %}<|{{ m.role }}|>{% if m.content is string %}{{ m.content }}{% else %}{% for part in m.content %}"
    "{{ '[MULL]' + part.thinking + '[/MULL]' if part.type == 'thinking' else part.text }}{% endfor %}{% endif %}{% endfor %}"
)
BLOCKS = (
    "{% for m in messages %}<|{{ m.role }}|>{% if m.content is string %}{{ m.content }}{% else %}{% for b in m.content.blocks %}"
    "{{ '<|in|>' + b.text + '<|out|>' if b.type == 'thoughts' else b.text }}{% endfor %}{% endif %}{% endfor %}"
)
STEPS = (
    "{% for m in messages %}<|{{ m.role }}|>\n{{ m.reasoning_content + '\n[ANSWER]\n' if m.reasoning_content }}{{ m.content }}"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>\nMy steps:\n{% endif %}"
)
GEMMA = (
    "{{ '<|system|><|think|>' if enable_thinking }}"
    + TURN
    + "{% if add_generation_prompt %}<|assistant|>\n{{ '<|channel>thought\n<channel|>' if not enable_thinking }}{% endif %}"
)
# Of a format, the system message speaks: Granite's, DeepSeek R1's, Apriel's.
SAID = "{{ '<|system|>%s' if messages[0].role != 'system' }}" + TURN + PROMPT
BETWEEN = SAID.replace(
    "%s", "Write your thoughts between <mull></mull>, your answer between <say></say>."
)
TAGS = SAID.replace(
    "%s",
    "Use <mull> </mull> and <say> </say>, i.e., <mull> a thought </mull><say> an answer </say>.",
)
BEGINS = SAID.replace("%s", "Then answer: [BEGIN IT] ... [END IT].")
PHRASES = BEGINS.replace(
    "Then answer: [BEGIN IT] ... [END IT].", 'Think after "I think:" and answer after "I say:".'
)
# Hunyuan's: of earlier answers, what stands between the words.
UNFRAMES = (
    TURN.replace(
        "m.content", "m.content.split('</mull>')[-1].split('<say>')[-1].split('</say>')[0]"
    )
    + PROMPT
)
OFF = {"enable_thinking": False}
TEMPLATES = {
    "none": (TURN + PROMPT, ThoughtWords()),
    "kept": (KEEPS + PROMPT, ThoughtWords(own=True)),
    "channels": (CHANNELS, ThoughtWords("<|channel|>analysis<|message|>", "<|end|><|start|>assistant<|channel|>final<|message|>", own=True)),
    "dropped": (DROPS + PROMPT, ThoughtWords("<mull>", "</mull>", own=True)),
    "dropped, and opened by the prompt": (DROPS + OPENS, ThoughtWords("<mull>", "</mull>", opened=True, own=True)),
    "an empty thought where it is not to think": (TURN + EMPTY, ThoughtWords("<mull>", "</mull>", own=True)),
    "an empty thought by another switch": (TURN + EMPTY.replace("enable_", ""), ThoughtWords("<mull>", "</mull>", own=True)),
    "the same, of other words": (GEMMA, ThoughtWords("<|channel>thought", "<channel|>", own=True)),
    "parts": (PARTS + PROMPT, ThoughtWords("[MULL]", "[/MULL]", own=True)),
    "blocks": (BLOCKS + PROMPT, ThoughtWords("<|in|>", "<|out|>", own=True)),
    "parts as Python shows them": (TURN.replace("m.content", "m.content | string") + PROMPT, ThoughtWords()),
    "parts as JSON shows them": (TURN.replace("m.content", "m.content | tojson") + PROMPT, ThoughtWords()),
    "only the prompt opens it": (STEPS, ThoughtWords("My steps:", "[ANSWER]", opened=True, own=True)),
    "thoughts shown as they are": (TURN.replace("{{ m.content", "{{ m.thinking }} {{ m.content") + PROMPT, ThoughtWords()),
    "the same, where a prompt goes on otherwise": (
        TURN.replace("{{ m.content", "{{ m.thinking + ' [A] ' if m.thinking }}{{ m.content") + PROMPT.replace("<|assistant|>", "<|bot|>"),
        ThoughtWords(),
    ),
    "not to think, by a word behind the query": (
        TURN + "{% if add_generation_prompt %}{{ '/no' if not enable_thinking }}<|assistant|>{{ '<a></a>' if not enable_thinking }}{% endif %}",
        ThoughtWords(),
    ),
    "opened by the prompt, in a line of its own": (CLOSES.replace("<|", "\n<|"), ThoughtWords(opened=True, own=True)),
    "opened by the prompt": (CLOSES, ThoughtWords(opened=True, own=True)),
    "said to the model": (BETWEEN, ThoughtWords("<mull>", "</mull>", own=True, frame=("<say>", "</say>"))),
    "said to the model, with an example": (TAGS, ThoughtWords("<mull>", "</mull>", own=True, frame=("<say>", "</say>"))),
    "said to the model, and opened by the prompt": (
        BETWEEN.replace("|>{% endif %}", "|><mull>\n{% endif %}"),
        ThoughtWords("<mull>", "</mull>", opened=True, own=True, frame=("<say>", "</say>")),
    ),
    "said to the model of the answer": (BEGINS, ThoughtWords("", "[BEGIN IT]", opened=True, own=True, frame=("", "[END IT]"))),
    "said to the model, as phrases": (PHRASES, ThoughtWords("I think:", "I say:", own=True)),
    "said of one phrase": (PHRASES.replace('after "I say:"', "it"), ThoughtWords()),
    "the usual one, of which only the prompt speaks": (TURN + PROMPT.replace("<|assistant|>", "<|assistant|><think>\n"), ThoughtWords(opened=True, own=True)),
    "said of one pair of tags": (BETWEEN.replace("<say></say>", "lines"), ThoughtWords()),
    "said of words that are no pair": (SAID.replace("%s", "[A][B] <a><b></a></b> <c>x</c> <d></e>"), ThoughtWords()),
    "said of other pairs than it shows": (BETWEEN.replace(TURN, KEEPS), ThoughtWords(own=True)),
    "said of the pair that it shows": (
        BETWEEN.replace(TURN, KEEPS).replace("mull", "think"), ThoughtWords(own=True, frame=("<say>", "</say>"))
    ),
    "taken out of earlier answers, and the answer's too": (
        UNFRAMES, ThoughtWords("<mull>", "</mull>", own=True, frame=("<say>", "</say>"))
    ),
    "a template that fails": ("{{ raise_exception('no') }}", ThoughtWords()),
}  # fmt: skip


@pytest.fixture(scope="module")
def tokenizer(tiny_llama):
    return load_tokenizer(str(tiny_llama))


@pytest.mark.parametrize(("template", "words"), TEMPLATES.values(), ids=TEMPLATES.keys())
def test_the_words_are_the_templates_own(tokenizer, template, words):
    assert thought_words(tokenizer, template) == words


def test_without_a_template_they_are_the_usual_ones(tokenizer):
    assert thought_words(None, KEEPS) == thought_words(tokenizer, None) == ThoughtWords()


def test_they_depend_on_what_the_template_is_rendered_with(tokenizer):
    thoughts = Thoughts(tokenizer, DROPS + OPENS)
    off = {"chat_template_kwargs": {"enable_thinking": False}, "min_p": 0.1}
    assert [thoughts({}).opened, thoughts(off).opened, thoughts({}).opened] == [True, False, True]


@pytest.mark.parametrize(
    "template", [CLOSES, CLOSES.replace("<|", "\n<|"), BOTH, KEEPS + OPENS, GEMMA, TURN + EMPTY]
)
def test_they_are_the_same_where_the_model_is_not_to_think(tokenizer, template):
    words = thought_words(tokenizer, template)
    assert words.own
    assert thought_words(tokenizer, template, OFF) == replace(words, opened=False)


@pytest.mark.parametrize(
    "text", ["<c>final<m>Six.", " <c>final<m> Six.", "<c>analysis<m>Hm.<e><c>final<m>Six."]
)
def test_the_answer_begins_behind_its_header_while_it_is_written(text):
    found = [HARMONY.answer_at(text[:end]) for end in range(len(text) + 1)]
    begins = text.index("Six.")
    assert found == [None] * (begins + 1) + [begins] * 4
    sure = [HARMONY.so_far(text[:end]) for end in range(len(text) + 1)]
    thought = "Hm." if "Hm." in text else ""
    assert {told for told, _ in sure} == {thought[:end] for end in range(len(thought) + 1)}
    assert [answer for _, answer in sure] == [""] * (begins + 1) + ["S", "Si", "Six", "Six."]


def test_our_own_templates_have_no_thoughts(tokenizer):
    from aft_factory.prompts.prelude import chat_template

    for name in ("llama3", "mistral"):
        assert thought_words(tokenizer, chat_template(name)) == ThoughtWords()
