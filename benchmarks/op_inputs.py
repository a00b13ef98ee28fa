"""Inputs of the operations that are measured, at any size: random states in scattered windows."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import torch

from ctd_engine.ops.picard_update import Coefficients, Windows

# nodes of the trajectories, and so rows of every table of coefficients
NODES = 1000
# elements whose squared changes a program of the Picard update sums at large sizes
SUMMED = 512


def _normal(device, seed):
    generator = torch.Generator(device).manual_seed(seed)
    return partial(torch.randn, generator=generator, device=device)


def make_windows(num_windows: int, length: int, device: str) -> Windows:
    """Windows of equal length at scattered places of the trajectory, whose tables they fit."""
    index = torch.arange(num_windows, device=device)
    rows = torch.arange(num_windows * length, device=device)
    start = (17 * index) % (NODES - length)
    entry, offset = rows // length, rows % length
    return Windows(
        slot=index,
        start=start,
        length=torch.full_like(index, length),
        first_row=index * length,
        row_slot=entry,
        row_node=start[entry] + offset,
        row_entry=entry,
        row_offset=offset,
        max_length=length,
    )


def _coefficients(device):
    a = torch.full((NODES, 1), 0.99, device=device)
    vector = torch.full((NODES,), 0.1, device=device)
    return Coefficients(a, a * 0.01, vector, torch.ones_like(a), vector, -vector, clip=None)


def picard_inputs(device, seed, *, num_windows, length, num_elements, m_dtype):
    randn = _normal(device, seed)
    x = randn(num_windows, length + 1, num_elements)
    return {
        "x": x,
        "x0": torch.zeros_like(x),
        "m": randn(num_windows * length, num_elements).to(m_dtype),
        "windows": make_windows(num_windows, length, device),
        "coefficients": _coefficients(device),
        "seeds": torch.arange(num_windows, device=device) + 5,
    }


def secant_inputs(device, seed, *, num_windows, length, num_elements, m_dtype):
    randn = _normal(device, seed)
    x, x0, change = (randn(num_windows, length + 1, num_elements) for _ in range(3))
    windows = make_windows(num_windows, length, device)
    c = _coefficients(device)
    return {
        "x": x,
        "x0": x0,
        "change": change,
        "m": randn(num_windows * length, num_elements).to(m_dtype),
        # all nodes but a window's last have a pair
        "windows": replace(windows, known=windows.start + windows.length - 1),
        # slopes inside of [0, 1], where they tell right sums from wrong ones
        "coefficients": replace(c, A=0.5 * torch.ones_like(c.A), B=0.3 * torch.ones_like(c.B)),
    }


def guess_inputs(device, seed, *, num_windows, length, num_elements):
    randn = _normal(device, seed)
    windows = make_windows(num_windows, length, device)
    return {
        "x": randn(num_windows, length + 1, num_elements),
        "x0": randn(num_windows, length + 1, num_elements),
        "slot": windows.slot,
        "known": windows.start,
        "count": windows.length,
        "max_count": length,
        "coefficients": _coefficients(device),
        "seeds": windows.slot + 5,
    }


def error_inputs(device, seed, *, num_windows, length, num_elements):
    generator = torch.Generator(device).manual_seed(seed)
    windows = make_windows(num_windows, length, device)
    shape = (num_windows, length, -(-num_elements // SUMMED))
    changes = 0.5 + 0.1 * torch.rand(shape, generator=generator, device=device)
    # windows converge after 0, 1, 2, ... points; far from the threshold, where rounding decides
    offsets = torch.arange(length, device=device)
    is_open = offsets >= (windows.slot % (length + 1))[:, None]
    per_block = num_elements / shape[2]
    return {
        "partials": per_block * torch.where(is_open[:, :, None], 4.0 * changes, changes),
        "num_elements": num_elements,
        "threshold": torch.ones(NODES + 1, device=device),
        "start": windows.start,
        "length": windows.length,
    }


def contrastive_inputs(device, seed, *, num_points, num_draws, num_elements, dtype):
    randn = _normal(device, seed)
    shape = (num_points, num_draws, num_elements)
    return {
        "eps": randn(shape),
        "out_alpha": randn(shape).to(dtype).requires_grad_(),
        "out_beta": randn(shape).to(dtype).requires_grad_(),
        "weight": torch.full(shape[:2], 0.5, device=device),
        "b": torch.full(shape[:2], 0.9, device=device),
        "y": torch.where(torch.arange(num_points, device=device) % 2 == 0, 1.0, -1.0),
    }


def gather_inputs(device, seed, *, num_windows, length, num_elements, dtype):
    windows, vector = make_windows(num_windows, length, device), _coefficients(device).P
    return {
        "x": _normal(device, seed)(num_windows, length + 1, num_elements),
        "row_slot": windows.row_slot,
        "row_node": windows.row_node,
        "input_scale": vector,
        "model_time": vector,
        "dtype": dtype,
    }
