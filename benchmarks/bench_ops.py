"""Times of the operations: eager, compiled, in C++ and fused, with the bytes that they move.

pytest benchmarks/bench_ops.py --benchmark-only -s        small sizes on a CPU, without Triton
make gpu-check                                            all sizes and providers, on a GPU
"""

from __future__ import annotations

from dataclasses import asdict

import pytest
import torch

from op_cases import CPU_PROVIDERS, LARGE, PROVIDERS, SMALL, is_correct, provider_call

HAS_GPU = torch.cuda.is_available()


@pytest.mark.parametrize("provider", CPU_PROVIDERS)
@pytest.mark.parametrize("case", SMALL, ids=[case.name for case in SMALL])
def test_on_the_cpu(benchmark, case, provider):
    """The interpreter's times mean nothing, so the Triton kernels are not timed here."""
    if provider == "cpp" and not case.has_cpp:
        pytest.skip("this operation has no C++ kernel")
    call = provider_call(case, provider)
    assert is_correct(case, call, "cpu"), "wrong numbers get no time"
    benchmark.pedantic(call, args=(case.make("cpu", 0),), rounds=10, warmup_rounds=2)
    benchmark.extra_info["num_bytes"] = case.num_bytes


@pytest.mark.gpu
@pytest.mark.skipif(not HAS_GPU, reason="needs a CUDA device")
@pytest.mark.parametrize("provider", PROVIDERS)
@pytest.mark.parametrize("case", SMALL + LARGE, ids=[case.name for case in SMALL + LARGE])
def test_on_the_gpu(benchmark, case, provider):
    from gpu_timing import measure

    call = provider_call(case, provider)
    assert is_correct(case, call, "cuda"), "wrong numbers get no time"
    timing = benchmark.pedantic(measure, args=(case, call), rounds=1)
    benchmark.extra_info.update(
        provider=provider,
        num_bytes=case.num_bytes,
        gigabytes_per_s=case.num_bytes / timing.median_us / 1e3,
        **asdict(timing),
    )
