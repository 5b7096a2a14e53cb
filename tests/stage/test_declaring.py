"""Settings: from a preset, a file and flags to one checked value, and `--help` from the same."""

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aft_factory.errors import UsageError
from aft_factory.stage.declaring import build, read_yaml, setting
from aft_factory.stage.flags import add_flags


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


def flags(*argv):
    parser = argparse.ArgumentParser()
    add_flags(parser, Some)
    return vars(parser.parse_args(argv))


def test_flags_have_the_names_and_types_of_the_fields():
    argv = (
        "--count 5 --rate 2 --name 1 --path x --kind b --loud --words 1 2 --extra a=1 --extra b=[2]"
    )
    values = build(Some, [("flags", flags(*argv.split()))])
    assert values == Some(5, 2.0, "1", Path("x"), "b", True, ["1", "2"], {"a": 1, "b": [2]})


def test_what_is_not_given_leaves_the_layer_below():
    below = {"count": 7, "loud": True, "words": "one"}
    assert build(Some, [("file", below), ("flags", flags())]) == Some(7, loud=True, words=["one"])
    assert build(Some, [("file", below), ("flags", flags("--no-loud"))]).loud is False


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


def test_settings_of_two_runs_share_no_list():
    assert Some().words is not Some().words


@pytest.mark.parametrize("text", ["- a\n", "a: [", "3", "1: 2\n", "a: !!python/object:os.system x"])
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
