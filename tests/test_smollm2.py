"""The demo's real model: its tokenizer is the one its authors published, and its weights speak.

Run: pytest tests/test_smollm2.py
"""

import pytest
import smollm2_model
from vocabularies import packaged, write_tokenizer

# What the published tokenizer makes of its own system message and a short question.
PUBLISHED = [1, 9690, 198, 2683, 359, 253, 5356, 5646, 11173, 3365, 3511, 308, 34519, 28, 7018]
PUBLISHED += [411, 407, 19712, 8182, 2, 198, 1, 4093, 198, 1780, 314, 216, 33, 34, 35, 47, 2, 198]
PUBLISHED += [1, 520, 9531, 198]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    from transformers import AutoTokenizer

    folder = write_tokenizer("smollm2", tmp_path_factory.mktemp("smollm2"))
    return AutoTokenizer.from_pretrained(folder)


def test_ids_are_those_of_the_published_tokenizer(tokenizer):
    messages = [{"role": "user", "content": "What is 123?"}]
    asked = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    assert asked == PUBLISHED


def test_a_text_comes_back_as_it_was(tokenizer):
    text = "  It is 12 , isn't it ?\n\n\tÄ 漢字 🙂 <|im_end|>"
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.decode(tokenizer.encode(text), skip_special_tokens=True) == text[:-10]
    assert (tokenizer.eos_token_id, tokenizer.pad_token_id, tokenizer.bos_token_id) == (2, 2, 1)


@pytest.mark.slow
def test_the_model_knows_the_capital_of_france(tmp_path):
    packaged(smollm2_model.PACKAGE, smollm2_model.FILE)  # or skip
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = smollm2_model.make_smollm2(tmp_path / "model")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    messages = [{"role": "user", "content": "What is the capital of France?"}]
    asked = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt")
    ids = model.generate(**asked, max_new_tokens=32, do_sample=False)[0]
    assert ids[-1] == tokenizer.eos_token_id
    assert "Paris" in tokenizer.decode(ids[len(asked["input_ids"][0]) :])
