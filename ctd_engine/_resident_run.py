"""A parallel run on a CUDA device whose rounds do not wait for the host."""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict
from collections.abc import Hashable

import torch
from tqdm import tqdm

from ctd_engine import _checks, _ext
from ctd_engine._final_points import PointReader
from ctd_engine._request import Request
from ctd_engine._resident import ResidentRounds
from ctd_engine._run_settings import (
    Outcome,
    RoundSettings,
    make_store,
    num_slots_for,
    scheduler_sizes,
)
from ctd_engine.noise import CallableNoise, CounterNoise
from ctd_engine.ops._dispatch import resolve
from ctd_engine.result import Callback, RoundProgress, RoundRecord
from ctd_engine.scheduling import BACKENDS, Finished
from ctd_engine.scheduling.device import DeviceScheduler
from ctd_engine.scheduling.plan import CANCELLED
from ctd_engine.scheduling.state import Snapshot

__all__ = ["KeptRounds", "can_be_resident", "reasons_against", "run_resident"]

logger = logging.getLogger("ctd_engine")


def can_be_resident(settings: RoundSettings) -> bool:
    """Whether rounds are scheduled beside the model; a warning says why not on a CUDA device.

    Raises:
        ValueError: the scheduler's backend is unknown.
        RuntimeError: it is "cuda", which cannot run here.
    """
    asked = settings.scheduler_backend
    if asked is not None:
        _checks.require_choice("scheduler_backend", asked, ("cuda", *BACKENDS))
    reasons = reasons_against(settings)
    if asked == "cuda" and reasons:
        listed = "".join(f"\n    - {reason}" for reason in reasons)
        raise RuntimeError(f'scheduler_backend "cuda" cannot run here{listed}')
    if asked is None and reasons and settings.device.type == "cuda":
        logger.warning("the host waits for every round: %s", "; ".join(reasons))
    return asked in (None, "cuda") and not reasons


def reasons_against(settings: RoundSettings) -> list[str]:
    """Why rounds have to be scheduled on the host; empty if they need not."""
    if settings.device.type != "cuda":
        return [f"device is {settings.device.type}"]
    reasons = []
    if resolve(settings.backend, torch.empty(0, device=settings.device)) != "triton":
        reasons.append("only the Triton kernels leave padding alone, and the reference runs")
    lacks = _ext.cuda_unavailable_reason()
    if settings.far_stride > 1:
        reasons.append("far_stride lists fewer rows than points, and so far on the host alone")
    return reasons if lacks is None else [*reasons, lacks]


class KeptRounds:
    """Buffers and graphs of past runs, to be used again by a run of the same form.

    A run takes them out and puts them back at its end, so that two threads never share any.
    """

    def __init__(self, most: int = 2) -> None:
        self._most = most
        self._kept: OrderedDict[Hashable, ResidentRounds] = OrderedDict()
        self._lock = threading.Lock()

    def take(self, key: Hashable, request: Request, settings: RoundSettings) -> ResidentRounds:
        """Rounds that begin with the request."""
        with self._lock:
            rounds = self._kept.pop(key, None)
        if rounds is None:
            return make_rounds(request, settings)
        rounds.restart(request)
        return rounds

    def put(self, key: Hashable, rounds: ResidentRounds) -> None:
        """Keep them for later; those used longest ago are let go."""
        with self._lock:
            self._kept[key] = rounds
            while len(self._kept) > self._most:
                self._kept.popitem(last=False)


def make_rounds(request: Request, settings: RoundSettings) -> ResidentRounds:
    """New buffers for a request, with copies of whatever a graph will read."""
    own = request.own()
    switch = settings.graphs
    if switch.is_on and isinstance(own.noise, CallableNoise):
        switch = switch.spared(
            "noise is a callable, and what it does in Python would not happen in a replay"
        )
    num_slots = num_slots_for(settings, own.num_samples)
    return ResidentRounds(
        own,
        make_store(own, settings, num_slots),
        DeviceScheduler(settings.device, **scheduler_sizes(settings, own.num_samples, num_slots)),
        window_size=settings.window_size,
        max_rows=settings.max_rows,
        model_dtype=settings.model_dtype,
        switch=switch,
    )


