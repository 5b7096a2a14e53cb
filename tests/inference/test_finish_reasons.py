"""One list of words for an answer that was cut off, and one for a filtered one, for every stage."""

import pytest

from aft_factory.aggregate import gates
from aft_factory.engines.endings import CUT_OFF, FILTERED
from aft_factory.engines.sampling import Completion
from aft_factory.records.tables import Line
from aft_factory.sample import urial
from aft_factory.sample.drawing import _problem, read_completion
from aft_factory.stats.counts import Counts

CUT = [*sorted(CUT_OFF), "MAX_TOKENS", "Model_Length"]
OUT = [*sorted(FILTERED), "CONTENT_FILTER"]


def truncated(reason):
    """What `stats` says of a record that tells how its aggregation ended."""
    counts = Counts()
    meta = {"aggregating": {"finish_reason": reason}, "sampling": {"finish_reasons": ["stop"]}}
    counts.read_line(Line("f", 1, {"query": "Why?", "proposals": ["So."], "meta": meta}))
    return counts.to_dict()["truncated"]["rows"]


@pytest.mark.parametrize("reason", [*CUT, *OUT])
def test_gates_and_stats_know_every_word_for_a_text_that_did_not_end_by_itself(reason):
    assert gates.check("Six.", [], reason, query="?") == ["truncated"]
    assert truncated(reason) == 1


@pytest.mark.parametrize("reason", ["stop", "eos", "tool_calls", None])
def test_gates_and_stats_pass_the_others(reason):
    assert gates.check("Six.", [], reason, query="?") == []
    assert truncated(reason) == 0


@pytest.mark.parametrize("reason", CUT)
def test_sampling_knows_every_word_for_a_draft_that_was_cut_off(reason):
    assert urial.parse("It is s", reason).problem == "cut off"
    cut = read_completion(Completion("It is s", reason))
    assert (cut.finish_reason, cut.problem) == (reason, "cut off")
    ended = read_completion(Completion("Six.\n```\n\n# Quer", reason))
    assert (ended.text, ended.finish_reason, ended.problem) == ("Six.", "stop", None)
    assert _problem(Completion("It is s", reason)) == "cut off"


@pytest.mark.parametrize("reason", OUT)
def test_sampling_says_so_of_a_filtered_draft(reason):
    assert read_completion(Completion("Six.\n```\n\n", reason)).finish_reason == reason
    assert _problem(Completion("It is s", reason)) == "filtered"
