"""The command `python -m aft_factory.push`: what it makes, and what it asks of the hub."""

import base64
import json
import os
import pty
import random
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import yaml
from conftest import ROOT, demo_rows
from hypothesis import given
from hypothesis import strategies as st

from aft_factory.aggregate import __main__ as aggregate
from aft_factory.push.__main__ import main
from aft_factory.push.card import Card, escape, settings_text
from aft_factory.push.public import public, public_text
from aft_factory.push.shown_settings import shown_settings
from aft_factory.rank import __main__ as rank
from aft_factory.records import told as told_by
from aft_factory.records.record import record_from_row
from aft_factory.records.tables import Line
from aft_factory.sample import __main__ as sample
from aft_factory.stats.counts import Counts

ROWS = [record_from_row(row).to_row() for row in demo_rows()]
NASTY = "|x|\n---\n# h\n```\n<script>[a](b) {{ 7 * 7 }} {% raw %} \u202e: - *b*"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def push(folder, capsys):
    """Run the command in the folder; return stdout and stderr."""

    def run(*argv, expect=0):
        code = main([*map(str, argv), "--quiet"])
        out, err = capsys.readouterr()
        assert code == expect, err
        return out, err

    return run


def write(name, rows):
    Path(name).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return name


def files():
    return sorted(str(path) for path in Path().rglob("*") if path.is_file())


def loaded(path, tmp_path):
    """The rows as the real `datasets` loads them."""
    import datasets

    return datasets.load_dataset(str(path), split="train", cache_dir=str(tmp_path)).to_list()


