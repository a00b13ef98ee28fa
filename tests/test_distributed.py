"""Sampling over the ranks of a process group: equal to one process, and no rank is left hanging."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from ctd_engine import ParallelSampler, SampleResult, StopReason
from rank_processes import run_ranks
from ranks_problem import (
    CALL,
    FAR,
    NUM_SAMPLES,
    SIZE,
    Guided,
    Perceptron,
    draw,
    guided,
    learned_variance,
    one_row,
    perceptron,
    shifts,
    work,
)

pytestmark = pytest.mark.slow

GROUPS = {"pair": 2, "triple": 3}


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What every rank found; all of it takes one start of the processes."""
    folder = tmp_path_factory.mktemp("ranks")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GLOO_SOCKET_IFNAME", "lo")
        codes = run_ranks(work, SIZE, folder)
    # rank 2 was killed at the end
    logs = "\n".join(log.read_text() for log in sorted(folder.glob("*.log")))
    assert codes == [0, 0, 9, 0], logs
    ranks = [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(SIZE)]
    for rank in (0, 1):
        ranks[rank]["killed"] = torch.load(folder / f"{rank}.killed.pt", weights_only=False)
    return ranks


def of_group(found: list[dict[str, Any]], group: str, name: str) -> list[SampleResult]:
    return [found[rank][f"{group}: {name}"] for rank in range(GROUPS[group])]


def assert_same_run(results: list[SampleResult], expected: SampleResult) -> None:
    """Equal decisions, and samples to 1e-12; bit for bit the same on every rank."""
    for result in results:
        assert torch.equal(result.samples, results[0].samples)
        assert (result.samples - expected.samples).abs().max() <= 1e-12
        assert result.stop_reasons == expected.stop_reasons
        assert result.seeds == expected.seeds
        assert result.stats.rounds == expected.stats.rounds
        assert result.stats.evaluations == expected.stats.evaluations
        assert list(result.stats.rounds_per_sample) == list(expected.stats.rounds_per_sample)
        for mine, theirs in zip(
            result.stats.window_history, expected.stats.window_history, strict=True
        ):
            for name in ("sample", "start", "length"):
                assert getattr(mine, name).tolist() == getattr(theirs, name).tolist()


@pytest.mark.parametrize("group", GROUPS)
def test_rows_of_conditioned_guided_ragged_samples(found, group):
    expected = draw(guided())
    lengths = [set(record.length.tolist()) for record in expected.stats.window_history]
    assert any(len(each) > 1 for each in lengths)
    assert_same_run(of_group(found, group, "rows"), expected)


@pytest.mark.parametrize("group", GROUPS)
def test_rows_of_windows_with_far_points(found, group):
    expected = draw(guided(**FAR))
    lengths = [int(record.length.sum()) for record in expected.stats.window_history]
    assert expected.stats.evaluations < 2 * sum(lengths)
    assert_same_run(of_group(found, group, "far points"), expected)


