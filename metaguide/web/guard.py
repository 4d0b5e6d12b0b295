"""The guard: what every request passes before it reaches an endpoint, as ASGI middleware."""

import asyncio
import hmac
import logging
import time
from collections.abc import Collection
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from metaguide.web.errors import Refusal, response_to
from metaguide.web.metrics import Metrics
from metaguide.web.schemas import Limits

LOOPBACK = ("localhost", "127.0.0.1", "[::1]")
"""The hosts by which a browser on this machine names it."""

LESSONS = "/v1/teach"
"""The paths of requests that take long."""

HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
}
"""What every response says to a browser."""

_log = logging.getLogger("metaguide.web")


def guarded(
    app: ASGIApp, *, hosts: Collection[str], token: str, limits: Limits, metrics: Metrics
) -> ASGIApp:
    """Return an application that refuses what no endpoint should see.

    Args:
        app: the application.
        hosts: the names in `Host` headers that are answered; "*" answers all. A page of another
            site whose name was rebound to this machine has its own name there.
        token: what requests below `/v1` carry as `Authorization: Bearer`; "" if nothing.
        limits: of bodies and seconds.
        metrics: where requests are counted.
    """

    async def guard(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await app(scope, receive, send)
            return
        begun, status = time.perf_counter(), 0

        async def sending(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message).update(HEADERS)
            await send(message)

        lasts = scope["path"].startswith(LESSONS)
        seconds = limits.lesson_seconds if lasts else limits.seconds
        refusal = None
        try:
            async with asyncio.timeout(seconds):
                _check(scope, hosts, token)
                body = await _body(scope, receive, limits.body)
                await app(scope, _replayed(body, receive), sending)
        except Refusal as error:
            refusal = error
        except TimeoutError:
            hint = "send fewer or shorter examples, or try again when the server is less busy"
            refusal = Refusal(504, "timeout", f"no answer within {seconds:g} seconds", hint)
        except Exception:
            _log.exception("%s %s failed", scope["method"], scope["path"])
            hint = "the server's log says what happened"
            refusal = Refusal(500, "internal", "the server made a mistake", hint)
        if refusal is not None and not status:
            await response_to(refusal)(scope, receive, sending)
        path = getattr(scope.get("route"), "path", "other")
        method = scope["method"] if path != "other" else "any"
        metrics.observe_request(method, path, status, time.perf_counter() - begun)

    return guard


def _check(scope: Scope, hosts: Collection[str], token: str) -> None:
    """Check the headers of a request.

    Raises:
        Refusal: one is not as it has to be.
    """
    headers = Headers(scope=scope)
    host = headers.get("host", "").lower()
    name = host[: host.find("]") + 1] if host.startswith("[") else host.partition(":")[0]
    if "*" not in hosts and name not in hosts:
        hint = f"call the server by one of {', '.join(hosts)}"
        raise Refusal(400, "host", "the Host header names another host", hint)
    path = scope["path"]
    if token and (path.startswith("/v1/") or path == "/metrics"):
        scheme, _, given = headers.get("authorization", "").partition(" ")
        # Bytes: text that is not ASCII cannot be compared in constant time.
        is_right = hmac.compare_digest(given.strip().encode(), token.encode())
        if scheme.lower() != "bearer" or not is_right:
            hint = "send the header 'Authorization: Bearer TOKEN', with the server's token"
            raise Refusal(401, "unauthorized", "the token is missing or wrong", hint)
    kind = headers.get("content-type", "").partition(";")[0].strip().lower()
    # The page of another site can send a form, but no JSON without being asked for permission.
    if scope["method"] == "POST" and kind != "application/json":
        hint = "send JSON, with the header 'Content-Type: application/json'"
        raise Refusal(415, "not_json", "the body is not said to be JSON", hint)


async def _body(scope: Scope, receive: Receive, most: int) -> bytes:
    """Return the whole body of a request.

    Raises:
        Refusal: it is too large.
    """
    too_large = Refusal(
        413, "too_large", f"the body has more than {most} bytes", "send fewer examples at a time"
    )
    length = Headers(scope=scope).get("content-length", "0")
    if length.isdecimal() and int(length[:20]) > most:
        raise too_large
    parts, size = [], 0
    while True:
        message = await receive()
        if message["type"] != "http.request":
            break  # the client is gone
        parts.append(message.get("body", b""))
        size += len(parts[-1])
        if size > most:
            raise too_large
        if not message.get("more_body", False):
            break
    return b"".join(parts)


def _replayed(body: bytes, receive: Receive) -> Receive:
    """Return what yields a body that was read, and then what follows it."""
    messages: list[dict[str, Any]] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replay() -> Message:
        return messages.pop() if messages else await receive()

    return replay
