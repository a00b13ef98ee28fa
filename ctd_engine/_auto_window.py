"""`window_size="auto"`: measure what a round costs here, predict, and choose."""

from __future__ import annotations

import time as _time
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise

import torch

from ctd_engine._graphs import GraphedCalls
from ctd_engine._request import Request
from ctd_engine._rounds import RoundSettings
from ctd_engine._row_times import RoundTimes, RowTimes, cached_for, measure_rows
from ctd_engine.denoiser import Denoiser, Model
from ctd_engine.noise import CounterNoise
from ctd_engine.result import Callback, RoundProgress
from ctd_engine.window_plan import WindowPlan, advance, plan

__all__ = ["follow", "make_plan"]

# rounds of a probe of the sampler's own work, and points of its window
PROBED_ROUNDS, PROBED_POINTS = 5, 32
# how far above its first length a window may grow while it follows its sample's advance
GROWTH = 2


# runs a request with settings until its callback says stop
Run = Callable[[Request, RoundSettings, Callback], object]


def make_plan(
    model: Model, request: Request, settings: RoundSettings, reach: float, run: Run
) -> WindowPlan:
    """The predicted cost of every window size for this request; `run` is what will run it."""
    key = (
        request.shape,
        settings.device,
        settings.dtype,
        settings.model_dtype,
        settings.backend,
        settings.scheduler_backend,
        settings.max_rows,
        settings.table.order,
        settings.table.is_stochastic,
        request.denoiser.signature,
        torch.get_num_threads(),
    )
    times = cached_for(model, key, lambda: _measure(request, settings, run))
    return plan(
        times,
        num_samples=request.num_samples,
        num_nodes=settings.table.num_nodes,
        max_rows=settings.max_rows,
        reach=reach,
    )


def follow(settings: RoundSettings, chosen: WindowPlan) -> RoundSettings:
    """Settings whose windows begin as planned and then follow each sample's own advance."""
    first = chosen.best.window_size
    if first == 1:
        return replace(settings, window_size=1, first_window=1, window_ratio=0)
    most = min(GROWTH * first, settings.table.num_nodes, settings.max_rows)
    ratio = round(256 * first / advance(first, chosen.reach))
    return replace(settings, window_size=most, first_window=first, window_ratio=max(ratio, 256))


def _measure(request: Request, settings: RoundSettings, run: Run) -> RoundTimes:
    fixed, per_point, per_row = _own_work(request, settings, run)
    return RoundTimes(_model_times(request, settings), fixed, per_point, per_row)


def _model_times(request: Request, settings: RoundSettings) -> RowTimes:
    generator = torch.Generator(settings.device).manual_seed(0)
    shape = (settings.max_rows, request.num_elements)
    x = torch.randn(shape, generator=generator, device=settings.device, dtype=settings.dtype)
    x = x.to(settings.model_dtype)
    middle = settings.table.model_time[settings.table.num_nodes // 2]
    t = torch.full((len(x),), float(middle), device=settings.device, dtype=settings.dtype)
    samples = torch.arange(len(x), device=settings.device) % request.num_samples

    def call(rows: int) -> object:
        return request.denoiser(x[:rows], t[:rows], samples[:rows])

    calls = GraphedCalls(call, settings.device, settings.use_graphs)
    return measure_rows(calls, settings.max_rows, settings.device)


def _own_work(request: Request, settings: RoundSettings, run: Run) -> tuple[float, float, float]:
    """Seconds of a round without the model: fixed, per point of the window, per row."""
    length = min(PROBED_POINTS, settings.table.num_nodes, settings.max_rows)
    count = min(request.num_samples, max(1, settings.max_rows // length))
    one = _probe(request, settings, run, 1, 1)
    if length == 1:
        return one, 0.0, 0.0
    window = _probe(request, settings, run, 1, length)
    windows = _probe(request, settings, run, count, length) if count > 1 else window
    per_row = max(0.0, windows - window) / (max(count - 1, 1) * length)
    per_point = max(0.0, (window - one) / (length - 1) - per_row)
    return one, per_point, per_row


def _silent(x: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
    return torch.zeros_like(x)


def _probe(request: Request, settings: RoundSettings, run: Run, count: int, length: int) -> float:
    """The shortest of some rounds with a model that costs nothing."""
    silent = Denoiser(_silent, request.shape, count, None, None, None)
    noise = CounterNoise(request.seeds[:count], request.num_elements, settings.device)
    times: list[float] = []

    def callback(told: RoundProgress) -> bool:
        times.append(_time.perf_counter())
        return told.round > PROBED_ROUNDS

    run(
        replace(
            request,
            num_samples=count,
            seeds=request.seeds[:count],
            noise=noise,
            x_init=None,
            denoiser=silent,
        ),
        replace(
            settings,
            window_size=length,
            first_window=length,
            window_ratio=0,
            max_rows=max(settings.max_rows, count * length),
            lockstep=False,
        ),
        callback,
    )
    # the first round has one row, and a short trajectory may have no other
    rounds = [after - before for before, after in pairwise(times)]
    return min(rounds[1:] or rounds or [0.0])
