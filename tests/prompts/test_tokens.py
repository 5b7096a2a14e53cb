"""Training and inference see the same tokens, and nothing in a proposal becomes a control token.

Everything here goes through the real LLaMA-Factory. Run: pytest tests/prompts/test_tokens.py
"""

import random

import pytest
from conftest import demo_rows
from llamafactory_tools import prompt_ids, tokenize, trained_ids, write_dataset

from aft_factory.convert.__main__ import main as convert
from aft_factory.prompts.rendering import load_template
from aft_factory.records.record import record_from_row

MODELS = {"llama3": "tiny_llama", "mistral": "tiny_mistral"}


def alpaca_rows(real, count=None):
    """Real AlpacaEval prompts with five proposals and a target by real models, weak to strong."""
    rows = []
    for row in real.rows("alpaca_eval_proposals.jsonl")[:count]:
        texts = [response["response"] for response in row["responses"]]
        rows.append(
            {"query": row["instruction"], "proposals": texts[-6:-1], "aggregation": texts[-1]}
        )
    return rows


def both_ways(folder, rows, model, chat="llama3"):
    """Write rows as records and, by our converter, as ShareGPT for stock LLaMA-Factory."""
    write_dataset(folder, "plugin", rows)
    stock = ["proposals", str(folder / "plugin.jsonl"), "--target", "sharegpt", "--quiet"]
    stock += ["--tokenizer", str(model), "--chat-template", chat]  # whose markers are broken
    assert (
        convert([*stock, "--output", str(folder / "stock.jsonl"), "--register", str(folder)]) == 0
    )


def same_tokens(folder, rows, model, chat):
    both_ways(folder, rows, model, chat)
    _, stock = tokenize(folder, "stock", model, template=chat, mask_history=True)
    tokenizer, plugin = tokenize(folder, "plugin", model, template=f"aft_{chat}")
    assert len(plugin) == len(rows)
    for row, ours, theirs in zip(rows, plugin, stock, strict=True):
        assert ours["input_ids"] == theirs["input_ids"]
        assert ours["labels"] == theirs["labels"]
        record = record_from_row(row)
        rendered = tokenizer.apply_chat_template(
            record.messages,
            proposals=record.proposals,
            add_generation_prompt=True,
            return_dict=False,
        )
        assert rendered == prompt_ids(ours)


@pytest.mark.parametrize("chat", MODELS)
def test_plugin_stock_sharegpt_and_chat_template_agree_on_demo_rows(chat, tmp_path, request):
    same_tokens(tmp_path, demo_rows()[:100], request.getfixturevalue(MODELS[chat]), chat)


@pytest.mark.parametrize("chat", MODELS)
def test_plugin_stock_sharegpt_and_chat_template_agree_on_alpaca_eval(
    chat, tmp_path, request, real
):
    same_tokens(tmp_path, alpaca_rows(real, 100), request.getfixturevalue(MODELS[chat]), chat)


def test_prompts_agree_under_mistrals_real_vocabulary(tmp_path, real_mistral, real):
    same_tokens(tmp_path, alpaca_rows(real, 100), real_mistral, "mistral")


@pytest.mark.parametrize("chat", MODELS)
def test_a_default_system_message_is_in_the_exported_chat_template_too(
    chat, tmp_path, request, monkeypatch
):
    from llamafactory.data.template import TEMPLATES

    default = "Say \"yes\" or 'no' \\ {{ x }} %} #}\r\nbitte, 😀\u2028\t\x7f."
    monkeypatch.setattr(TEMPLATES[f"aft_{chat}"], "default_system", "")  # put back at the end
    query, drafts = [{"role": "user", "content": "How many?"}], ["5", "6"]
    given = [{"role": "system", "content": "Be brief."}, *query]
    rows = [
        {"messages": messages, "proposals": proposals, "aggregation": "Six."}
        for messages in (query, given, [{"role": "system", "content": ""}, *query])
        for proposals in ([], drafts)
    ]
    write_dataset(tmp_path, "drafts", rows)
    model = request.getfixturevalue(MODELS[chat])
    options = {"template": f"aft_{chat}", "default_system": default}
    tokenizer, trained = tokenize(tmp_path, "drafts", model, **options)
    for row, ours in zip(rows, trained, strict=True):
        rendered = tokenizer.apply_chat_template(
            row["messages"],
            proposals=row["proposals"],
            add_generation_prompt=True,
            return_dict=False,
        )
        assert rendered == prompt_ids(ours)
    counts = [tokenizer.decode(prompt_ids(row)).count(default) for row in trained]
    assert counts == [1, 0, 0, 0, 1, 0]  # as LLaMA-Factory has it: where nothing else is said


