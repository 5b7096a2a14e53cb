"""The shards of `aft convert`, joined, are what one conversion would have written and told."""

import gzip
import json
import os
import re
import resource
import shutil
from pathlib import Path
from threading import Thread

import pytest
from kill_tools import KILLED, check_every_kill, run_until

from aft_factory.convert.__main__ import main as convert
from aft_factory.merge.__main__ import main as merge
from aft_factory.records import early_types
from aft_factory.run.__main__ import main as run

TURNS = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}]
NO_ROWS = ["no JSON", json.dumps({"id": "c", "query": "?", "proposals": "none"}), json.dumps([1])]

ALONE = re.compile("next: the same command with --register .*\n")  # there is no one that does


def row(number):
    """A row; some are alike, have an earlier answer, no proposals, no aggregation or a column."""
    made = {
        "id": str(number),
        "query": f"What is {number % 11}?",
        "proposals": [f"It is {n}{', I think' * 9 * (number % 4)}." for n in range(number % 4)],
        "aggregation": None if number % 7 == 3 else f"It is {number}, é \u2028.",
        "reference": f"{number}" if number > 11 else None,
    }
    if number == 23:
        made["query"] *= 30
    if number % 5 == 1:
        made["query"] = [*TURNS, {"role": "user", "content": made["query"]}]
    return made | ({"topic": f"numbers, {number}"} if number % 6 == 5 else {})


def pair(number):
    return {
        "prompt": f"What is {number}?",
        "chosen": ["Six.", "", "N/A", f"It is {number}."][number % 4],
        "rejected": ["Six.", "Seven."][number % 2],
        "score_chosen": 8.5,
    }


def write(name, made):
    """Write 40 rows, and 7 that are none among them: some in each of two or three shards."""
    lines = [json.dumps(made(i)) for i in range(40)]
    for number in range(7):
        lines.insert(7 * number + 5, NO_ROWS[number % len(NO_ROWS)])
    Path(name).write_text("\n".join(lines) + "\n", encoding="utf-8")


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """A folder with rows to work in."""
    monkeypatch.chdir(tmp_path)
    write("rows.jsonl", row)
    write("pairs.jsonl", pair)
    return tmp_path


def shards(count, *words, suffix=".jsonl"):
    """Convert all shards, the last one first; their outputs."""
    outputs = [f"part-{index}{suffix}" for index in range(count)]
    for index in reversed(range(count)):
        more = ("--output", outputs[index], "--shard", f"{index}/{count}", "--quiet")
        assert convert([*words, *more]) == 0
    return outputs


def check(capsys, *words, count=3, suffix=".jsonl", parts=".jsonl"):
    """Convert at once and in shards; the same has to come of both. Its exit code and account."""
    code = convert([*words, "--output", f"one{suffix}", "--quiet"])
    one = capsys.readouterr()
    outputs = shards(count, *words, suffix=parts)
    capsys.readouterr()
    assert merge([*outputs, "--output", f"all{suffix}"]) == code
    all_ = capsys.readouterr()
    told = ALONE.sub("", one.out.replace("one.", "all.")), one.err.replace("one.", "all.")
    assert (all_.out, all_.err) == told
    made = {path.name.replace("one.", "all.") for path in Path().glob("one.*")}
    assert made == {path.name for path in Path().glob("all.*")}
    for name in made:
        assert Path(name).read_bytes() == Path(name.replace("all.", "one.")).read_bytes()
    return code, all_.out + all_.err


@pytest.mark.parametrize("count", [1, 3, 60])  # there are 47 rows
@pytest.mark.parametrize(
    "words",
    [
        ("proposals", "rows.jsonl"),
        ("proposals", "rows.jsonl", "pairs.jsonl", "--limit", "70", "--mix-plain", "0.5"),
        ("proposals", "rows.jsonl", "--target", "sharegpt", "--mix-plain", "1"),
        ("proposals", "rows.jsonl", "--target", "sharegpt", "--shuffle-proposals", "--seed", "3"),
        ("proposals", "rows.jsonl", "--target", "sft"),
        ("proposals", "rows.jsonl", "--without-proposals"),
        ("ultrafeedback", "pairs.jsonl"),
        ("ultrafeedback", "pairs.jsonl", "rows.jsonl", "--target", "sft"),
    ],
)
def test_shards_joined_are_what_one_conversion_writes_and_tells(capsys, words, count):
    code, told = check(capsys, *words, count=count)
    assert (code, "rejected" in told) == (0, True)


