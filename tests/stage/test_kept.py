"""What may be a secret in an address is kept in no file; the rest of it is.

Run: pytest tests/stage/test_kept.py
"""

import pytest

from aft_factory.stage.kept import without_secrets


@pytest.mark.parametrize(
    ("value", "kept"),
    [
        ("http://me:pw@host:8000/v1?key=1&v=2", "http://host:8000/v1?key=...&v=..."),
        ("s3://models/aft@v2/merged", "s3://models/aft@v2/merged"),
        ("me@host", "me@host"),
        ("Cite https://me@host/page?id=7 only.", "Cite https://me@host/page?id=7 only."),
        ({"m": ["https://me@host/v1"]}, {"m": ["https://host/v1"]}),
    ],
)
def test_logins_and_values_of_a_query_are_left_out_of_addresses(value, kept):
    assert without_secrets(value) == kept