def test_a_dry_run_loads_with_datasets_and_gives_the_same_rows(push, tmp_path):
    out, err = push(write("rows.jsonl", ROWS), "me/aft", "--license", "mit", "--dry-run", "out/set",
                    "--shard-rows", 7)  # fmt: skip
    shards = -(-len(ROWS) // 7)
    assert files() == [
        "out/set/README.md",
        *(f"out/set/data/train-{i:05d}-of-{shards:05d}.parquet" for i in range(shards)),
        "rows.jsonl",
    ]
    assert loaded("out/set", tmp_path / "cache") == ROWS
    assert (out.splitlines()[0], err) == (f"{len(ROWS)} of {len(ROWS)} rows in out/set", "")


def test_the_card_passes_the_hubs_own_reader(push):
    from huggingface_hub import DatasetCard

    push(write("rows.jsonl", ROWS), "me/aft", "--license", "cc-by-4.0", "--dry-run", "out",
         "--language", "en")  # fmt: skip
    data = DatasetCard.load(Path("out/README.md")).data.to_dict()
    assert data == {
        "license": "cc-by-4.0",
        "language": ["en"],
        "task_categories": ["text-generation"],
        "size_categories": ["n<1K"],
        "tags": ["aggregation-fine-tuning", "mixture-of-agents", "llama-factory"],
        "configs": [
            {
                "config_name": "default",
                "data_files": [{"split": "train", "path": "data/train-*.parquet"}],
            }
        ],
    }


def test_the_card_says_where_how_many_and_how_to_load(push):
    Path("run.summary.json").write_text(
        json.dumps(
            {"model": "base", "max_tokens": 64, "api_key": "sk-1", "engine": {"hf_token": "t"}}
        )
    )
    out, _ = push(write("rows.jsonl", ROWS), "me/my-aft", "--license", "mit", "--dry-run", "out",
                  "--settings", "run.summary.json", "--source", "From *GSM8K*.")  # fmt: skip
    card = Path("out/README.md").read_text(encoding="utf-8")
    for line in (
        "From *GSM8K*.",
        f"| rows | {len(ROWS)} |",
        'rows = load_dataset("me/my-aft", split="train")',
        '"my_aft": {"hf_hub_url": "me/my-aft", "formatting": "aggregation"}',
        '  "model": "base",',
        '  "max_tokens": 64',
    ):
        assert line in card.splitlines()
    assert not any(name in card for name in ("sk-1", "api_key", "engine", "hf_token"))
    assert out.endswith(
        "  settings: model, max_tokens\n"
        "  settings not shown (no setting of a command here, or a place): api_key, engine\n"
        "the same without --dry-run uploads it\n"
    )
    assert "\n\n\n" not in card


def test_only_the_name_of_a_file_is_published(push, tmp_path):
    push(tmp_path / write("rows.jsonl", ROWS), "me/aft", "--license", "mit", "--dry-run", "out")
    card = Path("out/README.md").read_text(encoding="utf-8")
    assert "## Source\n\nrows.jsonl\n" in card
    assert str(tmp_path) not in card


SUMMARY = {
    "input": "/home/me/secret project/ranked.jsonl",
    "settings": {
        "model": "/home/me/models/base",
        "proposers": ["/home/me/a", "b"],
        "adapter": None,
        "journal": None,
        "rejects": "~/out/x.rejects.jsonl",
        "base_url": ["http://host:8000/v1"],
        "engine_args": {"max_num_seqs": 8, "enforce_eager": True, "Password": 1, "hf": "x"},
        "seed": 42,
        "layers": [{"turn": 0}],
        "proposer_system": "password: two words",
    },
    "rejects": {"row": {"count": 1, "first": "see /home/me/in.jsonl:3: Bearer abc"}},
}
SHOWN = {
    "settings": {
        "model": "base",
        "proposers": ["a", "b"],
        "adapter": None,
        "engine_args": {"max_num_seqs": 8, "enforce_eager": True, "Password": "(left out)"},
        "seed": 42,
        "proposer_system": "password: (left out)",
    },
}
NOT_SHOWN = [
    *("input", "settings.journal", "settings.rejects", "settings.base_url"),
    *("settings.engine_args.hf", "settings.layers", "rejects"),
]


def test_settings_show_neither_secrets_nor_places():
    assert json.loads(settings_text(SUMMARY)) == SHOWN
    assert shown_settings(SUMMARY) == (SHOWN, NOT_SHOWN)


def test_a_pipelines_file_shows_the_settings_of_its_stages():
    stages = [{"sample": {"model": "m", "output": "o"}}, {"stats": {"json": "s"}}, {"run": 3}]
    shown = {"stages": [{"sample": {"model": "m"}}]}
    names = ["stages.sample.output", "stages.stats", "stages.run"]
    assert shown_settings({"folder": "data", "stages": stages}) == (shown, ["folder", *names])


@pytest.mark.parametrize(
    "settings",
    [
        {"api_keys": {"openai": "xyzzy"}},
        {"argv": ["aft", "run", "--hf-token", "xyzzy"]},
        {"env": {"PGPASSWORD": "xyzzy", "AWS_PWD": "xyzzy"}},
        {"headers": [["Authorization", "xyzzy"]], "extra_headers": {"Cookies": "sid=xyzzy"}},
        {"base_url": ["https://h/v1?sig=xyzzy"], "reward_url": "https://xyzzy.h/v1"},
        {"sampling_args": {"password": "xyzzy", "min_p": 0.1}, "api_key2": "xyzzy"},
        {"note": "password: two xyzzy words", "kennwort": "xyzzy", "proposer_urls": {"m": "xyzzy"}},
        {"by_flag": ["xyzzy"], "settings": {"settings": {"anything": "xyzzy"}}, "stages": [{"run": {"anything": "xyzzy"}}]},
    ],
)  # fmt: skip
def test_what_no_command_declares_is_not_in_the_card(settings):
    assert "xyzzy" not in settings_text(settings)
    assert "xyzzy" not in json.dumps(shown_settings(settings))


def test_without_a_setting_to_show_the_card_has_none():
    assert settings_text(None) == settings_text({}) == settings_text({"input": "x"}) == ""


HASH = "2edc6fad8be6b14ea7230aabfd08188da6b8b814"


@pytest.mark.parametrize(
    ("key", "is_secret"),
    [
        *((key, True) for key in ("token", "HF_TOKEN", "hf-token", "accessToken", "api_key", "apiKey")),
        *((key, True) for key in ("X-Api-Key", "OPENAI_API_KEY", "client_secret", "password", "auth")),
        *((key, True) for key in ("api_keys", "PGPASSWORD", "MYSQL_PWD", "Cookies", "api_key2", "key_1", "sig", "keys")),
        *((key, True) for key in ("session_id", "credential")),
        *((key, False) for key in ("max_tokens", "tokens", "eos_token", "think_end_token", "tokenizer", "author", "stop")),
        *((key, False) for key in ("bytes_per_token", "num_key_value_heads", "draft_tokens")),
    ],
)  # fmt: skip
def test_secrets_are_told_by_the_words_of_their_keys(key, is_secret):
    assert public({key: "x"}) == {key: "(left out)" if is_secret else "x"}


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("/home/me/base", "base"),
        ("/home/me/base+/home/me/my adapter", "base+my adapter"),
        ("C:\\Users\\me\\base", "base"),
        ("../private/base/", "base/"),
        ("file:///home/me/base", "base"),
        ("from /home/me/a b and ~/c/d.", "from a b and d."),
        *((text, text) for text in ("meta-llama/Llama-3.1-8B", "and/or", "data/a/b.jsonl", "/v1", "1/2/3")),
        *((text, text) for text in ("https://host/a/b", "x: /", "")),
        *(
            (f"key {key} is", "key (left out) is")
            for key in ("hf_abcdefghijk", "gho_abcdefghijk", "glpat-abcdefghij", "Bearer abc", "AKIA" + "Z" * 16)
        ),
        (f"eyJ{'a' * 9}.eyJ{'b' * 9}.{'c' * 9}", "(left out)"),
        ("-----BEGIN RSA PRIVATE KEY-----\nabc\n-----END RSA PRIVATE KEY-----\nx", "(left out)\nx"),
        *((f"{key}: abc", f"{key}: (left out)") for key in ("HF_TOKEN", "x-api-key", "Password")),
        ("Authorization: Basic dXNlcg== x", "Authorization: (left out)"),
        ("run --api-key abc x", "run --api-key (left out)"),
        ("{'api_key': 'abc', 'n': 3}", "{'api_key': (left out)"),
        ("me:pw@host:8000/v1", "host:8000/v1"),
        *((home, "(left out)") for home in ("/home/me", "/Users/me", "C:\\Users\\me")),
        ("host:/home/me/x", "host:x"),
        ("file:/home/me/x", "x"),
        ("HF_TOKEN=abc aft run --password=x", "HF_TOKEN=(left out)"),
        ("http://h/?v=2&key=abc&X-Sig-Signature=a", "http://h/"),
        # Behind the name of a secret, nobody knows where it ends.
        ("password: two good words", "password: (left out)"),
        ("a PGPASSWORD=x psql; more", "a PGPASSWORD=(left out)"),
        ("Set-Cookie:  sid=a; Path=/", "Set-Cookie:  (left out)"),
        ("OPENAI_API_KEY abc", "OPENAI_API_KEY (left out)"),
        (r'"{\"api_key\": \"abc\"}"', r'"{\"api_key\": (left out)'),
        ("curl -u me:pw http://h", "curl -u (left out)"),
        ("curl --proxy-user me:pw x", "curl --proxy-user (left out)"),
        ("the reward is -inf, well-known", "the reward is -inf, well-known"),
        # What of an address can be a secret.
        *((f"see http://h/v1{end} x", "see http://h/v1 x") for end in ("?sig=abc", "?abc", "#abc", "?a@b")),
        ("postgres://me:p/w@host/db", "postgres://(left out)"),
        ("http://me:p?w@host/db", "http://(left out)"),
        ("http://me:p@w@host/db", "http://host/db"),
        ("//me:p@w@host/db", "db"),
        ("https://medium.com/@me/post", "https://medium.com/@me/post"),
        *((f"https://{hook}", "https://(left out)") for hook in ("hooks.slack.com/services/T/B/X", "t.org/bot1:A/send")),
        # Words that look random, whatever they begin with.
        *((f"by {key}!", "by (left out)") for key in ("zz-aB3dE6gH9kL2nP5rS", "Basic-dXNlcjpwYXNzd29yZA==")),
        *((f"{name}{HASH}'", f"{name}(left out)'") for name in ("DEPLOY=", "x='", 'X-Thing: "')),
        *((text, text) for text in (HASH, f"of {HASH}", f"id:{HASH}", f"step={'1' * 20}", "x=effaced0", "AutoModelForCausalLM")),
        *((text, text) for text in ( "AutoModelForCausalLM")),
        *((text, text) for text in ("aB3dE6gH9kL2nP5", "question000000000012345", "Qwen2.5-7B-Instruct-GPTQ-Int4")),
        *((key, "(left out)") for key in ("gsk_abcdefghij", "r8_abcdefghij", "sk_live_abcdefghij", "ASIA" + "Z" * 16)),
        *((key, "(left out)") for key in ("SG.abcdefgh.abcdefgh", "ya29.abcdefghij", "xapp-1-A-1-abcd")),
        # Homes, whatever the login.
        ("~me/data/x", "x"),
        *(("/home/me too/models/x", "x"), ("/home/me too", "(left out)"), ("/home/me/", "(left out)")),
        ("from /home/me too/models/x run", "from (left out) run"),
        *((text, text) for text in ("sort(key=len)", "pad_token=</s>", "max_tokens: 5")),
        *((text, text) for text in ("the key: patience", "a token is fine", "http://h:80/a/b")),
    ],
)  # fmt: skip
def test_of_paths_only_the_names_are_public(text, shown):
    assert public_text(text) == shown


