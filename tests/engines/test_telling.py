"""What is told of a text while it is written: thought and answer, apart. Run: pytest tests/engines/test_telling.py"""

import itertools
import random

import pytest

from aft_factory.engines.sampling import Piece
from aft_factory.engines.telling import Special, apart
from aft_factory.prompts.thoughts import ThoughtWords

USUAL = ThoughtWords()
OPENED = ThoughtWords(opened=True, own=True)
FRAMED = ThoughtWords(frame=("<say>", "</say>"), own=True)
BEGUN = ThoughtWords("", "[BEGIN IT]", opened=True, own=True, frame=("", "[END IT]"))
CHANNELS = ThoughtWords("<|channel>thought", "<|channel|>", own=True)


def heard(words, texts, pieces, **options):
    """What is heard of texts in pieces of these lengths: by index, thought and answer."""
    found = {}

    def told(piece):
        both = found.setdefault(piece.index, ["", ""])
        before = both[not piece.thought]
        assert piece.start in (0, len(before))
        both[not piece.thought] = before[: piece.start] + piece.text

    tell = apart(told, words, **options)
    for index, text in enumerate(texts):
        at = 0
        for length in pieces:
            tell(Piece(index, text[at : at + length], at, ended=at + length >= len(text)))
            at += length
            if at >= len(text):
                break
    return found


@pytest.mark.parametrize(
    ("words", "text", "thought", "answer"),
    [
        (USUAL, "It is 42.", "", "It is 42."),
        (USUAL, "  It is 42.", "", "  It is 42."),
        (USUAL, "<think>\n6 x 7\n</think>\n\nIt is 42.\n", "6 x 7", "It is 42.\n"),
        (USUAL, "\n<think></think>It is 42.", "", "It is 42."),
        (USUAL, "<think>a < b\n\n</thing> <</think>It is 42.", "a < b\n\n</thing> <", "It is 42."),
        (USUAL, "<think>\nOf <think> and 6 x 7", "Of <think> and 6 x 7", ""),
        (USUAL, "<thin ice> is 42.", "", "<thin ice> is 42."),
        (USUAL, "A <think>6 x 7</think> is a thought.", "", "A <think>6 x 7</think> is a thought."),
        (USUAL, "   ", "", ""),
        (OPENED, "6 x 7\n</think>\n\nIt is 42.", "6 x 7", "It is 42."),
        (OPENED, "<think>6 x 7</think> It is 42.", "6 x 7", "It is 42."),
        (OPENED, "6 x 7 and", "6 x 7 and", ""),  # if it is none, it is told when all of it is there
        (OPENED, "A <think>6 x 7</think> is one.", "", "A <think>6 x 7</think> is one."),
        (CHANNELS, "<|channel>thought 6 x 7<|channel|>It is 42.", "6 x 7", "It is 42."),
        (FRAMED, "<think>6 x 7</think>\n<say>\nIt is 42.\n</say>\n", "6 x 7", "It is 42."),
        (FRAMED, "<say>It <say> </say>\n is 42.</say>", "", "It <say> </say>\n is 42."),
        (FRAMED, "<think>6 x 7</think>It is 42.\n\n", "6 x 7", "It is 42.\n\n"),
        (FRAMED, "<think>6 x 7</think><say>It is 42 </sa", "6 x 7", "It is 42 </sa"),
        (FRAMED, "<think>6 x 7</think><say>It </say> is", "6 x 7", "It </say> is"),
        (BEGUN, "6 x [BEGIN 7\n[BEGIN IT]\nIt is 42.\n[END IT]\n", "6 x [BEGIN 7", "It is 42."),
        (BEGUN, "[BEGIN IT] It is 42. [END IT]", "", "It is 42."),
        (None, "<think>6 x 7</think>It is 42.", "", "<think>6 x 7</think>It is 42."),
    ],
)
def test_thought_and_answer_are_told_apart_however_the_text_comes_in_pieces(
    words, text, thought, answer
):
    for size in (1, 2, 3, 7, 100):
        both = [thought, answer]
        assert heard(words, [text, text], itertools.repeat(size)) == {0: both, 1: both}
    for seed in range(20):
        sizes = random.Random(seed)
        pieces = iter(lambda sizes=sizes: sizes.randint(1, 9), 0)
        assert heard(words, [text], pieces) == {0: both}
    if words is not None and answer:
        assert words.split(text) == (thought, answer)  # as it is split in the end


@pytest.mark.parametrize("pieces", [[1] * 60, [20, 9, 30], [60]])
def test_what_is_no_text_is_never_told_however_it_is_cut(pieces):
    special = Special(["<|end|>", "<|end|>!", "", "<s>"])
    text = "<think>Hm.</think>It <s>is<|en 42.<|end|> <|en"
    assert heard(USUAL, [text], pieces, special=special) == {0: ["Hm.", "It is<|en 42. <|en"]}
    assert special.out_of("a<s>b<|end|>!") == "ab"
    assert Special().parted("a<") == ("a<", "")


def test_a_sample_that_begins_anew_is_told_anew():
    found = []
    tell = apart(found.append, USUAL)
    for text, start in (("One ", 0), ("two", 4), ("<think>Hm.", 0), ("</think>Six", 10)):
        tell(Piece(0, text, start))
    assert [(p.text, p.start) for p in found if not p.thought] == [
        *(("One ", 0), ("two", 4), ("", 0), ("Six", 0)),
    ]
    assert [(p.text, p.start) for p in found if p.thought] == [("Hm.", 0)]


def test_its_end_is_told_though_nothing_is_shown():
    found = []
    apart(found.append, USUAL)(Piece(0, "<think>Hm", 0, ended=True))
    assert found[-1] == Piece(0, "", 0, ended=True)


def test_a_thought_that_a_server_tells_apart_is_told_as_it_comes():
    found = []
    tell = apart(found.append, USUAL)
    pieces = [Piece(0, "<think>", 0, thought=True), Piece(0, "Six", 0)]
    [tell(piece) for piece in pieces]
    assert found == pieces


def test_nobody_is_told_where_nobody_hears():
    assert apart(None, USUAL) is None
