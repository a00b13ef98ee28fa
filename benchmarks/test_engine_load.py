"""A mixed load: the engine against batches that run to their end, on the committed network.

pytest benchmarks/test_engine_load.py --benchmark-only -s                     80 requests
pytest benchmarks/test_engine_load.py --benchmark-only --benchmark-full -s    200

Requests for one digit each, of 10 to 1000 steps of DDPM and three tolerances, arrive at random
times. Everyone has the same network, window and budget of model rows, and one thread for the
network. The others serve as servers without an engine do: the oldest request that waits and all
that wait with the same settings, as many as the budget holds, run as one batch to the end.

lockstep     one window for all samples of a batch, copied points: ParaDiGMS (Shih et al. 2023)
batches      our `ParallelSampler`, every sample with its own window
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch

from ctd_engine import Engine, ParallelSampler, Request
from ctd_engine.demo import demo_checkpoint
from ctd_engine.engine import Handle

FULL, SHORT = 200, 80
# short requests are many, long ones are few
STEPS, SHARES = (10, 25, 50, 100, 250, 1000), (0.25, 0.25, 0.2, 0.15, 0.1, 0.05)
TOLERANCES = (0.05, 0.1, 0.2)
# requests per second, more than any of them serves: all have work to the end
ARRIVALS = 40.0
WINDOW, MAX_ROWS = 16, 64
NUM_CLASSES = 10
THROUGHPUT, LATENCY = 1.5, 0.5


@dataclass(frozen=True)
class Asked:
    """A request and when it comes."""

    at: float
    num_steps: int
    tolerance: float
    label: int
    seed: int

    @property
    def settings(self) -> tuple[int, float]:
        """What requests of one batch have in common."""
        return self.num_steps, self.tolerance


def load(count: int, within: float, seed: int = 0) -> list[Asked]:
    """Requests in the order of their arrival."""
    random = np.random.default_rng(seed)
    times = np.sort(random.uniform(0, within, count))
    return [
        Asked(
            float(at),
            int(random.choice(STEPS, p=SHARES)),
            float(random.choice(TOLERANCES)),
            int(random.integers(NUM_CLASSES)),
            number,
        )
        for number, at in enumerate(times)
    ]


def common() -> dict[str, object]:
    loaded = demo_checkpoint()
    return {
        "model": loaded.model,
        "shape": loaded.shape,
        "schedule": loaded.schedule,
        "prediction": loaded.prediction,
        "max_rows": MAX_ROWS,
    }


def label(*asked: Asked) -> dict[str, torch.Tensor]:
    return {"label": torch.tensor([one.label for one in asked])}


def serve_by_engine(requests: list[Asked], options: dict[str, object]) -> np.ndarray:
    """Seconds from arrival to result of every request."""
    latencies = np.zeros(len(requests))
    handles: list[Handle] = []
    with Engine(**options) as engine:
        begin = time.perf_counter()
        waiters = []
        for number, one in enumerate(requests):
            time.sleep(max(0.0, begin + one.at - time.perf_counter()))
            handle = engine.submit(
                Request(
                    num_steps=one.num_steps,
                    tolerance=one.tolerance,
                    window_size=WINDOW,
                    clip_x0=1.0,
                    cond=label(one),
                    seed=one.seed,
                )
            )
            handles.append(handle)

            def wait(number: int = number, one: Asked = one, handle: Handle = handle) -> None:
                assert handle.result().all_converged
                latencies[number] = time.perf_counter() - begin - one.at

            waiters.append(threading.Thread(target=wait))
            waiters[-1].start()
        for waiter in waiters:
            waiter.join()
    return latencies


def serve_by_batches(
    requests: list[Asked], options: dict[str, object], **method: object
) -> np.ndarray:
    """The same without an engine."""
    samplers: dict[tuple[int, float], ParallelSampler] = {}

    def sampler(settings: tuple[int, float]) -> ParallelSampler:
        if settings not in samplers:
            num_steps, tolerance = settings
            samplers[settings] = ParallelSampler(
                **options,
                num_steps=num_steps,
                tolerance=tolerance,
                window_size=WINDOW,
                clip_x0=1.0,
                **method,
            )
        return samplers[settings]

    latencies = np.zeros(len(requests))
    waiting = list(range(len(requests)))
    begin = time.perf_counter()
    while waiting:
        first = requests[waiting[0]]
        time.sleep(max(0.0, begin + first.at - time.perf_counter()))
        now = time.perf_counter() - begin
        rows = min(WINDOW, first.num_steps)
        batch = [
            number
            for number in waiting
            if requests[number].at <= now and requests[number].settings == first.settings
        ][: MAX_ROWS // rows]
        asked = [requests[number] for number in batch]
        result = sampler(first.settings).sample(
            len(batch), seeds=[one.seed for one in asked], cond=label(*asked)
        )
        assert result.all_converged
        latencies[batch] = time.perf_counter() - begin - np.array([one.at for one in asked])
        waiting = [number for number in waiting if number not in batch]
    return latencies


SERVERS: dict[str, Callable[[list[Asked], dict[str, object]], np.ndarray]] = {
    "engine": serve_by_engine,
    "batches": serve_by_batches,
    "lockstep": lambda requests, options: serve_by_batches(
        requests, options, lockstep=True, guess="copy"
    ),
}


def measure(count: int, within: float) -> dict[str, dict[str, float]]:
    """Requests per second, and the median and 95th percentile of latency, of every server."""
    requests = load(count, within)
    return {name: _numbers(requests, serve(requests, common())) for name, serve in SERVERS.items()}


def _numbers(requests: list[Asked], latencies: np.ndarray) -> dict[str, float]:
    ends = latencies + [one.at for one in requests]
    return {
        "throughput": len(requests) / float(ends.max()),
        "median_s": float(np.median(latencies)),
        "p95_s": float(np.percentile(latencies, 95)),
    }


def lines(numbers: dict[str, dict[str, float]]) -> Iterator[str]:
    for name, row in numbers.items():
        yield (
            f"{name:9s} {row['throughput']:6.2f} requests/s, latency {row['median_s']:6.2f} s "
            f"median, {row['p95_s']:6.2f} s 95th percentile"
        )


def test_mixed_load(benchmark, capsys, is_full):
    count = FULL if is_full else SHORT
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        numbers = benchmark.pedantic(measure, args=(count, count / ARRIVALS), rounds=1)
    finally:
        torch.set_num_threads(threads)
    benchmark.extra_info.update(numbers=numbers)
    with capsys.disabled():
        print("\n" + "\n".join(lines(numbers)))
    ours, theirs = numbers["engine"], numbers["lockstep"]
    assert ours["throughput"] >= THROUGHPUT * theirs["throughput"]
    assert ours["p95_s"] <= LATENCY * theirs["p95_s"]
