"""How a completion ended, by whatever word an engine or server has for it. Pure."""

# As servers call it, in any case. Other words than these are told of, and taken for an end of the
# model's own.
ENDED = frozenset(
    {
        *("stop", "eos", "eos_token", "end_turn", "stop_sequence"),
        *("complete", "completed", "finished"),
        *("tool_calls", "tool_use", "function_call", "", "none"),
    }
)
CUT_OFF = frozenset(
    {
        *("length", "max_length", "model_length", "max_tokens", "max_new_tokens"),
        *("max_output_tokens", "model_context_window_exceeded"),
    }
)
FILTERED = frozenset(
    {
        *("content_filter", "content_filtered", "safety", "recitation", "blocklist", "spii"),
        *("prohibited_content", "guardrail_intervened", "error_toxic", "sensitive", "refusal"),
    }
)
BROKEN = frozenset(
    {
        *("error", "abort", "aborted", "cancelled", "canceled", "failed", "timeout"),
        *("network_error", "insufficient_system_resource"),
    }
)


def is_cut_off(reason: object) -> bool:
    """Tell whether a finish reason, by whatever word, says that a limit of tokens cut it off."""
    return _word(reason) in CUT_OFF


def is_filtered(reason: object) -> bool:
    """Tell whether a finish reason, by whatever word, says that a filter of contents ended it."""
    return _word(reason) in FILTERED


def is_broken(reason: object) -> bool:
    """Tell whether a finish reason says that whoever answered failed in the middle of it."""
    return _word(reason) in BROKEN


def is_known(reason: object) -> bool:
    """Tell whether a finish reason is a word of the lists."""
    return _word(reason) in ENDED | CUT_OFF | FILTERED | BROKEN


def _word(reason: object) -> str:
    """`MAX_TOKENS`, `max-tokens` and an enum's `FinishReason.MAX_TOKENS` are one word."""
    return str(reason).strip().lower().replace("-", "_").rpartition(".")[2]