def told(**values):
    """What a stage says of a row, with nothing in the keys that are of no interest here."""
    return {stage: dict.fromkeys(told_by.STAGES[stage]) | about for stage, about in values.items()}


STAGES = told(
    sampling={"model": "/home/me/models/base", "problems": [None]},
    ranking={"model": "http://me:pw@host/v1", "scores": [1.0]},
    aggregating={"model": "b", "events": [{"event": "failed: Bearer abcdefgh"}]},
)
PUBLIC_STAGES = told(
    sampling={"model": "base", "problems": [None]},
    ranking={"model": "http://host/v1", "scores": [1.0]},
    aggregating={"model": "b", "events": [{"event": "failed: (left out)"}]},
)


def dry(push, rows, *argv, **more):
    """Make the folder of rows; return its rows, `meta` read, and what was said."""
    out, _ = push(write("rows.jsonl", rows), "me/aft", "--license", "mit", "--dry-run", "out",
                  *argv, **more)  # fmt: skip
    made = loaded("out", Path("cache").absolute())
    return [row | {"meta": json.loads(row["meta"])} for row in made], out


def test_values_of_any_shape_are_cleaned():
    value = {
        "/a/k": 1,
        "/b/k": 2,
        "t": ("/a/b", None, True),
        "p": Path("/a/b"),
        "n": [{"token": 1}],
    }
    shown = {"k": 1, "k~": 2, "t": ["b", None, True], "p": "b", "n": [{"token": "(left out)"}]}
    assert public(value) == shown
    as_text = json.dumps({"a": "/a/b c", "cookie": ["x y"]})
    assert public([as_text, '{"a":  1}', "[no", "{/a/b"]) == [
        '{"a": "b c", "cookie": "(left out)"}', '{"a":  1}', "[no", "{b"
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (["aft", "--hf-token", "x", "y"], ["aft", "--hf-token", "(left out)", "(left out)"]),
        ([["Authorization", "x"]], [["Authorization", "(left out)"]]),
        ({"name": "X-Api-Key", "value": "x"}, {"name": "X-Api-Key", "value": "(left out)"}),
        ({"name": "Al", "value": "x"}, {"name": "Al", "value": "x"}),
        ({"pass": True, "token": None}, {"pass": True, "token": None}),
        (["the secret of it", "x"], ["the secret of it", "x"]),
    ],
)
def test_what_stands_beside_the_name_of_a_secret_is_left_out(value, shown):
    assert public(value) == shown


