"""What the environment says of the network: proxies, certificates, keys.

What is wrong with it is told by the variable's name, never by its value, which may be a secret.
"""

from __future__ import annotations

import contextlib
import importlib.util
import ipaddress
import os
import re
import ssl
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import SplitResult, urlsplit
from urllib.request import getproxies, proxy_bypass

from aft_factory.errors import AftError, UsageError

PROXIES = ("http_proxy", "https_proxy", "all_proxy")
SCHEMES = ("http", "https", "socks5", "socks5h")
_LOGIN = re.compile(r"(?<=://)[^\s/?#]+@")  # of an address in a text
# A text that is addresses and nothing else: a prompt in which one stands is kept as it was sent.
_ADDRESS = re.compile(r"[\w+.-]+://\S+")
# The values of an address's query, which may be secrets as its login may.
_VALUE = re.compile(r"(?<=[?&])([^\s=&#]+)=[^\s&#]+")
# In the words of a name: hfToken, X-Api-Key, PGPASSWORD, api_key_2; not: max_tokens.
_SECRET = re.compile(
    r"pass ?(?:word|wd|phrase)|secret|credential|cookie|authorization|bearer|private ?key"
    r"|(?:api|access) ?key|session ?id|\bauth\b|\b(?:keys?|pass|pwd?|sas|sig|signature|token)$"
)
_NO_SECRET = re.compile(
    r"\b(?:pad|bos|eos|unk|sep|cls|mask|start|stop|end|think|image|audio|video|per) token$"
)
_WORD_START = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|[\W_]+")
_NUMBERED_NAME = re.compile(r"[ 0-9]+$")
_SHORTEST_KEY = 8  # characters: shorter ones stand for none, and in many a word
_keys: set[str] = set()  # that were read


def read_key(name: str) -> str:
    """Return the key in an environment variable.

    Raises:
        UsageError: If there is none, or no request could carry it.
    """
    key = os.environ.get(name, "").strip()
    if not key:
        raise UsageError("no environment variable of that name is set; give its name, not the key")
    if not is_sendable(key):
        raise UsageError(
            f"the environment variable {name} holds no key: expected printable ASCII, got a line "
            "break, an accented letter or the like in it; set it anew"
        )
    if len(key) >= _SHORTEST_KEY:
        _keys.add(key)
    return key


def is_key(text: str) -> bool:
    """Tell whether a text is one of the keys that were read."""
    return text.strip() in _keys


def without_keys(text: str) -> str:
    """Return a text without the keys that were read: a server may repeat what it was sent."""
    for key in _keys:
        text = text.replace(key, "...")
    return text


def without_login(text: str) -> str:
    """Return a text whose addresses have no login (`http://me:password@host`) any more."""
    return _LOGIN.sub("", text)


def is_secret(name: str) -> bool:
    """Tell whether what goes by a name is a secret.

    Example:
        >>> is_secret("hf_token"), is_secret("max_tokens")
        (True, False)
    """
    words = _NUMBERED_NAME.sub("", _WORD_START.sub(" ", name).lower())
    return bool(_SECRET.search(words)) and not _NO_SECRET.search(words)


def without_secrets(value: Any) -> Any:
    """Return the value of a setting without secrets: those of addresses, and what is called one.

    Example:
        >>> without_secrets({"url": ["http://me:pw@host/v1?key=1"], "hf_token": "hf_abc"})
        {'url': ['http://host/v1?key=...'], 'hf_token': '...'}
    """
    if isinstance(value, str):
        if not _ADDRESS.fullmatch(value):
            return value
        return _VALUE.sub(r"\1=...", without_login(value))
    if isinstance(value, dict):
        return {
            key: "..." if item and _hidden(str(key), item) else without_secrets(item)
            for key, item in value.items()
        }
    return list(map(without_secrets, value)) if isinstance(value, list) else value


def _hidden(name: str, value: Any) -> bool:
    """Whether a value is a secret by its name, and not the name of a variable that holds one."""
    told = name.endswith("_env") or isinstance(value, bool | int | float)
    return is_secret(name) and not told


def is_sendable(text: str) -> bool:
    """Tell whether a text can be sent in a header."""
    return re.fullmatch(r"[\x20-\x7e]*", text) is not None


