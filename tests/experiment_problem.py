"""A small experiment."""

from __future__ import annotations

from dataclasses import replace

from ctd_engine.experiments.settings import EXPERIMENTS


def tiny(name, steps=4):
    """An experiment with everything of the real one, but small."""
    experiment = EXPERIMENTS[name]
    samplers = tuple(
        replace(s, num_steps=12, num_samples=6, window_size=s.window_size and 5)
        for s in experiment.samplers
    )
    return replace(
        experiment, samplers=samplers, steps=steps, batch_size=20, width=8, num_train=50,
        num_true=40,
    )  # fmt: skip
