"""A run's rounds on the CPU in C++, two calls for each: csrc/cpu/rounds.h.

The scheduler and the operations are those of `PlannedSteps`, called from C++ one after the other,
so that nothing of a round is made into Python's numbers.
"""

from __future__ import annotations

from typing import Any

import torch

from ctd_engine import _ext
from ctd_engine._request import Request
from ctd_engine._run_settings import RoundSettings
from ctd_engine._trajectory import TrajectoryStore
from ctd_engine.noise import CounterNoise, NoiseSource, TensorNoise
from ctd_engine.ops import _checks, _cpp
from ctd_engine.ops._dispatch import resolve
from ctd_engine.result import RoundRecord
from ctd_engine.scheduling import Finished, RoundPlan
from ctd_engine.scheduling.sizes import Sizes, checked_sizes

__all__ = ["CppSteps"]


class CppSteps:
    """`Steps` for states in fp32 or fp64 on the CPU and noise from a counter or a tensor."""

    def __init__(
        self, request: Request, settings: RoundSettings, store: TrajectoryStore, sizes: Sizes
    ) -> None:
        self._request = request
        self._store = store
        self._model_dtype = settings.model_dtype
        self._copies = request.denoiser.evaluations_per_row
        extension: Any = _ext.load(required=True)
        self._scheduler = extension.WindowScheduler(**checked_sizes(**sizes))
        # addresses are good as long as their tensors live
        arguments, self._held = _parts(store, request.num_samples)
        make = _cpp.function("Rounds", store.x.dtype)
        self._rounds: Any = make(self._scheduler, **arguments)
        self._finished: list[tuple[int, ...]] = []

    @staticmethod
    def serves(settings: RoundSettings, store: TrajectoryStore) -> bool:
        """Whether these rounds can be the ones that are asked for."""
        return (
            settings.scheduler_backend in (None, "cpp")
            and resolve(settings.backend, store.x, has_cpp=True) == "cpp"
            and store.rule is None
            and store.similar is None
            and settings.far_stride == 1
            and (not store.is_stochastic or _lies_in_memory(store.noise, store.x.dtype))
        )

    @property
    def num_rows(self) -> int:
        """Rows of the next round, 0 once all samples have ended."""
        rows: int = self._rounds.num_rows
        return rows

    @property
    def num_left_behind(self) -> int:
        """Nodes that the windows of the next round have left behind."""
        nodes: int = self._rounds.num_left_behind
        return nodes

    def plan(self) -> RoundPlan | None:
        """The next round; None once all samples have ended."""
        columns = self._scheduler.plan()
        return None if columns is None else RoundPlan(*columns)

    def begin(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Open the windows: model inputs, times, and whose rows they are."""
        store, rounds = self._store, self._rounds
        for slot, sample in rounds.admitted():
            store.admit(slot, self._request.initial(sample))
        rows, copies = rounds.num_rows, self._copies
        # new memory each time: a model may keep what it is given
        x = store.x.new_empty(copies * rows, store.x.shape[2])
        t = store.x.new_empty(copies * rows)
        row_sample = torch.empty(rows, dtype=torch.int64)
        rounds.begin(
            copies, x.data_ptr(), t.data_ptr(), row_sample.data_ptr(), torch.get_num_threads()
        )
        return x if x.dtype is self._model_dtype else x.to(self._model_dtype), t, row_sample

    def correct(self, m: torch.Tensor, m_null: torch.Tensor | None, guidance_scale: float) -> None:
        """One Picard iteration of every window; they move, too."""
        # what may be a copy is held by a name until the call returns
        m_rows, m = self._rows("m", m)
        null_rows, m_null = (0, 0), m_null
        if m_null is not None:
            null_rows, m_null = self._rows("m_null", m_null)
        self._finished = self._rounds.correct(
            m_rows, null_rows, guidance_scale, torch.get_num_threads()
        )

    def _rows(self, name: str, m: torch.Tensor) -> tuple[tuple[int, int], torch.Tensor]:
        x, shape = self._store.x, (self._rounds.num_rows, self._store.x.shape[2])
        if m.shape != shape or m.dtype != x.dtype or not m.is_cpu:
            _checks.check_tensor(name, m, shape, "[rows, D]", None, x.device)
        argument, held = _cpp.rows(m, x.dtype)
        return argument, m if held is None else held

    def advance(self) -> list[Finished]:
        """The samples that ended with the last correction."""
        finished = [Finished(*row) for row in self._finished]
        self._finished = []
        return finished

    def cancel(self) -> list[Finished]:
        """End every sample that has not ended."""
        return [Finished(*row) for row in self._scheduler.cancel()]

    def history(self) -> list[RoundRecord]:
        """The windows of every round so far."""
        return [RoundRecord(*columns) for columns in self._rounds.history()]


def _lies_in_memory(noise: NoiseSource, dtype: torch.dtype) -> bool:
    if isinstance(noise, TensorNoise):
        return noise.tensor.dtype == dtype and noise.tensor.stride(2) == 1
    return isinstance(noise, CounterNoise)


def _parts(store: TrajectoryStore, num_samples: int) -> tuple[dict[str, Any], list[torch.Tensor]]:
    """Arguments of the C++ rounds, and the tensors that they point to."""
    seeds, given = None, None
    if store.is_stochastic and isinstance(store.noise, TensorNoise):
        given = store.noise.tensor
    elif store.is_stochastic and isinstance(store.noise, CounterNoise):
        seeds = store.noise.seeds(torch.arange(num_samples))
    first = store.first_coefficients
    tables = [_cpp.tables(store.coefficients), _cpp.tables(store.guess_coefficients)]
    tables.append(((0,) * 8, []) if first is None else _cpp.tables(first))
    by_node = (store.input_scale, store.model_time, store.threshold)
    records = [None if len(record) == 0 else record for record in (store.record, store.record_x0)]
    arguments = {
        "x": _cpp.ring(store.x),
        "x0": _cpp.ring(store.x0),
        "change": _cpp.ring(store.change),
        "record": _cpp.ring(records[0]),
        "record_x0": _cpp.ring(records[1]),
        "update": tables[0][0],
        "guess": tables[1][0],
        "first_guess": tables[2][0],
        "by_node": tuple(_cpp.address(values) for values in by_node),
        "seeds": _cpp.address(seeds),
        "noise": (0, 0, 0) if given is None else (given.data_ptr(), *given.stride()[:2]),
        "guesses_noise": store.guesses_noise,
        "shape": (*store.x.shape[:2], num_samples, store.x.shape[2]),
        "clip": store.coefficients.clip,
    }
    held = [tensor for _, tensors in tables for tensor in tensors]
    return arguments, [*held, *by_node, *(t for t in (seeds, given) if t is not None)]
