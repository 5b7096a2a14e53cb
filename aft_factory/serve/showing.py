"""From what a model writes to what a stream shows: the answers, and drafts while they are made.

Answers go out as they are written. Of the drafts, of which many are written at once, one is shown
while it is written: the first of its layer; the others follow, whole, as they end.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from aft_factory.engines.sampling import Completion, Piece, Told
from aft_factory.prompts.markers import Markers, Mender
from aft_factory.serve.replies import heading

Place = tuple[int, int]  # (layer, slot)


@dataclass(slots=True)
class Text:
    """A text on its way.

    Attributes:
        markers: What is mended in it.
        shown: As its reader has it.
        written: As far as it is written: behind `shown` where the model had to begin anew, and
            another text altogether where it then wrote another one.
        done: Whether it has ended.
    """

    markers: Markers
    shown: str = ""
    written: str = ""
    done: bool = False
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


class Showing:
    """Follows one query (a `Watch`), and hands on what a stream shows of it.

    Args:
        markers: What is mended in texts.
        answer: Called with the index of an answer and more of its text.
        draft: Called with more of the text about drafts; None shows none.
    """

    def __init__(
        self,
        markers: Markers,
        answer: Callable[[int, str], object],
        draft: Callable[[str], object] | None,
    ) -> None:
        self._markers = markers
        self._answer = answer
        self._draft = draft
        self._answers: dict[int, Text] = {}
        self._drafts: dict[Place, Text] = {}
        self._live: Place | None = None
        self._held: list[Place] = []
        self._parted = ""

    def asked(self, layer: int, slot: int, *, answers: bool) -> Told:
        """Return who hears of samples; see `Watch`."""

        def told(piece: Piece) -> None:
            at = slot + piece.index
            if answers:
                self._of_answer(at).add(piece)
                self._show(at)
            elif self._draft is not None:
                self._follow((layer, at), piece)

        return told

    def used(self, layer: int, slot: int, completion: Completion, *, answers: bool) -> None:
        """Hear of a draft, or an answer, as it is used; see `Watch`."""
        if answers:
            self.ends_as(slot, completion.text)
        elif self._draft is not None:
            text = self._drafts.setdefault((layer, slot), Text(self._markers))
            if not text.done:
                text.written = completion.text
                self._end((layer, slot))

    def ends_as(self, index: int, text: str) -> bool:
        """Show what is left of an answer; return whether it is as it was shown."""
        answer = self._of_answer(index)
        answer.written = text
        self._show(index)
        return not answer.differs

    def _of_answer(self, index: int) -> Text:
        return self._answers.setdefault(index, Text(self._markers))

    def _show(self, index: int) -> None:
        if new := self._of_answer(index).show():
            self._answer(index, new)

    def _follow(self, place: Place, piece: Piece) -> None:
        text = self._drafts.setdefault(place, Text(self._markers))
        text.add(piece)
        if self._live is None and place[1] == 0 and not text.done:
            self._live = place
        if self._live == place:
            self._say(place)
        if piece.ended and not text.done:
            self._end(place)

    def _end(self, place: Place) -> None:
        text = self._drafts[place]
        text.done = bool(text.written.strip())  # or another is drawn in its place
        if self._live is None or self._live == place:
            self._live = None
            for ended in (place, *self._held):
                self._end_shown(ended)
            self._held.clear()
        else:
            self._held.append(place)

    def _end_shown(self, place: Place) -> None:
        """Show what is left of a draft: all of it, if none was shown."""
        text = self._drafts[place]
        if text.differs:  # the model began anew, and wrote another one
            text.shown, self._parted = "", "\n\n"
        self._say(place)
        if text.shown:
            self._parted = "\n\n"

    def _say(self, place: Place) -> None:
        """Show what is new of a draft."""
        assert self._draft is not None
        text = self._drafts[place]
        head = "" if text.shown else self._parted + heading(*place)
        if new := text.show():
            self._draft(head + new)
