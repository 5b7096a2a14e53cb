"""Whether a server takes system messages, by what it answers to a question of one token.

Run: pytest tests/engines/test_openai_system.py
"""

import asyncio

import pytest

from aft_factory.engines.openai_system import takes_system


def counted(messages, more=9):
    """The usage that an honest server tells: a token per word, and headers."""
    tokens = sum(len(message["content"].split()) for message in messages)
    return {"usage": {"prompt_tokens": tokens + more}}


def without(messages):
    return [message for message in messages if message["role"] != "system"]


def refusing(messages):
    return None if messages[0]["role"] == "system" else counted(messages)


# A server's answer to messages, whether it takes system messages, and how many questions that took.
SERVERS = {
    "takes them": (counted, True, 1),
    "refuses them": (refusing, False, 2),
    "refuses one and is gone": (lambda m: None if len(m) > 1 else {}, True, 2),
    "refuses everything": (lambda messages: None, True, 2),
    "drops them": (lambda messages: counted(without(messages)), False, 2),
    "drops them for a default of its own": (lambda m: counted(without(m), 40), False, 2),
    "does not answer": (lambda messages: {}, True, 1),
    "tells no usage": (lambda messages: {"usage": None}, True, 1),
    "tells usage of another kind": (lambda messages: {"usage": {"prompt_tokens": "9"}}, True, 1),
    "counts nothing": (lambda messages: {"usage": {"prompt_tokens": 0}}, True, 1),
    "counts the same of all": (lambda messages: {"usage": {"prompt_tokens": 10}}, True, 2),
    "is silent the second time": (lambda m: counted([]) if len(m) > 1 else {}, True, 2),
    "refuses the second": (lambda m: counted([]) if len(m) > 1 else None, True, 2),
    "tells no usage the second time": (lambda m: counted([]) if len(m) > 1 else {"a": 1}, True, 2),
}


@pytest.mark.parametrize(("answer", "takes", "questions"), SERVERS.values(), ids=SERVERS.keys())
def test_a_server_takes_system_messages_unless_it_is_seen_not_to(answer, takes, questions):
    asked = []

    class Server:
        async def try_out(self, body):
            asked.append(body)
            return answer(body["messages"])

    assert asyncio.run(takes_system(Server(), "m")) is takes
    assert len(asked) == questions
    assert all((body["model"], body["max_tokens"]) == ("m", 1) for body in asked)
