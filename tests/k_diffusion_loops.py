"""k-diffusion's samplers as plain loops, one step each, written from their equations.

Every loop is called as `loop(x, sigmas, noise, told, **options)`: `noise(sigma, sigma_next)` draws,
`told(x, i, sigma, sigma_hat)` hears of every step before its first model call.
"""

from __future__ import annotations

import math
from itertools import pairwise

import torch

from ctd_engine.integrations.k_diffusion import sample_parallel

F32, F64 = torch.float32, torch.float64
B, SHAPE = 3, (2, 3)
LIMIT = {F64: 1e-10, F32: 2e-5}


def denoise(x, sigma, shift=None):
    """A smooth denoiser of unit data, with a nonlinear part that no solver is exact for."""
    s = sigma.to(x).reshape(-1, *[1] * (x.dim() - 1))
    wave = torch.sin(3.0 * x / (1.0 + s) + x.flip(-1) / (1.0 + s))
    out = x / (1.0 + s**2) + 0.3 * s / (1.0 + s) * wave
    return out if shift is None else out + 0.1 * shift.reshape(s.shape).to(x)


def karras(num_steps, *, ends_in_zero=True, rho=7.0):
    """Karras et al. 2022, eq. 5; without the zero one more level, so that the steps are as many."""
    count = num_steps if ends_in_zero else num_steps + 1
    ramp = torch.arange(count, dtype=F64) / max(1, count - 1)
    low, high = 0.05 ** (1 / rho), 10.0 ** (1 / rho)
    sigmas = (high + ramp * (low - high)) ** rho
    if ends_in_zero:
        sigmas = torch.cat([sigmas, torch.zeros(1, dtype=F64)])
    return sigmas


def start(dtype=F64):
    x = torch.randn(B, *SHAPE, generator=torch.Generator().manual_seed(1), dtype=F64)
    return (10.0 * x).to(dtype)


class Noise:
    """A noise sampler that remembers what it was asked for."""

    def __init__(self, dtype=F64):
        self.generator = torch.Generator().manual_seed(2)
        self.dtype = dtype
        self.asked = []

    def __call__(self, sigma, sigma_next):
        self.asked.append((float(sigma), float(sigma_next)))
        return torch.randn(B, *SHAPE, generator=self.generator, dtype=F64).to(self.dtype)


def slope(x, sigma):
    return (x - denoise(x, sigma.expand(len(x)))) / sigma


def split(t, s, eta):
    """Variance of an ancestral step, split into what is kept and what is new."""
    new = min(float(s), eta * float(s / t * (t**2 - s**2).clamp(min=0).sqrt()))
    return (s**2 - new**2).clamp(min=0).sqrt(), new


def raised(x, t, i, n, noise, options):
    """Karras et al. 2022, Alg. 2, lines 4 to 6."""
    churn = options.get("s_churn", 0.0)
    low, high = options.get("s_tmin", 0.0), options.get("s_tmax", math.inf)
    gamma = min(churn / n, math.sqrt(2) - 1) if low <= t <= high else 0.0
    hat = t + gamma * t
    if churn > 0:
        z = noise(t, hat)
        x = x + (hat**2 - t**2).sqrt() * options.get("s_noise", 1.0) * z
    return x, hat


def loop_churn(kind):
    def loop(x, sigmas, noise, told, **options):
        n = len(sigmas) - 1
        for i in range(n):
            x, t = raised(x, sigmas[i], i, n, noise, options)
            told(x, i, sigmas[i], t)
            s = sigmas[i + 1]
            d = slope(x, t)
            if kind == "euler" or s == 0:
                x = x + (s - t) * d
            elif kind == "heun":
                x = x + (s - t) * (d + slope(x + (s - t) * d, s)) / 2
            else:
                middle = (t * s).sqrt()
                x = x + (s - t) * slope(x + (middle - t) * d, middle)
        return x

    return loop


