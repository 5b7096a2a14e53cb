"""What stages tell in `meta`. Run: pytest tests/records/test_told.py"""

from aft_factory.records.told import STAGES, is_told, with_told

OURS = dict.fromkeys(STAGES["ranking"])


def test_only_what_has_exactly_the_keys_of_a_stage_is_of_a_stage():
    assert is_told("ranking", OURS)
    assert not is_told("sampling", OURS)
    assert not is_told("topic", OURS)
    for own in (OURS | {"cookie": "x"}, {"model": "m", "scores": []}, {}, "by hand", None):
        assert not is_told("ranking", own)


def test_a_stage_replaces_what_it_told_before_and_nothing_else():
    about = OURS | {"model": "m"}
    assert with_told({"a": 1, "ranking": OURS}, "ranking", about) == {"a": 1, "ranking": about}
    told = with_told({"ranking": "by hand", "input_ranking": 1}, "ranking", about)
    assert told == {"input_ranking": 1, "input_input_ranking": "by hand", "ranking": about}
    again = with_told({"ranking": "by hand", "input_ranking": "by hand"}, "ranking", about)
    assert again == {"input_ranking": "by hand", "ranking": about}