def test_there_may_be_more_parts_than_files_may_be_open(capsys):
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/dev/fd")) + 20, hard))
    try:
        check(capsys, "proposals", "rows.jsonl", count=40)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.parametrize("suffix", [".json", ".jsonl.gz", ".parquet"])
@pytest.mark.parametrize("parts", [".jsonl", ".jsonl.gz", ".json"])
def test_parts_of_any_format_are_joined_as_any_other(capsys, suffix, parts):
    words = ("proposals", "rows.jsonl", "--mix-plain", "0.5")
    assert check(capsys, *words, suffix=suffix, parts=parts)[0] == 0


def test_rows_that_were_shortened_or_do_not_fit_are_told_in_the_order_of_the_input(
    capsys, llama3_tokenizer_dir
):
    words = ("proposals", "rows.jsonl", "--tokenizer", str(llama3_tokenizer_dir))
    _, told = check(capsys, *words, "--cutoff-len", "340")
    counts = r"fitted to 340 tokens: [1-9]\d* proposals shortened in [1-9]\d* rows"
    assert re.search(counts, told)
    assert "x cutoff_len: " in told
    lines = [
        json.loads(line)["line"] for line in Path("all.rejects.jsonl").read_text().splitlines()
    ]
    assert lines == sorted(lines)
    assert len(lines) > 7  # which are no rows


def test_rows_that_were_moved_to_the_front_of_a_part_are_put_back(capsys, monkeypatch):
    monkeypatch.setattr(early_types, "EARLY", 1)
    check(capsys, "proposals", "rows.jsonl", "--mix-plain", "0.5")
    numbers = re.findall(rb'^{"id":"(\d+)', Path("part-2.jsonl").read_bytes(), re.M)
    numbers = list(map(int, numbers))
    assert numbers != sorted(numbers)


def test_what_is_wrong_with_all_rows_is_told_of_the_whole_only(capsys):
    bare = [json.dumps(row(4 * i) | {"drafts": ["a"]}) for i in range(5)]
    Path("rows.jsonl").write_text("\n".join(bare))
    code, told = check(capsys, "proposals", "rows.jsonl")
    assert code == 2
    assert told.startswith("error: none of the 5 rows has proposals; the first has the columns")
    # Of the whole it is the first row whose columns are told, whichever shard has it.
    others = [json.dumps({"prompt": f"{i}?", "texts": ["a"]}) for i in range(9)]
    Path("rows.jsonl").write_text("\n".join(["no JSON", bare[0], *others]))
    _, told = check(capsys, "proposals", "rows.jsonl", count=2, parts=".json")
    assert "columns: id, query, proposals, agg" in told
    Path("rows.jsonl").write_text("\n".join([json.dumps(row(2)), *bare]))
    assert check(capsys, "proposals", "rows.jsonl", "--overwrite")[0] == 0


def test_a_shard_whose_rows_are_all_rejected_is_done_and_only_a_whole_of_these_fails(capsys):
    Path("rows.jsonl").write_text("\n".join([NO_ROWS[1], json.dumps(row(2)), NO_ROWS[1]]))
    assert check(capsys, "proposals", "rows.jsonl", count=2)[0] == 0
    assert Path("part-0.jsonl").read_text() == ""
    Path("rows.jsonl").write_text("\n".join([NO_ROWS[1]] * 3))
    for path in Path().glob("all.*"):
        path.unlink()
    outputs = shards(2, "proposals", "rows.jsonl", "--overwrite")
    assert merge([*outputs, "--output", "all.jsonl"]) == 1
    assert not Path("all.jsonl").exists()