def run_resident(
    request: Request,
    settings: RoundSettings,
    kept: KeptRounds,
    *,
    progress: bool = False,
    callback: Callback | None = None,
) -> Outcome:
    """Sample every trajectory of the request to its end; decisions as `run_rounds`."""
    num_samples, nodes = request.num_samples, settings.table.num_nodes
    # the current stream orders this run behind the last one that used the same buffers
    stream = torch.cuda.current_stream().cuda_stream if torch.cuda.is_available() else 0
    form = request.denoiser.form
    key = (settings, num_samples, form, stream)
    # explicit noise is a tensor of its request, which a graph would go on to read, as is a start
    is_reusable = form is not None and isinstance(request.noise, CounterNoise)
    is_reusable = is_reusable and request.trajectory is None
    rounds = kept.take(key, request, settings) if is_reusable else make_rounds(request, settings)
    history: list[RoundRecord] = []
    evaluations, rows_before = 0, rounds.num_rows_run
    is_cancelled = False
    reader = PointReader(request, rounds.store) if settings.tells_points else None
    bar = tqdm(total=num_samples * nodes, disable=not progress, unit="pt", desc="sampling")
    with bar:
        plan = rounds.latest
        while not is_cancelled and (after := rounds.next()) is not None:
            history.append(_record(plan))
            evaluations += plan.num_rows
            plan = after
            done = nodes * after.num_finished + int(after.start[after.sample >= 0].sum())
            bar.update(done - bar.n)
            if reader is not None:
                runs = after.sample >= 0
                reader.move(after.sample[runs], after.start[runs])
                reader.move([end.sample for end in after.ended], nodes)
            told = RoundProgress(
                len(history),
                evaluations,
                after.num_finished,
                num_samples,
                None if reader is None else reader.points(),
            )
            is_cancelled = callback is not None and callback(told) is True
    if reader is not None:
        reader.close()
    for after in rounds.drain():
        if plan.num_rows > 0:
            history.append(_record(plan))
            evaluations += plan.num_rows
        plan = after
    samples = rounds.samples.clone()
    ends = rounds.latest.finished
    if is_cancelled:
        ends += _cancel(rounds, samples, {end.sample for end in ends})
    outcome = Outcome(
        samples,
        sorted(ends, key=lambda end: end.sample),
        history,
        evaluations,
        rounds.store.state_bytes,
        rounds.num_rows_run - rows_before - evaluations,
        rounds.store.trajectory(request.starts()) if settings.keep_trajectory else None,
    )
    if is_reusable:
        kept.put(key, rounds)
    return outcome


def _record(plan: Snapshot) -> RoundRecord:
    runs = plan.length > 0
    return RoundRecord(plan.sample[runs], plan.start[runs], plan.length[runs])


def _cancel(rounds: ResidentRounds, samples: torch.Tensor, ended: set[int]) -> list[Finished]:
    """Best estimates of the samples that hold a slot; NaN for those that never began."""
    now = rounds.latest
    at = {int(sample): slot for slot, sample in enumerate(now.sample) if sample >= 0}
    ends = []
    for sample in sorted(set(range(len(samples))) - ended):
        slot = at.get(sample, -1)
        known = int(now.known[slot]) if slot >= 0 else 0
        samples[sample] = rounds.store.data_estimate(slot, known - 1) if known else torch.nan
        counts = (int(now.rounds[slot]), int(now.evaluations[slot])) if slot >= 0 else (0, 0)
        start = int(now.start[slot]) if slot >= 0 else 0
        ends.append(Finished(sample, slot, CANCELLED, *counts, start, known))
    return ends
