"""Solvers that look back on denoised samples of earlier steps, as k-diffusion writes them.

A step leaves level t and reaches s, h = log(t / s) > 0. D, D_1, D_2 are the denoised samples of
this step and the ones before, h_1, h_2 the widths of those.
"""

from __future__ import annotations

import math

from numpy.polynomial import Polynomial

from ctd_engine import _checks
from ctd_engine.integrations._nodes import SigmaNodes, noise_options, steps

__all__ = ["dpmpp_2m", "dpmpp_2m_sde", "dpmpp_3m_sde", "lms"]

MAX_LMS_ORDER = 3


def lms(levels: list[float], *, order: int | None = None) -> SigmaNodes:
    """Linear multistep (Adams-Bashforth) in sigma for the slopes d = (x - D) / t.

    x_s = x_t + sum_k c_k d_k, c_k the integral from t to s of the k-th Lagrange polynomial on the
    last `order` levels; the first steps have fewer.
    """
    if order is None:
        raise ValueError(
            f'solver "lms" needs order, from 1 to {MAX_LMS_ORDER}: k-diffusion\'s default, 4, '
            "looks back on more states than a table holds"
        )
    order = _checks.require_int("order", order, minimum=1)
    if order > MAX_LMS_ORDER:
        raise ValueError(
            f"order must be at most {MAX_LMS_ORDER}, the states that a table looks back on, got "
            f"{order}"
        )
    nodes = SigmaNodes("lms", start=levels[0])
    for i, t, s, scale in steps(levels):
        known = levels[max(0, i + 1 - order) : i + 1][::-1]
        slopes = [_lagrange_integral(known, k, t, s) / level for k, level in enumerate(known)]
        a = list(slopes)
        a[0] += 1.0
        nodes.add(i, t, a, [-slope for slope in slopes], scale=scale)
    return nodes


def _lagrange_integral(known: list[float], k: int, begin: float, end: float) -> float:
    # shifted to `begin`, so that no digits are lost at small levels
    basis = Polynomial([1.0])
    for j, level in enumerate(known):
        if j != k:
            basis *= Polynomial([begin - level, 1.0]) / (known[k] - level)
    return float(basis.integ()(end - begin))


def dpmpp_2m(levels: list[float]) -> SigmaNodes:
    """DPM-Solver++(2M) (Lu et al. 2022, arXiv 2211.01095, Alg. 2), first order to s = 0.

    x_s = (s / t) x_t + (1 - s / t) (D + (D - D_1) h / (2 h_1)).
    """
    nodes = SigmaNodes("dpmpp_2m", start=levels[0])
    for i, t, s, scale in steps(levels):
        gain = 1.0 - s / t
        b = [gain]
        if i > 0 and s > 0.0:
            slope = 0.5 * gain * math.log(t / s) / math.log(levels[i - 1] / t)
            b = [gain + slope, -slope]
        nodes.add(i, t, [s / t], b, scale=scale)
    return nodes


def dpmpp_2m_sde(
    levels: list[float], *, eta: float = 1.0, s_noise: float = 1.0, solver_type: str = "midpoint"
) -> SigmaNodes:
    """The SDE form of DPM-Solver++(2M): k-diffusion's sample_dpmpp_2m_sde.

    With h' = (1 + eta) h: x_s = e^{-h'} x_t + (1 - e^{-h'}) D + g (D - D_1) h / h_1 + noise, g =
    (1 - e^{-h'}) / 2 ("midpoint") or 1 - (1 - e^{-h'}) / h' ("heun").
    """
    eta, s_noise = noise_options(eta, s_noise)
    _checks.require_choice("solver_type", solver_type, ("midpoint", "heun"))
    nodes = SigmaNodes("dpmpp_2m_sde", start=levels[0])
    for i, t, s, scale in steps(levels):
        if s == 0.0:
            nodes.add_euler(i, t, s, scale=scale)
            continue
        h = math.log(t / s)
        decay, gain, c = _sde_step(s, h, eta)
        b = [gain]
        if i > 0:
            weight = 0.5 * gain if solver_type == "midpoint" else 1.0 - gain / (h * (1.0 + eta))
            slope = weight * h / math.log(levels[i - 1] / t)
            b = [gain + slope, -slope]
        nodes.add(i, t, [decay], b, s_noise * c, scale=scale)
        if eta > 0.0:
            nodes.draw(t, s)
    return nodes


def dpmpp_3m_sde(levels: list[float], *, eta: float = 1.0, s_noise: float = 1.0) -> SigmaNodes:
    """The third-order multistep SDE solver: k-diffusion's sample_dpmpp_3m_sde.

    With h' = (1 + eta) h, p = 1 - (1 - e^{-h'}) / h', q = p / h' - 1/2, r_k = h_k / h and divided
    differences d_0 = (D - D_1) / r_1, d_1 = (D_1 - D_2) / r_2:
    x_s = e^{-h'} x_t + (1 - e^{-h'}) D + p (d_0 + (d_0 - d_1) r_1 / (r_1 + r_2))
    - q (d_0 - d_1) / (r_1 + r_2) + noise; p d_0 alone in the second step.
    """
    eta, s_noise = noise_options(eta, s_noise)
    nodes = SigmaNodes("dpmpp_3m_sde", start=levels[0])
    for i, t, s, scale in steps(levels):
        if s == 0.0:
            nodes.add_euler(i, t, s, scale=scale)
            continue
        h = math.log(t / s)
        decay, gain, c = _sde_step(s, h, eta)
        p = 1.0 - gain / (h * (1.0 + eta))
        q = p / (h * (1.0 + eta)) - 0.5
        b = [gain]
        if i >= 1:
            r_1 = math.log(levels[i - 1] / t) / h
            w_0, w_1, r_2 = p, 0.0, 1.0
            if i >= 2:
                r_2 = math.log(levels[i - 2] / levels[i - 1]) / h
                # (d_0 - d_1) is weighted by (p r_1 - q) / (r_1 + r_2)
                w_1 = -(p * r_1 - q) / (r_1 + r_2)
                w_0 = p - w_1
            b = [gain + w_0 / r_1, w_1 / r_2 - w_0 / r_1, -w_1 / r_2][: i + 1]
        nodes.add(i, t, [decay], b, s_noise * c, scale=scale)
        if eta > 0.0:
            nodes.draw(t, s)
    return nodes


def _sde_step(s: float, h: float, eta: float) -> tuple[float, float, float]:
    # e^{-h'}, 1 - e^{-h'}, s sqrt(1 - e^{-2 eta h})
    both = -(1.0 + eta) * h
    return math.exp(both), -math.expm1(both), s * math.sqrt(-math.expm1(-2.0 * eta * h))