@pytest.mark.parametrize(
    "text",
    [
        "a",
        "key=",
        "token: ",
        "--key ",
        "a:b@",
        "://",
        "eyJ",
        "-----BEGIN ",
        "~/",
        "/home/",
        "a ",
        "a: ",
        "a'",
        "-u",
        "://a:b@",
        "/a:b",
        "aB3",
        "?",
        "/home/a b",
        "x-",
    ],
)
def test_texts_are_cleaned_in_linear_time(text):
    start = time.process_time()
    public_text("x " + text * 20_000)
    assert time.process_time() - start < 5


def test_the_rows_name_models_without_their_places(push):
    model = "/home/me/models/base"
    row = ROWS[0] | {"proposal_models": [model, None, "b", model], "source": "/home/me/raw.jsonl"}
    [first, second], out = dry(push, [row | {"meta": STAGES}, ROWS[1]])
    assert (first["proposal_models"], first["source"]) == (["base", None, "b", "base"], "raw.jsonl")
    assert first["meta"] == PUBLIC_STAGES
    assert second == ROWS[1] | {"meta": {}}
    card = Path("out/README.md").read_text(encoding="utf-8")
    assert "| base | 2 |" in card
    assert "/home" not in card
    assert (
        "\n  rid of secrets, logins and folders: source (1 rows), proposal_models (1 rows), "
        "meta (1 rows)\n" in out
    )


def test_all_that_our_stages_write_is_published(push):
    for command, more in (
        (sample, ["--samples", "2"]),
        (rank, ["--top-k", "2"]),
        (aggregate, []),
    ):
        read = "made.jsonl" if Path("made.jsonl").exists() else write("rows.jsonl", ROWS[:2])
        argv = [read, "--output", "next.jsonl", "--scripted", "--quiet", *more]
        assert command.main(argv) == 0
        Path("next.jsonl").rename("made.jsonl")
    made = [json.loads(line) for line in Path("made.jsonl").read_text().splitlines()]
    metas = [json.loads(row["meta"]) for row in made]
    assert [list(meta) for meta in metas] == [["sampling", "ranking", "aggregating"]] * 2
    found, _ = dry(push, made)
    assert [row["meta"] for row in found] == metas