def test_a_reject_is_an_error_of_the_merge_if_it_is_asked_to_be_strict(capsys):
    outputs = shards(2, "proposals", "rows.jsonl")
    assert merge([*outputs, "--output", "all.jsonl"]) == 0
    assert merge([*outputs, "--output", "all.jsonl", "--overwrite", "--strict"]) == 1


def test_what_is_told_as_often_stands_in_one_order_wherever_it_came_first(capsys):
    pairs = [{"prompt": f"{i}?", "chosen": "a", "rejected": text} for i, text in enumerate("bNc")]
    pairs[1]["rejected"], pairs[2]["rejected"] = "N/A", ""
    Path("pairs.jsonl").write_text("\n".join(map(json.dumps, pairs)))
    _, told = check(capsys, "ultrafeedback", "pairs.jsonl", count=2)
    assert "1 x empty responses left out\n  1 x placeholder responses left out\n" in told


def test_what_is_merged_is_registered_and_no_part_of_it(capsys, folder):
    info = Path("data/dataset_info.json")
    info.parent.mkdir()
    words = ("proposals", "rows.jsonl", "--register", "data", "--name", "mine")
    outputs = shards(2, *words)
    assert (
        "a part is not registered, but what is merged\nnext: aft merge" in capsys.readouterr().out
    )
    assert not info.exists()
    assert merge([*outputs, "--output", "all.jsonl"]) == 0
    assert "registered as 'mine' in data/dataset_info.json" in capsys.readouterr().out
    assert json.loads(info.read_text())["mine"]["file_name"] == "../all.jsonl"
    # Each row was held to what a training needs, as one run with --register does.
    convert([*words, "--output", "one.jsonl", "--quiet", "--overwrite"])
    assert Path("one.jsonl").read_bytes() == Path("all.jsonl").read_bytes()


def test_what_comes_after_a_shard_is_the_merge(capsys):
    shards(2, "proposals", "rows.jsonl")
    assert capsys.readouterr().out.splitlines()[-1] == (
        "next: aft merge part-0.jsonl ... --output merged.jsonl, with the outputs of the other "
        "shards (this was 0/2)"
    )


def test_parts_may_lie_elsewhere_and_their_input_be_gone(capsys):
    convert(["proposals", "rows.jsonl", "--output", "one.jsonl", "--quiet"])
    Path("there").mkdir()
    for output in shards(3, "proposals", "rows.jsonl"):
        for path in Path().glob(f"{Path(output).stem}.*"):
            path.rename(Path("there") / path.name)
    Path("rows.jsonl").unlink()
    names = map(str, Path("there").glob("part-*"))  # rejects and what merging needs, too
    assert merge([*names, "--output", "all.jsonl"]) == 0
    assert Path("one.jsonl").read_bytes() == Path("all.jsonl").read_bytes()


def begin_again(folder):
    for path in folder.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    write("rows.jsonl", row)
    return folder


def test_a_shard_killed_at_any_moment_of_writing_is_ended_by_the_same_command(folder):
    words = ["proposals", "rows.jsonl", "--output", "part-1.jsonl", "--shard", "1/3", "--quiet"]
    files = ("part-1.jsonl", "part-1.rejects.jsonl", "part-1.jsonl.shard")
    fresh = lambda: begin_again(folder)  # noqa: E731
    assert check_every_kill(fresh, lambda: convert(words), files[0], files) >= 3


def test_a_merge_killed_at_any_moment_of_writing_is_ended_by_the_same_command(folder):
    def fresh():
        begin_again(folder)
        Path("data").mkdir()
        shards(3, "proposals", "rows.jsonl", "--register", "data")
        return folder

    files = ("all.jsonl", "all.rejects.jsonl", "data/dataset_info.json")
    words = [f"part-{index}.jsonl" for index in range(3)]
    command = lambda: merge([*words, "--output", "all.jsonl"])  # noqa: E731
    assert check_every_kill(fresh, command, "all.jsonl", files) >= 3


