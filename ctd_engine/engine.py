"""Engine: many requests at once through one model, joining and leaving between rounds."""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any

import torch

from ctd_engine import _checks
from ctd_engine._engine_core import EngineCore, EngineFullError, EngineStats
from ctd_engine._graphs import GraphSwitch
from ctd_engine._handle import Handle, RequestProgress, RequestState
from ctd_engine._model_calls import Calls
from ctd_engine.denoiser import Model
from ctd_engine.sampler import ParallelSampler
from ctd_engine.schedules import Grid, Schedule
from ctd_engine.solvers import SolverTable

__all__ = [
    "Engine",
    "EngineFullError",
    "EngineStats",
    "Handle",
    "Request",
    "RequestProgress",
    "RequestState",
]

logger = logging.getLogger("ctd_engine")

# solver tables are made once for requests that ask for the same
KEPT_SAMPLERS = 64


@dataclass(frozen=True, kw_only=True)
class Request:
    """What an `Engine` is asked for; the names mean what they mean to `ParallelSampler`.

    Args:
        num_samples, seed, seeds, x_init, noise, cond, guidance_scale: as in
            `ParallelSampler.sample`.
        solver, num_steps, clip_x0, solver_options, tolerance, method, guess, max_rounds: as in
            `ParallelSampler`.
        window_size: points per window, an integer. Large ones end sooner on an idle engine, small
            ones take fewer model rows and more rounds.
        priority: share of the model rows against others that run at the same time, above 0.
        deadline_s: seconds from `submit` on after which the request ends with the best estimates
            so far (`StopReason.DEADLINE`); None for no limit.
    """

    num_samples: int = 1
    seed: int | None = None
    seeds: Sequence[int] | None = None
    x_init: torch.Tensor | None = None
    noise: torch.Tensor | Callable[..., torch.Tensor] | None = None
    cond: Mapping[str, Any] | None = None
    guidance_scale: float | None = None
    solver: str | SolverTable = "ddpm"
    num_steps: int | Grid = 1000
    clip_x0: float | None = None
    solver_options: Mapping[str, Any] | None = None
    window_size: int = 16
    tolerance: float = 0.1
    method: str = "picard"
    guess: str = "predicted"
    max_rounds: int | None = None
    priority: float = 1.0
    deadline_s: float | None = None

    def __post_init__(self) -> None:
        _checks.require_float("priority", self.priority, above=0.0)
        if self.deadline_s is not None:
            _checks.require_float("deadline_s", self.deadline_s, above=0.0)
        _checks.require_int("window_size", self.window_size, minimum=1)

    def sampler_arguments(self) -> dict[str, Any]:
        """What of it a `ParallelSampler` is made with."""
        names = (
            "solver",
            "num_steps",
            "clip_x0",
            "solver_options",
            "window_size",
            "tolerance",
            "method",
            "guess",
            "max_rounds",
        )
        return {name: getattr(self, name) for name in names}


