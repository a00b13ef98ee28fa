"""The script that compares settings of the contrastive loss measures what it says."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from contrastive_settings import (
    BATCH,
    DENOISING,
    Setting,
    Term,
    in_pairs,
    main,
    measure,
    train,
)
from score_problems import SCHEDULE, Problem


@pytest.fixture(scope="module")
def problem() -> Problem:
    return Problem("1d", num_probes=100)


@pytest.mark.parametrize("name", ["1d", "spiral"])
def test_eps_is_the_gradient_of_the_log_density(name: str) -> None:
    problem = Problem(name, num_probes=20)
    for x, logsnr, _, eps in problem.probes.values():
        alpha, sigma = (part[:, None, None] for part in SCHEDULE.alpha_sigma(logsnr))
        x = x.double().requires_grad_()
        variance = alpha**2 * problem.std**2 + sigma**2
        squares = (x[:, None] - alpha * problem.means).square() / variance
        log_density = torch.logsumexp(-0.5 * squares.sum(-1), 1).sum()
        (score,) = torch.autograd.grad(log_density, x)
        torch.testing.assert_close(-(sigma[:, 0] * score).float(), eps, rtol=1e-4, atol=1e-4)


def test_term_is_the_loss_of_its_pairs(problem: Problem) -> None:
    term = Term(Setting("", 0.02, 3.0, num_draws=4), problem)
    generator = torch.Generator().manual_seed(0)
    x, t = term.rows(problem.sample((3, BATCH), generator), generator)
    query = term.pairs.query
    assert torch.equal(in_pairs(x), query.input)

    def model(x: Tensor, t: Tensor) -> Tensor:
        return torch.tanh(x) + 1e-3 * t[..., None]

    out = model(query.input, query.time.float())
    expected, _ = term.contrast.reduce(term.pairs, out, term.y, 3.0)
    got = term.loss(model(x, t), model)
    torch.testing.assert_close(got, expected.view(3, -1).mean(1))


def test_a_member_trains_alike_in_any_company(problem: Problem) -> None:
    setting = Setting("", 20.0)
    alone = measure(train(problem, [setting], 2, 10), problem)
    company = [DENOISING, Setting("", 20.0, exact_slope=True), setting]
    errors = measure(train(problem, company, 2, 10), problem)
    for name, values in alone.items():
        torch.testing.assert_close(errors[name][4:], values, rtol=1e-4, atol=1e-6)
        # and what it is compared with trains differently
        assert not torch.allclose(errors[name][:2], values, rtol=1e-4, atol=1e-6)
        assert not torch.allclose(errors[name][2:4], values, rtol=1e-4, atol=1e-6)


def test_training_lowers_the_error(problem: Problem) -> None:
    first, later = (measure(train(problem, [DENOISING], 1, steps), problem) for steps in (1, 100))
    assert float(later["path"]) < 0.7 * float(first["path"])


def test_prints_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--quick", "--steps", "2", "--problem", "1d"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "1d, 2 steps, 2 seeds"
    assert lines[2] == "| | path | noise x 0.5 | noise x 1.5 | noise x 2 | box | asked |"
    assert len(lines) == 9
    assert all(line.count("±") == 6 for line in lines[5:8])
