"""Only requests that were meant for this host: no web page reaches it by a name of its own."""

from __future__ import annotations

from collections.abc import Collection

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

__all__ = ["LOOPBACK", "OnlyHosts"]

LOOPBACK = ("127.0.0.1", "localhost", "[::1]")


class OnlyHosts:
    """Refuses requests for other hosts: DNS rebinding makes a browser send those.

    Args:
        app: what answers the others.
        hosts: names without ports; an IPv6 address in brackets.
    """

    def __init__(self, app: ASGIApp, hosts: Collection[str]) -> None:
        self._app = app
        self._hosts = frozenset(hosts)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and _host(scope) not in self._hosts:
            error = f"this server answers for {', '.join(sorted(self._hosts))} only"
            await JSONResponse({"error": error}, 421)(scope, receive, send)
        else:
            await self._app(scope, receive, send)


def _host(scope: Scope) -> str:
    given: str = dict(scope["headers"]).get(b"host", b"").decode("latin-1").lower()
    name, colon, port = given.rpartition(":")
    # the colons of an IPv6 address are in brackets
    return name if colon and port.isdigit() else given
