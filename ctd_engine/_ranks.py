"""The ranks of a process group: who is in it, and collectives whose failure is one clear error."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import torch
import torch.distributed as dist

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

__all__ = ["Ranks"]

T = TypeVar("T")


class Ranks:
    """The members of a process group, seen from this one.

    Args:
        process_group: a `torch.distributed.ProcessGroup`, or a `DeviceMesh` of one dimension such
            as `mesh["rows"]`.
        device: where the tensors are that are exchanged.

    Raises:
        TypeError: something else.
        ValueError: a mesh of several dimensions, a group without this rank, or a backend that has
            no collectives for tensors of this device.
        RuntimeError: torch.distributed is missing or not initialised.
    """

    def __init__(self, process_group: dist.ProcessGroup | DeviceMesh, device: torch.device) -> None:
        if not dist.is_available() or not dist.is_initialized():
            raise RuntimeError(
                "process_group needs torch.distributed: start with torchrun and call "
                "torch.distributed.init_process_group() first"
            )
        self.group = group = _group_of(process_group)
        self.rank: int = dist.get_rank(group)
        if self.rank < 0:
            raise ValueError(
                f"process_group does not hold this process, rank {dist.get_rank()} of "
                f"{dist.get_world_size()}: make a sampler on its members only"
            )
        self.size: int = dist.get_world_size(group)
        self.device = device
        self.backend: str = dist.get_backend(group)
        served = [pair.partition(":")[0] for pair in dist.get_backend_config(group).split(",")]
        if device.type not in served:
            raise ValueError(
                f'process_group has the backend "{self.backend}", which serves '
                f"{', '.join(served)}, and device is {device}: use nccl for cuda, gloo for cpu"
            )
        self._broken: RuntimeError | None = None

    def gather(self, out: torch.Tensor, values: torch.Tensor) -> None:
        """Write the values [n] of every rank into out [size * n], in their order."""
        self._guarded(lambda: _all_gather(out, values, group=self.group))

    def exchange(self, value: T) -> list[T]:
        """Everybody's value, of anything that can be pickled."""
        values: list[Any] = [None] * self.size
        self._guarded(lambda: dist.all_gather_object(values, value, group=self.group))
        return values

    def share(self, value: T) -> T:
        """Rank 0's value, of anything that can be pickled."""
        values = [value]
        first = dist.get_global_rank(self.group, 0)
        self._guarded(lambda: dist.broadcast_object_list(values, first, group=self.group))
        return values[0]

    def broadcast_(self, tensor: torch.Tensor) -> None:
        """Overwrite a contiguous tensor with that of rank 0."""
        first = dist.get_global_rank(self.group, 0)
        self._guarded(lambda: dist.broadcast(tensor, first, group=self.group))

    def settle(self, error: Exception | None, told: T | None = None) -> list[T]:
        """Tell the others how it went here: either all go on, with everybody's word, or none.

        Raises:
            The error where it happened, and a RuntimeError that names it everywhere else.
        """
        word = None if error is None else f"{type(error).__name__}: {error}"
        try:
            words = self.exchange((word, told))
        except RuntimeError:
            if error is None:
                raise
        if error is not None:
            raise error
        for rank, (failure, _) in enumerate(words):
            if failure is not None:
                raise RuntimeError(f"another rank stopped: rank {rank} of {self.size}: {failure}")
        return [told for _, told in words]  # type: ignore[misc]

    def together(self, make: Callable[[], T]) -> T:
        """Do something on every rank; where one fails, all do."""
        made: T
        error = None
        try:
            made = make()
        except Exception as caught:
            error = caught
        self.settle(error)
        return made

    def _guarded(self, collective: Callable[[], Any]) -> None:
        # after one failure every further collective would only wait for its timeout, too
        if self._broken is not None:
            raise self._broken
        try:
            collective()
        except RuntimeError as error:
            self._broken = RuntimeError(
                "another rank stopped, or did not answer within the timeout of the process group: "
                f"rank {self.rank} of {self.size} ({self.backend}) cannot go on; look at the other "
                "ranks' output for the cause, and start all of them again"
            )
            raise self._broken from error


def _group_of(process_group: Any) -> dist.ProcessGroup:
    from torch.distributed.device_mesh import DeviceMesh

    if isinstance(process_group, DeviceMesh):
        if process_group.ndim != 1:
            raise ValueError(
                f"process_group must be one dimension of the DeviceMesh, such as mesh['rows'], got "
                f"a mesh of {process_group.ndim}: {process_group.mesh_dim_names}"
            )
        if process_group.get_coordinate() is None:
            raise ValueError(
                f"process_group does not hold this process, rank {dist.get_rank()} of "
                f"{dist.get_world_size()}: make a sampler on the ranks of the mesh only"
            )
        return process_group.get_group()
    if isinstance(process_group, dist.ProcessGroup):
        return process_group
    # what new_group returns to a process that it leaves out
    if process_group is dist.GroupMember.NON_GROUP_MEMBER:
        raise ValueError(
            f"process_group does not hold this process, rank {dist.get_rank()} of "
            f"{dist.get_world_size()}: make a sampler on its members only"
        )
    raise TypeError(
        "process_group must be a torch.distributed.ProcessGroup or one dimension of a DeviceMesh, "
        f"got {type(process_group).__name__}"
    )


# the second name is the older one
_all_gather: Any = getattr(dist, "all_gather_single", None) or getattr(
    dist, "all_gather_into_tensor", None
)
