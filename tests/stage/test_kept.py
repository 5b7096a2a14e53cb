"""What may be a secret, in an address or by its name, is kept in no file; the rest is.

Run: pytest tests/stage/test_kept.py
"""

import pytest

from aft_factory.network import without_secrets


@pytest.mark.parametrize(
    ("value", "kept"),
    [
        ("http://me:pw@host:8000/v1?key=1&v=2", "http://host:8000/v1?key=...&v=..."),
        ("s3://models/aft@v2/merged", "s3://models/aft@v2/merged"),
        ("me@host", "me@host"),
        ("Cite https://me@host/page?id=7 only.", "Cite https://me@host/page?id=7 only."),
        ({"m": ["https://me@host/v1"]}, {"m": ["https://host/v1"]}),
        ({"engine_args": {"hf_token": "hf_a", "seed": 1}}, {"engine_args": {"hf_token": "...", "seed": 1}}),
        ({"extra": {"credentials": {"aws": "k"}, "hf_token": True}}, {"extra": {"credentials": "...", "hf_token": True}}),
        ({"api_key_env": "MY_KEY", "max_tokens": 5}, {"api_key_env": "MY_KEY", "max_tokens": 5}),
    ],
)  # fmt: skip
def test_what_may_be_a_secret_is_kept_nowhere(value, kept):
    assert without_secrets(value) == kept
