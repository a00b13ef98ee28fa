"""Processes that are the ranks of a group, on this machine, and cannot outlive their time."""

from __future__ import annotations

import faulthandler
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest
import torch

# most of a run is the imports of torch: a minute on a busy machine
CHILD_LIMIT_S, PARENT_LIMIT_S = 150, 170
# of a collective that nobody answers
GROUP_TIMEOUT_S = 60


def _start(function: Callable[[int, str], None], rank: int, size: int, folder: str) -> None:
    with open(f"{folder}/{rank}.log", "w") as log:
        # a process that waits for ever says where, and ends
        faulthandler.dump_traceback_later(CHILD_LIMIT_S, exit=True, file=log)
        torch.set_num_threads(1)
        # a file: neither a free port nor the name of the machine is needed to meet
        torch.distributed.init_process_group(
            "gloo",
            init_method=f"file://{folder}/store",
            timeout=timedelta(seconds=GROUP_TIMEOUT_S),
            world_size=size,
            rank=rank,
        )
        try:
            function(rank, folder)
        finally:
            torch.distributed.destroy_process_group()
            faulthandler.cancel_dump_traceback_later()


def run_ranks(function: Callable[[int, str], None], size: int, folder: Path) -> list[int | None]:
    """Call `function(rank, folder)` in so many ranks; their exit codes."""
    context = torch.multiprocessing.get_context("spawn")
    processes = [
        context.Process(target=_start, args=(function, rank, size, str(folder)))
        for rank in range(size)
    ]
    limit = time.monotonic() + PARENT_LIMIT_S
    try:
        for process in processes:
            process.start()
        for process in processes:
            process.join(max(0.0, limit - time.monotonic()))
    finally:
        running = [rank for rank, process in enumerate(processes) if process.is_alive()]
        for rank in running:
            processes[rank].kill()
    if running:
        logs = [f"{log.name}:\n{log.read_text()}" for log in sorted(folder.glob("*.log"))]
        pytest.fail("\n".join([f"ranks {running} did not end in {PARENT_LIMIT_S} s", *logs]))
    return [process.exitcode for process in processes]
