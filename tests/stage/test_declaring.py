"""Settings: from a preset, a file and flags to one checked value, and `--help` from the same."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aft_factory.errors import UsageError
from aft_factory.stage.declaring import (
    REQUIRED,
    argument,
    build,
    checked,
    setting,
    switch,
)
from aft_factory.stage.flags import Parser, add_flags, to_arguments, usage_of
from aft_factory.stage.yaml_file import read_yaml


@dataclass(frozen=True)
class Some:
    count: int = setting(3, "how many")
    rate: float | None = setting(None, "100% of what")
    name: str | None = setting(None, "a name")
    path: Path | None = setting(None, "a path")
    kind: Literal["a", "b"] = setting("a", "which")
    loud: bool = setting(False, "whether")
    words: list[str] = setting([], "some")
    extra: dict[str, Any] = setting({}, "more")


@dataclass(frozen=True, kw_only=True)
class Other:
    """Without a file of settings."""

    layout: str = argument("a", "a layout", choices=("a", "b"))
    files: list[str] = argument([], "inputs", "FILE")
    key: str = setting(REQUIRED, "has to be given")
    dry: bool = switch("only look")
    codes: list[str] = setting([], "one at a time", form="repeated")
    column: dict[str, str] = setting({}, "names", "FIELD=NAME")
    number: int = setting(1, "how many")


def flags(*argv, kind=Some):
    parser = Parser("some", "", "", usage_of(kind))
    add_flags(parser, kind)
    return vars(parser.parse_args(argv))


def test_flags_have_the_names_and_types_of_the_fields():
    argv = (
        "--count 5 --rate 2 --name 1 --path x --kind b --loud --words 1 2 --extra a=1 --extra b=[2]"
    )
    values = build(Some, [("flags", flags(*argv.split()))])
    assert values == Some(5, 2.0, "1", Path("x"), "b", True, ["1", "2"], {"a": 1, "b": [2]})


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ({"extra": ["a=1", "b=2", "a=3"]}, "extra: expected each name once, got a, b, a"),
        ({"count": 2**63}, "count: expected a whole number of at most 64 bits"),
        ({"count": str(-(2**64))}, "count: expected a whole number"),
        ({"rate": float("nan")}, "rate: expected a number, got nan"),
        ({"rate": "nan"}, "rate: expected a number, got nan"),
    ],
)
def test_what_means_nothing_or_two_things_is_refused(values, problem):
    assert checked(values, Some)[1][0].startswith(problem)


def test_the_largest_numbers_are_taken():
    values, problems = checked({"count": 2**63 - 1, "rate": float("inf")}, Some)
    assert (values, problems) == ({"count": 2**63 - 1, "rate": float("inf")}, [])


@pytest.mark.parametrize(
    "text", ["count: 1\nrate: 2\ncount: 3\n", "extra:\n  count: 1\n  count: 1\n"]
)
def test_a_name_that_stands_twice_in_a_file_is_refused_with_its_line(tmp_path, text):
    path = tmp_path / "s.yaml"
    path.write_text(text)
    with pytest.raises(UsageError, match=r"(?s)s\.yaml.*count is given twice.*line [23]"):
        read_yaml(path)


def test_what_is_not_given_leaves_the_layer_below():
    below = {"count": 7, "loud": True, "words": "one"}
    assert build(Some, [("file", below), ("flags", flags())]) == Some(7, loud=True, words=["one"])
    assert build(Some, [("file", below), ("flags", flags("--no-loud"))]).loud is False


@pytest.mark.parametrize("number", [10**400, -(10**400)])
def test_a_number_that_is_too_large_is_refused(number):
    with pytest.raises(UsageError, match="rate: expected a number"):
        build(Some, [("", {"rate": number})])
    assert build(Some, [("", flags("--extra", f"a={'9' * 5000}"))]).extra == {"a": "9" * 5000}


def test_of_a_mapping_a_later_layer_overrides_key_by_key():
    layers = [{"extra": {"a": 1, "b": 2}}, {"extra": {"b": 3}}, flags("--extra", "c=4")]
    built = build(Some, [("", layer) for layer in layers])
    assert built.extra == {"a": 1, "b": 3, "c": 4}
    assert layers[0] == {"extra": {"a": 1, "b": 2}}  # never changed


def test_what_merges_merges_over_several_steps(tmp_path):
    path = tmp_path / "s.yaml"
    path.write_text("a: &a {x: 1}\nb: &b {<<: *a, x: 2}\nc: {<<: *b, x: 3}\n")
    assert read_yaml(path) == {"a": {"x": 1}, "b": {"x": 2}, "c": {"x": 3}}


def test_null_unsets_what_may_be_unset():
    assert build(Some, [("preset", {"rate": 1.5}), ("file", {"rate": None})]).rate is None
    with pytest.raises(UsageError, match="file: count: expected a whole number, got None"):
        build(Some, [("file", {"count": None})])


def test_all_problems_are_told_at_once_with_the_place():
    layers = [("a.yaml", {"cuont": 1, "loud": "yes"}), ("flags", {"kind": "c", "extra": ["x"]})]
    with pytest.raises(UsageError) as error:
        build(Some, layers)
    assert str(error.value).splitlines() == [
        "a.yaml: unknown key 'cuont'; did you mean 'count'?",
        "a.yaml: loud: expected true or false, got 'yes'",
        "flags: kind: expected one of a, b, got 'c'",
        "flags: extra: expected KEY=VALUE, got 'x'",
    ]


def test_arguments_switches_and_what_is_repeated():
    argv = ("b", "1.jsonl", "2.jsonl", "--key", "k", "--dry", "--codes", "en", "--codes", "de")
    values = build(Other, [("", flags(*argv, kind=Other))])
    assert values == Other(
        layout="b", files=["1.jsonl", "2.jsonl"], key="k", dry=True, codes=["en", "de"]
    )
    some = flags("--words", "a", "b", "--words", "c")
    assert some == {"words": ["a", "b", "c"]}


@pytest.mark.parametrize(
    ("argv", "problem"),
    [
        (["a", "x"], "required: --key (aft some --help tells more)"),
        (["--key", "k", "a"], "required: FILE"),
        (["--key", "k", "c", "x"], "invalid choice: 'c'"),
        (["--key", "k", "a", "x", "--no-dry"], "unknown flag --no-dry; did you mean '--dry'?"),
    ],
)
def test_what_the_command_line_lacks_or_does_not_know(argv, problem, capsys):
    with pytest.raises(SystemExit, match="2"):
        flags(*argv, kind=Other)
    err = capsys.readouterr().err
    assert problem in err
    assert err.startswith("error: ")
    assert err.count("\n") == 1


def test_names_in_a_dict_of_texts_are_no_yaml():
    given = flags("a", "x", "--key", "k", "--column", "id=no", "--column", "x=a=b", kind=Other)
    assert build(Other, [("", given)]).column == {"id": "no", "x": "a=b"}
    for wrong, problem in (({"id": 7}, "got 7; put it in quotes"), ("id", "expected FIELD=NAME")):
        with pytest.raises(UsageError, match=problem):
            build(Other, [("", {"key": "k", "column": wrong})])


def test_a_number_that_yaml_takes_for_a_text_is_a_number():
    assert build(Some, [("file", {"count": "5", "rate": "1e-5"})]) == Some(5, 1e-5)
    with pytest.raises(UsageError, match=r"file: count: expected a whole number, got '5\.5'"):
        build(Some, [("file", {"count": "5.5"})])


def test_what_is_not_to_be_set_is_not_known():
    assert checked({"dry": True, "numbr": 1}, Other, but=("dry", "codes")) == (
        {},
        [
            "unknown key 'dry'; known: column, files, key, layout, number",
            "unknown key 'numbr'; did you mean 'number'?",
        ],
    )


TEXTS = st.text(st.characters(blacklist_categories=["Cs"]), min_size=1)


@given(
    st.fixed_dictionaries(
        {"key": TEXTS, "files": st.lists(TEXTS.filter(lambda t: t[0] != "-"), min_size=1)},
        optional={
            "layout": st.sampled_from("ab"),
            "dry": st.booleans(),
            "codes": st.lists(TEXTS, min_size=1),
            "column": st.dictionaries(TEXTS.filter(lambda t: "=" not in t), st.text(), min_size=1),
            "number": st.integers(-(2**63), 2**63 - 1),
        },
    )
)
def test_settings_become_the_arguments_that_say_them(mapping):
    values, problems = checked(mapping, Other)
    assert problems == []
    given = flags(*to_arguments(values, Other), kind=Other)
    assert build(Other, [("", given)]) == build(Other, [("", values)])


def test_settings_of_two_runs_share_no_list():
    assert Some().words is not Some().words


@pytest.mark.parametrize(
    "text",
    [
        *("- a\n", "a: [", "3", "1: 2\n", "a: !!python/object:os.system x"),
        *("{{ x }}: 1\n", "? [a, b]\n: 1\n", "a: {{ x }}\n", f"a: {'9' * 5000}\n", "a: 2024-13-45\n"),
    ],
)  # fmt: skip
def test_a_file_that_is_no_mapping_is_refused(tmp_path, text):
    path = tmp_path / "x.yaml"
    path.write_text(text)
    with pytest.raises(UsageError, match=r"x\.yaml"):
        read_yaml(path)


@given(st.dictionaries(st.sampled_from([*Some.__dataclass_fields__, "other"]), st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(), st.lists(st.text()),
    st.dictionaries(st.text(), st.integers()),
)))  # fmt: skip
def test_any_mapping_is_built_or_refused(mapping):
    try:
        built = build(Some, [("file", mapping)])
    except UsageError:
        return
    assert type(built.count) is int
    assert isinstance(built.words, list)
