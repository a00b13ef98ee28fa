"""Normal noise from the counter, compiled and in PyTorch, beside torch's own generator.

pytest benchmarks/bench_noise.py --benchmark-only

torch's generator is faster and gives other numbers in another batch, order or device: that is what
the counter's time buys.
"""

from __future__ import annotations

import pytest
import torch

from ctd_engine.noise import philox_normal, philox_normal_reference

# rows of a round, and elements of a latent of 4 x 64 x 64 or of a digit
SIZES = [(32, 16384), (256, 64)]


def torch_normal(seeds, nodes, num_elements):
    return torch.randn(len(seeds), num_elements)


PROVIDERS = {
    "counter": philox_normal,
    "counter in PyTorch": philox_normal_reference,
    "torch.randn": torch_normal,
}


@pytest.mark.parametrize("num_rows, num_elements", SIZES)
@pytest.mark.parametrize("provider", PROVIDERS)
def test_noise(benchmark, provider, num_rows, num_elements):
    rows = torch.arange(num_rows)
    call = PROVIDERS[provider]
    noise = benchmark.pedantic(
        call, args=(rows + 5, rows % 100, num_elements), rounds=10, warmup_rounds=2
    )
    assert noise.shape == (num_rows, num_elements)
    # wrong numbers get no time
    exact = philox_normal_reference(rows + 5, rows % 100, num_elements)
    assert provider == "torch.randn" or torch.allclose(noise, exact, rtol=1e-6, atol=1e-6)
    if benchmark.stats is not None:
        seconds = benchmark.stats.stats.median
        benchmark.extra_info["elements_per_s"] = num_rows * num_elements / seconds
