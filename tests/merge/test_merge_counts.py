"""The shards of `aft stats`, joined, tell what is told of all rows at once."""

import json
from pathlib import Path

import pytest
from kill_tools import check_every_kill

from aft_factory.convert.__main__ import main as convert
from aft_factory.merge.__main__ import main as merge
from aft_factory.stats.__main__ import main as stats

BAD = [{"query": ""}, {"query": "x", "proposals": "none"}, {"query": "x", "proposals": "no list"}]


def row(number):
    """A row; some say again what another says, lack something, or have a cut-off answer."""
    width = number % 4
    return {
        "id": str(number % 37),
        "query": f"What is {number % 11}?",
        "proposals": [f"It is {n % 2}." * (1 + number % 3) for n in range(width)],
        "aggregation": None if number % 7 == 3 else f"It is {number}, é.",
        "scores": [(-1.0) ** number * n / 3 if number % 5 else None for n in range(width)],
        "proposal_models": [f"m{(n + number) % 3}" for n in range(width)],
        "source": f"s{number % 3}",
        "meta": {"truncated": number % 2 == 0} if number % 6 == 5 else {},
        **({"topic": "numbers"} if number == 31 else {}),
    }


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows = [row(i) for i in range(40)]
    for number in range(7):
        rows.insert(5 * number + 3, BAD[2 - number % 3])
    Path("rows.jsonl").write_text("".join(json.dumps(one) + "\n" for one in rows))
    return tmp_path


def shards(count, *words):
    outputs = [f"part-{index}.json" for index in range(count)]
    for index in reversed(range(count)):
        more = ("--json", outputs[index], "--shard", f"{index}/{count}", "--quiet")
        assert stats(["rows.jsonl", *more, *words]) == 0
    return outputs


def check(capsys, *words, count=3, code=0):
    assert stats(["rows.jsonl", "--json", "one.json", "--quiet", *words]) == code
    told = capsys.readouterr()
    outputs = shards(count, *words)
    capsys.readouterr()
    assert merge([*outputs, "--output", "all.json"]) == code
    assert capsys.readouterr() == told
    assert Path("one.json").read_bytes() == Path("all.json").read_bytes()
    return json.loads(Path("all.json").read_text())


@pytest.mark.parametrize("count", [1, 3, 60])  # there are 47 rows
@pytest.mark.parametrize("words", [(), ("--limit", "29"), ("--column", "query=source")])
def test_shards_joined_tell_what_is_told_of_all_rows(capsys, words, count):
    found = check(capsys, *words, count=count)
    assert found["rows"]["unusable_by_field"]
    assert words or found["duplicates"] == {"ids": 3, "queries": 29, "queries_and_proposals": 0}


def test_what_comes_after_a_shard_is_the_merge_if_there_is_what_to_merge(capsys):
    shards(2)
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith("next: aft merge part-0.json ... --output merged.json, with the outp")
    stats(["rows.jsonl", "--shard", "0/2", "--quiet"])
    assert "next:" not in capsys.readouterr().out


def test_a_shard_of_which_no_row_can_be_used_is_done_and_only_a_whole_of_these_fails(capsys):
    Path("rows.jsonl").write_text("\n".join(map(json.dumps, BAD)))
    assert check(capsys, count=2, code=1)["rows"]["unusable"] == 3


def test_tokens_are_joined_where_they_are_counted_in_all_rows(capsys, llama3_tokenizer_dir):
    own = Path("own.jinja")
    own.write_text(
        "{% for m in messages %}{% if 'is 7?' in m.content %}{{ raise_exception('no ' + "
        "m.content) }}{% endif %}{{ m.content }}{% endfor %}"
    )
    words = ("--tokenizer", str(llama3_tokenizer_dir), "--chat-template", str(own))
    found = check(capsys, *words, "--sample", "0")
    assert found["tokens"]["how"].startswith("counted in all rows")
    assert (found["tokens"]["refused"], len(found["tokens"]["refusals"])) == (3, 1)
    outputs = shards(2, *words, "--overwrite")
    assert merge([*outputs, "--output", "more.json"]) == 2
    assert "with --sample 0 they count all, and are joined" in capsys.readouterr().err


def test_more_names_than_are_counted_by_themselves_are_refused(capsys, monkeypatch):
    monkeypatch.setattr("aft_factory.stats.counts.MOST_NAMES", 3)
    monkeypatch.setattr("aft_factory.merge.counts.MOST_NAMES", 3)
    check(capsys)
    for limit in (1, 2):  # of a shard by itself, and of all of them
        for name in ("stats.counts", "merge.counts"):
            monkeypatch.setattr(f"aft_factory.{name}.MOST_NAMES", limit)
        outputs = shards(3, "--overwrite")
        assert merge([*outputs, "--output", "more.json"]) == 2
        assert f"more than {limit} sources, of which one run counts" in capsys.readouterr().err


def test_a_shard_killed_at_any_moment_of_writing_is_ended_by_the_same_command(folder):
    def fresh():
        for path in folder.glob("*part-*"):
            path.unlink()
        return folder

    words = ["rows.jsonl", "--json", "part-1.json", "--shard", "1/3", "--quiet"]
    files = ("part-1.json", "part-1.json.shard")
    assert check_every_kill(fresh, lambda: stats(words), files[0], files) >= 2


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (("part-0.json",), "1 of 2 parts are missing: the output of shard 1/2"),
        (("part-0.json", "other.json"), "other.json is of other settings than part-0.json: limit"),
        (
            ("part-0.json", "part.jsonl"),
            "part.jsonl is of other settings than part-0.json: `aft stats` made",
        ),
        (("part-0.json", "part-1.json", "--strict"), "--strict: not for shards of `aft stats`"),
        (("part-0.json", "part-1.json", "--rejects", "r"), "--rejects: not for shards of `aft st"),
    ],
)
def test_what_is_not_all_shards_of_one_run_is_refused_by_name(capsys, words, problem):
    shards(2)
    stats(["rows.jsonl", "--json", "other.json", "--shard", "1/2", "--limit", "30", "--quiet"])
    convert(["proposals", "rows.jsonl", "--output", "part.jsonl", "--shard", "1/2", "--quiet"])
    capsys.readouterr()
    assert merge([*words, "--output", "all.json"]) == 2
    assert problem in capsys.readouterr().err
