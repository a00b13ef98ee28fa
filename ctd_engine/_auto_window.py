"""`window_size="auto"`: measure what a round costs here, predict, and choose."""

from __future__ import annotations

import math
import time as _time
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise

import torch

from ctd_engine._graphs import GraphedCalls
from ctd_engine._request import Request
from ctd_engine._resident import row_buckets
from ctd_engine._row_times import RoundTimes, RowTimes, cached_for, measure_rows
from ctd_engine._run_settings import RoundSettings
from ctd_engine.denoiser import Denoiser, Model
from ctd_engine.noise import CounterNoise
from ctd_engine.result import Callback, RoundProgress
from ctd_engine.window_plan import WindowPlan, advance, plan

__all__ = ["Run", "follow", "make_plan", "plan_with", "round_times"]

# rounds of a probe of the sampler's own work, and points of its window
PROBED_ROUNDS, PROBED_POINTS = 9, 32
# ratios of window to advance are rounded, so that runs of one kind use the same buffers again
RATIO_STEPS = 4

# runs a request with settings until its callback says stop
Run = Callable[[Request, RoundSettings, Callback], object]


def make_plan(
    model: Model,
    request: Request,
    settings: RoundSettings,
    reach: float,
    is_resident: bool,
    run: Run,
) -> WindowPlan:
    """The predicted cost of every window size for this request; `run` is what will run it."""
    times = round_times(model, request, settings, run)
    return plan_with(times, request.num_samples, settings, reach, is_resident)


def plan_with(
    times: RoundTimes, num_samples: int, settings: RoundSettings, reach: float, is_resident: bool
) -> WindowPlan:
    """The predicted cost of every window size where rounds take these times."""
    buckets = row_buckets(settings.max_rows)

    def padded(rows: int) -> int:
        return next(bucket for bucket in buckets if bucket >= rows) if is_resident else rows

    return plan(
        times,
        num_samples=num_samples,
        num_nodes=settings.table.num_nodes,
        max_rows=settings.max_rows,
        reach=reach,
        padded=padded,
    )


def round_times(model: Model, request: Request, settings: RoundSettings, run: Run) -> RoundTimes:
    """What rounds of this kind cost here, measured once per model and kind."""
    key = (
        request.shape,
        settings.device,
        settings.dtype,
        settings.model_dtype,
        settings.backend,
        settings.scheduler_backend,
        settings.max_rows,
        # the slopes that it measures are work of the sampler's own
        settings.method == "secant",
        # rounds with fewer rows than points are put together another way
        settings.far_stride > 1,
        settings.table.order,
        settings.table.is_stochastic,
        settings.graphs.is_on,
        request.denoiser.signature,
        torch.get_num_threads(),
    )
    return cached_for(model, key, lambda: _measure(request, settings, run))


def follow(settings: RoundSettings, chosen: WindowPlan) -> RoundSettings:
    """Settings whose windows begin as planned, their most, and follow each sample's own advance."""
    first = chosen.best.window_size
    if first == 1:
        return replace(settings, window_size=1, first_window=1, window_ratio=0)
    ratio = first / advance(first, chosen.reach)
    steps = round(RATIO_STEPS * math.log2(ratio))
    return replace(
        settings,
        window_size=first,
        first_window=first,
        window_ratio=max(256, round(256 * 2 ** (steps / RATIO_STEPS))),
    )


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

    calls = GraphedCalls(call, settings.device, settings.graphs)
    return measure_rows(calls, settings.max_rows, settings.device)


def _own_work(request: Request, settings: RoundSettings, run: Run) -> tuple[float, float, float]:
    """Seconds of a round without the model: fixed, per point of the window, per row."""
    # short enough that all probed rounds find a whole window
    length = min(PROBED_POINTS, settings.max_rows, settings.table.num_nodes // PROBED_ROUNDS)
    length = max(1, length)
    count = max(2, min(8, settings.max_rows // length))
    one = _probe(request, settings, run, 1, 1)
    if length == 1:
        return one, 0.0, 0.0
    window = _probe(request, settings, run, 1, length)
    windows = _probe(request, settings, run, count, length)
    per_row = max(0.0, windows - window) / ((count - 1) * length)
    per_point = max(0.0, (window - one) / (length - 1) - per_row)
    return one, per_point, per_row


def _probe(request: Request, settings: RoundSettings, run: Run, count: int, length: int) -> float:
    """The shortest of some rounds with a model that costs nothing."""
    outputs = request.denoiser.outputs

    def silent_model(x: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
        return x.new_zeros(len(x), outputs * x.shape[1], *x.shape[2:])

    silent = Denoiser(silent_model, request.shape, count, None, None, None, outputs)
    seeds = list(range(count))
    noise = CounterNoise(seeds, request.num_elements, settings.device)
    times: list[float] = []

    def callback(told: RoundProgress) -> bool:
        times.append(_time.perf_counter())
        return told.round > PROBED_ROUNDS

    run(
        replace(
            request,
            num_samples=count,
            seeds=seeds,
            noise=noise,
            x_init=None,
            denoiser=silent,
        ),
        replace(
            settings,
            window_size=length,
            first_window=length,
            window_ratio=0,
            # every window is accepted whole, so that a round guesses a whole new one
            tolerance=1e6,
            max_rows=max(settings.max_rows, count * length),
            lockstep=False,
        ),
        callback,
    )
    # the first round has one row, and a short trajectory may have no other
    rounds = [after - before for before, after in pairwise(times)]
    return min(rounds[1:] or rounds or [0.0])
