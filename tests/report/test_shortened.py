"""What was shortened to fit the context, from the run to the page. Run: pytest tests/report/test_shortened.py"""

from pathlib import Path

import pytest
from aiohttp import web
from asking_tools import write_lines
from flaky_server import serving
from report_tools import needs_browser, opened, page, report

from aft_factory.run.__main__ import main

LONG = "Five \U0001f600 pails of water. " * 60  # a character that JavaScript counts as two
TEXTS = [LONG, "A short one.", f"Another: {LONG}"]


def answered(_, body):
    """Answer as a server of chat does: drafts, then an aggregation."""
    texts = TEXTS if body.get("n", 1) == 3 else ["Done."]
    choices = [
        {"index": i, "finish_reason": "stop", "message": {"role": "assistant", "content": text}}
        for i, text in enumerate(texts)
    ]
    usage = {"prompt_tokens": 9, "completion_tokens": 9, "total_tokens": 18}
    return web.json_response({"model": "m", "choices": choices, "usage": usage})


@pytest.fixture
def sent(tmp_path, monkeypatch, tiny_llama):
    """Run one query against a server of a small context; return what it was asked at last."""
    monkeypatch.chdir(tmp_path)
    source = str(write_lines(Path("in.jsonl"), [{"id": "q", "query": "How much?"}]))
    with serving(models=("m",), max_model_len=700, answer=answered) as server:
        words = [source, "--output", "out.jsonl", "--base-url", server.url, "--model", "m"]
        words += ["--tokenizer", str(tiny_llama), "--width", "3", "--layers", "1", "--quiet"]
        assert main([*words, "--max-tokens", "100"]) == 0
    return server.requests[-1][1]["messages"]


def test_the_page_has_of_each_draft_what_was_sent_and_what_was_not(sent, capsys):
    assert report(capsys, "out.jsonl")[0] == 0
    head, [query], _ = page()
    assert query["flags"] == ["shortened"]
    assert head["counts"]["shortened"] == 1
    [prompt] = query["layers"][1]["prompts"]
    places = [part for part in prompt["messages"][0]["parts"] if not isinstance(part, str)]
    assert [len(place) for place in places] == [3, 2, 3]  # the short one is whole
    texts = {(0, i): text for i, text in enumerate(TEXTS)}

    def shown(part):
        if isinstance(part, str):
            return part
        layer, slot, *kept = part
        units = texts[layer, slot].encode("utf-16-le")  # as JavaScript counts
        return units[: 2 * kept[0]].decode("utf-16-le") if kept else texts[layer, slot]

    put_together = "".join(map(shown, prompt["messages"][0]["parts"]))
    assert put_together == sent[0]["content"]


@needs_browser
@pytest.mark.slow
def test_in_a_browser_what_was_not_sent_is_struck_out(sent, capsys):
    assert report(capsys, "out.jsonl")[0] == 0
    with opened("#0") as shown:
        shown.click("[data-place='0/1/0']")
        shown.keyboard.press("p")
        first = shown.locator(".quoted").first
        assert "characters were not sent" in first.locator("summary").text_content()
        kept, unsent = (first.locator(one).text_content() for one in ("> .prose", ".unsent"))
        assert kept + unsent == LONG
        assert kept in sent[0]["content"]
        assert shown.locator(".quoted[open]").count() == 2
        # the text between two drafts that is blank is not made into words
        assert "(blank)" not in shown.text_content(".prompt")
