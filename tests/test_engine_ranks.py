"""An engine over the ranks of a process group: as in one process, and none is left hanging."""

from __future__ import annotations

import pytest
import torch

from ctd_engine import StopReason
from engine_ranks import SIZE, WAIT_S, make, requests, work
from rank_processes import run_ranks

pytestmark = pytest.mark.slow

GROUPS = {"pair": 2, "triple": 3}


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """What every rank found; all of it takes one start of the processes."""
    folder = tmp_path_factory.mktemp("ranks")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GLOO_SOCKET_IFNAME", "lo")
        codes = run_ranks(work, SIZE, folder)
    logs = "\n".join(log.read_text() for log in sorted(folder.glob("*.log")))
    # rank 2 was killed at the end
    assert codes == [0, 0, 9], logs
    ranks = [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(SIZE)]
    for rank in (0, 1):
        ranks[rank]["died"] = torch.load(folder / f"{rank}.died.pt", weights_only=False)
    return ranks


@pytest.fixture(scope="module")
def alone():
    with make() as engine:
        handles = [engine.submit(request) for request in requests()]
        return [handle.result(WAIT_S) for handle in handles]


@pytest.mark.parametrize("group", GROUPS)
def test_samples_are_those_of_one_process(found, alone, group):
    for result, expected in zip(found[0][group], alone, strict=True):
        assert (result.samples - expected.samples).abs().max() <= 1e-12
        assert result.stop_reasons == expected.stop_reasons
        assert result.seeds == expected.seeds
        assert result.stats.evaluations == expected.stats.evaluations


@pytest.mark.parametrize("group", GROUPS)
def test_every_rank_does_its_part_and_decides_alike(found, group):
    size = GROUPS[group]
    rows = [found[rank][f"{group}: rows"] for rank in range(size)]
    assert len({len(each) for each in rows}) == 1
    # the last rank has what is left over, or repeats a row
    assert all(max(each) <= -(-23 // size) for each in rows)
    stats = [found[rank][f"{group}: stats"] for rank in range(size)]
    assert stats.count(stats[0]) == size
    assert stats[0].num_finished == len(requests())
    assert stats[0].num_cancelled == 1
    assert found[0][f"{group}: cancelled"] == [StopReason.CANCELLED]


def test_only_rank_0_submits(found):
    for rank in (1, 2):
        assert f"submitted on rank 0, and this is rank {rank}" in found[rank]["submitted"]


def test_what_cannot_be_sent_is_refused(found):
    assert "must be something that pickle can send to the other ranks" in found[0]["lambda"]


def test_engines_that_differ_are_refused_everywhere(found):
    for rank in range(SIZE):
        assert "max_rows is 23 on rank 0 and 24 on rank 1" in found[rank]["limits"]


def test_a_model_that_fails_on_one_rank_fails_its_request_alone(found):
    failed, fine = found[0]["fails"]
    assert "ArithmeticError: no shift of 7 on rank 1" in failed
    assert fine == "no error"


def test_a_rank_that_dies_ends_the_others_with_an_error(found):
    error, closed, is_alive, seconds = found[0]["died"]
    assert "another rank stopped" in error or "the engine stopped because of an error" in error
    assert "RuntimeError" in closed
    assert not is_alive
    assert seconds < WAIT_S
    assert not found[1]["died"][2]
