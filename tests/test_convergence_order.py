"""Order of convergence of every solver, by regression against exact solutions.

For Gaussian data N(mu, s²) the probability flow is known: (x - alpha mu) / sqrt(alpha² s² + sigma²)
is constant. For stochastic solvers the mean and variance of the result follow from the table's own
coefficients, since the exact model is linear, and are compared with the data's.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ctd_engine import schedules, solvers
from ctd_engine.exact import MixtureModel

MEAN, STD = 0.7, 0.5
# the last step, from sigma = 5e-4 to 0, is of first order; it errs by (5e-4 / STD)² / 2 = 5e-7
VE = schedules.karras(5e-4, 10.0)


def end_point(table, x):
    """x_N from x_0 = x by the recurrence, without noise."""
    model = MixtureModel(table, torch.full((1, 1), MEAN, dtype=torch.float64), STD)
    states, outputs = [x], []
    for i in range(table.num_nodes):
        time = table.model_time[i].expand(len(x))
        outputs.append(model(table.input_scale[i] * states[-1], time))
        reach = range(min(table.order, i + 1))
        states.append(
            sum(table.A[i, k] * states[i - k] + table.B[i, k] * outputs[i - k] for k in reach)
        )
    return states[-1]


def slope(numbers, errors):
    return -np.polyfit(np.log(numbers), np.log(errors), 1)[0]


@pytest.mark.parametrize(
    ("solver", "schedule", "options", "order"),
    [
        ("ddim", VE, {}, 1),
        ("euler", VE, {}, 1),
        ("flow_euler", schedules.flow(), {}, 1),
        ("dpmpp_2m", VE, {"order": 1}, 1),
        ("dpmpp_2m", VE, {}, 2),
        ("heun", VE, {}, 2),
        ("ddim", schedules.linear_beta(100_000, 1e-6, 2e-4), {}, 1),
    ],
)
def test_deterministic(solver, schedule, options, order):
    numbers, errors = np.array([100, 200, 400, 800]), []
    prediction = "flow" if solver == "flow_euler" else "epsilon"
    for num_steps in numbers:
        table = solvers.get(solver)(schedule, int(num_steps), prediction=prediction, **options)
        alpha, sigma = table.alpha[0], table.sigma[0]
        x = torch.tensor([[1.3]], dtype=torch.float64) * table.initial_scale
        spread = (alpha**2 * STD**2 + sigma**2).sqrt()
        exact = MEAN + STD * (x - alpha * MEAN) / spread
        errors.append(float((end_point(table, x) - exact).abs()))
    seen = slope(numbers, errors)
    print(f"{solver} {options}: slope {seen:.2f}, errors {errors}")
    assert seen == pytest.approx(order, abs=0.25)


@pytest.mark.parametrize(
    ("solver", "options"),
    [
        ("ddpm", {}),
        ("ddim", {"eta": 1.0}),
        ("ddim", {"eta": 0.5}),
        ("euler_ancestral", {}),
        ("dpmpp_sde", {"order": 1}),
    ],
)
def test_stochastic_variance_converges_with_order_1(solver, options):
    numbers, errors = np.array([100, 200, 400, 800]), []
    for num_steps in numbers:
        table = solvers.get(solver)(VE, int(num_steps), prediction="x0", **options)
        alpha, sigma = table.alpha[:-1], table.sigma[:-1]
        # the exact posterior mean's slope in x
        gain = alpha * STD**2 / (alpha**2 * STD**2 + sigma**2)
        variance = alpha[0] ** 2 * STD**2 + sigma[0] ** 2
        for i in range(table.num_nodes):
            step = table.A[i, 0] + table.B[i, 0] * gain[i]
            variance = step**2 * variance + table.C[i] ** 2
        errors.append(float((variance - STD**2).abs()))
    seen = slope(numbers, errors)
    print(f"{solver} {options}: slope {seen:.2f}, errors {errors}")
    assert seen == pytest.approx(1.0, abs=0.3)


def test_second_order_sde_beats_first_order():
    """dpmpp_sde with two steps of history: simulated variance, same noise, against order 1."""
    errors = []
    for order in (1, 2):
        table = solvers.dpmpp_sde(VE, 60, order=order, prediction="x0")
        gain = STD**2 / (STD**2 + table.sigma[:-1] ** 2)
        # second moments of (x_i, x0_{i-1}) by their exact recursion
        covariance = torch.zeros(2, 2, dtype=torch.float64)
        covariance[0, 0] = STD**2 + table.sigma[0] ** 2
        for i in range(table.num_nodes):
            b_old = table.B[i, 1] if table.order == 2 else 0.0
            step = torch.tensor(
                [[table.A[i, 0] + table.B[i, 0] * gain[i], b_old], [gain[i], 0.0]],
                dtype=torch.float64,
            )
            covariance = step @ covariance @ step.T
            covariance[0, 0] += table.C[i] ** 2
        errors.append(float((covariance[0, 0] - STD**2).abs()))
    assert errors[1] < 0.3 * errors[0]
