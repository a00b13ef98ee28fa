"""EDM's sampler and networks in parallel, against Karras et al. 2022, Alg. 1 and 2, as loops."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from ctd_engine import ParallelSampler, SequentialSampler, StopReason
from ctd_engine.integrations import edm

F32, F64 = torch.float32, torch.float64
LIMIT = {F64: 1e-10, F32: 2e-5}
B = 2
CHURN = dict(S_churn=30.0, S_min=0.05, S_max=50.0, S_noise=1.003)
ALL_CHURN = dict(S_churn=1e3, S_noise=0.9)


class Net(nn.Module):
    """EDM's preconditioning around a small network, with the attributes of EDM's networks."""

    img_channels, img_resolution, label_dim = 2, 3, 4
    sigma_min, sigma_max = 0.0, math.inf

    def __init__(self, dtype=F64, casts=False):
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(2, 8, 3, padding=1)
        self.out = nn.Conv2d(8, 2, 3, padding=1)
        self.label = nn.Linear(4, 8)
        self.casts = casts
        self.to(dtype).requires_grad_(False)
        self.calls = []

    def round_sigma(self, sigma):
        return torch.as_tensor(sigma)

    def forward(self, x, sigma, class_labels=None):
        self.calls.append((x.dtype, sigma.dtype, class_labels))
        if self.casts:
            x, sigma = x.float(), sigma.float()
        sigma = sigma.reshape(-1, 1, 1, 1)
        scale = (sigma**2 + 0.25).sqrt()
        hidden = torch.tanh(self.conv(x / scale) + torch.log(sigma) / 4)
        if class_labels is not None:
            hidden = hidden + self.label(class_labels.to(x))[:, :, None, None]
        return 0.25 / scale**2 * x + 0.5 * sigma / scale * torch.tanh(self.out(hidden))


class RoundingNet(Net):
    """Knows 200 levels only, as iDDPM's do."""

    sigma_min, sigma_max = 0.01, 60.0

    def __init__(self, dtype=F64):
        super().__init__(dtype)
        self.register_buffer("known", torch.logspace(math.log10(0.01), math.log10(60.0), 200))

    def round_sigma(self, sigma):
        sigma = torch.as_tensor(sigma)
        nearest = (sigma.reshape(-1, 1).float() - self.known.float()).abs().argmin(1)
        return self.known[nearest].to(sigma.dtype).reshape(sigma.shape)


def alg_2(
    net,
    latents,
    draws,
    labels=None,
    num_steps=18,
    sigma_min=0.002,
    sigma_max=80.0,
    rho=7.0,
    S_churn=0.0,
    S_min=0.0,
    S_max=math.inf,
    S_noise=1.0,
):
    """Karras et al. 2022, Alg. 2 with the levels of eq. 5; `draws` [num_steps, B, ...]."""
    low, high = max(sigma_min, net.sigma_min), min(sigma_max, net.sigma_max)
    fractions = torch.arange(num_steps, dtype=F64) / max(1, num_steps - 1)
    t = (high ** (1 / rho) * (1 - fractions) + fractions * low ** (1 / rho)) ** rho
    t = [*net.round_sigma(t), torch.zeros((), dtype=F64)]

    def denoised(x, level):
        return net(x, level.expand(len(x)).to(x), labels).to(x)

    x = latents * t[0]
    for i in range(num_steps):
        gamma = min(S_churn / num_steps, math.sqrt(2) - 1) if S_min <= t[i] <= S_max else 0.0
        hat = net.round_sigma(t[i] * (1 + gamma))
        x = x + (hat**2 - t[i] ** 2).sqrt() * S_noise * draws[i]
        d = (x - denoised(x, hat)) / hat
        after = x + (t[i + 1] - hat) * d
        if t[i + 1] > 0:
            d_2 = (after - denoised(after, t[i + 1])) / t[i + 1]
            after = x + (t[i + 1] - hat) * (d + d_2) / 2
        x = after
    return x


def numbers(num_steps, dtype=F64):
    generator = torch.Generator().manual_seed(3)
    latents = torch.randn(B, 2, 3, 3, generator=generator, dtype=F64)
    draws = torch.randn(num_steps, B, 2, 3, 3, generator=generator, dtype=F64)
    return latents.to(dtype), draws.to(dtype)


def arranged(table, latents, draws, first, S_noise=1.0):
    """The start and the noise of nodes for a table: the first draw goes into the start."""
    hat = table.sigma[0]
    start = latents * first + (hat**2 - first**2).clamp(min=0).sqrt() * S_noise * draws[0]
    noise = latents.new_zeros(table.num_nodes, *latents.shape)
    noise[1::2] = draws[1:]
    return start, noise