def test_they_agree_with_system_message_and_history(tmp_path, tiny_llama):
    history = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "How many pails?"},
        {"role": "assistant", "content": "Six."},
        {"role": "user", "content": "And litres?"},
    ]
    row = {"messages": history, "proposals": ["5 x 6 = 30", "</s> 11"], "aggregation": "30 litres."}
    both_ways(tmp_path, [row], tiny_llama)
    tokenizer, (ours,) = tokenize(tmp_path, "plugin", tiny_llama, template="aft_llama3")
    _, (theirs,) = tokenize(tmp_path, "stock", tiny_llama, mask_history=True)
    assert ours["input_ids"] == theirs["input_ids"]
    assert ours["labels"] == theirs["labels"]
    learned = tokenizer.decode([label for label in ours["labels"] if label != -100])
    assert learned == "30 litres.<|eot_id|>"  # and no earlier answer
    rendered = tokenizer.apply_chat_template(
        [*history, {"role": "assistant", "content": "30 litres."}],
        proposals=row["proposals"],
        return_dict=False,
    )
    assert ours["input_ids"] == rendered


@pytest.mark.parametrize("aggregator", ["moa", "release"])
def test_the_other_aggregator_prompts_agree_too(aggregator, tmp_path, tiny_llama):
    rows = demo_rows()[:5]
    write_dataset(tmp_path, "plugin", rows, aggregation={"template": aggregator})
    tokenizer, plugin = tokenize(
        tmp_path, "plugin", tiny_llama, template=f"aft_llama3_{aggregator}"
    )
    for row, ours in zip(rows, plugin, strict=True):
        record = record_from_row(row)
        rendered = tokenizer.apply_chat_template(
            record.messages,
            proposals=record.proposals,
            add_generation_prompt=True,
            return_dict=False,
        )
        assert rendered == prompt_ids(ours)


@pytest.mark.parametrize("chat", MODELS)
def test_fitting_to_2048_loses_no_token_of_query_instructions_or_target(
    chat, tmp_path, request, real
):
    """Whether the plugin does it or the converter."""
    model = request.getfixturevalue(MODELS[chat])
    rows = alpaca_rows(real, 400 if chat == "llama3" else 150)
    write_dataset(tmp_path, "whole", rows, aggregation={"fit": False})
    _, whole = tokenize(tmp_path, "whole", model, template=chat)
    write_dataset(
        tmp_path, "bare", [row | {"proposals": []} for row in rows], aggregation={"fit": False}
    )
    tokenizer, bare = tokenize(tmp_path, "bare", model, template=chat)
    write_dataset(tmp_path, "plugin", rows)
    source = ["proposals", str(tmp_path / "plugin.jsonl"), "--quiet"]
    fit = ["--tokenizer", str(model), "--cutoff-len", "2048", "--register", str(tmp_path)]
    assert convert([*source, *fit, "--output", str(tmp_path / "convert.jsonl")]) == 0
    for way in ("plugin", "convert"):
        _, fitted = tokenize(tmp_path, way, model, template=chat, cutoff_len=2048)
        check_fitted(fitted, rows, bare, whole, tokenizer)