def test_a_shard_killed_while_it_is_made_anew_is_never_joined_half_old_half_new(folder, capsys):
    words = ["proposals", "rows.jsonl", "--output", "part-0.jsonl", "--shard", "0/2", "--quiet"]
    number, refused = 0, 0
    while True:
        number += 1
        begin_again(folder)
        shards(2, "proposals", "rows.jsonl")
        text = Path("rows.jsonl").read_text()
        Path("rows.jsonl").write_text(text.replace("What is 0?", "What was 0?"))
        shards(2, "proposals", "rows.jsonl", "--overwrite")
        new = Path("part-0.jsonl").read_text()
        Path("rows.jsonl").write_text(text)
        shards(1, "proposals", "rows.jsonl", "--overwrite")  # takes the place of the first
        Path("rows.jsonl").write_text(text.replace("What is 0?", "What was 0?"))
        ended = run_until(number, lambda: convert([*words, "--overwrite"])) != KILLED
        code = merge(["part-0.jsonl", "part-1.jsonl", "--output", "all.jsonl"])
        refused += code
        assert code == 2 or Path("part-0.jsonl").read_text() == new
        if ended:
            break
    assert (code, refused > 0) == (0, True)


CHANGES = {
    "a row": ("part-1.jsonl", "It is 1", "It was 1", "part-1.jsonl: not as its shard left it"),
    "a reject": ("part-1.rejects.jsonl", "none", "some", "part-1.rejects.jsonl: not as its shard"),
    "what is no reject": ("part-1.rejects.jsonl", ', "reason"', "", "part-1.rejects.jsonl: not as"),
    "what is no row": ("part-1.jsonl", '{"id":"1"', '{"id":"1', "part-1.jsonl: not as its shard"),
    "no change": ("rows.jsonl", "What is 0?", "What was 0?", ""),
}


@pytest.mark.parametrize(("name", "old", "new", "problem"), CHANGES.values(), ids=CHANGES)
def test_a_part_that_was_changed_is_refused_by_name(capsys, name, old, new, problem):
    outputs = shards(2, "proposals", "rows.jsonl")
    text = Path(name).read_text()
    assert old in text
    Path(name).write_text(text.replace(old, new))
    assert merge([*outputs, "--output", "all.jsonl"]) == (2 if problem else 0)
    assert problem in capsys.readouterr().err


@pytest.mark.parametrize("name", ["part-1.jsonl", "part-1.rejects.jsonl"])
@pytest.mark.parametrize("more", [True, False])
def test_a_part_that_was_cut_off_or_goes_on_is_refused_by_name(capsys, name, more):
    outputs = shards(2, "proposals", "rows.jsonl")
    lines = Path(name).read_bytes().splitlines(keepends=True)
    Path(name).write_bytes(b"".join([*lines, b"and more\n"] if more else lines[:-1]))
    assert merge([*outputs, "--output", "all.jsonl"]) == 2
    assert f"error: {name}: not as its shard left it (1/2)" in capsys.readouterr().err
    assert not list(Path().glob("all.*"))


def test_parts_of_a_pipe_that_gave_each_another_count_of_rows_are_refused(capsys):
    os.mkfifo("pipe.jsonl")
    for index, count in ((0, 2), (1, 9)):
        text = "".join(json.dumps(row(i)) + "\n" for i in range(count))
        feeding = Thread(target=Path("pipe.jsonl").write_text, args=(text,))
        feeding.start()
        more = ("--output", f"part-{index}.jsonl", "--shard", f"{index}/2", "--quiet")
        assert convert(["proposals", "pipe.jsonl", *more]) == 0
        feeding.join()
    assert merge(["part-0.jsonl", "part-1.jsonl", "--output", "all.jsonl"]) == 2
    assert "are not parts of one input, by how many rows each has read" in capsys.readouterr().err


