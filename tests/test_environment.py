"""Proxies, certificates and keys of the environment: told by their names, never by their values.

Run: pytest tests/test_environment.py
"""

import asyncio
import http.server
import importlib.util
import json
import ssl
import subprocess
import threading

import pytest
from aiohttp import web
from asking_tools import write_lines
from flaky_server import FlakyServer, serving
from reward_tools import free_port, http_server, logits

from aft_factory.engines.openai_engine import OpenAIEngine
from aft_factory.errors import UsageError
from aft_factory.network import environment_problems, hint
from aft_factory.prompts.tokenizer import load_tokenizer
from aft_factory.rank.__main__ import main as rank
from aft_factory.run.__main__ import main as run
from aft_factory.stage.console import guarded

SECRET = "xyzzy"
CLEAN = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY", "SSL_CERT_FILE", "OPENAI_API_KEY")
NO_SOCKS = pytest.mark.skipif(
    importlib.util.find_spec("socksio") is not None, reason="socksio is installed"
)


@pytest.fixture(autouse=True)
def _clean(monkeypatch):
    for name in CLEAN:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)


@pytest.fixture
def ask(tmp_path, tiny_reward_model, capsys, monkeypatch):
    """Ask a server, or a reward model's, in an environment; return (exit code, stderr)."""
    row = {"query": "What is 1+1?", "proposals": ["1", "2"]}
    source = str(write_lines(tmp_path / "in.jsonl", [row]))

    def asked(kind, url, *flags, **environment):
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        output = ["--output", str(tmp_path / "out.jsonl"), "--quiet", "--overwrite"]
        flags = [*output, "--retries", "0", "--timeout", "5", *flags]
        if kind == "model":
            flags += ["--base-url", f"{url}/v1", "--model", "flaky", "--layers", "0"]
            code = run([source, *flags])
        else:
            flags += ["--reward-url", url, "--reward-tokenizer", str(tiny_reward_model)]
            code = rank([source, *flags])
        asked.out, err = capsys.readouterr()
        assert SECRET not in err + asked.out
        return code, err

    return asked


@pytest.fixture
def nearby():
    """The URLs of servers on this machine, by kind."""
    with serving() as server, http_server(lambda body: (200, {}, logits(1))) as reward:
        yield {"model": server.url.removesuffix("/v1"), "reward": reward}


@pytest.fixture
def proxy():
    """A proxy that lets nobody through, as a company's does; its URL, and what it was asked."""
    asked = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            self.send_response(self.server.status)
            self.send_header("Content-Length", "0")
            self.end_headers()

        do_POST = do_GET

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.status, server.asked = 503, asked
    threading.Thread(target=server.serve_forever, daemon=True).start()
    server.url = f"http://someone:{SECRET}@127.0.0.1:{server.server_port}"
    yield server
    server.shutdown()
    server.server_close()


KINDS = pytest.mark.parametrize("kind", ["model", "reward"])


@KINDS
@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("HTTP_PROXY", f"http://u:{SECRET}@h:x9", "expected a proxy such as http://host:3128"),
        ("https_proxy", f"http://u:{SECRET}@h:x9", "expected a proxy such as"),
        ("ALL_PROXY", f"socks6://u:{SECRET}@h:9", "expected a proxy such as"),
        pytest.param(
            "ALL_PROXY", f"socks5://u:{SECRET}@h:9", "a SOCKS proxy needs socksio", marks=NO_SOCKS
        ),
        pytest.param("all_proxy", "socks5h://h:9", "a SOCKS proxy needs socksio", marks=NO_SOCKS),
        ("SSL_CERT_FILE", "/no/such/file.pem", "no certificates can be read from /no/such/file"),
        ("SSL_CERT_FILE", __file__, "no certificates can be read from"),
    ],
)
def test_what_keeps_a_client_from_being_made_is_one_line(ask, nearby, kind, name, value, told):
    code, err = ask(kind, nearby[kind], **{name: value})
    assert code == 2
    assert err.startswith(f"error: {name}: {told}")
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize("value", ["[::1", "http://:x", "a, http://a:b:c", "\x01", "caf\xe9"])
def test_hosts_that_httpx_cannot_read_are_told(ask, nearby, value):
    code, err = ask("reward", nearby["reward"], NO_PROXY=value)
    assert (code, err) == (
        2,
        "error: NO_PROXY: expected hosts with commas between them, got another text\n",
    )