def loop_ancestral(kind):
    def loop(x, sigmas, noise, told, eta=1.0, s_noise=1.0):
        for i, (t, s) in enumerate(pairwise(sigmas)):
            told(x, i, t, t)
            down, new = split(t, s, eta)
            d = slope(x, t)
            if kind == "euler" or down == 0:
                x = x + (down - t) * d
            elif kind == "dpm_2":
                middle = (t * down).sqrt()
                x = x + (down - t) * slope(x + (middle - t) * d, middle)
            else:
                # Lu et al. 2022 (DPM-Solver++), Alg. 1 with r = 1/2, in lambda = -log sigma
                h = torch.log(t / down)
                middle = torch.exp(torch.log(t) - h / 2)
                half = middle / t * x + (1 - torch.exp(-h / 2)) * (x - t * d)
                x = down / t * x + (1 - torch.exp(-h)) * denoise(half, middle.expand(len(x)))
            if s > 0:
                x = x + s_noise * new * noise(t, s)
        return x

    return loop


def loop_lms(x, sigmas, noise, told, order):
    """Adams-Bashforth on uneven levels: the polynomial through the slopes, integrated by Gauss."""
    nodes = torch.tensor([-math.sqrt(3 / 5), 0.0, math.sqrt(3 / 5)], dtype=F64)
    weights = torch.tensor([5 / 9, 8 / 9, 5 / 9], dtype=F64)
    slopes = []
    for i in range(len(sigmas) - 1):
        t, s = sigmas[i].double(), sigmas[i + 1].double()
        told(x, i, sigmas[i], sigmas[i])
        slopes = [slope(x, sigmas[i]), *slopes][:order]
        at = (t + s) / 2 + (s - t) / 2 * nodes
        levels = [sigmas[i - j].double() for j in range(len(slopes))]
        for j, d in enumerate(slopes):
            basis = torch.ones_like(at)
            for k, level in enumerate(levels):
                if k != j:
                    basis = basis * (at - level) / (levels[j] - level)
            x = x + ((s - t) / 2 * (weights * basis).sum()).to(x) * d
    return x


def loop_2m(x, sigmas, noise, told):
    """Lu et al. 2022 (DPM-Solver++), Alg. 2, with the first-order step to sigma = 0."""
    before, h_before = None, None
    for i, (t, s) in enumerate(pairwise(sigmas)):
        told(x, i, t, t)
        clean = denoise(x, t.expand(len(x)))
        if s == 0:
            return clean
        h = torch.log(t / s)
        mixed = clean
        if before is not None:
            r = h_before / h
            mixed = (1 + 1 / (2 * r)) * clean - 1 / (2 * r) * before
        x = s / t * x - torch.expm1(-h) * mixed
        before, h_before = clean, h
    return x


def loop_multi_sde(order):
    """Exponential integrators of dx = ((1 + eta) ...) dlambda for a polynomial D in lambda."""

    def loop(x, sigmas, noise, told, eta=1.0, s_noise=1.0, solver_type="midpoint"):
        cleans, widths = [], []
        for i, (t, s) in enumerate(pairwise(sigmas)):
            told(x, i, t, t)
            clean = denoise(x, t.expand(len(x)))
            if s == 0:
                return clean
            h = torch.log(t / s)
            full = h + eta * h
            phi_1 = -torch.expm1(-full)
            phi_2 = torch.expm1(-full) / full + 1
            x = torch.exp(-full) * x + phi_1 * clean
            if order == 2 and cleans:
                first = (clean - cleans[0]) * h / widths[0]
                x = x + (phi_1 / 2 if solver_type == "midpoint" else phi_2) * first
            elif order == 3 and cleans:
                first = (clean - cleans[0]) * h / widths[0]
                if len(cleans) > 1:
                    second = (cleans[0] - cleans[1]) * h / widths[1]
                    r_1, r_2 = widths[0] / h, widths[1] / h
                    curve = (first - second) / (r_1 + r_2)
                    x = x + phi_2 * (first + r_1 * curve) - (phi_2 / full - 0.5) * curve
                else:
                    x = x + phi_2 * first
            if eta > 0:
                x = x + s_noise * s * (-torch.expm1(-2 * eta * h)).sqrt() * noise(t, s)
            cleans, widths = [clean, *cleans][:2], [h, *widths][:2]
        return x

    return loop