RUN = ("--scripted", "--width", "2", "--layers", "1", "--quiet")
REFUSED = {
    "one is missing": ("part-0", "1 of 2 parts are missing: the output of shard 1/2"),
    "one is there twice": (
        "part-0 part-1 again",
        "part-1.jsonl and again.jsonl are both shard 1/2",
    ),
    "another count": ("part-0 third", "third.jsonl is shard 2/3, part-0.jsonl 0/2"),
    "other settings": ("part-0 seed", "seed.jsonl is of other settings than part-0.jsonl: seed 42"),
    "another input": (
        "part-0 paired",
        "paired.jsonl is of other settings than part-0.jsonl: input",
    ),
    "a changed input": ("part-0 changed", "rows.jsonl was not the same when these read it"),
    "a changed template": ("mine-0 mine-1", "of equal settings, but another aggregator prompt"),
    "a run's": ("part-0 ran", "ran.jsonl: no shard of `aft convert` or `aft stats`, as others"),
    "a whole": ("part-0 whole", "whole.jsonl: no shard of `aft convert` or `aft stats`, as oth"),
    "none at all": ("rows pairs", "rows.jsonl: no part of a job: expected the journal"),
    "not done": ("part-0 begun", "begun.jsonl: shard 1/2 is not done; give its command again"),
    "damaged": ("part-0 damaged", "damaged.jsonl.shard: damaged, or of another version"),
    "of another kind": ("part-0 other", "other.jsonl.shard: damaged, or of another version"),
}


@pytest.mark.parametrize(("parts", "problem"), REFUSED.values(), ids=REFUSED)
def test_what_is_not_all_parts_of_one_conversion_is_refused_by_name(capsys, parts, problem):
    shards(2, "proposals", "rows.jsonl")
    for name in ("begun", "damaged", "other"):
        shutil.copy("part-1.jsonl.shard", f"{name}.jsonl.shard")
        shutil.copy("part-1.jsonl", f"{name}.jsonl")
    Path("begun.jsonl").unlink()
    Path("damaged.jsonl.shard").write_bytes(Path("part-1.jsonl.shard").read_bytes()[:-9])
    Path("other.jsonl.shard").write_bytes(gzip.compress(b'{"kept": {}}'))

    def made(name, shard, *words, rows="rows.jsonl"):
        more = ["--shard", shard] if shard else []
        convert(["proposals", rows, "--output", f"{name}.jsonl", *more, *words, "--quiet"])

    made("again", "1/2")
    made("third", "2/3")
    made("seed", "1/2", "--seed", "43")
    made("paired", "1/2", rows="pairs.jsonl")
    made("whole", None)
    run(["rows.jsonl", "--output", "ran.jsonl", "--shard", "1/2", *RUN])
    for index in range(2):
        Path("mine.jinja").write_text(
            "{% for p in proposals %}{{ p }}" + "!" * index + "{% endfor %}"
        )
        made(f"mine-{index}", f"{index}/2", "--template", "mine.jinja")
    with Path("rows.jsonl").open("a") as file:
        file.write(json.dumps(row(1)))
    made("changed", "1/2")
    capsys.readouterr()
    assert merge([*(f"{name}.jsonl" for name in parts.split()), "--output", "all.jsonl"]) == 2
    assert problem in capsys.readouterr().err
    assert not Path("all.jsonl").exists()


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (("--input", "rows.jsonl"), "--input: not for shards of `aft convert`; leave it out"),
        (("--task-output", "o.json"), "--task-output: not for shards of `aft convert`"),
        (("--rejects", "part-0.rejects.jsonl"), "--rejects would replace the input"),
        (("--rejects", "part-1.jsonl.shard"), "--rejects would replace the input"),
    ],
)
def test_flags_that_cannot_be_meant_for_conversions_are_refused(capsys, words, problem):
    outputs = shards(2, "proposals", "rows.jsonl")
    assert merge([*outputs, "--output", "all.jsonl", *words]) == 2
    assert problem in capsys.readouterr().err


def test_a_shard_is_not_written_as_parquet(capsys):
    words = ["proposals", "rows.jsonl", "--output", "part.parquet", "--shard", "0/2"]
    assert convert(words) == 2
    assert "--output part.parquet: a shard is not written as Parquet" in capsys.readouterr().err
