"""From what a model writes to what a stream shows: the answers, and what comes before them.

Answers and their thoughts go out as they are written. Of the drafts, of which many are written at
once, one is shown while it is written: the first of its layer; the others follow, whole, as they
end.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from aft_factory.engines.sampling import Completion, Piece, Told
from aft_factory.prompts.markers import Markers, Mender
from aft_factory.serve.replies import THOUGHT, heading

Place = tuple[int, int]  # (layer, slot)
GAP = "\n\n"


@dataclass(slots=True)
class Text:
    """A text on its way.

    Attributes:
        markers: What is mended in it.
        shown: As its reader has it.
        written: As far as it is written: behind `shown` where the model had to begin anew, and
            another text altogether where it then wrote another one.
    """

    markers: Markers
    shown: str = ""
    written: str = ""
    mender: Mender = field(init=False)

    def add(self, piece: Piece) -> None:
        """Take a piece."""
        if piece.start == 0:
            self.mender, self.written = Mender(self.markers), ""
        self.written += self.mender.mend(piece.text, last=piece.ended)

    @property
    def differs(self) -> bool:
        """Whether it is not as it was shown."""
        return not self.written.startswith(self.shown)

    def show(self) -> str:
        """Return what is to be shown yet, and take it for shown.

        Blanks wait for what comes behind them: a text of nothing else is not used.
        """
        if self.differs or not (self.shown or self.written.strip()):
            return ""
        new = self.written[len(self.shown) :]
        self.shown = self.written
        return new


@dataclass(slots=True)
class Sample:
    """A draft, or an answer, on its way: its thought and its text; `done` once it has ended."""

    thought: Text
    text: Text
    done: bool = False

    def add(self, piece: Piece) -> None:
        """Take a piece of either."""
        (self.thought if piece.thought else self.text).add(piece)

    def settle(self, completion: Completion) -> None:
        """Take both as they are in the end."""
        self.thought.written, self.text.written = completion.thought, completion.text


@dataclass(slots=True)
class Showing:
    """Follows one query (a `Watch`), and hands on what a stream shows of it.

    Attributes:
        markers: What is mended in texts.
        answer: Called with the index of an answer and more of its text.
        reason: Called with the same of what is shown before it; None shows nothing of that.
        whole: Whether drafts are shown with their thoughts.
    """

    markers: Markers
    answer: Callable[[int, str], object]
    reason: Callable[[int, str], object] | None
    whole: bool = field(default=False, kw_only=True)
    _answers: dict[int, Sample] = field(default_factory=dict)
    _drafts: dict[Place, Sample] = field(default_factory=dict)
    _live: Place | None = None
    _held: list[Place] = field(default_factory=list)
    _parted: str = ""

    def asked(self, layer: int, slot: int, *, answers: bool) -> Told:
        """Return who hears of samples; see `Watch`."""

        def told(piece: Piece) -> None:
            at = slot + piece.index
            if answers:
                self._of_answer(at).add(piece)
                self._show(at)
            elif self.reason is not None:
                self._follow((layer, at), piece)

        return told

    def used(self, layer: int, slot: int, completion: Completion, *, answers: bool) -> None:
        """Hear of a draft, or an answer, as it is used; see `Watch`."""
        if answers:
            self.ends_as(slot, completion)
        elif self.reason is not None:
            draft = self._of_draft((layer, slot))
            if not draft.done:
                draft.settle(completion)
                self._end((layer, slot))

    def ends_as(self, index: int, completion: Completion) -> bool:
        """Show what is left of an answer; return whether it is as it was shown."""
        answer = self._of_answer(index)
        answer.settle(completion)
        self._show(index)
        return not answer.text.differs

    def _of_answer(self, index: int) -> Sample:
        return self._answers.setdefault(index, Sample(Text(self.markers), Text(self.markers)))

    def _of_draft(self, place: Place) -> Sample:
        return self._drafts.setdefault(place, Sample(Text(self.markers), Text(self.markers)))

    def _show(self, index: int) -> None:
        """Show what is new of an answer; its thought, if it is another one by now, anew."""
        answer = self._of_answer(index)
        thought, text = answer.thought, answer.text
        if self.reason is not None and not text.shown:
            again = thought.differs and not thought.shown.startswith(thought.written)
            if again:
                thought.shown = ""
            head = self._parted + THOUGHT if self._parted and index == 0 else GAP if again else ""
            head = "" if thought.shown else head
            if new := thought.show():
                self.reason(index, head + new)
        if new := text.show():
            self.answer(index, new)

    def _follow(self, place: Place, piece: Piece) -> None:
        draft = self._of_draft(place)
        draft.add(piece)
        if self._live is None and place[1] == 0 and not draft.done:
            self._live = place
        if self._live == place:
            self._say(place)
        if piece.ended and not piece.thought and not draft.done:
            self._end(place)

    def _end(self, place: Place) -> None:
        draft = self._drafts[place]
        draft.done = bool(draft.text.written.strip())  # or another is drawn in its place
        if self._live is None or self._live == place:
            self._live = None
            for ended in (place, *self._held):
                self._end_shown(ended)
            self._held.clear()
        else:
            self._held.append(place)

    def _end_shown(self, place: Place) -> None:
        """Show what is left of a draft: all of it, if none was shown."""
        draft = self._drafts[place]
        parts = (draft.thought, draft.text) if self.whole else (draft.text,)
        if any(part.differs for part in parts):  # the model began anew, and wrote another one
            draft.thought.shown = draft.text.shown = ""
            self._parted = GAP
        self._say(place)
        if any(part.shown for part in parts):
            self._parted = GAP

    def _say(self, place: Place) -> None:
        """Show what is new of a draft."""
        assert self.reason is not None
        thought, text = self._drafts[place].thought, self._drafts[place].text
        for part in (thought, text) if self.whole else (text,):
            begun = self.whole and thought.shown
            head = "" if part.shown else GAP if begun else self._parted + heading(*place)
            if new := part.show():
                self.reason(0, head + new)
