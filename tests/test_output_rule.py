"""Steps that are not linear in the model's output: bounds of x0, and learned variances."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import pytest
import torch

from ctd_engine import ParallelSampler, SequentialSampler, schedules, solvers
from ctd_engine._coefficients import bound_rule
from ctd_engine._graphs import WaitFinder
from ctd_engine._output_rule import OutputRule
from ctd_engine.noise import philox_normal
from ruled_tables import NUM_STEPS, RULES, SHAPE, RuledModel, ruled


def step_by_step(table: Any, model: RuledModel, seeds: list[int]) -> torch.Tensor:
    """The docstring's equations, one sample at a time, without any of the sampler's code."""
    ends = []
    for seed in seeds:
        key = torch.tensor([seed])
        x = table.initial_scale * philox_normal(
            key, torch.tensor([0]), 8, stream=0, dtype=torch.float64
        ).view(SHAPE)
        rule = table.rule
        for i in range(table.num_nodes):
            out = model(x[None], table.model_time[i : i + 1])[0]
            m, v = out[: SHAPE[0]], out[SHAPE[0] :]
            raw = table.P[i] * x + table.Q[i] * m
            x0 = raw
            if rule.clip is not None:
                x0 = raw.clamp(-rule.clip, rule.clip)
            elif rule.quantile is not None:
                s = float(torch.quantile(raw.abs().flatten(), rule.quantile))
                s = min(max(s, 1.0), rule.max_value)
                x0 = raw.clamp(-s, s) / s
            std = table.C[i]
            if std > 0 and rule.variance == "learned":
                std = v.sqrt()
            elif std > 0 and rule.variance == "learned_range":
                part = (v + 1) / 2
                std = rule.low[i] ** (1 - part) * rule.high[i] ** part
            z = philox_normal(key, torch.tensor([i]), 8, dtype=torch.float64).view(SHAPE)
            x = table.A_x0[i, 0] * x + table.B_x0[i, 0] * x0 + std * z
            if rule.remainder is not None:
                x = x + rule.remainder[i] * (raw - x0)
        ends.append(x)
    return torch.stack(ends)


@pytest.mark.parametrize("name", RULES)
def test_a_rule_is_its_equations(name: str) -> None:
    table = ruled(**RULES[name])
    model = RuledModel(table.outputs)
    sampler = SequentialSampler(model, shape=SHAPE, solver=table, dtype=torch.float64)
    ours = sampler.sample(3, seeds=[4, 5, 6]).samples
    torch.testing.assert_close(ours, step_by_step(table, model, [4, 5, 6]), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("guess", ["predicted", "copy"])
@pytest.mark.parametrize("window", [1, 3, NUM_STEPS])
@pytest.mark.parametrize("name", RULES)
def test_parallel_equals_sequential(name: str, window: int, guess: str) -> None:
    table = ruled(**RULES[name])
    shared: dict[str, Any] = dict(shape=SHAPE, solver=table, dtype=torch.float64)
    model = RuledModel(table.outputs)
    expected = SequentialSampler(model, **shared).sample(3, seed=1).samples
    sampler = ParallelSampler(
        model, **shared, window_size=window, tolerance=0.0, guess=guess, max_rows=10
    )
    torch.testing.assert_close(sampler.sample(3, seed=1).samples, expected, rtol=0.0, atol=1e-13)


def test_a_clipping_rule_is_clip_x0() -> None:
    table = solvers.ddim(schedules.linear_beta(), NUM_STEPS, eta=0.5, clip_x0=0.8)
    ends = [
        SequentialSampler(RuledModel(1), shape=SHAPE, solver=each, dtype=torch.float64)
        .sample(2, seed=3)
        .samples
        for each in (table, ruled(clip=0.8))
    ]
    assert torch.equal(ends[0], ends[1])


def test_guidance_leaves_the_variance_to_the_conditional_output() -> None:
    table = ruled(**RULES["learned range"])
    rule = bound_rule(table, torch.float64, torch.device("cpu"))
    assert rule is not None
    generator = torch.Generator().manual_seed(0)
    x, m, null, v, z = torch.randn(5, 3, 8, generator=generator, dtype=torch.float64)
    node = torch.tensor([0, 3, 7])
    outputs = torch.cat([m, v], dim=1), torch.cat([null, v + 1.0], dim=1)
    x0, added = rule(x, *outputs, 2.5, node, z)
    guided = torch.cat([null + 2.5 * (m - null), v], dim=1)
    expected = rule(x, guided, None, 1.0, node, z)
    torch.testing.assert_close(x0, expected[0])
    assert added is not None
    torch.testing.assert_close(added, expected[1])


@pytest.mark.parametrize("name", ["clip, unclipped noise", "learned range"])
def test_guided_samples(name: str) -> None:
    table = ruled(**RULES[name])
    null = dict(shift=torch.zeros(1))
    shared: dict[str, Any] = dict(shape=SHAPE, solver=table, dtype=torch.float64, null_cond=null)
    asked: dict[str, Any] = dict(
        seed=2, cond=dict(shift=torch.tensor([0.1, -0.4])), guidance_scale=1.7
    )
    model = RuledModel(table.outputs)
    expected = SequentialSampler(model, **shared).sample(2, **asked).samples
    ours = ParallelSampler(model, **shared, window_size=5, tolerance=0.0).sample(2, **asked).samples
    torch.testing.assert_close(ours, expected, rtol=0.0, atol=1e-13)


def test_a_window_of_its_own_choice_with_two_outputs() -> None:
    table = ruled(**RULES["learned"])
    sampler = ParallelSampler(RuledModel(2), shape=SHAPE, solver=table)
    assert bool(torch.isfinite(sampler.sample(2, seed=0).samples).all())


def test_a_model_without_a_variance_is_refused() -> None:
    table = ruled(**RULES["learned"])
    sampler = SequentialSampler(RuledModel(1), shape=SHAPE, solver=table)
    with pytest.raises(ValueError, match=re.escape("model must return (1, 4, 4), the outputs")):
        sampler.sample(1)


@pytest.mark.parametrize("name", RULES)
def test_a_rule_waits_for_nothing(name: str) -> None:
    """diffusers #11696, #9475, #14589; on a GPU see test_output_rule_resident.py."""
    table = ruled(**RULES[name])
    rule = bound_rule(table, torch.float32, torch.device("cpu"))
    assert rule is not None
    x, z = torch.randn(2, 5, 8)
    m = torch.randn(5, 8 * table.outputs).abs()
    with WaitFinder() as finder:
        x0, added = rule(x, m, m, 1.5, torch.arange(5), z)
    assert finder.found is None
    assert bool(torch.isfinite(x0).all())
    assert added is not None