LEAKS = {
    "annotator": "xyzzy@example.org",
    "raw_request": {"headers": {"Authorization": "Bearer abcdefgh"}, "path": "/home/me/x"},
    "api_response": json.dumps({"api_key": "sk-abcdefghijkl", "text": "hi"}),
    "sampling": "by Xyzzy",  # no object of ours
    "model": "/home/me/models/base",
}


def test_unknown_columns_are_left_out_and_named(push):
    rows = [
        ROWS[0] | LEAKS | {"meta": {"note": "of Xyzzy"} | STAGES},
        ROWS[1] | {"annotator": "Al"},
    ]
    del rows[0]["sampling"]
    own = {"model": "Xyzzy", "scores": [1.0]}  # not as our stages write it
    rows.append(ROWS[2] | {"sampling": "by Xyzzy", "ranking": own})
    found, out = dry(push, rows)
    assert [row["meta"] for row in found] == [PUBLIC_STAGES, {}, {}]
    told = out.splitlines()
    assert told[2] == "  keys of meta: sampling (1 rows), ranking (1 rows), aggregating (1 rows)"
    assert told[3] == (
        "  not published (name it to --publish): note (1 rows), annotator (2 rows), "
        "raw_request (1 rows), api_response (1 rows), model (1 rows), sampling (1 rows), "
        "ranking (1 rows)"
    )
    everything = b"".join(path.read_bytes() for path in Path("out").rglob("*.*"))
    for leak in (b"yzzy", b"/home", b"sk-", b"annotator"):
        assert leak not in everything


def test_a_named_column_is_published_without_secrets(push):
    found, out = dry(push, [ROWS[0] | LEAKS, ROWS[1]], "--publish", "raw_request", "api_response",
                     "--publish", "sampling", "model")  # fmt: skip
    assert [row["meta"] for row in found] == [
        {
            "raw_request": {"headers": {"Authorization": "(left out)"}, "path": "x"},
            "api_response": '{"api_key": "(left out)", "text": "hi"}',
            "sampling": "by Xyzzy",
            "model": "base",
        },
        {},
    ]
    assert "\n  not published (name it to --publish): annotator (1 rows)\n" in out


def test_a_column_to_publish_that_no_row_has_is_refused(push):
    rows = write("rows.jsonl", [ROWS[0] | LEAKS])
    _, err = push(rows, "me/aft", "--license", "mit", "--dry-run", "out", "--publish", "anotator",
                  expect=2)  # fmt: skip
    assert "--publish anotator: no row has such a column" in err
    assert "did you mean 'annotator'?" in err
    assert files() == ["rows.jsonl"]


def test_ids_are_public_and_still_tell_rows_apart(push):
    ids = [
        *("/home/me/a/x.jsonl:1", "/home/you/x.jsonl:1", "x.jsonl:1", "x.jsonl:1~1", "plain"),
        *("/home/me/a/x.jsonl:1", "http://me:pw@host/1", "hf_abcdefghijkl", "81"),
    ]
    found, out = dry(push, [ROWS[0] | {"id": name} for name in ids])
    public_ids = [row["id"] for row in found]
    assert public_ids == [
        *("x.jsonl:1~1", "x.jsonl:1~2", "x.jsonl:1", "x.jsonl:1~1~1", "plain"),
        *("x.jsonl:1~1", "http://host/1~1", "(left out)~1", "81"),
    ]
    assert len(set(public_ids)) == len(set(ids))
    assert "folders: id (6 rows); ids that were, end in ~NUMBER\n" in out


def test_texts_stay_and_those_that_seem_to_hold_a_secret_are_told(push):
    keys = ("hf_" + "aB3" * 9, "sk-proj-" + "aB3" * 9, "Bearer abc.def-123", "AKIA" + "Z" * 16)
    texts = [f"use {key} please" for key in keys]
    plain = ROWS[0] | {"scores": None, "proposal_models": None}
    rows = [
        plain,
        plain | {"proposals": ["fine", texts[0], texts[1]], "aggregation": texts[2]},
        plain | {"messages": [{"role": "user", "content": texts[3]}], "reference": texts[0]},
        # None of these is one.
        plain | {"proposals": ["The Bearer of it", "Bearer $TOKEN", "task-oriented", "sk-x hf_"]},
    ]
    found, out = dry(push, rows)
    assert [row["proposals"] for row in found] == [row["proposals"] for row in rows]
    assert found[1]["aggregation"] == texts[2]
    assert (
        "\n  LOOK: 2 rows have texts that seem to hold a secret, and texts are published as they "
        "are: hf_... (2 texts), sk-... (1 texts), Bearer... (1 texts), AKIA... (1 texts); "
        "the first in rows.jsonl:2, proposals[1]\n" in out
    )
    assert not any(key in out for key in keys)


