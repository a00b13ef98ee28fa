"""Engine: many requests at once through one model, joining and leaving between rounds."""

from __future__ import annotations

import atexit
import logging
import threading
from collections import OrderedDict
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import replace
from types import TracebackType
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist

from ctd_engine import _checks
from ctd_engine._alike import agree, described
from ctd_engine._engine_core import EngineCore
from ctd_engine._engine_jobs import EngineFullError, EngineStats
from ctd_engine._engine_ranks import SharedNews
from ctd_engine._engine_request import Request
from ctd_engine._graphs import GraphSwitch
from ctd_engine._handle import Handle, RequestProgress, RequestState
from ctd_engine._model_calls import Calls
from ctd_engine._ranks import Ranks
from ctd_engine._request import Request as CheckedRequest
from ctd_engine._request import on_device
from ctd_engine._run_settings import RoundSettings
from ctd_engine._split_rows import SplitCalls
from ctd_engine.denoiser import Model
from ctd_engine.sampler import ParallelSampler
from ctd_engine.schedules import Schedule

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

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
# rank 0 tells the others that it is there
HEARTBEAT_S = 5.0
# that a program waits for a round when it ends without a shutdown
EXIT_S = 60.0


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
        process_group: a `torch.distributed.ProcessGroup` of the engine's own, or one dimension of a
            `DeviceMesh`: every rank makes the engine alike, rank 0 submits and the others follow
            until it shuts down. The rows of each round are split evenly over the ranks.

    Raises:
        ValueError, TypeError: an argument is wrong; the message names it.
        RuntimeError: torch.distributed is not initialised.
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
        process_group: dist.ProcessGroup | DeviceMesh | None = None,
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
        limits: dict[str, Any] = {
            "max_rows": self.max_rows,
            "max_active": _checks.require_int("max_active", max_active, minimum=1),
            "max_queued": _checks.require_int("max_queued", max_queued, minimum=1),
        }
        # wrong arguments show here, not at the first request
        first = None if schedule is None else self._sampler(Request(num_steps=1))
        self._ranks = None if process_group is None else Ranks(process_group, self._device)
        if self._ranks is None:
            self._core = EngineCore(**limits)
        else:
            told = {name: repr(value) for name, value in {"shape": shape, **limits}.items()}
            if first is not None:
                told |= described(replace(first._settings, max_rows=self.max_rows))
            agree(self._ranks, None, told)
            self._core = EngineCore(
                **limits,
                agree=SharedNews(self._ranks, lambda asked: self._checked(Request.unpacked(asked))),
            )
        self._changed = threading.Condition()
        self._is_closed = False
        self._thread = threading.Thread(target=self._work, name="ctd_engine", daemon=True)
        # a thread that the interpreter leaves behind in a model call would end the process badly
        atexit.register(self._leave)
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
        if self._ranks is not None and self._ranks.rank != 0:
            raise RuntimeError(
                f"requests are submitted on rank 0, and this is rank {self._ranks.rank}"
            )
        self._require_open()
        checked, settings = self._checked(request)
        asked = b""
        if self._ranks is not None:
            asked = request.packed(checked.seeds)
        with self._changed:
            self._require_open()
            handle = self._core.submit(
                checked,
                settings,
                priority=request.priority,
                deadline_s=request.deadline_s,
                asked=asked,
            )
            self._changed.notify_all()
        return handle

    def _checked(self, request: Request) -> tuple[CheckedRequest, RoundSettings]:
        with self._changed:
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
        if request.x_trajectory is not None:
            checked = sampler._warm(checked, request.x_trajectory)
        rows = self.max_rows // checked.denoiser.evaluations_per_row
        if rows == 0:
            raise ValueError(
                "guidance_scale needs two model rows for a point, and max_rows of this engine is 1"
            )
        # requests whose rows may share a call have to share what calls it
        kind = (sampler.table.outputs, sampler.table.time_as_input)
        with self._changed:
            calls = self._calls.get(kind)
            if calls is None:
                calls = checked.denoiser.calls
                calls = calls if self._ranks is None else SplitCalls(calls, self._ranks)
                self._calls[kind] = calls
        checked.denoiser.calls = calls
        return checked, replace(
            sampler._settings,
            max_rows=rows,
            graphs=GraphSwitch(False),
            is_warm=request.x_trajectory is not None,
        )

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
        self._close(drain)
        self._thread.join(timeout)
        if self._thread.is_alive():
            raise TimeoutError(
                f"requests still run after {timeout:g} s; shutdown(drain=False) ends them early"
            )
        atexit.unregister(self._leave)

    def _close(self, drain: bool) -> None:
        with self._changed:
            self._is_closed = True
            if not drain:
                self._core.cancel_all()
            self._changed.notify_all()

    def _leave(self) -> None:
        self._close(drain=False)
        self._thread.join(EXIT_S)

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
        try:
            with torch.inference_mode(), on_device(self._device):
                while not self._core.is_over:
                    self._core.step(is_last=self._wait())
        except BaseException as error:
            logger.exception("the engine's thread stopped")
            with self._changed:
                self._is_closed = True
            self._core.abort(error)

    def _wait(self) -> bool:
        """Wait for work; True if there is none and never will be."""
        if self._ranks is not None and self._ranks.rank != 0:
            # the news will say
            return False
        with self._changed:
            while not self._core.has_work and not self._is_closed:
                # ranks that follow wait in a collective, which has a timeout
                if not self._changed.wait(None if self._ranks is None else HEARTBEAT_S):
                    break
            return self._is_closed and not self._core.has_work
