"""A run of examples/reproduce: it stops at a gate, and at a command that fails."""

import sys

import pytest
import yaml
from cells import HERE, Cell, read_scale
from reproduce import Reproduction
from verdicts import Gate


def scale_of(tmp_path, **change):
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(yaml.safe_load((HERE / "smoke.yaml").read_text()) | change))
    return read_scale(path)


class Gated(Reproduction):
    """One that is a gate and what comes after it."""

    def cells(self):
        self.done = []
        yield Cell("the gate", gate=lambda: Gate(False, "nothing to aggregate"))
        yield Cell("what comes after", before=lambda: self.done.append("after"))


@pytest.mark.parametrize(("gates", "code", "after"), [("stop", 1, []), ("tell", 0, ["after"])])
def test_a_gate_that_does_not_pass_stops_and_says_so(gates, code, after, tmp_path, capsys):
    reproduction = Gated(scale_of(tmp_path, gates=gates), tmp_path / "out")
    assert reproduction.run() == code
    assert reproduction.done == after
    told = capsys.readouterr()
    assert "NOT passed: nothing to aggregate" in told.out
    assert ("stopped at a gate" in told.err) == (gates == "stop")


class Failing(Reproduction):
    """One whose command fails."""

    def cells(self):
        yield Cell("the command", [sys.executable, "-c", "raise SystemExit(3)"])
        raise AssertionError("it went on")


def test_a_command_that_fails_stops_it_with_its_code(tmp_path, capsys):
    assert Failing(scale_of(tmp_path), tmp_path / "out").run() == 3
    assert (
        "stopped at the command: exit code 3; the same command goes on" in capsys.readouterr().err
    )
