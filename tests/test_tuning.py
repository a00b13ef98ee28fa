"""Shapes of work that the table chooses."""

from __future__ import annotations

import pytest

from ctd_engine.ops._tuning import ceil_div, power_of_two, reduction_blocks, scan


@pytest.mark.parametrize("element_size", [4, 8])
@pytest.mark.parametrize("windows", [1, 16, 512])
@pytest.mark.parametrize("length", [1, 2, 33, 128, 129, 1000])
@pytest.mark.parametrize("num_elements", [1, 2, 64, 3072, 65536, 196608])
def test_blocks_of_the_table_are_legal(windows, length, num_elements, element_size):
    blocks = scan(windows, length, num_elements, first_order=True, element_size=element_size)
    assert blocks.elements == power_of_two(blocks.elements) >= 4
    assert blocks.length == 0 or length <= blocks.length == power_of_two(length)
    # 16 bytes of each operand per thread, in fp64 as in fp32: a walk has no barrier beyond that
    tile = max(blocks.length, 1) * blocks.elements * element_size
    assert tile <= 16 * 32 * blocks.num_warps
    higher = scan(windows, length, num_elements, first_order=False, element_size=element_size)
    assert higher.length == 0
    parts, blocks = reduction_blocks(windows, num_elements)
    assert 1 <= parts <= ceil_div(num_elements, blocks.elements)


def test_large_work_walks_and_small_work_scans_in_parallel():
    assert scan(16, 32, 196608, first_order=True).length == 0
    assert scan(16, 32, 64, first_order=True).length == 32
