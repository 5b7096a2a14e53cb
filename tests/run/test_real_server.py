"""The engine and the runner against a real vLLM server, which all tests of this file share.

What it is asked and tells, the tokens it sees, and kills in the middle of a run.
"""

import asyncio
import contextlib
import json
import random
import signal
import sqlite3
import time
import unittest.mock
from dataclasses import replace

import pytest
from asking_tools import SETTINGS
from conftest import demo_rows
from test_run_resume import Command

from aft_factory.asking.asker import Asker
from aft_factory.engines import openai_engine, openai_replies
from aft_factory.engines.openai_engine import OpenAIEngine
from aft_factory.engines.openai_neutral import NEUTRAL
from aft_factory.engines.sampling import Completion, Request, Sampling
from aft_factory.inference.drafting import Drafting
from aft_factory.inference.drafting_options import DraftingOptions, Trace
from aft_factory.prompts.prelude import chat_template
from aft_factory.prompts.rendering import load_template
from aft_factory.prompts.selection import conversation
from aft_factory.prompts.tokenizer import load_tokenizer
from aft_factory.records.record import record_from_row

pytestmark = pytest.mark.slow

SHORT = Sampling(max_tokens=2, extra={"return_token_ids": True})
QUESTION = [{"role": "user", "content": "How many pails?"}]


def test_vllms_server_decodes_as_asked_whatever_the_models_generation_config(vllm_server):
    """Its generation_config.json says top_k 1, of which all seeds would write the same."""
    sampling = Sampling(1.0, 1.0, None, 8)

    async def texts(neutral):
        engine = await OpenAIEngine.connect([vllm_server])
        try:
            [server] = engine._servers
            assert server._neutral == {"messages": NEUTRAL, "prompt": NEUTRAL}
            if not neutral:
                server._neutral = {}
            replies = [
                await engine.sample(Request(QUESTION, 1, sampling, seed)) for seed in range(6)
            ]
            return {reply.completions[0].text for reply in replies}
        finally:
            await engine.close()

    assert len(asyncio.run(texts(neutral=True))) > 3
    assert len(asyncio.run(texts(neutral=False))) == 1  # so the file is heeded


def test_a_stream_of_vllms_server_says_what_its_plain_answer_says(vllm_server):
    pieces = []

    async def run():
        engine = await OpenAIEngine.connect([vllm_server])
        try:
            request = Request(QUESTION, 3, Sampling(max_tokens=12), 5)
            return await engine.sample(request), await engine.stream(request, pieces.append)
        finally:
            await engine.close()

    plain, streamed = asyncio.run(run())
    texts = [c.text for c in plain.completions]
    assert [c.text for c in streamed.completions] == texts
    assert (streamed.usage.prompt, streamed.usage.completion) == (plain.usage.prompt, 36)
    for i, text in enumerate(texts):
        own = [piece for piece in pieces if piece.index == i]
        assert "".join(piece.text for piece in own) == text
        assert len(own) > 5


def test_vllms_server_tells_cached_tokens_of_single_samples_only(vllm_server):
    def new(number, n=1):
        prompt = f"{number} is a prompt that nobody asked before. " * 60
        return Request(prompt, n, Sampling(max_tokens=8), 7)

    async def main():
        engine = await OpenAIEngine.connect([vllm_server])
        asked = (new(1), new(1), new(2), new(3, n=3), new(3))
        usages = [(await engine.sample(each)).usage for each in asked]
        await engine.close()
        return usages

    untold, again, fresh, several, after = asyncio.run(main())
    assert untold.cached in (None, 0)  # newer versions tell a 0
    assert (fresh.cached, several.cached) == (0, None)
    assert 0 < again.cached < again.prompt
    assert 0 < after.cached < after.prompt == several.prompt


def prompt_ids(url, settings, queries):
    """Send (messages, drafts) through the runner's own path; return the ids the server saw."""
    ids = []

    def reading(data, *rest):
        [choice] = data["choices"]
        ids.append(data.get("prompt_token_ids") or choice["prompt_token_ids"])
        return openai_replies.read_reply(data, *rest)

    async def run():
        engine = await OpenAIEngine.connect([url])
        try:
            for i, (messages, drafts) in enumerate(queries):
                asker = Asker({"": engine}, None, 10)
                sample = Drafting(str(i), 0, settings, asker, {}, Trace())
                await sample(messages, [Completion(text) for text in drafts], layer=0, whole=False)
        finally:
            await engine.close()

    with unittest.mock.patch.object(openai_engine, "read_reply", reading):
        asyncio.run(run())
    assert len(ids) == len(queries)
    return ids


