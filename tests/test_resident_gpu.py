"""Rounds on a GPU: recorded, never waiting, equal to the CPU's, alone and side by side."""

from __future__ import annotations

import logging
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from ctd_engine import ParallelSampler
from small_problems import PROBLEMS, SHAPE, table_of

if not torch.cuda.is_available():
    pytest.skip("no CUDA device", allow_module_level=True)

pytestmark = pytest.mark.gpu

TABLE = table_of(PROBLEMS[0], 60)


class Field(torch.nn.Module):
    """A smooth noise prediction with a weight, of launches alone."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor([0.6, 0.3], dtype=torch.float64))

    def forward(self, x, t):
        gain = self.weight[0] + self.weight[1] * torch.cos(t / 200.0)
        return torch.tanh(x * gain[:, None, None])


class Waiting(Field):
    """The same, but it looks at a value."""

    def forward(self, x, t):
        assert float(x.sum()) == float(x.sum())
        return super().forward(x, t)


def make_sampler(device="cuda", model=None, **options):
    options = {"window_size": 8, "tolerance": 0.05, **options}
    model = (model or Field()).to(device).requires_grad_(False)
    return ParallelSampler(
        model, shape=SHAPE, solver=TABLE, dtype=torch.float64, device=device, **options
    )


def recorded_sizes(sampler):
    kept = sampler._kept._kept.values()
    return [n for rounds in kept for n, graph in rounds._run_round._graphs.items() if graph]


@pytest.mark.parametrize("cuda_graphs", [True, False])
def test_equals_the_cpu(cuda_graphs):
    on_gpu, on_cpu = make_sampler(cuda_graphs=cuda_graphs), make_sampler("cpu")
    for seed in range(4):
        got, want = on_gpu.sample(3, seed=seed), on_cpu.sample(3, seed=seed)
        assert (got.samples.cpu() - want.samples).abs().max() < 1e-9
        assert got.stats.rounds == want.stats.rounds
        assert got.stats.evaluations == want.stats.evaluations
    assert bool(recorded_sizes(on_gpu)) == cuda_graphs


def test_steady_state_never_waits():
    sampler = make_sampler()
    for seed in range(3):
        sampler.sample(2, seed=seed)
    assert 16 in recorded_sizes(sampler)

    def callback(progress):
        torch.cuda.set_sync_debug_mode("error")

    try:
        # from the second round on nothing but waiting for the mailbox is allowed
        result = sampler.sample(2, seed=9, callback=callback)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert result.all_converged


def test_a_model_that_waits_runs_without_graphs_and_says_so_once(caplog):
    sampler = make_sampler(model=Waiting())
    with caplog.at_level(logging.WARNING, logger="ctd_engine"):
        got = [sampler.sample(2, seed=seed).samples for seed in range(3)]
    want = make_sampler()
    for seed, samples in enumerate(got):
        assert (samples - want.sample(2, seed=seed).samples).abs().max() < 1e-12
    assert recorded_sizes(sampler) == []
    (record,) = caplog.records
    assert "without CUDA graphs" in record.getMessage()
    # the caller's stream and torch's generator are as they were
    assert torch.cuda.current_stream() == torch.cuda.default_stream()
    torch.randn(3, device="cuda")


def test_threads_and_streams_do_not_disturb_each_other():
    shared = make_sampler()
    want = [shared.sample(2, seed=seed).samples for seed in range(8)]

    def run(seed):
        with torch.cuda.stream(torch.cuda.Stream()):
            sampler = shared if seed % 2 else make_sampler(model=shared.model)
            samples = sampler.sample(2, seed=seed).samples
            torch.cuda.current_stream().synchronize()
            return samples

    with ThreadPoolExecutor(4) as pool:
        for _ in range(3):
            for one, other in zip(want, pool.map(run, range(8)), strict=True):
                assert torch.equal(one, other)


def test_moved_weights_are_recorded_anew():
    sampler = make_sampler()
    for seed in range(3):
        sampler.sample(2, seed=seed)
    sampler.model.weight = torch.nn.Parameter(
        torch.tensor([0.2, 0.1], dtype=torch.float64, device="cuda"), requires_grad=False
    )
    got = sampler.sample(2, seed=5).samples
    fresh = make_sampler(model=sampler.model).sample(2, seed=5).samples
    assert torch.equal(got, fresh)


def test_out_of_memory_halves_the_rows(caplog):
    class Hungry(Field):
        def forward(self, x, t):
            if len(x) > 9:
                raise torch.cuda.OutOfMemoryError("CUDA out of memory")
            return super().forward(x, t)

    with caplog.at_level(logging.WARNING, logger="ctd_engine"):
        got = make_sampler(model=Hungry()).sample(2, seed=0).samples
    assert (got - make_sampler().sample(2, seed=0).samples).abs().max() < 1e-12
    assert len([r for r in caplog.records if "out of memory" in r.getMessage()]) == 1