def test_a_dry_run_tells_what_an_upload_makes_public(push):
    Path("run.yaml").write_text("model: base\nseed: 1\n")
    row = ROWS[0] | {"meta": {"annotator": "Jo"}, "proposal_models": ["/a/m"] * 4, "source": "s"}
    out, _ = push(write("rows.jsonl", [row]), "me/aft", "--license", "mit", "--dry-run", "out",
                  "--settings", "run.yaml")  # fmt: skip
    assert out == (
        "1 of 1 rows in out\n"
        "what an upload makes public of them, all texts aside:\n"
        "  keys of meta: none\n"
        "  not published (name it to --publish): annotator (1 rows)\n"
        "  rid of secrets, logins and folders: proposal_models (1 rows)\n"
        "  sources: s\n"
        "  models of proposals: m\n"
        "  settings: model, seed\n"
        "the same without --dry-run uploads it\n"
    )


def numbers(rows):
    counts = Counts()
    for number, row in enumerate(rows, start=1):
        counts.read_line(Line("rows", number, row))
    return counts.to_dict()


def outline(card):
    """Front matter, headings and the numbers of cells in table rows: what text could break."""
    head, body = card.removeprefix("---\n").split("\n---\n", 1)
    lines = [line for line in body.splitlines() if line.startswith(("#", "|", "```", "<"))]
    shapes = [
        line if line[0] != "|" else line.replace("\\\\", "").replace("\\|", "").count("|")
        for line in lines
    ]
    return yaml.safe_load(head), shapes


@given(st.text(max_size=100) | st.just(NASTY))
def test_text_of_records_cannot_break_the_card(text):
    def card(name):
        row = {"query": "q", "proposals": ["p"], "source": name, "proposal_models": [name]}
        other = {"query": "q", "proposals": ["p"], "source": "x", "proposal_models": ["y"]}
        return Card("me/aft", "mit", "x", settings={"a": name}).render(numbers([row, other]))

    if text not in ("", "x", "y"):
        assert outline(card(text)) == outline(card("plain"))


def test_markup_of_a_name_is_shown_as_text():
    assert escape("a|b\n# <c> `d` \x1b[0m") == "a\\|b \\# \\<c\\> \\`d\\` \\[0m"


def test_long_names_are_cut():
    assert escape("x" * 500) == "x" * 80 + "…"


def test_settings_cannot_end_their_code_block():
    shown = settings_text({"a": "\n```\n", "```": ["```"]})
    assert not any(line.lstrip().startswith("```") for line in shown.splitlines())


@pytest.mark.parametrize(
    ("argv", "problem"),
    [
        (["me/aft", "--license", ""], "name the licence"),
        (["me/aft", "--license", "mit: x"], "expected an identifier"),
        (["aft", "--license", "mit"], "'aft': expected OWNER/NAME"),
        (["me/aft", "--license", "mit", "--token", "a\nb"], "--token: expected printable ASCII"),
        (["me/../aft", "--license", "mit"], "expected OWNER/NAME"),
        (["me/aft", "--license", "mit", "--shard-rows", "0"], "shard_rows: expected a number"),
        (["me/aft", "--license", "mit", "--license-link", "x)"], "expected an address"),
        (["me/aft", "--license", "mit", "--dry-run", "full"], "no empty folder"),
        (["me/aft", "--license", "mit", "--settings", "no.json", "--dry-run", "o"], "no.json"),
        (
            ["me/aft", "--license", "mit", "--settings", "list.json", "--dry-run", "o"],
            "JSON object",
        ),
    ],
)
def test_what_cannot_be_meant_is_refused(push, argv, problem):
    write("rows.jsonl", ROWS)
    Path("full").mkdir()
    Path("full/file").touch()
    Path("list.json").write_text("[]")
    before = files()
    _, error = push("rows.jsonl", *argv, expect=2)
    assert problem in error
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert files() == before


