"""Rules in rounds that do not wait for the host, and with the Triton kernels."""

from __future__ import annotations

import logging
import os
from dataclasses import replace
from typing import Any

import pytest
import torch

from ctd_engine import ParallelSampler, SequentialSampler, _ext
from ctd_engine._resident_run import KeptRounds, run_resident
from ctd_engine.ops._dispatch import triton_unavailable_reason
from ctd_engine.result import RoundProgress
from ruled_tables import RULES, SHAPE, RuledModel, ruled

if triton_unavailable_reason() is not None:
    pytest.skip(f"no Triton: {triton_unavailable_reason()}", allow_module_level=True)
if _ext.unavailable_reason() is not None and os.environ.get("CTD_REQUIRE_EXT") != "1":
    pytest.skip(f"no extension: {_ext.unavailable_reason()}", allow_module_level=True)

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
pytestmark = [pytest.mark.gpu] if DEVICE == "cuda" else []


# the kernels run in the interpreter on a CPU, which is slow
NUM_STEPS = 5


@pytest.mark.parametrize(
    ("name", "has_noise"),
    [("clip, unclipped noise", False), ("learned range", True), ("threshold", False)],
)
def test_resident_rounds(name: str, has_noise: bool) -> None:
    table = ruled(NUM_STEPS, **RULES[name])
    model = RuledModel(table.outputs).to(DEVICE)
    shared: dict[str, Any] = dict(shape=SHAPE, solver=table, dtype=torch.float64, device=DEVICE)
    noise = None
    if has_noise:
        generator = torch.Generator().manual_seed(5)
        noise = torch.randn(table.num_nodes, 2, *SHAPE, generator=generator, dtype=torch.float64)
    expected = SequentialSampler(model, **shared).sample(2, seed=1, noise=noise).samples
    sampler = ParallelSampler(
        model, **shared, window_size=3, tolerance=0.0, max_rows=5, backend="triton"
    )
    request = sampler._request(2, 1, None, None, noise, None, None)
    with torch.inference_mode():
        outcome = run_resident(request, sampler._settings, KeptRounds())
    ours = outcome.samples.view(2, *SHAPE)
    # more rows than the device asked for were run: padding changes nothing
    torch.testing.assert_close(ours, expected, rtol=0.0, atol=1e-12)


def test_kept_rounds_take_new_seeds() -> None:
    table = ruled(3, **RULES["learned range"])
    model = RuledModel(2).to(DEVICE)
    sampler = ParallelSampler(
        model,
        shape=SHAPE,
        solver=table,
        dtype=torch.float64,
        device=DEVICE,
        window_size=2,
        tolerance=0.0,
        backend="triton",
    )
    kept = KeptRounds()
    settings = replace(sampler._settings, max_rows=3)
    for seed in (1, 2):
        request = sampler._request(1, seed, None, None, None, None, None)
        with torch.inference_mode():
            ours = run_resident(request, settings, kept).samples.view(1, *SHAPE)
        oracle = SequentialSampler(
            model, shape=SHAPE, solver=table, dtype=torch.float64, device=DEVICE
        )
        torch.testing.assert_close(ours, oracle.sample(1, seed=seed).samples, rtol=0.0, atol=1e-12)


@pytest.mark.gpu
@pytest.mark.skipif(DEVICE != "cuda", reason="no CUDA device")
@pytest.mark.parametrize("name", RULES)
def test_a_recorded_rule_waits_for_nothing(name: str, caplog: pytest.LogCaptureFixture) -> None:
    """Rounds that are replayed from graphs, as users run them, give the sequential sample."""
    table = ruled(12, **RULES[name])
    model = RuledModel(table.outputs).to(DEVICE).requires_grad_(False)
    shared: dict[str, Any] = dict(shape=SHAPE, solver=table, dtype=torch.float64, device=DEVICE)
    sampler = ParallelSampler(model, **shared, window_size=4, tolerance=0.0)
    oracle = SequentialSampler(model, **shared)
    with caplog.at_level(logging.WARNING, logger="ctd_engine"):
        # run, looked at for waits, recorded, replayed
        for seed in range(4):
            ours = sampler.sample(2, seed=seed).samples
            expected = oracle.sample(2, seed=seed).samples
            torch.testing.assert_close(ours, expected, rtol=0.0, atol=1e-12)
    assert not caplog.records
    (rounds,) = sampler._kept._kept.values()
    assert any(graph is not None for graph in rounds._run_round._graphs.values())

    def refuse_waits(told: RoundProgress) -> None:
        torch.cuda.set_sync_debug_mode("error")

    try:
        # from the second round on nothing but waiting for the mailbox is allowed
        sampler.sample(2, seed=9, callback=refuse_waits)
    finally:
        torch.cuda.set_sync_debug_mode("default")