@KINDS
@pytest.mark.parametrize("value", ["", " , ,", "::1, 10.0.0.0/8,*.example.com , h:80", "*"])
def test_hosts_that_it_can_read_are_none_of_our_business(ask, nearby, kind, value):
    assert ask(kind, nearby[kind], NO_PROXY=value)[0] == 0
    assert environment_problems() == []


@KINDS
@pytest.mark.parametrize("status", [403, 407, 502, 503, 504, None])
def test_a_server_nearby_that_is_asked_through_a_proxy_gets_a_hint(
    ask, nearby, proxy, kind, status
):
    proxy.status = status
    url = proxy.url if status else f"http://someone:{SECRET}@127.0.0.1:{free_port()}"
    code, err = ask(kind, nearby[kind], HTTP_PROXY=url)
    assert code == 2
    hint = "(it is asked through the proxy of HTTP_PROXY; to ask it directly, NO_PROXY=127.0.0.1)"
    assert hint in err
    assert bool(proxy.asked) == bool(status)
    assert ask(kind, nearby[kind], NO_PROXY="127.0.0.1")[0] == 0


@pytest.mark.parametrize(
    ("url", "names"),
    [
        ("http://localhost:8000/v1", "http_proxy"),
        ("http://[::1]:8000", "http_proxy"),
        ("http://192.168.3.4/v1", "http_proxy"),
        ("http://gpu1:8000/v1", "http_proxy"),
        ("http://box.local", "http_proxy"),
        ("https://10.1.2.3/v1", "all_proxy"),
        ("http://8.8.8.8/v1", None),
        ("https://api.example.com/v1", None),
        ("http://gpu2:8000/v1", None),
    ],
)
def test_who_is_near_and_not_left_out_of_proxies_is_hinted_at(monkeypatch, url, names):
    assert hint(url, "no answer") == ""
    monkeypatch.setenv("http_proxy", f"http://u:{SECRET}@h:9")
    monkeypatch.setenv("NO_PROXY", "gpu2")
    if url.startswith("https"):
        assert hint(url, "no answer") == ""
        monkeypatch.setenv("all_proxy", "http://h:9")
    assert (f"the proxy of {names};" in hint(url, "no answer")) == (names is not None)
    assert (hint(url, "no answer") == "") == (names is None)


@KINDS
@pytest.mark.parametrize("odd", ["\nmore", "\tmore", "é", "\x01", "\x7f", "\u200b", "“"])
def test_a_key_that_no_header_can_carry_is_told_by_its_name(ask, nearby, kind, odd):
    code, err = ask(kind, nearby[kind], OPENAI_API_KEY=f"sk-{SECRET}{odd}more")
    assert code == 2
    assert "the environment variable OPENAI_API_KEY holds no key" in err
    assert len(err.splitlines()) == 1
    assert ask(kind, nearby[kind], OPENAI_API_KEY=f" sk-{SECRET}-ok\r\n")[0] == 0


def test_a_named_key_is_checked_with_the_other_settings(ask, nearby):
    given = {"ODD_KEY": f"sk-{SECRET}\nmore"}
    code, err = ask("model", nearby["model"], "--api-key-env", "ODD_KEY", "--top-p", "7", **given)
    assert code == 2
    assert "api_key_env: the environment variable ODD_KEY holds no key" in err
    assert "top_p" in err
    proposers = ["--strategy", "moa", "--proposers", "a", "--proposer-key-env", "a=ODD_KEY"]
    proposers += ["--proposer-urls", f"a={nearby['model']}/v1"]
    code, err = ask("model", nearby["model"], *proposers)
    assert "proposer_key_env: the environment variable ODD_KEY holds no key" in err