@pytest.mark.parametrize("group", GROUPS)
def test_rows_are_split_evenly(found, group):
    size = GROUPS[group]
    alone = Guided()
    draw(guided(alone))
    called = [found[rank][f"{group}: model rows"] for rank in range(size)]
    for rows, *each in zip(alone.rows, *called, strict=True):
        assert max(each) == -(-rows // size)
        # a rank without rows of its own repeats one
        assert rows <= sum(each) <= rows + size - 1 + max(each)
        assert min(each) >= 1


@pytest.mark.parametrize("group", GROUPS)
def test_whole_samples(found, group):
    expected = draw(guided(tolerance=0.0))
    for result in of_group(found, group, "samples"):
        assert (result.samples - expected.samples).abs().max() <= 1e-12
        assert result.seeds == expected.seeds
        assert result.all_converged
        ended = sorted(s for r in result.stats.window_history for s in set(r.sample.tolist()))
        assert set(ended) == set(range(NUM_SAMPLES))
        rounds = result.stats.rounds_per_sample
        assert result.stats.rounds == len(result.stats.window_history) >= max(rounds)
        assert result.stats.evaluations == sum(result.stats.evaluations_per_sample)


@pytest.mark.parametrize("group", GROUPS)
def test_trajectories_of_whole_samples(found, group):
    expected = guided(tolerance=0.0).sample(NUM_SAMPLES, **CALL, keep_trajectory=True)
    for result in of_group(found, group, "trajectory"):
        assert result.trajectory.shape == expected.trajectory.shape
        assert (result.trajectory - expected.trajectory).abs().max() <= 1e-12


@pytest.mark.parametrize("group", GROUPS)
def test_outputs_in_half_precision_stay_what_they_are(found, group):
    assert_same_run(of_group(found, group, "half"), draw(guided(Guided(dtype=torch.float16))))


@pytest.mark.parametrize("group", GROUPS)
def test_fewer_rows_than_ranks(found, group):
    for name in ("one row", "more ranks than samples"):
        assert_same_run(of_group(found, group, name), one_row())


@pytest.mark.parametrize("group", GROUPS)
def test_outputs_with_a_learned_variance(found, group):
    assert_same_run(of_group(found, group, "learned variance"), learned_variance())


@pytest.mark.parametrize("group", GROUPS)
def test_ranks_plan_alike(found, group):
    """Their own times differ."""
    results = of_group(found, group, "auto")
    for result in results:
        assert result.stats.plan.options == results[0].stats.plan.options
        assert torch.equal(result.samples, results[0].samples)
        assert result.all_converged


@pytest.mark.parametrize("group", GROUPS)
def test_conditioning_and_seeds_are_those_of_rank_0(found, group):
    assert_same_run(of_group(found, group, "rank 0's conditioning"), draw(guided()))
    results = of_group(found, group, "unseeded")
    for result in results:
        assert result.seeds == results[0].seeds
        alone = guided(tolerance=0.0).sample(2, seeds=result.seeds, cond=shifts(2))
        assert torch.equal(result.samples, results[0].samples)
        assert (result.samples - alone.samples).abs().max() < 0.05


@pytest.mark.parametrize("group", GROUPS)
def test_a_callback_on_one_rank_cancels_all(found, group):
    results = of_group(found, group, "cancelled")
    for result in results:
        assert result.stop_reasons == [StopReason.CANCELLED] * NUM_SAMPLES
        assert result.stats.rounds == 3
        assert torch.equal(result.samples.nan_to_num(), results[0].samples.nan_to_num())


@pytest.mark.parametrize("name", ["first call", "third call", "apart"])
def test_a_model_that_raises_on_one_rank_stops_all(found, name):
    kind, text, _, seconds = found[1][f"refused: {name}"]
    assert (kind, text) == ("ArithmeticError", "a bug of the model")
    kind, text, _, other_seconds = found[0][f"refused: {name}"]
    assert kind == "RuntimeError"
    assert text == "another rank stopped: rank 1 of 2: ArithmeticError: a bug of the model"
    assert max(seconds, other_seconds) < 20.0


@pytest.mark.parametrize(
    ("name", "match"),
    [
        ("num_samples", "num_samples is 5 on rank 0 and 4 on rank 1"),
        ("tolerance", "tolerance is 0.05 on rank 0 and 0.1 on rank 1"),
        ("cond", "cond is {'scale': '2.0', 'shift': 'torch.float32 (5,)'} on rank 0 and"),
        ("seed", "seed is 0 on rank 0 and 1 on rank 1"),
    ],
)
def test_ranks_that_are_called_differently(found, name, match):
    mine, other = (found[rank][f"refused: {name}"] for rank in range(2))
    assert mine[:2] == other[:2]
    assert mine[0] == "ValueError"
    assert "the ranks of process_group must be called alike: " in mine[1]
    assert match in mine[1]


def test_a_group_serves_after_errors(found):
    results = [found[rank]["refused: and then"] for rank in range(2)]
    assert_same_run(results, draw(guided()))


def test_a_rank_that_dies_stops_the_others(found):
    for rank in (0, 1):
        kind, text, has_cause, seconds = found[rank]["killed"]
        assert kind == "RuntimeError"
        assert text.startswith("another rank stopped, or did not answer within the timeout")
        assert f"rank {rank} of 3 (gloo)" in text
        assert has_cause
        assert seconds < 20.0, "the timeout of the group is 60 s"


def test_a_model_sharded_along_the_other_axis_of_a_mesh(found):
    expected = perceptron(Perceptron())
    exact = perceptron(Perceptron(), tolerance=0.0)
    assert_same_run([ranks["mesh"] for ranks in found], expected)
    assert_same_run([ranks["fully sharded"] for ranks in found], expected)
    for ranks in found:
        # half of the hidden units
        assert ranks["local weights"] == ranks["fully sharded, local weights"] == (8, 7)
        assert (ranks["mesh, samples"].samples - exact.samples).abs().max() <= 1e-12
        kind, text, *_ = ranks["mesh of both"]
        assert kind == "ValueError"
        assert "must be one dimension of the DeviceMesh, such as mesh['rows']" in text
        kind, text, *_ = ranks["mesh, auto"]
        assert kind == "ValueError"
        assert 'window_size="auto" cannot be told to the ranks' in text


def test_groups_are_checked(found):
    for rank in (2, 3):
        kind, text, *_ = found[rank]["not a member"]
        assert kind == "ValueError"
        assert f"process_group does not hold this process, rank {rank} of 4" in text
    kind, text, *_ = found[0]["refused: device"]
    assert kind == "ValueError"
    assert 'process_group has the backend "gloo", which serves cpu' in text
    with pytest.raises(RuntimeError, match=r"call torch\.distributed\.init_process_group"):
        guided(process_group=object())
    with pytest.raises(ValueError, match='split must be one of "auto", "rows", "samples"'):
        guided(process_group=object(), split="both")
    with pytest.raises(ValueError, match="share no window"):
        ParallelSampler(
            Guided(),
            shape=(1,),
            schedule=None,
            solver=guided().table,
            window_size=3,
            lockstep=True,
            process_group=object(),
            split="samples",
        )