def test_nan_stays_nan() -> None:
    for name in RULES:
        table = ruled(**RULES[name])
        rule = bound_rule(table, torch.float64, torch.device("cpu"))
        assert rule is not None
        x = torch.full((1, 8), torch.nan, dtype=torch.float64)
        x0, _ = rule(x, torch.ones(1, 8 * table.outputs), None, 1.0, torch.tensor([3]), x)
        assert bool(torch.isnan(x0).all()), name


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(clip=0.0), r"clip must be > 0"),
        (dict(clip=1.0, quantile=0.5), r"give either clip or quantile"),
        (dict(quantile=1.5), r"quantile must be in \(0, 1\], got 1.5"),
        (dict(quantile=0.5, max_value=0.5), r"max_value must be >= 1"),
        (dict(variance="guessed"), r"variance must be one of"),
        (dict(max_value=2.0), r"give both, got 2.0 alone"),
        (dict(clip=1.0, max_value=2.0), r"give both, got 2.0 alone"),
        (dict(remainder=torch.zeros(NUM_STEPS)), r"remainder .* clip or quantile too, got neither"),
        (dict(variance="learned_range"), r"got variance 'learned_range' with neither"),
        (dict(low=torch.ones(NUM_STEPS)), r"low and high .* got variance None with low"),
    ],
)
def test_a_rule_refuses(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        OutputRule(**arguments)


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        (dict(clip=1.0, remainder=torch.zeros(3).double()), r"rule.remainder must be a float64"),
        (dict(clip=1.0, remainder=torch.zeros(NUM_STEPS)), r"rule.remainder must be a float64"),
        (dict(clip=1.0, remainder=[0.0] * NUM_STEPS), r"rule.remainder must .* got <class 'list'>"),
        (dict(clip=1.0, remainder=torch.full((NUM_STEPS,), torch.nan).double()), r"must be finite"),
        (
            dict(
                variance="learned_range",
                low=torch.zeros(NUM_STEPS).double(),
                high=torch.ones(NUM_STEPS).double(),
            ),
            r"rule.low must be positive",
        ),
    ],
)
def test_a_table_refuses(rule: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ruled(**rule)
    clipped = solvers.ddim(schedules.linear_beta(), NUM_STEPS, clip_x0=1.0)
    with pytest.raises(ValueError, match=r"clip_x0 must be None with a rule"):
        replace(clipped, rule=OutputRule(clip=1.0))