def test_the_release_presets_prompts_are_those_of_the_published_code(vllm_server, tiny_llama, real):
    """Restated from Linzwcs/AFT: a system message of one newline for drafts; the joined drafts after."""
    settings = DraftingOptions(load_template("release"), SHORT, SHORT, proposer_system="\n")
    settings = replace(settings, policy=replace(settings.policy, resamples=0))
    instructions = [
        row["query"][0]["content"] for row in real.rows("alpaca_eval_v2.aft.jsonl")[:100]
    ]
    drafts = ["First draft.\nIn two lines.", "Second", "3. Third"]
    tokenizer = load_tokenizer(str(tiny_llama))

    def published(system, instruction):
        turns = [{"role": "system", "content": system}, {"role": "user", "content": instruction}]
        text = tokenizer.apply_chat_template(
            turns, chat_template=chat_template("llama3"), add_generation_prompt=True, tokenize=False
        )
        return tokenizer(text, add_special_tokens=False)["input_ids"]

    head = load_template("release").render([])  # its text is compared with the code's own elsewhere
    joined = head + "\n" + "\n".join(f"{i + 1}. {p}" for i, p in enumerate(drafts))
    plain = prompt_ids(
        vllm_server, settings, [([{"role": "user", "content": i}], []) for i in instructions]
    )
    assert plain == [published("\n", instruction) for instruction in instructions]
    aggregating = prompt_ids(
        vllm_server, settings, [([{"role": "user", "content": i}], drafts) for i in instructions]
    )
    assert aggregating == [published(joined, instruction) for instruction in instructions]


def test_our_prompts_are_the_training_tokens_of_the_same_record(vllm_server, tiny_llama):
    settings = replace(SETTINGS, proposal=SHORT, final=SHORT)
    settings = replace(settings, policy=replace(settings.policy, resamples=0))
    records = [record_from_row(row) for row in demo_rows()[:30]]
    records.append(replace(records[0], proposals=["so <|eot_id|> [INST]", "b"]))
    tokenizer = load_tokenizer(str(tiny_llama))
    sent = prompt_ids(vllm_server, settings, [(r.messages, r.proposals) for r in records])

    def trained(**inputs):
        text = tokenizer.apply_chat_template(
            chat_template=chat_template("llama3"),
            add_generation_prompt=True,
            tokenize=False,
            **inputs,
        )
        return tokenizer(text, add_special_tokens=False)["input_ids"]

    assert sent == [trained(conversation=conversation(r)) for r in records]
    assert sent == [trained(conversation=r.messages, proposals=r.proposals) for r in records]


@pytest.fixture
def command(tmp_path):
    command = Command()
    command.settle(tmp_path)
    yield command
    command.close()


def test_fifty_kills_of_a_run_lose_nothing_and_ask_nothing_twice(vllm_server, tmp_path, command):
    """Kills land at random moments; what was answered before one stays, to the last character."""
    source = tmp_path / "in.jsonl"
    rows = [{"id": str(i), "query": row["query"]} for i, row in enumerate(demo_rows()[:300])]
    source.write_text("".join(json.dumps(row) + "\n" for row in rows) + "not json\n")
    output = tmp_path / "out.jsonl"
    argv = [str(source), "--output", str(output), "--base-url", vllm_server, "--max-tokens", "6"]
    argv += ["--width", "3", "--layers", "2", "--quiet", "--keep-drafts"]
    argv += ["--in-flight", "2"]  # or it is done before fifty
    journal = tmp_path / "out.jsonl.journal"
    draw = random.Random(0)
    kept: dict[bytes, bytes] = {}
    kills = progress = 0
    while kills < 50:
        command.start(argv)
        # Most kills fall after the first new answer, some before: at any moment of a run.
        wanted = len(kept) + draw.choice([0, 1, 1, 2])
        while not command.ended() and count(journal) < wanted:
            time.sleep(0.002)
        time.sleep(draw.random() * 0.05)
        with contextlib.suppress(ProcessLookupError):
            command.send(signal.SIGKILL)
        if (code := command.code()) != -signal.SIGKILL:
            break  # it was done
        kills += 1
        now = replies(journal)
        assert kept.items() <= now.items()
        progress += len(now) > len(kept)
        kept = now
    assert kills >= 40
    assert progress >= 30
    if code == -signal.SIGKILL:
        command.start(argv)
        code = command.code(600)
    assert code == 0
    summary = json.loads((tmp_path / "out.summary.json").read_text())
    assert (summary["read"], summary["written"], summary["rejected"]) == (301, 300, 1)
    last = replies(journal)
    assert kept.items() <= last.items()
    written = [json.loads(line) for line in output.read_text().splitlines()]
    assert [row["id"] for row in written] == [row["id"] for row in rows]
    assert [len(layer["drafts"]) for layer in written[0]["layers"]] == [3, 3, 1]
    assert summary["session"]["requests_asked"] <= len(last) - len(kept)


def replies(journal):
    """The replies in a journal, by key."""
    return dict(select(journal, "key, reply"))


def count(journal):
    [(number,)] = select(journal, "count(*)") or [(0,)]
    return number


def select(journal, columns):
    if not journal.exists():
        return []
    try:
        with contextlib.closing(sqlite3.connect(f"file:{journal}?mode=ro", uri=True)) as database:
            return database.execute(f"SELECT {columns} FROM replies").fetchall()
    except sqlite3.OperationalError:  # it is just being made
        return []
