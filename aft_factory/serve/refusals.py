"""What a client is told instead of an answer, as the clients of OpenAI's API read it. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Literal

from aft_factory.engines.engine import EngineError
from aft_factory.errors import AftError
from aft_factory.inference.outcome import Outcome

TYPES = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}
OVERFLOW = re.compile(r"context|too long|too many tokens|maximum.{0,20}(length|tokens)", re.I)
UNSUPPORTED = "unsupported_parameter"  # the code of what cannot be done
LATER = "5"  # seconds after which to ask again
ABOUT: dict[str | None, Literal["refused", "retry"]] = {"refused": "refused", "engine": "retry"}
NEVER = {"x-should-retry": "false"}  # which the openai client heeds


class Refusal(AftError):
    """A request that is not answered.

    Attributes:
        status: Of HTTP.
        message: Why.
        code: The same for programs.
        param: The field that is to blame.
        headers: Further headers of the answer.
    """

    def __init__(
        self,
        status: int,
        message: str,
        code: str | None = None,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(status, message, code, param)
        self.status = status
        self.message = message
        self.code = code
        self.param = param
        self.headers = dict(headers or {})

    def __str__(self) -> str:
        return self.message

    @property
    def body(self) -> dict[str, Any]:
        """The body of the answer."""
        usual = "server_error" if self.status >= 500 else "invalid_request_error"
        kind = TYPES.get(self.status, usual)
        error = {"message": self.message, "type": kind, "param": self.param, "code": self.code}
        return {"error": error}


def wrong(param: str, problem: str, code: str = "invalid_value") -> Refusal:
    """Return the refusal of a request for one of its fields."""
    return Refusal(400, f"{param}: {problem}", code, param)


def unsupported(param: str, problem: str) -> Refusal:
    """Return the refusal of a request for what cannot be done."""
    return wrong(param, problem, UNSUPPORTED)


def later(message: str, code: str, status: int = 503) -> Refusal:
    """Return the refusal of a request that may be sent again after a while."""
    return Refusal(status, message, code, headers={"retry-after": LATER})


def of_outcome(outcome: Outcome) -> Refusal:
    """Return what to tell of a query that ended without an answer."""
    problem, about = outcome.problem or "no answer", outcome.about
    if about == "context":
        return Refusal(400, problem, "context_length_exceeded", "messages")
    if about in ABOUT:
        return of_engine(EngineError(problem, ABOUT[about]))
    return Refusal(500, f"no answer: {problem}", "no_answer", headers=NEVER)


def of_engine(error: EngineError) -> Refusal:
    """Return what to tell where the model did not answer."""
    if error.kind == "refused":
        if OVERFLOW.search(error.problem):
            return Refusal(400, error.problem, "context_length_exceeded", "messages")
        return Refusal(400, f"the model refuses the request: {error}", "refused_by_model")
    if error.kind == "retry":
        return later(f"the model does not answer: {error}", "model_unavailable")
    return Refusal(502, f"the model answers no such request: {error}", "model_failed")
