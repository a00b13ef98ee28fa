"""How a pipeline combines its model's rows into the output of a step, found out by asking it.

Classifier-free guidance is a linear map of the rows of one or two model calls. In place of outputs
the pipeline is given rows of numbers that no other row has, and what its scheduler then receives
holds the weights, whatever the order of conditional and unconditional rows.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Mix", "probe", "read_mix"]

# of sums of weights, which pipelines compute in at least the model's precision
CLOSE = 1e-4


@dataclass(frozen=True, eq=False)
class Mix:
    """The weights, and which rows of the step are samples of their own.

    A pipeline may step copies of the same samples, as DiTPipeline does for guidance.

    Args:
        weights: [step rows, model rows], float64 on the CPU.
        first: [S], the step's row of every sample.
        sample: [step rows], the sample of every row.
        rows: [S, branches], the model's rows of every sample, in order.
        scales: [S, branches], their weights.
    """

    weights: Tensor
    first: Tensor
    sample: Tensor
    rows: Tensor
    scales: Tensor

    @property
    def num_samples(self) -> int:
        """S."""
        return len(self.first)

    def is_like(self, other: Mix) -> bool:
        """Whether both have the same weights."""
        return torch.equal(self.weights, other.weights)


def probe(shape: tuple[int, ...], before: int, device: torch.device) -> Tensor:
    """Outputs of a call with `before` rows in the calls before it: [M, ...].

    Element e of row r is 1 where e = before + r and at the last element of the first half of the
    channels and of all of them, else 0: weights stand at the first elements, their sum at the last.
    In float64, so that no weight is rounded.

    Raises:
        ValueError: more rows than elements that can tell them apart.
    """
    size = math.prod(shape[1:])
    if before + shape[0] >= size // 2:
        raise ValueError(
            f"a sample must have more than {2 * (before + shape[0])} elements, twice the model's "
            f"rows in a step, got {size}; use fewer images per call"
        )
    dtype = torch.float32 if device.type == "mps" else torch.float64
    flat = torch.zeros(shape[0], size, dtype=dtype, device=device)
    rows = torch.arange(shape[0], device=device)
    flat[rows, before + rows] = 1.0
    flat[:, -1] = flat[:, flat.shape[1] // 2 - 1] = 1.0
    return flat.view(shape)


def read_weights(output: Tensor, num_rows: int) -> Tensor:
    """Weights [step rows, model rows] of what a step received for probes, float64 on the CPU.

    Raises:
        ValueError: they are not all, or do not sum to 1.
    """
    flat = output.detach().flatten(1)
    # sync: one small copy per step of a pipeline, while the device has nothing to do
    read = torch.cat([flat[:, :num_rows], flat[:, -1:], flat.abs().sum(1, keepdim=True)], dim=1)
    read = read.cpu().double()
    weights = read[:, :num_rows]
    sums = weights.sum(1)
    # the element at the end of half the channels is one more, unless it is the last
    rest = read[:, -1] - weights.abs().sum(1) - read[:, -2].abs()
    is_whole = torch.minimum(rest.abs(), (rest - 1.0).abs()) < CLOSE
    if not bool(((sums - 1.0).abs() < CLOSE).all() & is_whole.all()):
        raise ValueError(
            "the pipeline must combine its model's outputs linearly, with weights that sum to 1, "
            f"got sums {sums.tolist()}; set guidance_rescale to 0, and turn off whatever else "
            "works on the model's output, or restore(pipe)"
        )
    return weights


def read_mix(weights: Tensor) -> Mix:
    """Samples and their branches.

    Raises:
        ValueError: samples have different numbers of branches.
    """
    known: dict[tuple[float, ...], int] = {}
    first: list[int] = []
    sample: list[int] = []
    for row, values in enumerate(map(tuple, weights.tolist())):
        if values not in known:
            known[values] = len(known)
            first.append(row)
        sample.append(known[values])
    own = weights[first]
    branches = (own != 0).sum(1)
    if not bool((branches == branches[0]).all()):
        raise ValueError(
            "every sample must have as many model rows as the others, got "
            f"{branches.tolist()}; restore(pipe) and run this pipeline sequentially"
        )
    rows = own.nonzero()[:, 1].view(len(own), -1)
    return Mix(weights, torch.tensor(first), torch.tensor(sample), rows, own.gather(1, rows))