def check_headers(headers: Mapping[str, Any]) -> None:
    """Refuse what OpenAI's client takes from variables of its own and cannot send.

    Raises:
        UsageError: With the variables.
    """
    for header, value in headers.items():
        if isinstance(value, str) and not is_sendable(value):
            named = (n for n, v in os.environ.items() if n.startswith("OPENAI_") and value in v)
            names = ", ".join(named) or "the environment"
            raise UsageError(f"{names}: expected printable ASCII, as it is sent in {header}")


@contextlib.contextmanager
def making_client() -> Iterator[None]:
    """Tell what in the environment keeps an HTTP client from being made.

    Raises:
        UsageError: With the variables.
    """
    try:
        yield
    except AftError:
        raise
    except Exception as error:  # httpx raises ImportError, OSError, ValueError and its own
        found = (
            ", ".join(_set("no_proxy", "ssl_cert_file", "ssl_cert_dir", *PROXIES))
            or "the environment"
        )
        unknown = f"{found}: httpx cannot use it ({type(error).__name__})"
        raise UsageError(*environment_problems() or [unknown]) from None


def environment_problems() -> list[str]:
    """Return what is wrong with the environment's proxies, certificates and hub key."""
    problems = []
    for name in _set(*PROXIES):
        proxy = _split(os.environ[name])
        if proxy is None or proxy.scheme not in SCHEMES:
            problems.append(f"{name}: expected a proxy such as http://host:3128, got another text")
        elif proxy.scheme.startswith("socks") and importlib.util.find_spec("socksio") is None:
            problems.append(
                f"{name}: a SOCKS proxy needs socksio; install it with: pip install socksio"
            )
    hosts = [(name, host) for name in _set("no_proxy") for host in os.environ[name].split(",")]
    for name, host in hosts:
        host = host.strip()
        if not (_is_address(host) or (_split(host) and is_sendable(host))):
            problems.append(f"{name}: expected hosts with commas between them, got another text")
    if path := os.environ.get("SSL_CERT_FILE"):
        try:
            ssl.create_default_context(cafile=path)
        except OSError as error:
            problems.append(f"SSL_CERT_FILE: no certificates can be read from {path}: {error}")
    if not is_sendable(os.environ.get("HF_TOKEN", "").strip()):
        problems.append("HF_TOKEN: expected printable ASCII, got another text")
    return list(dict.fromkeys(problems))


def hint(url: str, words: str) -> str:
    """Say what may help where a server does not answer: of certificates, or of a proxy.

    Args:
        url: Of the server.
        words: What became of the request.
    """
    if "CERTIFICATE_VERIFY_FAILED" in words:
        return " (SSL_CERT_FILE names a file of the certificates to trust)"
    parts = urlsplit(url)
    host = parts.hostname or ""
    proxies = getproxies()
    if not (proxies.get(parts.scheme) or proxies.get("all")) or not _is_near(host):
        return ""
    if proxy_bypass(host):
        return ""
    names = " and ".join(_set(f"{parts.scheme}_proxy", "all_proxy"))
    return f" (it is asked through the proxy of {names}; to ask it directly, NO_PROXY={host})"


def without_proxies(environment: Mapping[str, str]) -> dict[str, str]:
    """Return an environment for who asks this process only."""
    return {name: value for name, value in environment.items() if name.lower() not in PROXIES}


def _is_near(host: str) -> bool:
    """Tell whether a host is this machine, or one of the same network."""
    if _is_address(host):
        return ipaddress.ip_address(host).is_private  # which loopback is, too
    return "." not in host or host.endswith((".localhost", ".local", ".internal"))


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_network(host, strict=False)
    except ValueError:
        return False
    return True


def _set(*names: str) -> list[str]:
    """Return the environment variables of these names, in whichever case, that are set."""
    return [name for name, value in os.environ.items() if value and name.lower() in names]


def _split(address: str) -> SplitResult | None:
    """Return the parts of an address; None if it is none."""
    try:
        parts = urlsplit(address if "://" in address else f"http://{address}")
        return parts if parts.port != 0 else None
    except ValueError:
        return None