def loop_sde(x, sigmas, noise, told, eta=1.0, s_noise=1.0, r=0.5):
    """DPM-Solver++(SDE), both stages from t, with noise of their own."""
    for i, (t, s) in enumerate(pairwise(sigmas)):
        told(x, i, t, t)
        clean = denoise(x, t.expand(len(x)))
        if s == 0:
            return clean
        middle = torch.exp((1 - r) * torch.log(t) + r * torch.log(s))
        down, new = split(t, middle, eta)
        half = down / t * x + (1 - down / t) * clean + s_noise * new * noise(t, middle)
        clean_2 = denoise(half, middle.expand(len(x)))
        down, new = split(t, s, eta)
        mixed = clean + (clean_2 - clean) / (2 * r)
        x = down / t * x + (1 - down / t) * mixed + s_noise * new * noise(t, s)
    return x


CHURN = {"s_churn": 4.0, "s_tmin": 0.2, "s_tmax": 8.0, "s_noise": 1.1}
ALL_CHURN = {"s_churn": 80.0, "s_noise": 0.9}
CASES = [
    ("euler", loop_churn("euler"), {}),
    ("euler", loop_churn("euler"), CHURN),
    ("euler", loop_churn("euler"), ALL_CHURN),
    ("heun", loop_churn("heun"), {}),
    ("heun", loop_churn("heun"), CHURN),
    ("heun", loop_churn("heun"), ALL_CHURN),
    ("dpm_2", loop_churn("dpm_2"), {}),
    ("dpm_2", loop_churn("dpm_2"), ALL_CHURN),
    ("euler_ancestral", loop_ancestral("euler"), {}),
    ("euler_ancestral", loop_ancestral("euler"), {"eta": 0.4, "s_noise": 0.9}),
    ("dpm_2_ancestral", loop_ancestral("dpm_2"), {}),
    ("dpm_2_ancestral", loop_ancestral("dpm_2"), {"eta": 0.0}),
    ("dpmpp_2s_ancestral", loop_ancestral("2s"), {}),
    ("dpmpp_2s_ancestral", loop_ancestral("2s"), {"eta": 0.6, "s_noise": 1.1}),
    ("lms", loop_lms, {"order": 1}),
    ("lms", loop_lms, {"order": 2}),
    ("lms", loop_lms, {"order": 3}),
    ("dpmpp_2m", loop_2m, {}),
    ("dpmpp_2m_sde", loop_multi_sde(2), {}),
    ("dpmpp_2m_sde", loop_multi_sde(2), {"eta": 0.5, "solver_type": "heun", "s_noise": 0.9}),
    ("dpmpp_2m_sde", loop_multi_sde(2), {"eta": 0.0}),
    ("dpmpp_3m_sde", loop_multi_sde(3), {}),
    ("dpmpp_3m_sde", loop_multi_sde(3), {"eta": 0.3, "s_noise": 1.1}),
    ("dpmpp_sde", loop_sde, {}),
    ("dpmpp_sde", loop_sde, {"eta": 0.5, "r": 0.3, "s_noise": 0.9}),
]


def case_id(name, options):
    return "-".join((name, *(f"{key}{value}" for key, value in options.items())))


IDS = [case_id(name, options) for name, _, options in CASES]


def difference(got, expected):
    return float((got - expected).norm() / expected.norm())


def run(**changes):
    """Ours, on a small problem."""
    call = dict(model=denoise, x=start(), sigmas=karras(4), disable=True, window_size=2)
    return sample_parallel(**{**call, **changes})