class Engine:
    """Samples many requests at once: their rows ride in the same model calls, round by round.

    Requests share the model and the shape of a sample and differ in everything else. Each gets its
    rounds as `ParallelSampler` would run them; only their order in time depends on the others, so
    that a request's samples do not (bit for bit where the model's rows do not: see
    `docs/engine.md`). One thread runs the rounds; every method may be called from any thread.

    Use it as a context manager, or call `shutdown`.

    Args:
        model, shape, schedule, prediction, time, null_cond, dtype, model_dtype, device, backend,
            scheduler_backend: as in `ParallelSampler`; a request's `SolverTable` carries its own
            prediction and time.
        max_rows: rows of one model batch at most, over all requests; guidance takes two per point.
        max_active: requests that run at once; each holds memory for its windows.
        max_queued: requests that wait at most.

    Raises:
        ValueError, TypeError: an argument is wrong; the message names it.
    """

    def __init__(
        self,
        model: Model,
        *,
        shape: Sequence[int],
        schedule: Schedule | None = None,
        prediction: str = "epsilon",
        time: str | None = None,
        null_cond: Mapping[str, Any] | None = None,
        max_rows: int = 256,
        max_active: int = 64,
        max_queued: int = 1024,
        dtype: torch.dtype = torch.float32,
        model_dtype: torch.dtype | None = None,
        device: torch.device | str = "cpu",
        backend: str | None = None,
        scheduler_backend: str | None = None,
    ) -> None:
        self.max_rows = _checks.require_int("max_rows", max_rows, minimum=1)
        if scheduler_backend == "cuda":
            raise ValueError(
                'scheduler_backend must be None, "cpp" or "python": the engine schedules on the '
                "host, because requests come and go there"
            )
        self._common: dict[str, Any] = {
            "shape": shape,
            "schedule": schedule,
            "prediction": prediction,
            "time": time,
            "null_cond": null_cond,
            "dtype": dtype,
            "model_dtype": model_dtype,
            "device": device,
            "backend": backend,
            "scheduler_backend": scheduler_backend,
            "cuda_graphs": False,
        }
        self._model = model
        self._samplers: OrderedDict[Hashable, ParallelSampler] = OrderedDict()
        self._calls: dict[Hashable, Calls] = {}
        self._device = torch.device(device)
        self._core = EngineCore(
            max_rows=self.max_rows,
            max_active=_checks.require_int("max_active", max_active, minimum=1),
            max_queued=_checks.require_int("max_queued", max_queued, minimum=1),
        )
        if schedule is not None:
            # wrong arguments show here, not at the first request
            self._sampler(Request(num_steps=1))
        self._changed = threading.Condition()
        self._is_closed = False
        self._thread = threading.Thread(target=self._work, name="ctd_engine", daemon=True)
        self._thread.start()

    def submit(self, request: Request) -> Handle:
        """Ask for samples; returns at once.

        Raises:
            ValueError, TypeError: the request is wrong; the message names the argument.
            EngineFullError: `max_queued` requests wait already.
            RuntimeError: the engine was shut down.
        """
        if not isinstance(request, Request):
            raise TypeError(f"request must be a ctd_engine.Request, got {type(request).__name__}")
        with self._changed:
            self._require_open()
            sampler = self._sampler(request)
        checked = sampler._request(
            request.num_samples,
            request.seed,
            request.seeds,
            request.x_init,
            request.noise,
            request.cond,
            request.guidance_scale,
        )
        rows = self.max_rows // checked.denoiser.evaluations_per_row
        if rows == 0:
            raise ValueError(
                "guidance_scale needs two model rows for a point, and max_rows of this engine is 1"
            )
        settings = replace(sampler._settings, max_rows=rows, graphs=GraphSwitch(False))
        with self._changed:
            self._require_open()
            # requests whose rows may share a call have to share what calls it
            table = sampler.table
            kind = (table.outputs, table.time_as_input)
            checked.denoiser.calls = self._calls.setdefault(kind, checked.denoiser.calls)
            handle = self._core.submit(
                checked, settings, priority=request.priority, deadline_s=request.deadline_s
            )
            self._changed.notify_all()
        return handle

    @property
    def is_alive(self) -> bool:
        """Whether requests are taken and sampled."""
        return self._thread.is_alive() and not self._is_closed

    @property
    def stats(self) -> EngineStats:
        """Counts of rounds, model rows and requests."""
        return self._core.stats

    def shutdown(self, *, drain: bool = True, timeout: float | None = None) -> None:
        """Take no more requests, and wait for the thread's end.

        Args:
            drain: let all requests finish; False ends them with the best estimates so far.
            timeout: seconds to wait for the thread's end, None for ever.

        Raises:
            TimeoutError: requests still run; the engine goes on closing.
        """
        with self._changed:
            self._is_closed = True
            if not drain:
                self._core.cancel_all()
            self._changed.notify_all()
        self._thread.join(timeout)
        if self._thread.is_alive():
            raise TimeoutError(
                f"requests still run after {timeout:g} s; shutdown(drain=False) ends them early"
            )

    def __enter__(self) -> Engine:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.shutdown(drain=error is None)

    def _require_open(self) -> None:
        if self._is_closed:
            raise RuntimeError("the engine was shut down and takes no more requests")

    def _sampler(self, request: Request) -> ParallelSampler:
        arguments = request.sampler_arguments()
        options = arguments["solver_options"]
        key = tuple((options or {}).items()), *(v for v in arguments.values() if v is not options)
        try:
            sampler = self._samplers.pop(key, None)
        except TypeError:
            # an option that cannot be a key
            return ParallelSampler(self._model, **self._common, **arguments)
        if sampler is None:
            sampler = ParallelSampler(self._model, **self._common, **arguments)
        self._samplers[key] = sampler
        while len(self._samplers) > KEPT_SAMPLERS:
            self._samplers.popitem(last=False)
        return sampler

    def _work(self) -> None:
        on_device = (
            torch.cuda.device(self._device) if self._device.type == "cuda" else nullcontext()
        )
        try:
            with torch.inference_mode(), on_device:
                while self._has_work():
                    self._core.step()
        except BaseException as error:
            logger.exception("the engine's thread stopped")
            with self._changed:
                self._is_closed = True
            self._core.abort(error)

    def _has_work(self) -> bool:
        """Wait for work; False at the end."""
        with self._changed:
            while not self._core.has_work:
                if self._is_closed:
                    return False
                self._changed.wait()
        return True
