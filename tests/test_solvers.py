"""Every solver against a plain sampler written from its paper, without the package's tables."""

from __future__ import annotations

import dataclasses
import itertools
import math

import pytest
import torch

from ctd_engine import SequentialSampler, SolverTable, schedules, solvers
from ctd_engine.exact import MixtureModel

N = 9
D = 3
VP = schedules.linear_beta()
VE = schedules.karras(0.01, 20.0)
FLOW = schedules.flow()


def noise_predictor(x, level):
    """A smooth, nonlinear eps_hat of the state and its log-SNR: no solver can be exact for it."""
    return torch.tanh(x * (1.0 + 0.1 * level) + 0.2 * level) + 0.1 * torch.cos(3.0 * x)


def draws(num_nodes):
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(2, D, generator=generator, dtype=torch.float64)
    return start, torch.randn(num_nodes, 2, D, generator=generator, dtype=torch.float64)


def sampled(table, start, noise):
    def model(x, t):
        return noise_predictor(x, t[:, None])

    sampler = SequentialSampler(model, shape=(D,), solver=table, dtype=torch.float64)
    return sampler.sample(len(start), x_init=start, noise=noise).samples


def levels(alpha, sigma):
    return 2.0 * torch.log(alpha / sigma)


def textbook_betas():
    beta = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
    return beta, torch.cumprod(1.0 - beta, 0)


def bars():
    """Cumulative alphas of timesteps round(1000 - 1000 i / N) - 1, and 1 at the end."""
    _, bar = textbook_betas()
    steps = [round(1000 - 1000 * i / N) - 1 for i in range(N)]
    return torch.cat([bar[steps], torch.ones(1, dtype=torch.float64)])


def test_ddpm_is_the_papers_table():
    """Ho et al. 2020, eq. 11 and sigma² = beta~ (eq. 7), at every one of the 1000 timesteps."""
    beta, bar = textbook_betas()
    table = solvers.ddpm(VP, 1000)
    before = torch.cat([torch.ones(1, dtype=torch.float64), bar[:-1]])
    a = 1.0 / (1.0 - beta).sqrt()
    posterior = (beta * (1.0 - before) / (1.0 - bar)).sqrt()
    torch.testing.assert_close(table.A[:, 0], a.flip(0), rtol=1e-9, atol=0)
    torch.testing.assert_close(table.B[:, 0], (-a * beta / (1 - bar).sqrt()).flip(0))
    torch.testing.assert_close(table.C, posterior.flip(0), rtol=1e-7, atol=1e-12)
    assert table.C[-1] == 0
    assert torch.equal(table.model_time, torch.arange(999.0, -1.0, -1.0, dtype=torch.float64))
    large = solvers.ddpm(VP, 1000, variance="fixed_large")
    torch.testing.assert_close(large.C[:-1], beta.flip(0)[:-1].sqrt(), rtol=1e-7, atol=0)
    assert large.C[-1] == 0
    # what errors are judged by: the same posterior, of the step that leaves x_i; x_N has none
    torch.testing.assert_close(table.error_scale[:-1], table.C)
    assert torch.equal(large.error_scale, table.error_scale)
    assert torch.equal(solvers.ddim(VP, 1000).error_scale, table.error_scale)
    assert table.error_scale[-1] == 0


@pytest.mark.parametrize("eta", [0.0, 0.4, 1.0])
def test_ddim(eta):
    """Song et al. 2020, eq. 12 and 16, in cumulative alphas."""
    bar, (x, noise) = bars(), draws(N)
    got = sampled(solvers.ddim(VP, N, eta=eta, time="logsnr"), x, noise)
    for i in range(N):
        now, then = bar[i], bar[i + 1]
        eps = noise_predictor(x, torch.log(now / (1 - now)))
        spread = eta * ((1 - then) / (1 - now)).sqrt() * (1 - now / then).sqrt()
        clean = (x - (1 - now).sqrt() * eps) / now.sqrt()
        x = then.sqrt() * clean + (1 - then - spread**2).sqrt() * eps + spread * noise[i]
    torch.testing.assert_close(got, x, rtol=1e-9, atol=1e-9)


