"""The service's paths: submit, progress, events, result, cancel, health, metrics."""

from __future__ import annotations

import base64
import json
from collections.abc import AsyncIterator, Callable, Collection
from contextlib import aclosing, asynccontextmanager
from typing import Any

import torch
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from ctd_engine.engine import Engine, EngineFullError, Handle, Request
from ctd_engine.serving.bodies import BadBodyError, Limits, parse
from ctd_engine.serving.hosts import OnlyHosts
from ctd_engine.serving.ledger import Ledger
from ctd_engine.serving.metrics import Metrics
from ctd_engine.serving.pictures import npy_bytes, png_bytes

__all__ = ["make_app"]

# a comment that tells a quiet connection from a dead one
KEEP_ALIVE_S = 15.0
MOST_WAIT_S = 60.0


def make_app(
    engine: Engine,
    *,
    limits: Limits | None = None,
    defaults: dict[str, Any] | None = None,
    check: Callable[[Request], None] | None = None,
    to_data: Callable[[torch.Tensor], torch.Tensor] | None = None,
    hosts: Collection[str] | None = None,
) -> Starlette:
    """An ASGI application on an engine, which it shuts down when the server ends.

    Args:
        engine: what samples.
        limits: how much one request may ask for.
        defaults: fields of `ctd_engine.Request` for those that a client leaves out.
        check: looks at a request before it is submitted; ValueError refuses it.
        to_data: from samples [B, *shape] to what is written; as they are by default.
        hosts: what the Host header may name (`serving.hosts.LOOPBACK`); None does not look.
    """
    service = _Service(engine, limits or Limits(), defaults or {}, check, to_data)

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        yield
        await run_in_threadpool(engine.shutdown, drain=False)

    one = "/v1/requests/{name}"
    return Starlette(
        routes=[
            Route("/v1/requests", service.submit, methods=["POST"]),
            Route(one, service.progress, methods=["GET"]),
            Route(one, service.cancel, methods=["DELETE"]),
            Route(f"{one}/events", service.events, methods=["GET"]),
            Route(f"{one}/result", service.result, methods=["GET"]),
            Route("/healthz", service.health, methods=["GET"]),
            Route("/metrics", service.metrics, methods=["GET"]),
        ],
        middleware=[] if hosts is None else [Middleware(OnlyHosts, hosts=hosts)],
        exception_handlers={HTTPException: _as_json, ClientDisconnect: _to_nobody},
        lifespan=lifespan,
    )


