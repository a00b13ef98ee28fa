"""Commands that `torchrun` started on many ranks."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist

__all__ = ["Launch", "launched"]


@dataclass(frozen=True)
class Launch:
    """This process among those that were started together; no group if it is the only one."""

    device: str
    process_group: dist.ProcessGroup | None
    is_first: bool


@contextmanager
def launched(device: str) -> Iterator[Launch]:
    """Join the ranks that `torchrun` started, each on its own device, and leave them at the end.

    "cuda" is the GPU of the rank on its machine, with NCCL; on a CPU the ranks meet with gloo.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield Launch(device, None, True)
        return
    is_cuda = torch.device(device).type == "cuda"
    if is_cuda:
        if torch.device(device).index is not None:
            raise ValueError(
                f"--device {device} with many ranks would put all on one GPU: use --device cuda"
            )
        device = f"cuda:{os.environ['LOCAL_RANK']}"
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if is_cuda else "gloo")
    try:
        yield Launch(device, dist.group.WORLD, dist.get_rank() == 0)
    finally:
        dist.destroy_process_group()
