"""The server: Uvicorn around the application, on one port."""

import contextlib
import errno
import ipaddress
import socket
from pathlib import Path
from urllib.parse import quote

import uvicorn

from metaguide.guide import AdaptedGuide
from metaguide.web.app import create_app
from metaguide.web.guard import LOOPBACK


class ServeError(ValueError):
    """A server that cannot be started; the message says what to change."""


def serve(
    guide: AdaptedGuide,
    host: str = "127.0.0.1",
    port: int = 8080,
    token: str = "",
    save_to: Path | str | None = None,
) -> None:
    """Serve an adapted guide until interrupted; the address is printed when it answers.

    Args:
        guide: the guide.
        host: the address to listen at; any but this machine's own needs a token.
        port: the port; 0 takes a free one.
        token: what requests have to carry as `Authorization: Bearer`.
        save_to: folder that the page may save a taught guide to; without one it may not.

    Raises:
        ServeError: the port is in use, or the host cannot be listened at or needs a token.
    """
    is_local = is_loopback(host)
    if not is_local and not token:
        raise ServeError(
            f"host {host} can be reached from other machines; give a token, or host 127.0.0.1"
        )
    if not token.isascii() or token != token.strip():
        raise ServeError("the token is sent in a header; give ASCII characters without blanks")
    listening = _listening(host, port)
    shown = f"[{host}]" if ":" in host else host
    address = f"http://{shown}:{listening.getsockname()[1]}/" + (
        f"#token={quote(token, safe='')}" if token else ""
    )

    def ready(seconds: float) -> None:
        print(f"metaguide: compiled in {seconds:.0f} s; open {address}", flush=True)

    app = create_app(
        guide,
        token=token,
        # The name of another host cannot be known here; there the token keeps strangers out.
        hosts=(*LOOPBACK, shown.lower()) if is_local else ("*",),
        save_to=None if save_to is None else Path(save_to),
        ready=ready,
    )
    # How to log is the caller's choice; without one, Python prints warnings and errors.
    config = uvicorn.Config(app, log_config=None, access_log=False, server_header=False)
    # Uvicorn ends in order, and then passes the interrupt on.
    with listening, contextlib.suppress(KeyboardInterrupt):
        uvicorn.Server(config).run(sockets=[listening])


def is_loopback(host: str) -> bool:
    """Return whether a host can be reached from this machine alone."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def _listening(host: str, port: int) -> socket.socket:
    """Return a socket that listens.

    Raises:
        ServeError: it cannot.
    """
    if not 0 <= port < 1 << 16:
        raise ServeError(f"port is {port}; give 0 to {(1 << 16) - 1}")
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listening = socket.socket(family, kind)
    except (OSError, UnicodeError) as error:  # a name that is too long is the latter
        hint = "give an address of this machine"
        raise ServeError(f"host {host[:60]!r} is unknown; {hint}") from error
    try:
        # A port is free again as soon as its server has ended.
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
        listening.listen(2048)
    except OSError as error:
        listening.close()
        hint = {
            errno.EADDRINUSE: "give another port, or 0 for a free one",
            errno.EACCES: "give a port from 1024 on",
            errno.EADDRNOTAVAIL: "give an address of this machine",
        }.get(error.errno or 0, "give another host or port")
        raise ServeError(f"{host}:{port}: {error.strerror}; {hint}") from error
    return listening