def test_a_licence_is_required(push, capsys):
    with pytest.raises(SystemExit, match="2"):
        push(write("rows.jsonl", ROWS), "me/aft", "--dry-run", "out")
    assert "--license" in capsys.readouterr().err


def test_an_unknown_licence_is_taken_with_a_warning(push):
    _, err = push(write("rows.jsonl", ROWS), "me/aft", "--license", "apache2.0", "--dry-run", "out")
    assert err.startswith("warning: 'apache2.0'")
    assert "did you mean 'apache-2.0'?" in err
    assert Path("out/README.md").read_text().startswith("---\nlicense: apache2.0\n")


def test_a_row_that_is_no_record_stops_it_and_leaves_nothing(push):
    rows = write("rows.jsonl", [*ROWS, {"query": "x", "proposals": 1}])
    _, err = push(rows, "me/aft", "--license", "mit", "--dry-run", "out", expect=2)
    assert f"rows.jsonl:{len(ROWS) + 1}: proposals: expected a list, got int 1" in err
    assert files() == ["rows.jsonl"]
    assert sorted(Path().iterdir()) == [Path("rows.jsonl")]
    out, _ = push(rows, "me/aft", "--license", "mit", "--dry-run", "out", "--skip-unusable")
    assert out.startswith(f"{len(ROWS)} of {len(ROWS) + 1} rows in out\n")
    assert "1 rows of the file were no usable records" in Path("out/README.md").read_text()


def test_no_record_at_all_is_no_data_set(push):
    _, err = push(write("rows.jsonl", []), "me/aft", "--license", "mit", "--dry-run", "o", expect=2)
    assert "no usable record in 0 rows" in err


# The hub: the real client against a small server


class Hub(BaseHTTPRequestHandler):
    """Answers what the client asks to publish a data set; keeps what it was sent."""

    protocol_version = "HTTP/1.1"

    def do_GET(self):
        if self.path.startswith("/api/datasets/me/aft/tree/main"):
            self.reply(
                [{"type": "file", "path": p, "size": 1, "oid": "0"} for p in self.server.there]
            )
        else:
            siblings = [{"rfilename": path} for path in self.server.there]
            self.reply({"id": "me/aft", "private": self.server.private, "sha": "0" * 40,
                        "siblings": siblings, "tags": [], "downloads": 0, "likes": 0})  # fmt: skip

    def do_POST(self):
        size = self.headers.get("Content-Length")
        body = self.rfile.read(int(size)) if size else b"".join(self.chunks())
        self.server.posts.append((self.path, self.headers.get("Authorization"), body))
        if self.server.refuse:
            self.reply({"error": "You don't have the rights to create a data set under me"}, 403)
        elif self.path == "/api/repos/create":
            self.reply({"url": f"{self.server.url}/datasets/me/aft", "id": "me/aft"})
        elif self.path == "/api/validate-yaml":
            self.reply({"errors": [], "warnings": []})
        elif "/preupload/" in self.path:
            modes = [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False}
                     for f in json.loads(body)["files"]]  # fmt: skip
            self.reply({"files": modes, "commitOid": "0" * 40})
        else:
            url = f"{self.server.url}/datasets/me/aft/commit/1"
            self.reply({"success": True, "commitOid": "1" * 40, "commitUrl": url})

    def chunks(self):
        while size := int(self.rfile.readline(), 16):
            yield self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()

    def reply(self, value, status=200):
        data = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.send_header("Content-Type", "application/json")
        if status != 200:
            self.send_header("X-Error-Message", value["error"])
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_):
        pass


@pytest.fixture
def hub():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.url = f"http://127.0.0.1:{server.server_port}"
    server.posts, server.there, server.private, server.refuse = [], [], False, False
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def push_to(hub, *argv, stdin=None, stdout=subprocess.PIPE):
    """Run the command with the real client, pointed at the server."""
    home = str(Path("home").absolute())
    env = os.environ | {"HF_ENDPOINT": hub.url, "HF_HUB_OFFLINE": "0", "HF_HOME": home}
    env |= {"PYTHONPATH": str(ROOT), "HF_HUB_DISABLE_XET": "1", "HF_TOKEN": "hf_" + "x" * 8}
    command = [sys.executable, "-m", "aft_factory.push", *argv, "--license", "mit", "--quiet"]
    return subprocess.run(
        command, stdin=stdin, stdout=stdout, stderr=subprocess.PIPE, text=True, env=env, timeout=100
    )


