"""Running out of memory in a model call: fewer rows at a time, the same samples, said once."""

from __future__ import annotations

import logging

import pytest
import torch

from ctd_engine import ParallelSampler
from small_problems import PROBLEMS, SHAPE, mixture, table_of

TABLE = table_of(PROBLEMS[0], 40)


class Small:
    """The exact model on a device that holds `capacity` rows."""

    def __init__(self, capacity, error=None):
        self.exact = mixture(TABLE)
        self.capacity = capacity
        self.error = error or torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate")
        self.rows = []

    def __call__(self, x, t, shift=None):
        self.rows.append(len(x))
        if len(x) > self.capacity:
            raise self.error
        out = self.exact(x, t)
        return out if shift is None else out + 0.1 * shift[:, None, None]


def sample(model, *, window_size=10, **arguments):
    guided = {"null_cond": {"shift": torch.zeros(1)}} if "guidance_scale" in arguments else {}
    sampler = ParallelSampler(
        model, shape=SHAPE, solver=TABLE, window_size=window_size, dtype=torch.float64, **guided
    )
    return sampler.sample(3, seed=0, **arguments)


@pytest.mark.parametrize(
    "error",
    [
        None,
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"),
        MemoryError(),
    ],
    ids=["cuda", "cpu", "python"],
)
@pytest.mark.parametrize("arguments", [{}, {"guidance_scale": 2.0}], ids=["plain", "guided"])
def test_rows_are_halved_and_nothing_is_lost(caplog, error, arguments):
    if arguments:
        arguments = {**arguments, "cond": {"shift": torch.tensor([1.0, 2.0, 3.0])}}
    model = Small(8, error)
    with caplog.at_level(logging.WARNING, logger="ctd_engine"):
        small = sample(model, **arguments)
    large = sample(Small(10**9), **arguments)
    assert (small.samples - large.samples).abs().max() <= 1e-12
    assert small.stats.rounds == large.stats.rounds
    assert small.stats.evaluations == large.stats.evaluations
    # from the first failure on only the halvings fail, whatever the number of rounds
    failures = sum(rows > model.capacity for rows in model.rows)
    assert 1 <= failures <= 3
    (record,) = caplog.records
    rows = 60 if arguments else 30
    assert f"out of memory in a model call of {rows} rows" in record.getMessage()
    assert "max_rows=15" in record.getMessage()


def test_one_row_too_many_is_an_error():
    with pytest.raises(torch.cuda.OutOfMemoryError, match="CUDA out of memory"):
        sample(Small(0))


def test_other_errors_pass():
    with pytest.raises(RuntimeError, match="a bug of the model"):
        sample(Small(8, RuntimeError("a bug of the model")))