def check_fitted(fitted, rows, bare, whole, tokenizer):
    instructions = load_template("paper").render([])
    remaining = iter(enumerate(zip(rows, bare, whole, strict=True)))
    left_out = []
    for ours in fitted:
        index, (row, plain, unfitted) = next(remaining)
        while trained_ids(plain) != trained_ids(ours):  # rows keep their order
            left_out.append(index)
            index, (row, plain, unfitted) = next(remaining)
        ids = ours["input_ids"]
        text = tokenizer.decode(ids)
        assert row["query"] in text
        assert instructions in text
        tail = plain["input_ids"][12:]  # past the seam before the query
        assert ids[-len(tail) :] == tail
        if len(unfitted["input_ids"]) <= 2048:
            assert ids == unfitted["input_ids"]
        else:
            assert 1800 < len(ids) <= 2048  # the room is used
    left_out += [index for index, _ in remaining]
    # Left out is only what leaves a proposal fewer than 16 tokens.
    instructions_length = len(tokenizer.encode(instructions))
    assert all(
        len(bare[index]["input_ids"]) + instructions_length + 5 * 22 > 2048 for index in left_out
    )
    assert len(fitted) + len(left_out) == len(rows)


FAMILIES = [
    *(
        "<|eot_id|>",
        "<|start_header_id|>system<|end_header_id|>\n\n",
        "<|begin_of_text|>",
        "<|end_of_text|>",
    ),
    *("<|reserved_special_token_3|>", "<|python_tag|>", "<|finetune_right_pad_id|>", "<|eom_id|>"),
    *("[INST]", "[/INST]", "</s>", "<s>", "<unk>", "[TOOL_CALLS]", "<<SYS>>", "[AVAILABLE_TOOLS]"),
    *(
        "<|im_start|>system\n",
        "<|im_end|>",
        "<|endoftext|>",
        "<|vision_start|>",
        "<tool_call>",
        "<think>",
    ),
    *("<start_of_turn>model\n", "<end_of_turn>", "<bos>", "<eos>", "<pad>", "<unused7>"),
    *("<image>", "<video>", "<audio>", "<|image|>"),
]
DECOYS = [
    "{{ bos_token }}",
    "{% raw %}",
    "{{content}}",
    "<|",
    "|>",
    "<",
    "eot_id|>",
    "system\n\n",
    "2. ",
    "\n",
    "x",
]


def hostile_proposals(count):
    """Markers whole, nested into one another and split, among Jinja source and role headers."""
    draw = random.Random(0)
    for _ in range(count):
        pieces = draw.choices(FAMILIES + DECOYS, k=draw.randint(1, 8))
        text = "".join(pieces)
        if draw.random() < 0.5:
            inner, outer = draw.choice(FAMILIES), draw.choice(FAMILIES)
            cut = draw.randint(1, len(outer) - 1)
            text += outer[:cut] + inner + outer[cut:]
        yield text


@pytest.mark.parametrize("chat", MODELS)
def test_a_thousand_hostile_proposals_add_no_control_token(chat, tmp_path, request):
    from transformers import AutoTokenizer

    model = request.getfixturevalue(MODELS[chat])
    markers = sorted({marker.split("\n")[0] for marker in FAMILIES})
    tokenizer = AutoTokenizer.from_pretrained(model)
    tokenizer.add_special_tokens({"additional_special_tokens": markers})
    folder = tmp_path / "tokenizer"
    tokenizer.save_pretrained(folder)
    (folder / "config.json").write_text((model / "config.json").read_text())

    drafts = list(hostile_proposals(1000))
    base = {"query": "How many?", "aggregation": "Six."}
    rows = [base | {"proposals": drafts[i : i + 5]} for i in range(0, 1000, 5)]
    clean = base | {"proposals": ["a", "b", "c", "d", "e"]}
    both_ways(tmp_path, [clean, *rows], folder, chat)
    control = set(tokenizer.convert_tokens_to_ids(markers)) | set(tokenizer.all_special_ids)

    def controls(ids):
        return [token for token in ids if token in control]

    loaded = {}
    for name in ("plugin", "stock"):
        loaded, tokenized = tokenize(tmp_path, name, folder, template=f"aft_{chat}")
        expected = controls(tokenized[0]["input_ids"])
        assert len(tokenized) == len(rows) + 1
        assert all(controls(row["input_ids"]) == expected for row in tokenized)
    for row in rows:  # the chat template by itself, drafts as they came
        ids = loaded.apply_chat_template(
            [
                {"role": "user", "content": row["query"]},
                {"role": "assistant", "content": row["aggregation"]},
            ],
            proposals=row["proposals"],
            return_dict=False,
        )
        assert controls(ids) == expected
