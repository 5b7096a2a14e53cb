"""The server as an ASGI application: routes, keys, origins and request ids."""

from __future__ import annotations

import hashlib
import hmac
import time
import uuid
from collections.abc import Sequence

from starlette.applications import Starlette
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from aft_factory import __version__
from aft_factory.errors import suggest
from aft_factory.serve.chat import Chat, json_response, refused
from aft_factory.serve.refusals import Refusal
from aft_factory.serve.replies import model_card
from aft_factory.serve.state import State

OPEN = ("/health", "/version", "/metrics")  # whoever looks after a server has no key


def build_app(state: State) -> Starlette:
    """Return the application."""
    created = int(time.time())

    async def health(_: Request) -> Response:
        return Response(status_code=200 if state.problem is None else 503)

    async def version(_: Request) -> Response:
        return json_response({"version": __version__})

    async def metrics(_: Request) -> Response:
        return Response(state.metrics.text(), media_type="text/plain; version=0.0.4")

    async def models(_: Request) -> Response:
        answering = state.ready()
        listed = answering.variants.listed.values()
        cards = [model_card(variant, created, answering.context) for variant in listed]
        return json_response({"object": "list", "data": cards})

    async def model(request: Request) -> Response:
        answering, name = state.ready(), request.path_params["name"]
        listed = answering.variants.listed
        if name not in listed:
            raise Refusal(404, f"no model {name!r}; {suggest(name, listed)}", "model_not_found")
        return json_response(model_card(listed[name], created, answering.context))

    chat = Chat(state)
    routes = [Route(path, end) for path, end in zip(OPEN, (health, version, metrics), strict=True)]
    for prefix in ("/v1", ""):
        routes += [
            Route(f"{prefix}/models", models),
            Route(f"{prefix}/models/{{name}}", model),
            Route(f"{prefix}/chat/completions", chat, methods=["POST"]),
        ]
    middleware = [Middleware(_Numbers)]
    if state.settings.allow_origin:
        middleware.append(
            Middleware(
                CORSMiddleware,
                allow_origins=state.settings.allow_origin,
                allow_methods=["GET", "POST"],
                allow_headers=["*"],
                expose_headers=["x-request-id", "x-aft-replayed"],
            )
        )
    middleware.append(Middleware(_Clients, keys=state.settings.keys()))
    failed = Refusal(500, "the server failed", "internal_error")
    handlers = {
        Refusal: lambda _, refusal: refused(refusal),
        HTTPException: _told_http,
        Exception: lambda *_: refused(failed),
    }
    app = Starlette(routes=routes, middleware=middleware, exception_handlers=handlers)
    app.router.redirect_slashes = False  # behind a proxy, it would send clients elsewhere
    return app


def _told_http(request: Request, error: HTTPException) -> Response:
    problem = f"{request.method} {request.url.path}: {error.detail}"
    return refused(Refusal(error.status_code, problem, "not_found", headers=error.headers))


class _Numbers:
    """Gives every request a number, or the one that the client gave it, and tells it."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        number = Headers(scope=scope).get("x-request-id", "")[:200] or uuid.uuid4().hex

        async def numbered(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)["x-request-id"] = number
            await send(message)

        await self._app(scope, receive, numbered)


class _Clients:
    """Lets in who shows one of the keys, if there are any; each key, else address, has its turn."""

    def __init__(self, app: ASGIApp, keys: Sequence[str]) -> None:
        self._app = app
        self._digests = [_digest(key) for key in keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        asks = scope["type"] == "http" and scope["path"] not in OPEN
        if asks and self._digests:
            scheme, _, shown = Headers(scope=scope).get("authorization", "").partition(" ")
            digest = _digest(shown.strip())
            # All of them are compared, whichever is right, and each in constant time.
            right = [hmac.compare_digest(digest, own) for own in self._digests]
            if scheme.lower() != "bearer" or not any(right):
                problem = "this server wants an API key: Authorization: Bearer KEY"
                ask = {"www-authenticate": "Bearer"}
                refusal = Refusal(401, problem, "invalid_api_key", None, ask)
                return await refused(refusal)(scope, receive, send)
            scope["aft.client"] = f"key {right.index(True)}"
        elif asks and scope.get("client"):
            scope["aft.client"] = scope["client"][0]
        await self._app(scope, receive, send)


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode(errors="replace")).digest()
