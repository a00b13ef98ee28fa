"""Times on a GPU: CUDA events, inputs rotated beyond the cache, median with p20 and p80."""

from __future__ import annotations

import torch

from op_cases import OpCase, provider_call

# twice the second-level cache of the largest GPUs, so that no input is still in it
ROTATED_BYTES = 128 * 2**20
MAX_COPIES = 16


def _quantiles(microseconds: list[float]) -> tuple[float, float, float]:
    values = torch.tensor(microseconds, dtype=torch.float64)
    median, p20, p80 = (float(values.quantile(q)) for q in (0.5, 0.2, 0.8))
    return median, p20, p80


def time_calls(calls, *, repeats: int = 50) -> tuple[float, float, float]:
    """Median, p20 and p80 in microseconds of one call, which take turns."""
    for call in calls:
        call()
    torch.cuda.synchronize()
    events = []
    for i in range(repeats):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        calls[i % len(calls)]()
        end.record()
        events.append((begin, end))
    torch.cuda.synchronize()
    return _quantiles([1e3 * begin.elapsed_time(end) for begin, end in events])


def measure(case: OpCase, provider: str) -> tuple[float, float, float]:
    """Microseconds of one provider of a case."""
    copies = min(max(2, -(-ROTATED_BYTES // case.num_bytes)), MAX_COPIES)
    call = provider_call(case, provider)
    inputs = [case.make("cuda", seed) for seed in range(copies)]
    return time_calls([lambda i=i: call(i) for i in inputs])


def copy_bandwidth() -> float:
    """Gigabytes per second of a copy of 1 GiB, read and write counted."""
    source = torch.empty(2**28, device="cuda")
    target = torch.empty_like(source)
    median, _, _ = time_calls([lambda: target.copy_(source)])
    return 2 * source.numel() * 4 / median / 1e3
