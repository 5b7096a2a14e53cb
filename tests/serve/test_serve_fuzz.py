"""Bodies that no client means: each is answered or refused, none fails the server or hangs.

Run: pytest tests/serve/test_serve_fuzz.py; AFT_FUZZ=5000 sends more of them.
"""

import http.client
import json
import os

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from serve_tools import QUESTION, Watched, served

from aft_factory.serve.asked import KNOWN, OF_AFT, OF_SAMPLING

EXAMPLES = int(os.environ.get("AFT_FUZZ", "100"))
TEXTS = st.text(max_size=20) | st.sampled_from(
    ["user", "assistant", "system", "text", "aft", "plain", "aft-k2-l1", "rsa", "moa", "best_of_n"]
)
LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | TEXTS
JSON = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=8,
)
NUMBERS = st.sampled_from([0, 1, 2, -1, 0.5, 1.0, 10**30, True, "1", None])
PARTS = st.lists(st.fixed_dictionaries({"type": TEXTS, "text": TEXTS | JSON}), max_size=2)
MESSAGE = st.fixed_dictionaries({"role": TEXTS | JSON, "content": TEXTS | PARTS | JSON})
MESSAGES = st.just(QUESTION) | st.lists(MESSAGE | JSON, max_size=3) | JSON
AFT = st.dictionaries(
    st.sampled_from(OF_AFT),
    NUMBERS | TEXTS | st.dictionaries(st.sampled_from(OF_SAMPLING), NUMBERS | JSON) | JSON,
    max_size=3,
)
FIELDS = st.dictionaries(st.sampled_from(sorted(KNOWN)) | TEXTS, NUMBERS | JSON, max_size=4)
BODIES = st.builds(
    lambda fields, messages, aft: fields | {"messages": messages} | ({"aft": aft} if aft else {}),
    *(FIELDS, MESSAGES, AFT),
)


@pytest.fixture(scope="module")
def post():
    """Sends a body; returns the status and the answer."""
    with served(Watched(), max_answer=100, variants={"vote": {"strategy": "majority_vote"}}) as one:
        host, port = one.url.removeprefix("http://").removesuffix("/v1").split(":")
        wire = http.client.HTTPConnection(host, int(port), timeout=20)

        def send(body):
            wire.request("POST", "/v1/chat/completions", body)
            answer = wire.getresponse()
            return answer.status, answer.read()

        yield send
        wire.close()


@settings(max_examples=EXAMPLES, suppress_health_check=list(HealthCheck))
@given(BODIES | JSON)
@example({"messages": QUESTION, "stream": True, "n": 3})
@example({"messages": QUESTION, "aft": {"strategy": []}})
@example({"messages": QUESTION, "model": "aft-k999999-l999999"})
@example({"messages": [{"role": "user", "content": "\ud83d"}]})
@example({"messages": QUESTION, "aft": {"strategy": "rsa", "width": 3, "layers": 2, "subset": 9}})
def test_every_body_is_answered_or_refused_by_name(post, body):
    status, answer = post(json.dumps(body).encode())
    if status == 200:
        assert b'"choices"' in answer
        assert b'"error"' not in answer.replace(b'\\"error\\"', b"")
    else:
        error = json.loads(answer)["error"]
        assert 400 <= status < 500, error
        assert error["message"]


@settings(max_examples=EXAMPLES, suppress_health_check=list(HealthCheck))
@given(st.binary(max_size=200))
def test_every_bytes_are_answered_or_refused(post, body):
    assert 400 <= post(body)[0] < 500