def karras_sigmas():
    """Karras et al. 2022, eq. 5, rho = 7, and 0 at the end."""
    ramp = torch.linspace(0, 1, N, dtype=torch.float64)
    root = 20.0 ** (1 / 7) + ramp * (0.01 ** (1 / 7) - 20.0 ** (1 / 7))
    return torch.cat([root**7, torch.zeros(1, dtype=torch.float64)])


def slope_at(x, sigma):
    return noise_predictor(x, -2.0 * torch.log(sigma))


def test_euler():
    """Karras et al. 2022, Alg. 1 without its second-order correction: dx/dsigma = eps."""
    sigma, (x, noise) = karras_sigmas(), draws(N)
    got = sampled(solvers.euler(VE, N, time="logsnr"), x, noise)
    for i in range(N):
        x = x + (sigma[i + 1] - sigma[i]) * slope_at(x, sigma[i])
    torch.testing.assert_close(got, x, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("eta", [0.5, 1.0])
def test_euler_ancestral(eta):
    sigma, (x, noise) = karras_sigmas(), draws(N)
    got = sampled(solvers.euler_ancestral(VE, N, eta=eta, time="logsnr"), x, noise)
    for i in range(N):
        s, t = sigma[i], sigma[i + 1]
        up = min(t, eta * (t**2 * (s**2 - t**2) / s**2).sqrt())
        down = (t**2 - up**2).sqrt()
        x = x + (down - s) * slope_at(x, s) + up * noise[i]
    torch.testing.assert_close(got, x, rtol=1e-9, atol=1e-9)


def test_heun():
    """Karras et al. 2022, Alg. 1, with two model calls per step and one in the last."""
    sigma, (x, noise) = karras_sigmas(), draws(2 * N - 1)
    table = solvers.heun(VE, N, time="logsnr")
    assert table.num_nodes == 2 * N - 1
    assert table.num_steps == N
    got = sampled(table, x, noise)
    for i in range(N):
        width = sigma[i + 1] - sigma[i]
        d = slope_at(x, sigma[i])
        euler = x + width * d
        x = euler
        if sigma[i + 1] > 0:
            x = x + width * (slope_at(euler, sigma[i + 1]) - d) / 2
    # the Euler point of the state before is not left in x
    torch.testing.assert_close(got, x, rtol=1e-9, atol=1e-9)


def plain_dpmpp(schedule, scales, x, noise, *, stochastic):
    """Lu et al. 2022, Alg. 2 and its SDE form; first order at both ends."""
    alpha, sigma = scales
    held = held_h = None
    for i in range(N):
        clean = (x - sigma[i] * noise_predictor(x, levels(alpha[i], sigma[i]))) / alpha[i]
        if sigma[i + 1] == 0:
            x = alpha[i + 1] * clean
            break
        h = (levels(alpha[i + 1], sigma[i + 1]) - levels(alpha[i], sigma[i])) / 2
        d = clean
        if held is not None:
            r = held_h / h
            d = (1 + 1 / (2 * r)) * clean - 1 / (2 * r) * held
        if stochastic:
            x = sigma[i + 1] / sigma[i] * torch.exp(-h) * x
            x = x + alpha[i + 1] * (1 - torch.exp(-2 * h)) * d
            x = x + sigma[i + 1] * (1 - torch.exp(-2 * h)).sqrt() * noise[i]
        else:
            x = sigma[i + 1] / sigma[i] * x - alpha[i + 1] * (torch.exp(-h) - 1) * d
        held, held_h = clean, h
    return x


@pytest.mark.parametrize("kind", ["vp", "ve"])
@pytest.mark.parametrize("solver", ["dpmpp_2m", "dpmpp_sde"])
def test_dpmpp(solver, kind):
    x, noise = draws(N)
    if kind == "vp":
        schedule, bar = VP, bars()
        scales = bar.sqrt(), (1 - bar).sqrt()
    else:
        schedule, sigma = VE, karras_sigmas()
        scales = torch.ones_like(sigma), sigma
    got = sampled(solvers.get(solver)(schedule, N, time="logsnr"), x, noise)
    want = plain_dpmpp(schedule, scales, x, noise, stochastic=solver == "dpmpp_sde")
    torch.testing.assert_close(got, want, rtol=1e-8, atol=1e-8)


def test_first_orders_are_ddim():
    for name, eta in (("dpmpp_2m", 0.0), ("dpmpp_sde", 1.0)):
        first = solvers.get(name)(VP, N, order=1)
        ddim = solvers.ddim(VP, N, eta=eta)
        for field in ("A", "B", "C"):
            torch.testing.assert_close(getattr(first, field), getattr(ddim, field))


def test_flow_euler():
    """x + (s - t) v with the model's own v, from t = 1 to 0."""
    x, _ = draws(N)

    def model(rows, t):
        return noise_predictor(rows, t[:, None])

    sampler = SequentialSampler(
        model, shape=(D,), solver=solvers.flow_euler(FLOW, N), dtype=torch.float64
    )
    got = sampler.sample(2, x_init=x).samples
    times = torch.linspace(1, 0, N + 1, dtype=torch.float64)
    for t, s in itertools.pairwise(times):
        x = x + (s - t) * noise_predictor(x, t)
    torch.testing.assert_close(got, x, rtol=1e-9, atol=1e-9)


PAIRS = [
    (solver, schedule)
    for solver in solvers.SOLVERS
    for schedule in (VP, schedules.cosine(), VE, FLOW)
    # the two pairs that test_refusals expects to be refused
    if (solver, schedule.kind) != ("heun", "flow")
    and (solver != "flow_euler" or schedule.kind == "flow")
]


@pytest.mark.parametrize("num_steps", [1, 2, 3, 1000])
@pytest.mark.parametrize(("solver", "schedule"), PAIRS, ids=lambda p: getattr(p, "name", p))
def test_last_step_is_finite_and_free_of_noise(solver, schedule, num_steps):
    """sigma = 0 at the end: no log(0), no 1/0, no noise left; x_N is the last x0."""
    table = solvers.get(solver)(schedule, num_steps, prediction="x0")
    assert table.C[-1] == 0
    assert (table.A_x0[-1] == 0).all()
    assert float(table.B_x0[-1, 0]) == pytest.approx(1.0, abs=1e-12)


def test_time_index_is_the_nearest_timestep():
    schedule = schedules.linear_beta()
    logsnr = (0.7 * schedule.logsnrs[1:] + 0.3 * schedule.logsnrs[:-1])[::100].flip(0)
    between = schedules.Grid(*schedule.alpha_sigma(logsnr), logsnr, logsnr[:-1])
    table = solvers.ddim(schedule, between, time="index")
    assert table.model_time.dtype == torch.float64
    assert table.model_time.tolist() == [901 - 100 * i for i in range(9)]


def test_clipping_is_applied_to_x0():
    """Clipped DDPM: eq. 7 of Ho et al. with x0 clipped, as their code does."""
    bar, (x, noise) = bars(), draws(N)
    got = sampled(solvers.ddpm(VP, N, time="logsnr", clip_x0=0.4), x, noise)
    for i in range(N):
        now, then = bar[i], bar[i + 1]
        alpha = now / then
        eps = noise_predictor(x, torch.log(now / (1 - now)))
        clean = ((x - (1 - now).sqrt() * eps) / now.sqrt()).clamp(-0.4, 0.4)
        mean = then.sqrt() * (1 - alpha) * clean + alpha.sqrt() * (1 - then) * x
        x = mean / (1 - now) + ((1 - then) / (1 - now) * (1 - alpha)).sqrt() * noise[i]
    torch.testing.assert_close(got, x, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("solver", ["ddpm", "ddim", "dpmpp_sde", "dpmpp_2m", "heun"])
def test_samples_of_a_mixture_have_its_law(solver):
    """Weights, means and standard deviation of the components are found again."""
    schedule = VE if solver == "heun" else VP
    num_steps = 400 if solver in ("ddpm", "dpmpp_sde") else 100
    table = solvers.get(solver)(schedule, num_steps)
    means = torch.tensor([[-1.5, 0.0], [1.5, 1.0], [0.0, -2.0]], dtype=torch.float64)
    weights = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    std, num_samples = 0.25, 4000
    model = MixtureModel(table, means, std, weights)
    sampler = SequentialSampler(model, shape=(2,), solver=table, dtype=torch.float64)
    x = sampler.sample(num_samples, seed=5).samples
    nearest = torch.cdist(x, means).argmin(1)
    for k, weight in enumerate(weights):
        mine = x[nearest == k]
        share, bound = len(mine) / num_samples, 4 * math.sqrt(weight * (1 - weight) / num_samples)
        assert share == pytest.approx(float(weight), abs=bound)
        # four standard errors and the solver's own error
        assert (mine.mean(0) - means[k]).abs().max() < 4 * std / math.sqrt(len(mine)) + 0.01
        assert float(mine.std(0).mean()) == pytest.approx(std, rel=0.06)


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: solvers.get("ddmp"), "solver must be one of .*ddpm"),
        (lambda: solvers.build("ddpm", VP, 10, eta=1.0), r'"ddpm" does not take \[\'eta\'\]'),
        (lambda: solvers.ddim(VP, 10, eta=1.5), r"eta must be in \[0, 1\], got 1.5"),
        (lambda: solvers.ddim(VP, 10, eta=-0.1), "eta"),
        (lambda: solvers.ddim(VP, 0), "num_steps"),
        (lambda: solvers.ddpm(VP, 1001), "num_steps"),
        (lambda: solvers.ddpm(VP, 10, variance="learned"), "variance must be one of"),
        (lambda: solvers.dpmpp_2m(VP, 10, order=3), "order must be 1 or 2, got 3"),
        (lambda: solvers.heun(FLOW, 10, prediction="flow"), "needs alpha > 0"),
        (lambda: solvers.flow_euler(VP, 10), 'needs a schedule of kind "flow"'),
        (lambda: solvers.ddim(FLOW, 10), "epsilon"),
        (lambda: solvers.ddim(VE, 10, prediction="v"), 'prediction "v" needs'),
        (lambda: solvers.ddim(VE, 10, time="timestep"), 'time "timestep" needs'),
        (lambda: solvers.ddim(VP, 10, clip_x0=0.0), "clip_x0"),
    ],
)
def test_refusals(call, match):
    with pytest.raises(ValueError, match=match):
        call()


