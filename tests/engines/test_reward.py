"""Reward models: what they read, and that a score depends on nothing but conversation and response.

The models are real ones of random weights, run by transformers and by a real vLLM server.
"""

import asyncio
import contextlib
import json
import random
import shutil
import sys
import threading
from pathlib import Path

import pytest
from conftest import ROOT, demo_rows
from reward_tools import free_port, http_server, logits
from tiny_model import make_tiny_reward_model
from vllm_tools import vllm_server_of

from aft_factory.engines.engine import EngineError
from aft_factory.engines.reward import PairEncoder
from aft_factory.engines.reward_server import ServerReward
from aft_factory.engines.transformers_reward import TransformersReward, batches
from aft_factory.engines.vllm_reward import VllmReward
from aft_factory.errors import MissingPackage, UsageError
from aft_factory.prompts.markers import known_markers
from aft_factory.prompts.tokenizer import load_tokenizer
from aft_factory.rank.__main__ import main as rank
from aft_factory.records.record import record_from_row

QUERY = [{"role": "user", "content": "How many pails?"}]
HEAD = "<|start_header_id|>{}<|end_header_id|>\n\n{}<|eot_id|>"
TOLERANCE = 1e-4  # between batches of different shape, in float32


def _texts() -> list[str]:
    templates = [path.read_text(encoding="utf-8") for path in ROOT.glob("templates/**/*.jinja")]
    return [text for row in demo_rows() for text in (row["query"], row["aggregation"])] + templates


@pytest.fixture(scope="module")
def reward_dir(tmp_path_factory) -> Path:
    """A tiny reward model that has no pad token."""
    return make_tiny_reward_model(tmp_path_factory.mktemp("reward"), _texts(), context=4096)


@pytest.fixture(scope="module")
def mistral_reward_dir(tmp_path_factory) -> Path:
    return make_tiny_reward_model(tmp_path_factory.mktemp("reward"), _texts(), kind="mistral")


@pytest.fixture(scope="module")
def reward(reward_dir) -> TransformersReward:
    return TransformersReward.load(str(reward_dir))


def score(model, pairs) -> list[float | EngineError]:
    return asyncio.run(model.score(pairs))


def varied_pairs() -> list[tuple[list[dict], str]]:
    """Real drafts, very short and very long ones, an empty one, ones that end in eos, a dialogue."""
    rows = demo_rows()[:6]
    pairs = [
        ([{"role": "user", "content": row["query"]}], proposal["response"])
        for row in rows
        for proposal in row["proposals"]
    ]
    long = " ".join(row["aggregation"] for row in demo_rows())
    dialogue = [{"role": "system", "content": "Be brief."}, *QUERY]
    dialogue += [{"role": "assistant", "content": "Five."}, {"role": "user", "content": "Sure?"}]
    responses = [
        "",
        "6",
        long[:6000],
        long[:3000],
        "six<|end_of_text|>",
        "six</s></s>",
        "<|eot_id|>",
    ]
    return pairs + [(QUERY, response) for response in responses] + [(dialogue, "Yes.")]