@pytest.mark.parametrize(
    ("name", "value"), [("OPENAI_ORG_ID", f"{SECRET}\nx"), ("OPENAI_PROJECT_ID", f"{SECRET}é")]
)
def test_what_the_client_sends_besides_is_checked_too(ask, nearby, name, value):
    code, err = ask("model", nearby["model"], **{name: value})
    assert (code, f"error: {name}: expected printable ASCII" in err) == (2, True)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("HF_TOKEN", f"{SECRET}é"),
        ("SSL_CERT_FILE", "/no/such/file"),
        ("HTTPS_PROXY", f"nonsense://{SECRET}"),
    ],
)
def test_a_tokenizer_that_is_not_had_tells_what_is_wrong_with_the_environment(
    monkeypatch, name, value
):
    monkeypatch.setenv(name, value)
    with pytest.raises(
        UsageError, match=f"(?s)cannot load the tokenizer 'no/such': .*; {name}: "
    ) as e:
        load_tokenizer("no/such")
    assert SECRET not in str(e.value)


def test_a_certificate_that_is_not_trusted_tells_the_variable(ask, tmp_path, monkeypatch, caplog):
    certificate = str(tmp_path / "cert.pem")
    command = "openssl req -x509 -newkey rsa:2048 -nodes -days 1 -subj /CN=localhost -addext"
    command = [*command.split(), "subjectAltName=IP:127.0.0.1", "-keyout", certificate + ".key"]
    subprocess.run([*command, "-out", certificate], check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, certificate + ".key")
    listing = {"data": [{"id": "flaky", "max_model_len": 9999}]}
    said = json.dumps({"choices": [{"message": {"content": "2"}}], **json.loads(logits(1))})
    with http_server(lambda body: (200, {}, said), listing, context=context) as url:
        for kind in ("model", "reward"):
            code, err = ask(kind, url)
            assert (code, "CERTIFICATE_VERIFY_FAILED" in err, len(err.splitlines())) == (2, True, 1)
            assert err.endswith(" (SSL_CERT_FILE names a file of the certificates to trust)\n")
            assert ask(kind, url, SSL_CERT_FILE=certificate)[0] == 0
            monkeypatch.delenv("SSL_CERT_FILE")
    assert "is left alone" not in caplog.text  # as there is no other server


# What servers say


@pytest.mark.parametrize(("names", "offered"), [(["\x1b[2Jm", "a\nb"], None), (["\x07", "m"], "m")])
def test_a_model_whose_name_could_steer_a_terminal_is_not_offered(names, offered):
    async def connected():
        async with FlakyServer(models=tuple(names)) as server:
            engine = await OpenAIEngine.connect([server.url])
            await engine.close()
            return engine.model

    if offered is None:
        with pytest.raises(UsageError, match="the servers offer no list"):
            asyncio.run(connected())
    else:
        assert asyncio.run(connected()) == offered


@pytest.mark.parametrize("of_all", [True, False])
def test_what_a_server_says_is_printed_without_control_characters(ask, of_all):
    def refuse(path, body):
        if of_all or "Say hello." not in str(body):
            return web.Response(text="no \x9b2J\x1b]0;title\x07 more", status=400)
        return None

    with serving(answer=refuse) as server:
        code, err = ask("model", server.url.removesuffix("/v1"))
    assert code == (2 if of_all else 1)
    assert "more" in (err if of_all else ask.out)
    assert not set("\x1b\x9b\x07") & set(err + ask.out)


def test_errors_are_printed_with_control_characters_spelled_out(capsys):
    def fail():
        raise UsageError("not \x1b[2J\x9bme\nnor me")

    guarded(fail, lines=True)
    assert capsys.readouterr().err == "error: not \\x1b[2J\\x9bme\nnor me\n"
