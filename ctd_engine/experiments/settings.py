"""What the experiments compare: one table of losses, samplers, models and sizes."""

from __future__ import annotations

from dataclasses import dataclass, replace

from ctd_engine import _checks
from ctd_engine.experiments.shapes import SHAPES

__all__ = ["EXPERIMENTS", "Experiment", "LossSettings", "SamplerSettings", "get_experiment"]


@dataclass(frozen=True)
class LossSettings:
    """A training loss by name; `contrastive_weight=None` is the denoising loss alone.

    `zeta` and `levels` are uniform distributions of the log-SNR (low, high); None is the library's
    own: zeta for images, and the schedule's timesteps. `alpha` is a logistic (loc, scale, clip);
    None takes it from the data. The rest is as in `ContrastiveDiffusionLoss`.
    """

    name: str
    contrastive_weight: float | None = None
    common_random_numbers: bool = True
    num_points: int | None = None
    num_draws: int = 1
    temperature: float = 1.0
    zeta: tuple[float, float] | None = None
    alpha: tuple[float, float, float] | None = None
    levels: tuple[float, float] | None = None


@dataclass(frozen=True)
class SamplerSettings:
    """A sampler by name; `window_size=None` is the sequential one.

    `lockstep` is ParaDiGMS: one window for a whole batch, and copied first guesses.
    """

    name: str
    solver: str
    num_steps: int
    num_samples: int
    window_size: int | None = None
    lockstep: bool = False
    tolerance: float = 0.1


@dataclass(frozen=True)
class Experiment:
    """One experiment: every loss trains on every problem, every sampler samples the result.

    The learning rate is constant after its warm-up and the weights are averaged, so that the model
    after fewer steps is not at a disadvantage other than having had fewer steps. With
    `has_score_errors` the model is also compared with the exact score.
    """

    name: str
    problems: tuple[str, ...]
    losses: tuple[LossSettings, ...]
    samplers: tuple[SamplerSettings, ...]
    steps: int
    batch_size: int
    width: int
    lr: float = 1e-3
    grad_clip: float = 1.0
    ema_decay: float = 0.999
    num_frequencies: int = 0
    num_train: int = 20_000
    num_true: int = 5_000
    has_score_errors: bool = False


def _losses(
    batch_size: int, num_points: int, zeta: tuple[float, float] | None
) -> tuple[LossSettings, ...]:
    """Plain denoising, the published contrastive loss, and ours; both with as many model rows."""
    common = LossSettings(
        "common",
        contrastive_weight=0.02,
        num_points=num_points,
        num_draws=2,
        temperature=5.0,
        zeta=zeta,
    )
    independent = replace(
        common,
        name="independent",
        common_random_numbers=False,
        # the published code's weight, see ContrastiveDiffusionLoss
        contrastive_weight=4.0 / batch_size,
        temperature=1.0,
    )
    return LossSettings("denoising"), independent, common


def _samplers(ddpm: int, ddim: int, parallel: int) -> tuple[SamplerSettings, ...]:
    """The four samplers, with the number of samples that they draw."""
    return (
        SamplerSettings("ddpm", "ddpm", 1000, ddpm),
        SamplerSettings("ddpm, parallel", "ddpm", 1000, parallel, window_size=100),
        SamplerSettings("ddim", "ddim", 100, ddim),
        SamplerSettings("ddim, parallel", "ddim", 100, parallel, window_size=100),
    )


_SHAPE_LOSSES = _losses(256, num_points=10, zeta=(-3.0, 5.0))
_COMMON = _SHAPE_LOSSES[2]
# in 2D the published code draws both log-SNRs from a logistic of scale 3 around the data's, takes
# 2 points of a batch with as many draws as the batch has points, and weighs the denoising errors
# evenly over the log-SNR, which it does not do for the denoising loss that it compares with
_WIDE = (-9.0, 9.0)
_PUBLISHED = replace(
    _SHAPE_LOSSES[1],
    name="published",
    num_points=2,
    num_draws=256,
    zeta=_WIDE,
    alpha=(0.0, 3.0, 3.0),
    levels=_WIDE,
)

EXPERIMENTS = {
    "1d": Experiment(
        name="1d",
        problems=("two_gaussians",),
        # the same range, shifted by the logarithm of the data's variance, 26
        losses=_losses(256, num_points=12, zeta=(-6.0, 2.0)),
        samplers=_samplers(ddpm=2000, ddim=2000, parallel=200),
        steps=3000,
        batch_size=256,
        width=16,
        has_score_errors=True,
    ),
    "shapes": Experiment(
        name="shapes",
        problems=tuple(SHAPES),
        losses=_SHAPE_LOSSES,
        samplers=_samplers(ddpm=2000, ddim=2000, parallel=200),
        steps=4000,
        batch_size=256,
        width=16,
        lr=3e-3,
        num_frequencies=3,
    ),
    "digits": Experiment(
        name="digits",
        problems=("digits",),
        losses=_losses(64, num_points=3, zeta=None),
        samplers=_samplers(ddpm=100, ddim=400, parallel=40),
        steps=1000,
        batch_size=64,
        width=16,
    ),
    # what makes the difference, on the line drawing
    "ablation": Experiment(
        name="ablation",
        problems=("boat",),
        losses=(
            LossSettings("denoising"),
            LossSettings("denoising, even levels", levels=_WIDE),
            _PUBLISHED,
            replace(_PUBLISHED, name="published, usual levels", levels=None),
            replace(_SHAPE_LOSSES[1], name="weight 1:1", contrastive_weight=2.0),
            _COMMON,
            replace(_COMMON, name="common, even levels", levels=_WIDE),
            replace(_COMMON, name="temperature 1", temperature=1.0),
            replace(_COMMON, name="weight 0.01", contrastive_weight=0.01),
            replace(_COMMON, name="weight 0.2", contrastive_weight=0.2),
            replace(_COMMON, name="wide", zeta=_WIDE, alpha=(0.0, 3.0, 3.0)),
        ),
        samplers=(
            SamplerSettings("ddpm", "ddpm", 1000, 2000),
            SamplerSettings("ddpm, ParaDiGMS", "ddpm", 1000, 50, window_size=100, lockstep=True),
        ),
        steps=4000,
        batch_size=256,
        width=16,
        lr=3e-3,
        num_frequencies=3,
    ),
}


def get_experiment(name: str, *, quick: bool = False, steps: int | None = None) -> Experiment:
    """The experiment of a name; `quick` makes it a trial of minutes, `steps` changes its length.

    Raises:
        ValueError: an unknown name, or steps < 1.
    """
    experiment = EXPERIMENTS[_checks.require_choice("experiment", name, tuple(EXPERIMENTS))]
    if quick:
        experiment = replace(
            experiment,
            steps=max(1, experiment.steps // 10),
            samplers=tuple(_quick(sampler) for sampler in experiment.samplers),
            num_true=1000,
        )
    if steps is not None:
        experiment = replace(experiment, steps=_checks.require_int("steps", steps, minimum=1))
    return experiment


def _quick(sampler: SamplerSettings) -> SamplerSettings:
    return replace(
        sampler,
        num_steps=max(2, sampler.num_steps // 4),
        num_samples=max(2, sampler.num_samples // 10),
    )