def text_classification_scores(folder, pairs) -> list[float]:
    """The published recipe: template, BOS text removed, tokenizer with special tokens, batch 1."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    scores = []
    for messages, response in pairs:
        chat = [*messages, {"role": "assistant", "content": response}]
        text = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=False)
        inputs = tokenizer(text.replace(tokenizer.bos_token, ""), return_tensors="pt")
        with torch.no_grad():
            scores.append(float(model(**inputs).logits[0, 0]))
    return scores


class TestWhatTheModelReads:
    def test_the_conversation_and_the_response_in_the_chat_template_with_one_bos(self, reward_dir):
        tokenizer = load_tokenizer(str(reward_dir))
        [ids] = PairEncoder(tokenizer, "own", None).encode([(QUERY, "Six.")])
        assert tokenizer.decode(ids) == "<|begin_of_text|>" + HEAD.format(
            "user", "How many pails?"
        ) + HEAD.format("assistant", "Six.")

    def test_one_bos_where_only_the_template_gives_it(self, reward_dir):
        from tokenizers import processors

        tokenizer = load_tokenizer(str(reward_dir))
        [expected] = PairEncoder(tokenizer, "own", None).encode([(QUERY, "Six.")])
        tokenizer.backend_tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
        assert tokenizer("Six.")["input_ids"][0] != tokenizer.bos_token_id
        assert PairEncoder(tokenizer, "own", None).encode([(QUERY, "Six.")]) == [expected]

    def test_one_bos_where_only_the_tokenizer_gives_it(self, reward_dir, tmp_path):
        template = (reward_dir / "chat_template.jinja").read_text(encoding="utf-8")
        path = tmp_path / "no_bos.jinja"
        path.write_text(template.replace("{{- bos_token -}}", ""), encoding="utf-8")
        tokenizer = load_tokenizer(str(reward_dir))
        assert PairEncoder(tokenizer, str(path), None).encode([(QUERY, "Six.")]) == PairEncoder(
            tokenizer, "own", None
        ).encode([(QUERY, "Six.")])

    def test_a_template_with_two_bos_is_refused(self, reward_dir, tmp_path):
        template = (reward_dir / "chat_template.jinja").read_text(encoding="utf-8")
        path = tmp_path / "two_bos.jinja"
        path.write_text(template.replace("bos_token", "bos_token + bos_token"))
        [error] = PairEncoder(load_tokenizer(str(reward_dir)), str(path), None).encode(
            [(QUERY, "")]
        )
        assert (error.kind, "two BOS" in str(error)) == ("refused", True)

    @pytest.mark.parametrize("marker", ["<|eot_id|>", "<|begin_of_text|>", "</s>", "<s>", "[INST]"])
    @pytest.mark.parametrize("kind", ["reward_dir", "mistral_reward_dir"])
    def test_control_tokens_in_texts_stay_text(self, kind, marker, request):
        tokenizer = load_tokenizer(str(request.getfixturevalue(kind)))
        encoder = PairEncoder(tokenizer, "own", None)
        special = set(tokenizer.all_special_ids) | set(tokenizer.added_tokens_decoder)
        asked = [{"role": "user", "content": f"What is {marker}?"}]
        plain, marked = encoder.encode([(QUERY, "It ends."), (asked, f"It{marker} ends.")])
        assert [i for i in marked if i in special] == [i for i in plain if i in special]

    def test_the_callers_messages_are_not_changed(self, reward_dir):
        messages = [{"role": "user", "content": "What is <|eot_id|>?"}]
        PairEncoder(load_tokenizer(str(reward_dir)), "own", None).encode([(messages, "A token.")])
        assert messages == [{"role": "user", "content": "What is <|eot_id|>?"}]

    def test_a_model_without_a_chat_template_asks_for_one(self, reward_dir, tmp_path):
        folder = shutil.copytree(reward_dir, tmp_path / "bare")
        (folder / "chat_template.jinja").unlink()
        with pytest.raises(UsageError, match="--reward-chat-template"):
            TransformersReward.load(str(folder))
        given = TransformersReward.load(str(folder), chat_template="llama3")
        own = TransformersReward.load(str(reward_dir))
        # Its own breaks the markers of all families, the one that is given this tokenizer's alone.
        safe = known_markers().sanitise
        pairs = [pair for pair in varied_pairs() if safe(pair[1]) == pair[1]]
        assert len(pairs) > 20
        assert score(given, pairs) == score(own, pairs)


class TestScores:
    def test_are_those_of_the_published_recipe(self, reward, reward_dir):
        pairs = [pair for pair in varied_pairs() if "<" not in pair[1]]  # it has no sanitising
        expected = text_classification_scores(reward_dir, pairs)
        assert score(reward, pairs) == pytest.approx(expected, abs=TOLERANCE)
        assert max(expected) - min(expected) > 0.5  # else equal scores prove nothing

    @pytest.mark.parametrize("pad", [None, "<|end_of_text|>", "<|eot_id|>", "!"])
    def test_do_not_depend_on_batch_order_or_pad_token(self, reward, reward_dir, tmp_path, pad):
        """`<|eot_id|>` ends every input, `!` is a token of the texts."""
        folder = shutil.copytree(reward_dir, tmp_path / "padded")
        tokenizer = load_tokenizer(str(folder))
        tokenizer.pad_token = pad
        tokenizer.save_pretrained(folder)
        from transformers import AutoConfig

        AutoConfig.from_pretrained(folder, pad_token_id=tokenizer.pad_token_id).save_pretrained(
            folder
        )
        padded = TransformersReward.load(str(folder))
        pairs = [*varied_pairs(), (QUERY, "six!!!"), (QUERY, "!")]
        single = [score(reward, [pair])[0] for pair in pairs]
        assert score(padded, pairs) == pytest.approx(single, abs=TOLERANCE)
        order = random.Random(0).sample(range(len(pairs)), len(pairs))
        shuffled = score(padded, [pairs[i] for i in order])
        assert shuffled == pytest.approx([single[i] for i in order], abs=TOLERANCE)

    @pytest.mark.parametrize("budget", [1, 500, 5000])
    def test_do_not_depend_on_the_token_budget(self, reward, reward_dir, budget):
        other = TransformersReward.load(str(reward_dir), batch_tokens=budget)
        pairs = varied_pairs()
        assert score(other, pairs) == pytest.approx(score(reward, pairs), abs=TOLERANCE)

    def test_of_an_encoder_are_its_own(self, reward_dir, tmp_path):
        """A model that is no decoder has its own way to a logit, with the attention mask."""
        import torch
        from transformers import BertConfig, BertForSequenceClassification

        tokenizer = load_tokenizer(str(reward_dir))
        torch.manual_seed(0)
        sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
        config = BertConfig(
            vocab_size=len(tokenizer), num_labels=1, max_position_embeddings=4096, **sizes
        )
        BertForSequenceClassification(config).save_pretrained(tmp_path)
        tokenizer.save_pretrained(tmp_path)
        pairs = varied_pairs()
        bert = TransformersReward.load(str(tmp_path))
        single = [score(bert, [pair])[0] for pair in pairs]
        assert len(set(single)) > len(pairs) // 2
        assert score(bert, pairs) == pytest.approx(single, abs=TOLERANCE)

    def test_of_a_decoder_that_sees_both_ways_do_not_see_the_padding(self, reward_dir, tmp_path):
        import torch
        from transformers import Gemma3TextConfig, Gemma3TextForSequenceClassification

        tokenizer = load_tokenizer(str(reward_dir))
        torch.manual_seed(0)
        sizes = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2, "head_dim": 32}
        config = Gemma3TextConfig(
            vocab_size=len(tokenizer),
            num_labels=1,
            num_attention_heads=2,
            num_key_value_heads=1,
            use_bidirectional_attention=True,
            initializer_range=0.2,
            **sizes,
        )
        Gemma3TextForSequenceClassification(config).save_pretrained(tmp_path)
        tokenizer.save_pretrained(tmp_path)
        gemma = TransformersReward.load(str(tmp_path))
        pairs = varied_pairs()
        single = [score(gemma, [pair])[0] for pair in pairs]
        assert max(single) - min(single) > 0.1
        assert score(gemma, pairs) == pytest.approx(single, abs=TOLERANCE)

    def test_of_no_pairs_are_none(self, reward):
        assert score(reward, []) == []

    def test_are_of_the_label_asked_for(self, reward_dir, tmp_path):
        import torch
        from transformers import AutoModelForSequenceClassification

        folder = shutil.copytree(reward_dir, tmp_path / "three")
        one = AutoModelForSequenceClassification.from_pretrained(reward_dir)
        three = AutoModelForSequenceClassification.from_pretrained(
            reward_dir, num_labels=3, ignore_mismatched_sizes=True
        )
        weight = one.score.weight.data
        three.score.weight.data = torch.cat([weight, 2 * weight, -weight])
        three.save_pretrained(folder)
        expected = score(TransformersReward.load(str(reward_dir)), varied_pairs())
        doubled = score(TransformersReward.load(str(folder), label=1), varied_pairs())
        assert doubled == pytest.approx([2 * x for x in expected], abs=2 * TOLERANCE)
        with pytest.raises(UsageError, match="3 labels"):
            TransformersReward.load(str(folder))
        with pytest.raises(UsageError, match="expected 0 to 2"):
            TransformersReward.load(str(folder), label=3)


class TestFailures:
    def test_a_pair_that_is_too_long_is_refused_and_harms_no_other(self, reward, reward_dir):
        short = TransformersReward.load(str(reward_dir), max_length=100)
        first, error, last = score(short, [(QUERY, "Six."), (QUERY, "so " * 200), (QUERY, "Five")])
        expected = score(reward, [(QUERY, "Six."), (QUERY, "Five")])
        assert [first, last] == pytest.approx(expected, abs=TOLERANCE)
        assert error.kind == "refused"
        assert "the reward model reads at most 100" in str(error)

    def test_the_models_context_is_a_limit_and_is_used_in_full(self, reward):
        encoder = reward._encoder
        assert encoder.limit == 4096
        used = len(encoder.encode([(QUERY, "")])[0])
        fits, exceeds = encoder.encode([(QUERY, "!a" * ((4096 - used) // 2)), (QUERY, "!a" * 3000)])
        assert len(fits) in (4095, 4096)
        assert exceeds.kind == "refused"

    def test_positions_that_a_model_keeps_for_the_padding_are_no_context(
        self, reward_dir, tmp_path
    ):
        """RoBERTa and its kind: `max_position_embeddings` is 514, of which a text has 512."""
        import torch
        from transformers import RobertaConfig, RobertaForSequenceClassification

        tokenizer = load_tokenizer(str(reward_dir))
        torch.manual_seed(0)
        sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
        config = RobertaConfig(
            vocab_size=len(tokenizer), num_labels=1, max_position_embeddings=66, **sizes
        )
        RobertaForSequenceClassification(config).save_pretrained(tmp_path)
        tokenizer.save_pretrained(tmp_path)
        for max_length in (None, 65):
            roberta = TransformersReward.load(str(tmp_path), max_length=max_length)
            responses = ["!" * n for n in range(64)]
            encoded = roberta._encoder.encode([(QUERY, response) for response in responses])
            lengths = [len(ids) for ids in encoded if not isinstance(ids, EngineError)]
            assert max(lengths) in (63, 64)
            scores = score(roberta, [(QUERY, response) for response in responses])
            kinds = [s.kind for s in scores if isinstance(s, EngineError)]
            assert kinds == ["refused"] * (64 - len(lengths))

    def test_the_tokenizers_limit_holds_unless_another_is_asked_for(self, reward_dir, tmp_path):
        folder = shutil.copytree(reward_dir, tmp_path / "short")
        tokenizer = load_tokenizer(str(folder))
        tokenizer.model_max_length = 50
        tokenizer.save_pretrained(folder)
        assert TransformersReward.load(str(folder))._encoder.limit == 50
        assert TransformersReward.load(str(folder), max_length=200)._encoder.limit == 200
        assert TransformersReward.load(str(folder), max_length=9999)._encoder.limit == 4096

    def test_what_the_network_cannot_read_is_an_error_and_no_crash(self, reward_dir):
        model = TransformersReward.load(str(reward_dir))
        model._network.resize_token_embeddings(5)
        with pytest.raises(EngineError, match=r"IndexError.*--reward-max-length") as caught:
            score(model, [(QUERY, "Six.")])
        assert caught.value.kind == "fatal"

    def test_a_score_that_is_no_number_is_an_error(self, reward_dir):
        model = TransformersReward.load(str(reward_dir))
        model._network.score.weight.data[0, 0] = float("nan")
        [error] = score(model, [(QUERY, "Six.")])
        assert (error.kind, str(error)) == (
            "refused",
            "the reward model returned nan; try --reward-dtype float32",
        )

    def test_a_conversation_that_the_template_refuses_harms_no_other(self, reward_dir, tmp_path):
        template = (reward_dir / "chat_template.jinja").read_text(encoding="utf-8")
        path = tmp_path / "strict.jinja"
        strict = "{%- if 'brief.' in messages[0].content -%}{{ raise_exception('too brief') }}{%- endif -%}"
        path.write_text(strict + template, encoding="utf-8")
        model = TransformersReward.load(str(reward_dir), chat_template=str(path))
        system = [{"role": "system", "content": "Be brief."}, *QUERY]
        error, number = score(model, [(system, "Six."), (QUERY, "Six.")])
        assert (error.kind, "too brief" in str(error)) == ("refused", True)
        assert isinstance(number, float)

    def test_a_model_without_a_score_head_is_refused(self, tiny_llama, tmp_path):
        """transformers would go on with a random one, vLLM with what is in memory."""
        folder = shutil.copytree(tiny_llama, tmp_path / "headless")
        config = json.loads((folder / "config.json").read_text())
        config |= {"architectures": ["LlamaForSequenceClassification"], "id2label": {"0": "good"}}
        (folder / "config.json").write_text(json.dumps(config))
        for name in map(str, (tiny_llama, folder)):
            with pytest.raises(UsageError, match=r"no weights for score\.weight"):
                TransformersReward.load(name, chat_template="llama3")
            with pytest.raises(UsageError, match=r"no weights for score\.weight"):
                asyncio.run(VllmReward.start(name, chat_template="llama3"))

    def test_what_looks_for_a_score_head_is_needed_for_vllm(self, reward_dir, monkeypatch):
        monkeypatch.setitem(sys.modules, "accelerate", None)
        with pytest.raises(MissingPackage, match="pip install accelerate"):
            asyncio.run(VllmReward.start(str(reward_dir)))

    def test_a_folder_without_a_model_is_refused(self, tmp_path):
        with pytest.raises(UsageError, match="cannot load"):
            TransformersReward.load(str(tmp_path))


class TestRunning:
    def test_the_event_loop_stays_free(self, reward):
        async def ticks_while_scoring() -> int:
            task = asyncio.create_task(reward.score(varied_pairs() * 3))
            ticks = 0
            while not task.done():
                await asyncio.sleep(0.001)
                ticks += 1
            await task
            return ticks

        assert asyncio.run(ticks_while_scoring()) > 10

    def test_calls_at_once_get_their_own_scores(self, reward):
        pairs = varied_pairs()

        async def at_once() -> list[list]:
            return await asyncio.gather(*(reward.score([pair]) for pair in pairs))

        singles = [scores[0] for scores in asyncio.run(at_once())]
        assert singles == pytest.approx(score(reward, pairs), abs=TOLERANCE)

    def test_close_stops_the_thread(self, reward_dir):
        model = TransformersReward.load(str(reward_dir))
        score(model, [(QUERY, "Six.")])
        [thread] = model._worker._threads
        assert thread.is_alive()
        asyncio.run(model.close())
        thread.join(5)
        assert not thread.is_alive()

    def test_close_ends_it_after_the_batch_at_hand(self, reward_dir):
        """A thread that goes on would keep the process from its end."""
        model = TransformersReward.load(str(reward_dir), batch_tokens=1)
        logits_of, computed, begun, go_on = model._logits, [], threading.Event(), threading.Event()

        def logits_then_wait(batch):
            computed.append(batch)
            begun.set()
            go_on.wait(60)
            return logits_of(batch)

        model._logits = logits_then_wait

        async def close_meanwhile() -> None:
            task = asyncio.create_task(model.score([(QUERY, "Six.")] * 5))
            await asyncio.to_thread(begun.wait, 60)
            await model.close()
            go_on.set()
            await task

        with pytest.raises(EngineError, match="closed"):
            asyncio.run(close_meanwhile())
        assert len(computed) == 1

    def test_batches_hold_every_row_once_and_keep_the_budget(self):
        draw = random.Random(0)
        for budget in (1, 100, 1000):
            lengths = [draw.randint(1, 300) for _ in range(200)]
            cut = list(batches(lengths, budget))
            assert sorted(row for batch in cut for row in batch) == list(range(200))
            sizes = [len(batch) * max(lengths[row] for row in batch) for batch in cut]
            assert all(s <= budget or len(b) == 1 for s, b in zip(sizes, cut, strict=True))


def ask(url, pairs, *, tokenizer="no/such", **options) -> list[float | EngineError]:
    """Connect, score and close."""

    async def run() -> list[float | EngineError]:
        model = await ServerReward.connect(url, tokenizer=tokenizer, **options)
        try:
            return await model.score(pairs)
        finally:
            await model.close()

    return asyncio.run(run())


class TestServerAnswers:
    """What becomes of answers that vLLM gives on bad days."""

    @pytest.mark.parametrize(
        ("status", "headers", "text", "kind", "retry_after"),
        [
            (429, {"Retry-After": "7"}, "slow down", "retry", 7.0),
            (429, {"Retry-After": "Thu, 01 Jan 1970 00:00:00 GMT"}, "slow down", "retry", 0.0),
            (429, {}, "slow down", "retry", None),
            (429, {}, '{"error": {"code": "insufficient_quota"}}', "fatal", None),
            (402, {}, "pay first", "fatal", None),
            (503, {}, "starting", "retry", None),
            (500, {}, "", "retry", None),
            (400, {}, "bad input", "refused", None),
            (200, {}, "<html>", "retry", None),
            (200, {}, "{}", "refused", None),
            (200, {}, logits(), "fatal", None),
            *(
                (200, {}, f'{{"data": [{{"probs": [{value}]}}]}}', "refused", None)
                for value in (
                    *("NaN", "Infinity", "-Infinity", "1e999", "9" * 400),
                    *('"NaN"', '"inf"', '"good"', "null", "true", "[1.0]"),
                )
            ),
            (401, {}, "wrong key", "fatal", None),
            (404, {}, "nobody takes it", "refused", None),
            (200, {}, logits(0.1, 0.2), "fatal", None),
            (200, {"Content-Length": "99"}, "cut off", "retry", None),
        ],
    )
    def test_a_failure_stands_in_its_place_or_ends_all(
        self, reward_dir, status, headers, text, kind, retry_after
    ):
        """Pair `a` fails, pair `b` is scored."""
        [bad] = PairEncoder(load_tokenizer(str(reward_dir)), "own", None).encode([(QUERY, "a")])

        def answer(body):
            return (status, headers, text) if body["input"] == bad else (200, {}, logits(2.5))

        pairs = [(QUERY, "b"), (QUERY, "a"), (QUERY, "b")]
        with http_server(answer) as url:
            if kind == "fatal":
                with pytest.raises(EngineError) as caught:
                    ask(url, pairs, tokenizer=str(reward_dir))
                error = caught.value
            else:
                before, error, after = ask(url, pairs, tokenizer=str(reward_dir))
                assert (before, after) == (2.5, 2.5)
        assert (error.kind, error.retry_after) == (kind, retry_after)

    def test_one_of_several_logits_by_its_label(self, reward_dir):
        with http_server(lambda body: (200, {}, logits(0.1, 0.2))) as url:
            assert ask(url, [(QUERY, "b")], tokenizer=str(reward_dir), label=1) == [0.2]

    def test_a_server_that_dies_is_asked_again_and_told_from_one_that_only_fails(self, reward_dir):
        async def run(url, stop) -> list:
            model = await ServerReward.connect(url, tokenizer=str(reward_dir))
            failing = [*await model.score([(QUERY, "Six.")]), await model.reachable()]
            stop()
            gone = [*await model.score([(QUERY, "Six.")]), await model.reachable()]
            await model.close()
            return [failing, gone]

        with contextlib.ExitStack() as stack:
            url = stack.enter_context(http_server(lambda body: (503, {}, "")))
            results = asyncio.run(run(url, stack.close))
        assert [(error.kind, there) for error, there in results] == [
            ("retry", True),
            ("retry", False),
        ]

    def test_a_login_in_its_address_is_in_no_message(self, reward_dir):
        with http_server(lambda body: (503, {}, "")) as url:
            address = url.replace("://", "://me:xyzzy@")
            [error] = ask(address, [(QUERY, "Six.")], tokenizer=str(reward_dir))
        assert url in str(error)
        assert "xyzzy" not in str(error)

    @pytest.mark.parametrize("root", ["some/other", "/on/another/machine", "../.."])
    def test_what_a_server_says_of_its_model_loads_nothing(self, reward_dir, root, monkeypatch):
        loaded = []
        monkeypatch.setattr(
            "aft_factory.engines.reward_server.load_tokenizer",
            lambda name: loaded.append(name) or load_tokenizer(name),
        )
        with http_server(lambda body: (200, {}, logits(1)), root=root, id=root) as url:
            assert ask(url, [(QUERY, "Six.")], tokenizer=str(reward_dir)) == [1]
        assert loaded == [str(reward_dir)]

    def test_what_a_server_says_reaches_a_terminal_spelled_out(self, reward_dir):
        with (
            http_server(lambda body: (400, {}, "no \x1b[2Jmore")) as url,
            pytest.raises(EngineError, match=r"these settings: no \[2Jmore; a reward model is"),
        ):
            ask(url, [(QUERY, "Six.")], tokenizer=str(reward_dir))

    @pytest.mark.parametrize(
        "answer",
        [
            (400, {}, "no"),
            (200, {}, '{"choices": []}'),
            (
                200,
                {},
                'data: {"choices": [{"delta": {"content": "42"}, "finish_reason": "stop"}]}\n\n',
            ),
        ],
    )
    def test_what_is_no_reward_model_costs_one_pair_and_a_short_one(self, reward_dir, answer):
        asked = []
        pairs = [(QUERY, f"It is {i}.") for i in range(20)]
        with (
            http_server(lambda body: asked.append(body["input"]) or answer) as url,
            pytest.raises(EngineError, match="vllm serve MODEL --runner pooling") as caught,
        ):
            ask(url, pairs, tokenizer=str(reward_dir))
        assert (caught.value.kind, len(asked)) == ("fatal", 2)
        assert len(asked[1]) < len(asked[0])

    def test_pairs_that_are_refused_do_not_keep_others_from_a_score(self, reward_dir):
        [bad] = PairEncoder(load_tokenizer(str(reward_dir)), "own", None).encode([(QUERY, "a")])
        answer = lambda body: (400, {}, "no") if body["input"] == bad else (200, {}, logits(1))  # noqa: E731
        with http_server(answer) as url:
            scores = ask(url, [(QUERY, "a"), (QUERY, "b")], tokenizer=str(reward_dir))
        assert [getattr(score, "kind", score) for score in scores] == ["refused", 1]

    def test_a_pair_that_a_filter_forbids_is_refused_alone(self, reward_dir):
        [bad] = PairEncoder(load_tokenizer(str(reward_dir)), "own", None).encode([(QUERY, "a")])
        answer = lambda body: (403, {}, "no") if body["input"] == bad else (200, {}, logits(1))  # noqa: E731
        for pairs in ([(QUERY, "a"), (QUERY, "b")], [(QUERY, "b"), (QUERY, "a")]):
            with http_server(answer) as url:
                scores = ask(url, pairs, tokenizer=str(reward_dir))
            kinds = {pair[1]: getattr(s, "kind", s) for pair, s in zip(pairs, scores, strict=True)}
            assert kinds == {"a": "refused", "b": 1}

    @pytest.mark.parametrize("listing", [[{"id": "rm"}, {"id": "other"}], (403, "no"), (404, "no")])
    def test_a_list_of_models_of_another_kind_stops_nobody_who_names_one(self, reward_dir, listing):
        with http_server(lambda body: (200, {}, logits(1)), listing=listing) as url:
            assert ask(url, [(QUERY, "b")], tokenizer=str(reward_dir), model="rm") == [1]
            with pytest.raises(UsageError):
                ask(url, [(QUERY, "b")], tokenizer=str(reward_dir))

    def test_a_wrong_url_or_model_is_a_usage_error(self, reward_dir):
        with pytest.raises(UsageError, match="expected a vLLM server at"):
            ask(f"http://127.0.0.1:{free_port()}", [])
        for url in ("localhost:8000", "http://localhost:80a/v1", "http://[::1/v1"):
            with pytest.raises(UsageError, match="expected a URL"):
                ask(url, [])
        with http_server(None) as url, pytest.raises(UsageError, match="got 'rn'; known: rm"):
            ask(url, [], model="rn")
        with http_server(None) as url, pytest.raises(UsageError, match="cannot load the tokenizer"):
            ask(url, [])


@pytest.fixture(scope="module")
def vllm_reward_server(ready_vllm, reward_dir, tmp_path_factory):
    """A real vLLM server with the tiny reward model; its URL."""
    flags = ["--runner", "pooling", "--max-model-len", "2048", "--api-key", "secret"]
    folder = tmp_path_factory.mktemp("vllm")
    with vllm_server_of(ready_vllm, reward_dir, folder, *flags) as url:
        yield url


@pytest.mark.slow
class TestRealServer:
    def test_scores_equal_those_of_transformers(self, vllm_reward_server, reward_dir, reward):
        short = TransformersReward.load(str(reward_dir), max_length=2048)
        pairs = varied_pairs() * 10  # more than are in flight at once
        own = {"tokenizer": str(reward_dir), "api_key": "secret"}
        ours, theirs = score(short, pairs), ask(f"{vllm_reward_server}/v1", pairs, **own)
        numbers = [i for i, ours_ in enumerate(ours) if not isinstance(ours_, EngineError)]
        assert [theirs[i] for i in numbers] == pytest.approx([ours[i] for i in numbers], abs=1e-3)
        assert max(ours[i] for i in numbers) > 1 > 0 > min(ours[i] for i in numbers)
        errors = [i for i in range(len(pairs)) if i not in numbers]
        assert errors  # the longest is longer than 2048
        assert [str(theirs[i]) for i in errors] == [str(ours[i]) for i in errors]

    def test_a_server_without_classify_is_asked_by_pooling(
        self, vllm_reward_server, reward_dir, reward
    ):
        pairs = varied_pairs()[:4]

        async def run() -> list:
            own = {"tokenizer": str(reward_dir), "api_key": "secret"}
            model = await ServerReward.connect(vllm_reward_server, "tiny", **own)
            call, asked = model._ask, []

            async def ask_elsewhere(path, ids):
                asked.append(path)
                return await call(path if path == "/pooling" else "/no-such-path", ids)

            model._ask = ask_elsewhere
            scores = [await model.score(pairs), await model.score(pairs)]
            await model.close()
            assert set(asked[-4:]) == {"/pooling"}
            return scores

        expected = pytest.approx(score(reward, pairs), abs=1e-3)
        assert asyncio.run(run()) == [expected, expected]

    def test_the_servers_context_is_used_in_full(self, vllm_reward_server, reward_dir):
        async def run() -> list:
            own = {"tokenizer": str(reward_dir), "api_key": "secret"}
            model = await ServerReward.connect(vllm_reward_server, "tiny", **own)
            model._encoder.encode = lambda pairs: [[5] * 2048, [5] * 2049]
            scores = await model.score([(QUERY, "")] * 2)
            await model.close()
            return scores

        full, exceeds = asyncio.run(run())
        assert isinstance(full, float)
        assert exceeds.kind == "refused"  # by vLLM itself

    def test_rank_by_its_url_keeps_what_transformers_keeps(
        self, vllm_reward_server, reward_dir, tmp_path, monkeypatch
    ):
        monkeypatch.setenv("OPENAI_API_KEY", "secret")
        rows = [json.dumps({"id": str(i), **row}) for i, row in enumerate(demo_rows()[:10])]
        (tmp_path / "in.jsonl").write_text("\n".join(rows))
        made = []
        served_by = ["--reward-tokenizer", str(reward_dir), "--reward-url"]
        for name, flags in {
            "url": [*served_by, vllm_reward_server],
            "named": [*served_by, f"{vllm_reward_server}/v1", "--reward-model", "tiny"],
            "here": ["--reward-model", str(reward_dir)],
        }.items():
            output = tmp_path / f"{name}.jsonl"
            flags += ["--top-k", "2", "--quiet"]
            assert rank([str(tmp_path / "in.jsonl"), "--output", str(output), *flags]) == 0
            made.append([record_from_row(json.loads(line)) for line in output.open()])
        *served, here = made
        assert len(here) == 10
        for records in served:
            for ours, theirs in zip(records, here, strict=True):
                assert ours.proposals == theirs.proposals
                assert ours.scores == pytest.approx(theirs.scores, abs=1e-3)
                assert ours.meta["ranking"]["model"] == "tiny"

    def test_a_wrong_key_is_a_usage_error(self, vllm_reward_server):
        with pytest.raises(UsageError, match="401"):
            ask(vllm_reward_server, [], api_key="wrong")


@pytest.mark.slow
def test_vllm_in_this_process_gives_the_scores_of_transformers(reward_dir):
    from vllm.v1.engine.exceptions import EngineDeadError

    pairs = varied_pairs()
    args = {"dtype": "float32", "enforce_eager": True, "max_model_len": 2048}
    args |= {"distributed_executor_backend": "uni"}  # one process less to start

    async def run() -> list:
        model = await VllmReward.start(str(reward_dir), engine_args=args)
        try:
            scores = await model.score(pairs)
            model._llm.encode = dead
            with pytest.raises(EngineError, match="has died") as caught:
                await model.score(pairs)
            assert caught.value.kind == "fatal"
            return scores
        finally:
            await model.close()

    async def dead(*args):
        raise EngineDeadError
        yield

    ours = asyncio.run(run())
    theirs = score(TransformersReward.load(str(reward_dir), max_length=2048), pairs)
    assert [str(s) for s in ours if isinstance(s, EngineError)] == [
        str(s) for s in theirs if isinstance(s, EngineError)
    ]
    numbers = [i for i, s in enumerate(theirs) if not isinstance(s, EngineError)]
    assert len(pairs) > len(numbers) > 20
    assert [ours[i] for i in numbers] == pytest.approx([theirs[i] for i in numbers], abs=1e-3)
