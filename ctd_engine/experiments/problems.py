"""The problems: data to train on, true data to compare with, and the statistics of samples."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ctd_engine.experiments.metrics import TwoSample, nearest_class
from ctd_engine.experiments.settings import Experiment
from ctd_engine.experiments.shapes import SHAPES, Distribution, get_shape, two_gaussians
from ctd_engine.training.data import Dataset, load_data

__all__ = ["Problem", "make_problem"]

# squared length for digits: pairs of one class are about 4.5 apart in 64 dimensions
DIGITS_BANDWIDTH = 10.0
_REFERENCE_SEED = 1_000_003
_NUM_FLOORS = 5


@dataclass(frozen=True, eq=False)
class Problem:
    """Data and statistics.

    Args:
        name: of the problem.
        data: what a model is trained on.
        labels: what sample b is conditioned on, [B] for B samples; None without labels.
        metrics: statistics of samples [B, *shape] and their labels; smaller is better, but for
            an accuracy.
        floor: the same for true samples: mean and standard deviation over independent sets of B.
        distribution: of points; None for images.
        clip_x0: as for the samplers.
    """

    name: str
    data: Dataset
    labels: Callable[[int], Tensor] | None
    metrics: Callable[[Tensor, Tensor | None], dict[str, float]]
    true_samples: Callable[[int, int], tuple[Tensor, Tensor | None]]
    distribution: Distribution | None = None
    clip_x0: float | None = None

    def floor(self, num_samples: int) -> dict[str, dict[str, float]]:
        """What true samples get: mean and standard deviation of `_NUM_FLOORS` sets."""
        sets = [self.metrics(*self.true_samples(num_samples, i)) for i in range(_NUM_FLOORS)]
        values = {name: torch.tensor([s[name] for s in sets]).double() for name in sets[0]}
        return {
            name: {"mean": float(v.mean()), "standard_deviation": float(v.std())}
            for name, v in values.items()
        }


def make_problem(name: str, experiment: Experiment, seed: int) -> Problem:
    """The problem of a name; `seed` draws its training data.

    Raises:
        ValueError: an unknown name.
        RuntimeError: scikit-learn, which brings the digits, is not installed.
    """
    if name == "digits":
        return _digits(experiment)
    if name == "two_gaussians" or name in SHAPES:
        return _points(name, experiment, seed)
    known = ", ".join(["two_gaussians", *SHAPES, "digits"])
    raise ValueError(f"problem must be one of {known}, got {name!r}")


@functools.cache
def _reference(name: str, num_true: int) -> TwoSample:
    """True points and their own part of the statistics, which all runs share."""
    generator = torch.Generator().manual_seed(_REFERENCE_SEED)
    return TwoSample(_distribution(name).sample(num_true, generator))


def _distribution(name: str) -> Distribution:
    return two_gaussians() if name == "two_gaussians" else get_shape(name)


def _points(name: str, experiment: Experiment, seed: int) -> Problem:
    distribution = _distribution(name)

    def draw(count: int, which: int) -> Tensor:
        return distribution.sample(count, torch.Generator().manual_seed(which))

    reference = _reference(name, experiment.num_true)

    def metrics(samples: Tensor, labels: Tensor | None) -> dict[str, float]:
        return {
            "mmd": reference.mmd(samples),
            "energy_distance": reference.energy_distance(samples),
        }

    return Problem(
        name=name,
        data=Dataset(name, draw(experiment.num_train, seed), None),
        labels=None,
        metrics=metrics,
        true_samples=lambda count, i: (draw(count, _REFERENCE_SEED + 1 + i), None),
        distribution=distribution,
    )


def _digits(experiment: Experiment) -> Problem:
    """Two thirds of the digits to train on, the rest to compare with and to classify by."""
    whole = load_data("digits")
    assert whole.labels is not None
    order = torch.randperm(len(whole.x), generator=torch.Generator().manual_seed(_REFERENCE_SEED))
    train, held_out = order[:1200], order[1200:]
    images, classes = whole.x[held_out], whole.labels[held_out]
    reference = TwoSample(images)
    data = Dataset("digits", whole.x[train], whole.labels[train])

    def metrics(samples: Tensor, labels: Tensor | None) -> dict[str, float]:
        assert labels is not None
        right = nearest_class(samples, images, classes) == labels
        return {
            "mmd": reference.mmd(samples, DIGITS_BANDWIDTH),
            "energy_distance": reference.energy_distance(samples),
            "accuracy": float(right.double().mean()),
        }

    def true_samples(count: int, which: int) -> tuple[Tensor, Tensor | None]:
        # no image twice in a set: all of the training data at most
        chosen = torch.randperm(len(train), generator=torch.Generator().manual_seed(which))[:count]
        assert data.labels is not None
        return data.x[chosen], data.labels[chosen]

    return Problem(
        name="digits",
        data=data,
        labels=lambda count: torch.arange(count) % 10,
        metrics=metrics,
        true_samples=true_samples,
        clip_x0=1.0,
    )