def difference(got, expected):
    return float((got - expected).norm() / expected.norm())


@pytest.mark.parametrize("dtype", [F64, F32], ids=["fp64", "fp32"])
@pytest.mark.parametrize("options", [{}, CHURN, ALL_CHURN], ids=["ode", "churn", "all-churn"])
@pytest.mark.parametrize("kind", [Net, RoundingNet])
def test_equals_the_algorithm(kind, options, dtype):
    """The loop, the sequential and the parallel sampler agree, with labels and the same noise."""
    net = kind(dtype)
    labels = torch.eye(4)[[1, 3]].to(dtype)
    for num_steps in (1, 2, 10, 25):
        latents, draws = numbers(num_steps, dtype)
        expected = alg_2(net, latents, draws, labels, num_steps, **options)
        sampler = edm.sampler(
            net, num_steps=num_steps, dtype=dtype, tolerance=0.0, window_size=8, **options
        )
        table = sampler.table
        assert table.num_nodes == 2 * num_steps - 1
        assert table.num_steps == num_steps
        first = net.round_sigma(torch.tensor(min(80.0, net.sigma_max), dtype=F64))
        start, noise = arranged(table, latents, draws, first, options.get("S_noise", 1.0))
        given = dict(x_init=start, noise=noise, cond={"class_labels": labels})
        parallel = sampler.sample(B, **given)
        sequential = SequentialSampler(
            lambda x, t, class_labels: net(x, t, class_labels),
            shape=sampler.shape,
            solver=table,
            dtype=dtype,
        ).sample(B, **given)
        assert difference(sequential.samples, expected) <= LIMIT[dtype]
        assert difference(parallel.samples, sequential.samples) <= LIMIT[dtype]
        assert parallel.stats.rounds <= table.num_nodes
        assert parallel.all_converged


def test_own_noise_has_the_algorithms_law():
    """For white data the denoised image is known: mean and deviation of every step's state."""

    def net(x, sigma, class_labels):
        return x / (1.0 + sigma.reshape(-1, 1) ** 2)

    options = dict(num_steps=6, sigma_max=3.0, sigma_min=0.1)
    table = edm.heun_table(**options, S_churn=1.5, S_noise=1.2)
    # deviation of the latents and of the first noise, gamma = 1.5 / 6
    hat = 3.0 * 1.25
    assert float(table.sigma[0]) == pytest.approx(hat)
    assert table.initial_scale == pytest.approx(math.sqrt(9.0 + 1.2**2 * (hat**2 - 9.0)))
    sampler = edm.sampler(net, shape=(5000,), **options, S_churn=1.5, S_noise=1.2)
    got = sampler.sample(2, seed=0).samples
    variance, t = 9.0, [*(table.sigma[1::2]).tolist(), 0.0]
    levels = [3.0, *t]
    for i in range(6):
        s_t, s = levels[i], levels[i + 1]
        hat = 1.25 * s_t
        variance += 1.2**2 * (hat**2 - s_t**2)
        slope = hat / (1.0 + hat**2)
        factor = euler = 1.0 + (s - hat) * slope
        if s > 0:
            factor = 1.0 + (s - hat) * (slope + euler * s / (1.0 + s**2)) / 2
        variance *= factor**2
    assert float(got.square().mean()) == pytest.approx(variance, rel=0.05)


def test_network_is_called_in_its_own_dtype():
    for casts in (False, True):
        net = Net(F32, casts)
        sampler = edm.sampler(net, num_steps=4, tolerance=0.0, window_size=3)
        result = sampler.sample(B, seed=0)
        assert result.samples.dtype == F64
        assert {call[:2] for call in net.calls} == {(F32, F32)}
        latents, draws = numbers(4)
        start = dict(x_init=latents * 80.0)
        # the state is float64, only the network's input is rounded
        expected = alg_2(_InFloat32(net), latents, draws, num_steps=4)
        assert difference(sampler.sample(B, **start).samples, expected) < 1e-6
    half = Net(torch.bfloat16, casts=True)
    assert edm.sampler(half, num_steps=2).model_dtype == F32
    assert edm.sampler(half, num_steps=2, model_dtype=torch.bfloat16).model_dtype == torch.bfloat16
    assert edm.sampler(lambda x, s, c: x, shape=(3,), num_steps=2, dtype=F32).model_dtype == F32


def test_half_precision_does_not_round_levels():
    net = Net(F32, casts=True)
    for state, half in ((F32, torch.bfloat16), (F64, torch.float16)):
        net.calls.clear()
        edm.sampler(net, num_steps=3, dtype=state, model_dtype=half, window_size=2).sample(1)
        assert {call[:2] for call in net.calls} == {(half, F32)}


