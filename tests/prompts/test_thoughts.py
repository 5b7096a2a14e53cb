"""Thoughts: told apart from answers, by the words of the model's own template. Run: pytest tests/prompts/test_thoughts.py"""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aft_factory.prompts.thoughts import Thoughts, ThoughtWords, thought_words
from aft_factory.prompts.tokenizer import load_tokenizer

USUAL = ThoughtWords()
OPENED = ThoughtWords("[T]", "[/T]", opened=True, own=True)
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
TEMPLATES = {
    "none": (TURN + PROMPT, ThoughtWords()),
    "kept": (KEEPS + PROMPT, ThoughtWords(own=True)),
    "channels": (CHANNELS, ThoughtWords("<|channel|>analysis<|message|>", "<|end|><|start|>assistant<|channel|>final<|message|>", own=True)),
    "dropped": (DROPS + PROMPT, ThoughtWords("<mull>", "</mull>", own=True)),
    "dropped, and opened by the prompt": (DROPS + OPENS, ThoughtWords("<mull>", "</mull>", opened=True, own=True)),
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


def test_our_own_templates_have_no_thoughts(tokenizer):
    from aft_factory.prompts.rendering import chat_template

    for name in ("llama3", "mistral"):
        assert thought_words(tokenizer, chat_template(name)) == ThoughtWords()
