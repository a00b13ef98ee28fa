"""Wall time of one sampler over ranks: `torchrun --nproc-per-node 2 benchmarks/split_times.py`.

Every rank has one thread, or its own GPU. Each line is the fastest of `REPEATS` calls
after a first.
"""

from __future__ import annotations

import os

import torch
import torch.distributed as dist

from ctd_engine import ParallelSampler, schedules
from ctd_engine._ranks import Ranks
from ctd_engine._split_plan import measure_link

REPEATS = 7
SHAPE = (3, 16, 16)


def network(width: int = 64) -> torch.nn.Module:
    """Convolutions whose time grows with the rows, as on a GPU that is full."""
    torch.manual_seed(0)
    layers: list[torch.nn.Module] = [torch.nn.Conv2d(3, width, 3, padding=1), torch.nn.SiLU()]
    for _ in range(4):
        layers += [torch.nn.Conv2d(width, width, 3, padding=1), torch.nn.SiLU()]
    return torch.nn.Sequential(*layers, torch.nn.Conv2d(width, 3, 3, padding=1)).eval()


def main() -> None:
    """Print a table on rank 0."""
    torch.set_num_threads(1)
    is_cuda = torch.cuda.is_available()
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if is_cuda else torch.device("cpu")
    if is_cuda:
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if is_cuda else "gloo")
    first = dist.new_group([0])
    layers = network().to(device)
    table = dict(shape=SHAPE, schedule=schedules.linear_beta(), num_steps=100, device=device)

    def model(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return layers(x)

    cases = [("one rank", first, "rows"), ("rows", dist.group.WORLD, "rows")]
    cases.append(("samples", dist.group.WORLD, "samples"))
    for num_samples in (1, 2, 3):
        for name, group, split in cases:
            dist.barrier()
            if name == "one rank" and dist.get_rank() > 0:
                continue
            sampler = ParallelSampler(
                model, **table, window_size=16, process_group=group, split=split
            )
            walls = []
            for _ in range(1 + REPEATS):
                result = sampler.sample(num_samples, seed=0)
                walls.append(result.stats.wall_time_s)
            if dist.get_rank() == 0:
                stats = result.stats
                rows = stats.evaluations / stats.rounds
                print(
                    f"{num_samples} samples, {name}: {min(walls[1:]):.3f} s, "
                    f"{stats.rounds} rounds of {rows:.1f} rows"
                )
    link = measure_link(Ranks(dist.group.WORLD, device))
    if dist.get_rank() == 0:
        print(f"all-gather: {1e6 * link.latency_s:.0f} us and {1e9 * link.per_byte_s:.2f} ns/byte")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
