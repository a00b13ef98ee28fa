"""The nodes of a solver."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Grid"]

# levels of another library may be rounded to float32, or to less
SLACK = 1e-3


@dataclass(frozen=True, eq=False)
class Grid:
    """The nodes of a solver: alpha, sigma, logsnr [N + 1] and native model time [N], float64.

    Node 0 is the noisiest; node N is the sample's, usually with sigma = 0, alpha = 1 and logsnr =
    +inf, and needs no time. `Schedule.grid` makes the usual ones, `from_levels` any other.
    """

    alpha: Tensor
    sigma: Tensor
    logsnr: Tensor
    time: Tensor

    @property
    def num_steps(self) -> int:
        """N."""
        return len(self.time)

    @classmethod
    def from_levels(
        cls,
        alpha: Tensor | Sequence[float],
        sigma: Tensor | Sequence[float],
        time: Tensor | Sequence[float],
    ) -> Grid:
        """Nodes at given noise levels, such as another library's sigmas or timesteps.

        Args:
            alpha: signal scales, [N + 1], at least 0.
            sigma: noise scales, [N + 1], at least 0; alpha and sigma never both 0.
            time: what the model is told at nodes 0 to N - 1, [N].

        Raises:
            TypeError: a value is no list of numbers.
            ValueError: lengths that do not fit, or values that are negative or not finite, and
                noise that does not fall from node to node.
        """
        named = {"alpha": alpha, "sigma": sigma, "time": time}
        values = {name: _vector(name, value) for name, value in named.items()}
        num_steps = len(values["time"])
        for name, length in (("alpha", num_steps + 1), ("sigma", num_steps + 1)):
            if len(values[name]) != length or num_steps < 1:
                raise ValueError(
                    f"{name} must have one entry more than time, [N + 1] with N >= 1, got "
                    f"{len(values[name])} and {num_steps}"
                )
            if bool((values[name] < 0).any()):
                raise ValueError(f"{name} must not be negative")
        logsnr = 2.0 * (torch.log(values["alpha"]) - torch.log(values["sigma"]))
        if not bool((logsnr.diff() > 0).all()):
            raise ValueError(
                "sigma / alpha must fall strictly from node to node; repeated noise levels are "
                "steps of length zero"
            )
        return cls(values["alpha"], values["sigma"], logsnr, values["time"])

    def check_kind(self, kind: str) -> None:
        """Raise ValueError unless the levels are those of a schedule of kind "vp", "ve", "flow"."""
        law, excess = {
            "vp": ("alpha^2 + sigma^2 = 1", self.alpha.square() + self.sigma.square() - 1.0),
            "ve": ("alpha = 1", self.alpha - 1.0),
            "flow": ("alpha + sigma = 1", self.alpha + self.sigma - 1.0),
        }[kind]
        worst = int(excess.abs().argmax())
        if not abs(float(excess[worst])) <= SLACK:
            raise ValueError(
                f'a schedule of kind "{kind}" has {law} and the given nodes do not: alpha '
                f"{float(self.alpha[worst]):g}, sigma {float(self.sigma[worst]):g} at node "
                f"{worst}; convert the levels, or use a schedule of their kind"
            )


def _vector(name: str, value: Tensor | Sequence[float]) -> Tensor:
    try:
        vector = torch.as_tensor(value, dtype=torch.float64, device="cpu").detach()
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"{name} must be a list of numbers, got {type(value).__name__}") from error
    if vector.dim() != 1:
        raise ValueError(f"{name} must be a list of numbers, got shape {tuple(vector.shape)}")
    if not bool(torch.isfinite(vector).all()):
        raise ValueError(f"{name} must be finite, it holds NaN or infinity")
    return vector