def changed(**changes):
    table = solvers.dpmpp_2m(VP, 5)
    fields = {f.name: getattr(table, f.name) for f in dataclasses.fields(table)}
    return SolverTable(**{**fields, **changes})


ONES = torch.ones(5, dtype=torch.float64)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"A": ONES}, r"A must be a float64 tensor \[N, K\]"),
        ({"A": torch.zeros(0, 2, dtype=torch.float64)}, r"A must be a float64 tensor \[N, K\]"),
        ({"B": torch.zeros(5, 3, dtype=torch.float64)}, r"B must be a tensor of shape \(5, 2\)"),
        ({"C": ONES[:4]}, r"C must be a tensor of shape \(5,\), got \(4,\)"),
        ({"C": [1.0] * 5}, "C must be a tensor of shape .*, got list"),
        ({"P": ONES.float()}, "P must be float64 on the cpu, got torch.float32"),
        ({"Q": 0 * ONES}, "Q must not be 0"),
        ({"input_scale": ONES * math.nan}, "input_scale must be finite"),
        ({"error_scale": -torch.ones(6, dtype=torch.float64)}, "error_scale must not be negative"),
        ({"error_scale": ONES}, r"error_scale must be a tensor of shape \(6,\)"),
        ({"A": torch.ones(5, 2, dtype=torch.float64)}, r"A\[0\] and B\[0\] must be 0"),
        ({"initial_scale": 0.0}, "initial_scale"),
        ({"clip_x0": -1.0}, "clip_x0"),
    ],
)
def test_table_refusals(changes, match):
    with pytest.raises((ValueError, TypeError), match=match):
        changed(**changes)


def test_both_forms_of_a_table_agree():
    """A x + B m = A_x0 x + B_x0 x0 with x0 = P x + Q m, lag by lag."""
    for prediction in ("epsilon", "v", "edm"):
        table = solvers.dpmpp_2m(VP, 8, prediction=prediction)
        generator = torch.Generator().manual_seed(0)
        x, m = torch.randn(2, 8, generator=generator, dtype=torch.float64)
        x0 = table.P * x + table.Q * m
        for i in range(1, 8):
            raw = sum(table.A[i, k] * x[i - k] + table.B[i, k] * m[i - k] for k in range(2))
            data = sum(table.A_x0[i, k] * x[i - k] + table.B_x0[i, k] * x0[i - k] for k in range(2))
            torch.testing.assert_close(raw, data, rtol=1e-9, atol=1e-9)