def test_an_upload_is_one_commit_of_the_card_and_all_rows(folder, hub, tmp_path):
    hub.there = [
        "data/train-00000-of-00002.parquet",
        "data/train-00001-of-00002.parquet",
        "LICENSE",
    ]
    done = push_to(hub, write("rows.jsonl", ROWS), "me/aft")
    assert (done.returncode, done.stderr) == (0, "")
    last = f"{len(ROWS)} of {len(ROWS)} rows in {hub.url}/datasets/me/aft\n"
    last += 'load it by datasets.load_dataset("me/aft")\n'
    assert done.stdout == (
        "what an upload makes public of them, all texts aside:\n"
        "  keys of meta: none\n"
        "  sources: gsm8k\n"
        "  models of proposals: 175b_finetuning, 175b_verification, 6b_finetuning, 6b_verification\n"
        f"  settings: none\n{last}"
    )
    assert {token for _, token, _ in hub.posts} == {"Bearer hf_xxxxxxxx"}
    assert json.loads(hub.posts[0][2])["type"] == "dataset"
    commits = [body for path, _, body in hub.posts if "/commit/" in path]
    assert len(commits) == 1
    lines = [json.loads(line) for line in commits[0].splitlines()]
    for line in lines:
        if line["key"] == "file":
            path = Path("got") / line["value"]["path"]
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(base64.b64decode(line["value"]["content"]))
    # What an earlier upload left would come twice.
    deleted = {line["value"]["path"] for line in lines if line["key"] == "deletedFile"}
    assert deleted == set(hub.there) - {"LICENSE"}
    assert sorted(str(p) for p in Path("got").rglob("*.*")) == [
        "got/README.md", "got/data/train-00000-of-00001.parquet"
    ]  # fmt: skip
    assert loaded("got", tmp_path / "cache") == ROWS


def test_what_becomes_public_is_listed_before_an_upload(folder, hub):
    hub.refuse = True
    row = ROWS[0] | {"annotator": "Jo", "source": "s"}
    done = push_to(hub, write("rows.jsonl", [row]), "me/aft")
    assert done.returncode == 2
    assert "not published (name it to --publish): annotator (1 rows)\n  sources: s\n" in done.stdout


@pytest.mark.parametrize(
    ("typed", "argv", "goes_on"),
    [
        ("Yes\n", [], True),
        ("\n", [], False),
        ("n\n", [], False),
        ("\x04", [], False),
        ("", ["--yes"], True),
    ],
)
def test_at_a_terminal_an_upload_is_confirmed(folder, hub, typed, argv, goes_on):
    terminal, end = pty.openpty()
    os.write(terminal, typed.encode())
    done = push_to(hub, write("rows.jsonl", ROWS), "me/aft", *argv, stdin=end, stdout=end)
    assert "  keys of meta: none" in os.read(terminal, 10_000).decode()
    assert done.stderr.startswith("upload to me/aft? [y/N] ") != bool(argv)
    assert (done.returncode, bool(hub.posts)) == ((0, True) if goes_on else (1, False))
    assert done.stderr.endswith("nothing was uploaded\n") != goes_on


def test_a_script_is_not_asked(folder, hub):
    _, end = pty.openpty()
    rows = write("rows.jsonl", ROWS)
    for streams in ({"stdin": subprocess.DEVNULL, "stdout": end}, {"stdin": end}):
        done = push_to(hub, rows, "me/aft", **streams)
        assert (done.returncode, done.stderr) == (0, "")


def test_a_refusal_of_the_hub_is_one_line(folder, hub):
    hub.refuse = True
    done = push_to(hub, write("rows.jsonl", ROWS), "me/aft")
    assert done.returncode == 2
    assert done.stderr.startswith("error: me/aft: the hub did not take it: 403 ")
    assert "You don't have the rights" in done.stderr
    assert done.stderr.count("\n") == 1


def test_private_data_do_not_go_to_a_public_data_set(folder, hub):
    done = push_to(hub, write("rows.jsonl", ROWS), "me/aft", "--private")
    assert done.returncode == 2
    assert "me/aft is public already" in done.stderr
    assert [path for path, _, _ in hub.posts] == ["/api/repos/create"]
    assert "private" in json.loads(hub.posts[0][2]).values()  # its "visibility"
    hub.private = True
    assert push_to(hub, "rows.jsonl", "me/aft", "--private").returncode == 0


def test_a_bad_row_is_found_before_the_hub_is_asked(folder, hub):
    rows = [*ROWS, {"query": ""}]
    random.Random(0).shuffle(rows)
    assert push_to(hub, write("rows.jsonl", rows), "me/aft").returncode == 2
    assert hub.posts == []
