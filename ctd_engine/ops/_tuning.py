"""Shapes of work of the Triton kernels, as data. Chosen here and never by autotune at first call.

The numbers follow from the arithmetic that stands beside them; none is measured on a GPU yet.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Blocks", "ceil_div", "elementwise_blocks", "power_of_two", "reduction_blocks", "scan"]

# programs that fill a GPU of about 132 multiprocessors twice
FULL = 264
# a parallel scan keeps the whole window in registers: four elements of each operand per thread
MAX_PARALLEL_LENGTH = 128
MAX_TILE = 1024
# (elements, warps) of a walk in fp32. A thread holds at most 16 bytes of the states: then it loads
# and stores x[node + 1] in the same layout, and needs no barrier in between (see `test_cubins.py`)
WALKS = ((512, 4), (128, 1))


@dataclass(frozen=True)
class Blocks:
    """How a kernel is launched. `length` is 0 for a scan that walks along the window."""

    length: int
    elements: int
    num_warps: int


def ceil_div(a: int, b: int) -> int:
    """a / b rounded up."""
    return -(-a // b)


def power_of_two(n: int) -> int:
    """The smallest power of two that is not below n."""
    return 1 << max(n - 1, 0).bit_length()


def elementwise_blocks(num_elements: int) -> Blocks:
    """One row of D elements per program row: 16-byte accesses, two per thread at large D."""
    if num_elements >= 1024:
        return Blocks(0, 1024, 4)
    if num_elements >= 512:
        return Blocks(0, 512, 4)
    return Blocks(0, max(power_of_two(num_elements), 16), 1)


def reduction_blocks(num_rows: int, num_elements: int) -> tuple[int, Blocks]:
    """Programs per row, and their blocks: a row is cut only when there are few of them."""
    blocks = elementwise_blocks(num_elements)
    most = ceil_div(num_elements, blocks.elements)
    return max(1, min(most, ceil_div(FULL, max(num_rows, 1)))), blocks


def scan(
    num_windows: int,
    max_length: int,
    num_elements: int,
    *,
    first_order: bool,
    element_size: int = 4,
) -> Blocks:
    """Walk along the window with a block of D per program, or scan all of it in parallel.

    Walking reads and writes every number once, and fills the GPU when there are many blocks. With
    fewer, a tile [L, D] per program takes log L steps where walking takes L, each of them a trip
    to memory.
    """
    # as many bytes of each operand per thread in fp64 as in fp32
    scale = element_size // 4
    for most, num_warps in WALKS:
        elements = most // scale
        if num_elements >= elements and num_windows * ceil_div(num_elements, elements) >= FULL:
            return Blocks(0, elements, num_warps)
    if first_order and 1 < max_length <= MAX_PARALLEL_LENGTH:
        length = power_of_two(max_length)
        elements = min(max(power_of_two(num_elements), 4), MAX_TILE // scale // length, 64 // scale)
        size = length * elements
        # up to 32 elements more warps only repeat the first, and ptxas gives fp64 a stack
        return Blocks(length, elements, 8 if size * scale > 512 else 4 if size > 32 else 1)
    return Blocks(0, min(max(power_of_two(num_elements), 4), 128 // scale), 1)
