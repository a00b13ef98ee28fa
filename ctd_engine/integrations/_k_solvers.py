"""k-diffusion's solvers by name, and those with ancestral steps: down, then noise up.

A step leaves level t and reaches s: it goes down to `down` < s and adds noise of deviation `up`,
up² + down² = s². D is the denoised sample.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable

from ctd_engine import _checks
from ctd_engine.integrations import _churn_solvers
from ctd_engine.integrations._churn_solvers import Churn, churned
from ctd_engine.integrations._multistep_solvers import dpmpp_2m, dpmpp_2m_sde, dpmpp_3m_sde, lms
from ctd_engine.integrations._nodes import SigmaNodes, noise_options, std_between, steps

__all__ = ["SOLVERS", "own_options"]


def _with_churn(solver: Callable[[Churn], SigmaNodes]) -> Callable[..., SigmaNodes]:
    def build(
        levels: list[float],
        *,
        s_churn: float = 0.0,
        s_tmin: float = 0.0,
        s_tmax: float = math.inf,
        s_noise: float = 1.0,
    ) -> SigmaNodes:
        names = ("s_churn", "s_tmin", "s_tmax", "s_noise")
        return solver(churned(levels, s_churn, s_tmin, s_tmax, s_noise, names))

    return build


def ancestral(t: float, s: float, eta: float) -> tuple[float, float]:
    """(down, up) of a step from t to s: up = min(s, eta times the posterior's deviation)."""
    up = min(s, eta * std_between(t, s))
    return math.sqrt(s**2 - up**2), up


def euler_ancestral(levels: list[float], *, eta: float = 1.0, s_noise: float = 1.0) -> SigmaNodes:
    """Euler's step to `down`, then noise."""
    eta, s_noise = noise_options(eta, s_noise)
    nodes = SigmaNodes("euler_ancestral", start=levels[0])
    for i, t, s, scale in steps(levels):
        down, up = ancestral(t, s, eta)
        nodes.add_euler(i, t, down, s_noise * up, scale=scale)
        if s > 0.0:
            nodes.draw(t, s)
    return nodes


def dpm_2_ancestral(levels: list[float], *, eta: float = 1.0, s_noise: float = 1.0) -> SigmaNodes:
    """DPM-Solver-2's step to `down`, then noise; Euler's without noise where `down` is 0."""
    eta, s_noise = noise_options(eta, s_noise)
    nodes = SigmaNodes("dpm_2_ancestral", start=levels[0])
    for i, t, s, scale in steps(levels):
        down, up = ancestral(t, s, eta)
        nodes.add_midpoint(i, t, down, s_noise * up if down > 0.0 else 0.0, scale=scale)
        if down > 0.0:
            nodes.draw(t, s)
    return nodes


def dpmpp_2s_ancestral(
    levels: list[float], *, eta: float = 1.0, s_noise: float = 1.0
) -> SigmaNodes:
    """DPM-Solver++(2S) (Lu et al. 2022, arXiv 2211.01095, Alg. 1, r = 1/2) to `down`, then noise.

    x_down = (down / t) x_t + (1 - down / t) D~, with D~ at sqrt(t down).
    """
    eta, s_noise = noise_options(eta, s_noise)
    nodes = SigmaNodes("dpmpp_2s_ancestral", start=levels[0])
    for i, t, s, scale in steps(levels):
        down, up = ancestral(t, s, eta)
        if down == 0.0:
            nodes.add_euler(i, t, 0.0, s_noise * up, scale=scale)
        else:
            middle = math.sqrt(t * down)
            nodes.add_euler(i, t, middle, scale=scale)
            ratio = down / t
            nodes.add(i, middle, [0.0, ratio], [1.0 - ratio, 0.0], s_noise * up, scale=scale)
        if s > 0.0:
            nodes.draw(t, s)
    return nodes


def dpmpp_sde(
    levels: list[float],
    *,
    eta: float = 1.0,
    s_noise: float = 1.0,
    r: float = 0.5,
    overlapping: bool = True,
) -> SigmaNodes:
    """DPM-Solver++ for the SDE, two stages: k-diffusion's sample_dpmpp_sde.

    x~ goes to t^(1-r) s^r with noise z1; x_s = (down / t) x_t + (1 - down / t) ((1 - 1/2r) D +
    D~ / 2r) + up z2. Both noises are of Brownian motion from t on, so that they share the way to
    the middle: z2 = rho z1 + sqrt(1 - rho²) z', rho² = (t - middle) / (t - s). With `overlapping`
    z1 is read off x~ and z' is the second node's noise; without, that node's noise is z2 itself.
    """
    eta, s_noise = noise_options(eta, s_noise)
    r = _checks.require_float("r", r, above=0.0)
    if r >= 1.0:
        raise ValueError(f"r, the place of the middle in a step, must be in (0, 1), got {r:g}")
    share = 0.5 / r
    nodes = SigmaNodes("dpmpp_sde", start=levels[0])
    for i, t, s, scale in steps(levels):
        if s == 0.0:
            nodes.add_euler(i, t, s, scale=scale)
            continue
        middle = t ** (1.0 - r) * s**r
        down, up = ancestral(t, middle, eta)
        ratio = down / t
        nodes.add_euler(i, t, down, s_noise * up, scale=scale)
        nodes.draw(t, middle)
        down_2, up_2 = ancestral(t, s, eta)
        ratio_2 = down_2 / t
        gain = 1.0 - ratio_2
        a, b, c = [0.0, ratio_2], [gain * share, gain * (1.0 - share)], s_noise * up_2
        if overlapping and c > 0.0:
            rho = math.sqrt((t - middle) / (t - s))
            # s_noise up z1 = x~ - ratio x_t - (1 - ratio) D
            shared = rho * up_2 / up
            a = [shared, ratio_2 - shared * ratio]
            b[1] -= shared * (1.0 - ratio)
            c *= math.sqrt(1.0 - rho**2)
        nodes.add(i, middle, a, b, c, scale=scale)
        nodes.draw(t, s)
    return nodes


SOLVERS: dict[str, Callable[..., SigmaNodes]] = {
    "euler": _with_churn(_churn_solvers.euler),
    "euler_ancestral": euler_ancestral,
    "heun": _with_churn(_churn_solvers.heun),
    "dpm_2": _with_churn(_churn_solvers.dpm_2),
    "dpm_2_ancestral": dpm_2_ancestral,
    "lms": lms,
    "dpmpp_2s_ancestral": dpmpp_2s_ancestral,
    "dpmpp_sde": dpmpp_sde,
    "dpmpp_2m": dpmpp_2m,
    "dpmpp_2m_sde": dpmpp_2m_sde,
    "dpmpp_3m_sde": dpmpp_3m_sde,
}

# k-diffusion has these too
REFUSED = {
    "dpm_adaptive": "chooses its steps from the states, so that there are no nodes before it ran",
    "dpm_fast": (
        'takes sigma_min, sigma_max and a number of calls instead of sigmas; "dpmpp_2m" is as fast'
    ),
}


def own_options(solver: str) -> set[str]:
    """Keyword arguments of a solver's function.

    Raises:
        ValueError: an unknown solver, or one that is no table.
    """
    if solver in REFUSED:
        raise ValueError(f'solver "{solver}" cannot run in parallel: it {REFUSED[solver]}')
    parameters = inspect.signature(
        SOLVERS[_checks.require_choice("solver", solver, tuple(SOLVERS))]
    ).parameters.values()
    return {p.name for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY}
