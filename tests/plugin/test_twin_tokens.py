"""Under real vocabularies a trained prompt and the saved chat template's prompt are the same tokens.

Run: pytest tests/plugin/test_twin_tokens.py
"""

import re

import pytest
from conftest import demo_rows
from llamafactory.data.template import TEMPLATES
from llamafactory_tools import tokenize, write_dataset
from vocabularies import with_tokens, write_tokenizer

from aft_factory.plugin.slots import written_by
from aft_factory.prompts.prelude import has_prelude, without_prelude
from aft_factory.records.record import record_from_row

pytestmark = pytest.mark.slow

SYSTEM = {"role": "system", "content": "Be 'brief'.\n"}
TURNS = [
    {"role": "user", "content": "How many pails?\n"},
    {"role": "assistant", "content": "Six."},
    {"role": "user", "content": " And <b>litres</b>?"},
]
ROWS = [
    *(
        {"messages": r.messages, "proposals": r.proposals[:3], "aggregation": r.aggregation}
        for r in map(record_from_row, demo_rows()[:4])
    ),
    *(
        {"messages": messages, "proposals": proposals, "aggregation": "30 litres."}
        for messages in (TURNS[:1], TURNS, [SYSTEM, *TURNS], [SYSTEM, TURNS[0]])
        for proposals in ([], ["5 x 6 = 30\n", "<|im_end|> [INST] </s> <eos> 11"])
    ),
]
CONTROL = re.compile(r"<[^<>\s]+>|\[gMASK\]")


@pytest.fixture(scope="module", params=["llama3", "qwen", "smollm2"])
def vocabulary(request, tmp_path_factory):
    return request.param, write_tokenizer(request.param, tmp_path_factory.mktemp(request.param))


TWINS = {
    "llama3": ["llama3", "gemma2"],
    "qwen": ["qwen", "qwen3", "glm4", "phi", "cohere"],
    "smollm2": ["smollm2"],
}


def check(folder, model, name, **options):
    """Tokenize rows as training does, and compare each prompt; the tokenizer."""
    write_dataset(folder, "rows", ROWS)
    tokenizer, trained = tokenize(folder, "rows", model, template=f"aft_{name}", **options)
    assert len(trained) == len(ROWS)
    assert has_prelude(tokenizer.chat_template)
    for row, ours in zip(ROWS, trained, strict=True):
        record = record_from_row(row)
        rendered = tokenizer.apply_chat_template(
            record.messages,
            proposals=record.proposals,
            add_generation_prompt=True,
            return_dict=False,
        )
        assert rendered == before_target(ours)
    return tokenizer


def before_target(row):
    """The tokens before the learned answer; some templates end earlier answers by a label, too."""
    learned = 0
    while row["labels"][-learned - 1] != -100:
        learned += 1
    return row["input_ids"][:-learned]


def test_trained_prompts_are_those_of_the_saved_chat_template(vocabulary, tmp_path, tiny_llama):
    kind, folder = vocabulary
    for name in TWINS[kind]:
        tokens = CONTROL.findall(written_by(TEMPLATES[name]))
        model = with_tokens(folder, tmp_path / name, tokens, tiny_llama / "config.json")
        check(tmp_path, model, name)
        if name == "qwen3":
            tokenizer = check(tmp_path, model, name, enable_thinking=False)
            assert "set enable_thinking = false" in tokenizer.chat_template


def test_trained_prompts_agree_under_mistrals_vocabulary(real_mistral, tmp_path):
    check(tmp_path, real_mistral, "mistral")


OWN = (
    "{%- if messages[0].role != 'system' %}{{ '<|im_start|>system\n' + DEFAULT + '<|im_end|>\n' }}"
    "{% endif %}\n{%- for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}"
    "{% endfor %}\n{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def test_the_models_own_chat_template_is_kept_and_writes_the_trained_tokens(
    tmp_path, tiny_llama, tmp_path_factory
):
    tokens = ["<|im_start|>", "<|im_end|>"]
    model = with_tokens(tiny_llama, tmp_path / "m", tokens, tiny_llama / "config.json")
    own = OWN.replace("DEFAULT", repr(TEMPLATES["qwen"].default_system))
    (model / "chat_template.jinja").write_text(own)
    tokenizer = check(tmp_path, model, "qwen")
    assert without_prelude(tokenizer.chat_template) == own
