"""The contrastive loss in two processes, each with half of a batch."""

from __future__ import annotations

import faulthandler
import time
from datetime import timedelta
from pathlib import Path

import pytest
import torch
from torch.nn.parallel import DistributedDataParallel

from training_problem import (
    WHOLE,
    Network,
    batch,
    gradients,
    make_loss,
    split_draws,
    whole_gradients,
)

# most of a run is two imports of torch: a minute on a busy machine
CHILD_LIMIT_S = 150
PARENT_LIMIT_S = 200


def _train_half(rank: int, folder: str) -> None:
    with open(f"{folder}/{rank}.log", "w") as log:
        # a process that waits for ever says where, and ends
        faulthandler.dump_traceback_later(CHILD_LIMIT_S, exit=True, file=log)
        torch.set_num_threads(1)
        limit = timedelta(seconds=CHILD_LIMIT_S)
        # a file: neither a free port nor the name of the machine is needed to meet
        torch.distributed.init_process_group(
            "gloo", init_method=f"file://{folder}/store", timeout=limit, world_size=2, rank=rank
        )
        try:
            network = DistributedDataParallel(Network())
            with pytest.MonkeyPatch.context() as patch:
                split_draws(patch, rank * WHOLE // 2, WHOLE // 2)
                half = batch()[rank * WHOLE // 2 : (rank + 1) * WHOLE // 2]
                make_loss(num_points=1)(network, half).backward()
            torch.save(gradients(network), f"{folder}/{rank}.pt")
            torch.distributed.barrier()
        finally:
            torch.distributed.destroy_process_group()
            faulthandler.cancel_dump_traceback_later()


@pytest.mark.slow
def test_two_processes_equal_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, expected = whole_gradients(monkeypatch)
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    children = torch.multiprocessing.spawn(_train_half, (str(tmp_path),), 2, join=False)
    limit = time.monotonic() + PARENT_LIMIT_S
    try:
        while not children.join(timeout=1.0):
            assert time.monotonic() < limit, f"no end within {PARENT_LIMIT_S} s"
    except Exception as error:
        for process in children.processes:
            process.kill()
        logs = [f"{log.name}:\n{log.read_text()}" for log in sorted(tmp_path.glob("*.log"))]
        pytest.fail("\n".join([str(error), *logs]))
    for rank in range(2):
        torch.testing.assert_close(torch.load(tmp_path / f"{rank}.pt"), expected)
