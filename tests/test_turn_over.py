"""Turn-over of slots: what ended goes out, what was admitted comes in, all else stays."""

from __future__ import annotations

import math

import pytest
import torch

from ctd_engine.ops._dispatch import triton_unavailable_reason
from ctd_engine.ops.turn_over import turn_over_
from ctd_engine.scheduling.plan import CONVERGED, DIVERGED, MAX_ROUNDS

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
pytestmark = [pytest.mark.gpu] if DEVICE == "cuda" else []
BACKENDS = ["reference"] if triton_unavailable_reason() else ["reference", "triton"]

NUM_SLOTS, RING, NUM_SAMPLES, NUM_NODES = 6, 5, 9, 12
# slot: ended sample, reason, known, admitted sample
SLOTS = [
    (4, CONVERGED, 12, 7),
    (-1, -1, 0, -1),
    (0, DIVERGED, 3, -1),
    (2, MAX_ROUNDS, 6, 8),
    (-1, -1, 0, 6),
    (5, MAX_ROUNDS, 0, -1),
]


def columns():
    return [torch.tensor(column, device=DEVICE) for column in zip(*SLOTS, strict=True)]


def random(*shape, dtype):
    generator = torch.Generator().manual_seed(len(shape))
    return torch.randn(*shape, generator=generator, dtype=torch.float64).to(DEVICE, dtype)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("num_elements", [1, 7, 513])
def test_results_go_out_and_starts_come_in(num_elements, dtype, backend):
    x = random(NUM_SLOTS, RING, num_elements, dtype=dtype)
    x0 = x.flip(0) * 2
    wide = torch.full((NUM_SAMPLES, num_elements + 3), math.nan, dtype=dtype, device=DEVICE)
    samples = wide[:, :num_elements]
    samples.copy_(random(NUM_SAMPLES, num_elements, dtype=dtype))
    # where node N lies in the ring the next start will not
    assert NUM_NODES % RING != 0
    want_x, want = x.clone(), samples.clone()
    want[4], want[2] = x[0, NUM_NODES % RING], x0[3, 5 % RING]
    want[[0, 5]] = math.nan
    want_x[0, 0], want_x[3, 0], want_x[4, 0] = samples[7], samples[8], samples[6]
    turn_over_(x, x0, samples, *columns(), NUM_NODES, backend=backend)
    assert torch.equal(samples.nan_to_num(9.0), want.nan_to_num(9.0))
    assert torch.equal(x, want_x)
    assert wide[:, num_elements:].isnan().all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_result_is_read_before_a_start_takes_its_place(backend):
    x = random(NUM_SLOTS, RING, 40, dtype=torch.float64)
    samples = random(NUM_SAMPLES, 40, dtype=torch.float64)
    result, start = x[0, 0].clone(), samples[7].clone()
    turn_over_(x, x.clone(), samples, *columns(), 2 * RING, backend=backend)
    assert torch.equal(samples[4], result)
    assert torch.equal(x[0, 0], start)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"samples": torch.zeros(9, 3).double()}, ValueError, r"samples must have shape \(9, 4\)"),
        ({"samples": torch.zeros(9, 4)}, TypeError, "samples must be torch.float64"),
        ({"ended_sample": torch.zeros(2).long()}, ValueError, r"ended_sample must .* got \(2,\)"),
        ({"admitted_sample": torch.zeros(6)}, TypeError, "admitted_sample must be torch.int64"),
        ({"backend": "fast"}, ValueError, "backend must be None or one of"),
    ],
    ids=["shape", "type", "entries", "indices", "backend"],
)
def test_rejects(change, error, message):
    names = ("ended_sample", "ended_reason", "ended_known", "admitted_sample")
    arguments = dict(zip(names, (t.cpu() for t in columns()), strict=True))
    arguments["samples"] = torch.zeros(NUM_SAMPLES, 4, dtype=torch.float64)
    arguments |= change
    x = torch.zeros(NUM_SLOTS, RING, 4, dtype=torch.float64)
    with pytest.raises(error, match=message):
        turn_over_(x, x.clone(), **arguments, num_nodes=NUM_NODES)