class _InFloat32:
    sigma_min, sigma_max = 0.0, math.inf

    def __init__(self, net):
        self.net = net
        self.round_sigma = net.round_sigma

    def __call__(self, x, sigma, labels):
        return self.net(x.float(), sigma.float(), labels)


def test_only_calls_of_modules_are_recorded_for_later():
    """A recording reads weights where they were, which a plain function cannot tell of."""
    net = Net()
    forms = []
    for given in (net, net.forward):
        sampler = edm.sampler(given, shape=(2, 4, 4), num_steps=3)
        request = sampler._request(1, 0, None, None, None, None, None)
        forms.append(request.denoiser.form)
    assert forms[0] is not None
    assert forms[1] is None


def test_labels_and_guidance():
    """Guidance away from a label of zeros, with EDM's own sampler on the guided network."""
    net = Net()
    labels = torch.eye(4, dtype=F64)[[0, 2]]

    class Guided(_InFloat32):
        def __call__(self, x, sigma, _):
            null = net(x, sigma, torch.zeros(len(x), 4, dtype=F64))
            return null + 2.5 * (net(x, sigma, labels) - null)

    latents, draws = numbers(8)
    expected = alg_2(Guided(net), latents, draws, num_steps=8)
    sampler = edm.sampler(net, num_steps=8, tolerance=0.0, window_size=5)
    given = dict(x_init=latents * 80.0, cond={"class_labels": labels})
    guided = sampler.sample(B, **given, guidance_scale=2.5)
    assert difference(guided.samples, expected) <= 1e-10
    # each row has its own sample's label
    net.calls.clear()
    sampler.sample(B, **given)
    seen = torch.cat([call[2] for call in net.calls]).unique(dim=0)
    assert torch.equal(seen, labels.flip(0))


def test_fewer_rounds_and_close():
    sampler = edm.sampler(Net(), num_steps=40, window_size=20, tolerance=0.03)
    result = sampler.sample(B, seed=1)
    oracle = SequentialSampler(
        lambda x, t: Net()(x, t), shape=(2, 3, 3), solver=sampler.table, dtype=F64
    ).sample(B, seed=1)
    assert result.stop_reasons == [StopReason.CONVERGED] * B
    assert result.stats.rounds < 0.6 * oracle.stats.rounds
    assert difference(result.samples, oracle.samples) < 0.02


def test_levels_of_the_network():
    table = edm.sampler(RoundingNet(), num_steps=10).table
    assert float(table.sigma[0]) == pytest.approx(60.0)
    assert float(table.sigma[-2]) == pytest.approx(0.01)
    known = RoundingNet().known.double()
    assert all((known - level).abs().min() < 1e-12 for level in table.sigma[:-1])
    net = Net()
    sampler = edm.sampler(net, num_steps=3)
    assert isinstance(sampler, ParallelSampler)
    assert sampler.shape == (2, 3, 3)
    assert float(sampler.table.sigma[0]) == pytest.approx(80.0)
    assert sampler.table.prediction == "x0"


@pytest.mark.parametrize(
    "call, error, match",
    [
        (lambda: edm.heun_table(0), ValueError, "num_steps must be an integer >= 1, got 0"),
        (lambda: edm.heun_table(S_churn=-1.0), ValueError, "S_churn must be >= 0, got -1"),
        (lambda: edm.heun_table(S_noise=-1.0), ValueError, "S_noise must be >= 0, got -1"),
        (
            lambda: edm.heun_table(S_min=2.0, S_max=1.0),
            ValueError,
            "S_max must be at least S_min = 2, got 1",
        ),
        (lambda: edm.heun_table(sigma_min=90.0), ValueError, "sigma_max must be > 90, got 80"),
        (
            lambda: edm.heun_table(100, round_sigma=lambda s: s.round().clamp(min=1)),
            ValueError,
            "after round_sigma, must fall strictly",
        ),
        (
            lambda: edm.heun_table(round_sigma=lambda s: s[:-1]),
            ValueError,
            r"round_sigma must keep the shape \(18,\), got \(17,\)",
        ),
        (lambda: edm.sampler(lambda x, s, c: x), ValueError, "shape is needed: net has no img_c"),
        (lambda: edm.sampler(3), TypeError, "net must be callable as net.x, sigma, class_labels"),
        (lambda: edm.sampler(Net(), S_chrun=3), TypeError, "S_chrun"),
    ],
)
def test_rejects(call, error, match):
    with pytest.raises(error, match=match):
        call()
