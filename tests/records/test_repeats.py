"""Values that repeat an earlier one are counted, in one process or over several."""

import subprocess
import sys

from conftest import ROOT

from aft_factory.records.repeats import BUCKETS, Repeats


def repeats(*values):
    found = Repeats()
    for value in values:
        found.add(*value)
    return found


def test_what_is_equal_text_by_text_repeats():
    values = [(str(n % 40), "a") for n in range(4 * BUCKETS)]
    assert repeats(*values).count == 4 * BUCKETS - 40


def test_texts_that_are_equal_only_when_put_together_are_others():
    assert repeats(("ab", "c"), ("a", "bc"), ("abc",), ("abc", ""), ("3:abc",), ()).count == 0


def test_any_text_counts_half_a_surrogate_pair_too():
    assert repeats(("\ud800",), ("\ud801",), ("é",), ("\ud800",)).count == 1


def test_hashes_of_several_processes_add_up():
    code = (
        "from aft_factory.records.repeats import Repeats\n"
        "found = Repeats(); found.add('user', 'Hi'); print(bytes(found).hex())"
    )
    words = [sys.executable, "-c", code]
    others = [subprocess.check_output(words, text=True, cwd=ROOT) for _ in range(2)]
    hashes = b"".join(map(bytes.fromhex, others)) + bytes(repeats(("user", "Hi"), ("user", "Ho")))
    assert Repeats(hashes).count == 2