async def _as_json(_: HttpRequest, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return JSONResponse({"error": error.detail}, error.status_code, dict(error.headers or {}))


async def _to_nobody(_: HttpRequest, error: Exception) -> Response:
    return Response(status_code=400)


class _Service:
    def __init__(
        self,
        engine: Engine,
        limits: Limits,
        defaults: dict[str, Any],
        check: Callable[[Request], None] | None,
        to_data: Callable[[torch.Tensor], torch.Tensor] | None,
    ) -> None:
        self._engine = engine
        self._limits = limits
        self._defaults = defaults
        self._check = check
        self._to_data = to_data
        self._ledger = Ledger(limits.kept_results, limits.kept_bytes)
        self._metrics = Metrics(engine)

    async def submit(self, http: HttpRequest) -> Response:
        # a web page of another origin cannot send this type without being asked first
        if http.headers.get("content-type", "").partition(";")[0].strip() != "application/json":
            raise HTTPException(415, "the body must be sent as application/json")
        body = await _body(http, self._limits.body_bytes)
        try:
            request = parse(body, self._limits, self._defaults)
            if self._check is not None:
                self._check(request)
            # tables of solvers are made here, which takes milliseconds
            handle = await run_in_threadpool(self._engine.submit, request)
        except EngineFullError as error:
            raise HTTPException(429, str(error), {"Retry-After": "1"}) from None
        except (BadBodyError, ValueError, TypeError) as error:
            raise HTTPException(422, str(error)) from None
        except RuntimeError as error:
            raise HTTPException(503, str(error)) from None
        self._metrics.watch(handle)
        name = self._ledger.add(handle)
        path = f"/v1/requests/{name}"
        return JSONResponse({"id": name, **_told(handle)}, 202, {"Location": path})

    async def progress(self, http: HttpRequest) -> Response:
        return JSONResponse(_told(self._handle(http)))

    async def cancel(self, http: HttpRequest) -> Response:
        handle = self._handle(http)
        handle.cancel()
        return JSONResponse(_told(handle), 202)

    async def result(self, http: HttpRequest) -> Response:
        handle = self._handle(http)
        form = http.query_params.get("format", "png")
        if form not in ("png", "npy"):
            raise HTTPException(422, f"format must be png or npy, got {form!r}")
        try:
            seconds = float(http.query_params.get("wait", "0"))
        except ValueError:
            seconds = -1.0
        if not 0 <= seconds <= MOST_WAIT_S:
            raise HTTPException(422, f"wait must be from 0 to {MOST_WAIT_S:g} seconds")
        if not await handle.wait(seconds):
            return JSONResponse(_told(handle), 202)
        if (error := handle.error()) is not None:
            raise HTTPException(500, f"{type(error).__name__}: {error}")
        samples = handle.result(0).samples
        try:
            content = await run_in_threadpool(
                self._content, samples, png_bytes if form == "png" else npy_bytes
            )
        except ValueError as problem:
            raise HTTPException(422, str(problem)) from None
        kind = "image/png" if form == "png" else "application/octet-stream"
        return Response(content, media_type=kind)

    async def events(self, http: HttpRequest) -> Response:
        handle = self._handle(http)
        wants_preview = http.query_params.get("preview", "0") not in ("0", "")
        return StreamingResponse(
            self._stream(handle, wants_preview),
            media_type="text/event-stream",
            headers={"Cache-Control": "no-store"},
        )

    async def health(self, _: HttpRequest) -> Response:
        is_alive = self._engine.is_alive
        return JSONResponse({"alive": is_alive}, 200 if is_alive else 503)

    async def metrics(self, _: HttpRequest) -> Response:
        return Response(self._metrics.text(), media_type="text/plain; version=0.0.4")

    def _handle(self, http: HttpRequest) -> Handle:
        handle = self._ledger.find(http.path_params["name"])
        if handle is None:
            raise HTTPException(404, "no such request; results are kept for a while only")
        return handle

    def _content(self, samples: torch.Tensor, write: Callable[[torch.Tensor], bytes]) -> bytes:
        # in a thread: a device may make it wait
        return write(samples if self._to_data is None else self._to_data(samples))

    async def _stream(self, handle: Handle, wants_preview: bool) -> AsyncIterator[str]:
        yield _event("progress", _told(handle))
        async with aclosing(handle.previews(heartbeat_s=KEEP_ALIVE_S)) as previews:
            async for preview in previews:
                if preview is None:
                    yield ": still here\n\n"
                    continue
                told = _told(handle)
                if wants_preview:
                    try:
                        picture = await run_in_threadpool(self._content, preview, png_bytes)
                    except ValueError as problem:
                        told["preview_error"] = str(problem)
                    else:
                        told["preview_png"] = base64.b64encode(picture).decode()
                yield _event("progress", told)
        yield _event("end", _told(handle))


async def _body(http: HttpRequest, most: int) -> bytes:
    parts, size = [], 0
    async for part in http.stream():
        size += len(part)
        if size > most:
            raise HTTPException(413, f"the body must have at most {most} bytes")
        parts.append(part)
    return b"".join(parts)


def _event(name: str, values: dict[str, Any]) -> str:
    return f"event: {name}\ndata: {json.dumps(values)}\n\n"


def _told(handle: Handle) -> dict[str, Any]:
    progress = handle.progress
    values: dict[str, Any] = {
        "state": progress.state.value,
        "rounds": progress.rounds,
        "evaluations": progress.evaluations,
        "progress": progress.num_points_final / progress.num_points,
    }
    if (error := handle.error()) is not None:
        values["error"] = f"{type(error).__name__}: {error}"
    elif handle.done():
        result = handle.result(0)
        values["stop_reasons"] = [reason.name for reason in result.stop_reasons]
        values["seeds"] = [str(seed) for seed in result.seeds]
        values["seconds"] = result.stats.wall_time_s
        values["queued_seconds"] = result.stats.queued_s
    return values
