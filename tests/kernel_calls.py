"""Calls of the kernels, recorded: what the sampler and the loss can ask of each.

The launchers run as they are, on tensors of the CPU, with kernels that record how they are called.
"""

from __future__ import annotations

import itertools
import json

import torch

from ctd_engine.ops._tuning import Blocks, elementwise_blocks, scan
from ctd_engine.ops.contrastive_reduction import kernel as contrastive
from ctd_engine.ops.gather_rows import kernel as gather
from ctd_engine.ops.picard_update import Coefficients, Windows
from ctd_engine.ops.picard_update import kernel as picard
from ctd_engine.ops.predict_guess import kernel as guess
from ctd_engine.ops.secant_slopes import kernel as secant
from ctd_engine.ops.trajectory_error import kernel as error
from ctd_engine.ops.turn_over import kernel as turn_over

MODULES = {m.__name__: m for m in (contrastive, gather, picard, guess, secant, error, turn_over)}
POINTERS = {
    torch.float64: "*fp64",
    torch.float32: "*fp32",
    torch.float16: "*fp16",
    torch.bfloat16: "*bf16",
    torch.int64: "*i64",
}


class Recorder:
    """Stands in a module for a kernel and remembers its launches instead of making them."""

    def __init__(self, module, name, launches):
        self.module, self.name, self.launches = module, name, launches

    def __getitem__(self, grid):
        def launch(*, num_warps, **arguments):
            fn = self.kernel
            signature, constants, attributes = {}, {}, {}
            for i, name in enumerate(fn.arg_names):
                value = arguments[name]
                if fn.params[i].is_constexpr:
                    signature[name], constants[name] = "constexpr", getattr(value, "value", value)
                elif isinstance(value, torch.Tensor):
                    signature[name] = POINTERS[value.dtype]
                    if value.data_ptr() % 16 == 0:
                        attributes[name] = 16
                elif value == 1:
                    signature[name], constants[name] = "constexpr", 1
                else:
                    signature[name] = "i32"
                    if value % 16 == 0:
                        attributes[name] = 16
            call = (self.module, self.name, num_warps, signature, constants, attributes)
            self.launches.setdefault(json.dumps(call), None)

        return launch


def record(launches):
    """Put recorders in the place of all kernels."""
    for module_name, module in MODULES.items():
        for name in [n for n in vars(module) if n.endswith("_kernel")]:
            recorder = Recorder(module_name, name, launches)
            recorder.kernel = getattr(module, name)
            setattr(module, name, recorder)


def block_shapes(element_size):
    """Each shape of work that the table gives, with sizes that lead to it."""
    grid = itertools.product(
        (4096, 3072, 300, 64, 32, 16, 8, 5, 2, 1),
        (128, 64, 32, 16, 8, 4, 2, 1),
        (64, 3),
        (False, True),
    )
    shapes = {}
    for num_elements, length, windows, first_order in grid:
        blocks = scan(
            windows, length, num_elements, first_order=first_order, element_size=element_size
        )
        shapes.setdefault(blocks, (num_elements, length))
    return shapes


def window_calls():
    """What the sampler can ask of the update and the guess.

    Every shape of work once, with the arguments that cost most, and every combination of
    arguments on the largest shapes.
    """
    walk, tile = Blocks(0, 512, 4), Blocks(16, 64, 8)
    noises, half = ("none", "given", "counter"), (torch.float16, torch.bfloat16)
    cross = itertools.product((1, 2, 3), noises, (False, True), (None, 1.0), (torch.float32, *half))
    for order, noise, guided, clip, m_dtype in cross:
        # the two half precisions differ in one conversion
        if m_dtype != torch.float16 or order == 3:
            update(order, noise, guided, clip, m_dtype, 4096, (walk, tile))
    # rows that do not begin at 16 bytes, the second half of a guided batch included
    for order, noise, guided in itertools.product((1, 3), noises, (False, True)):
        update(order, noise, guided, None, torch.float32, 1023, (walk, tile))
    update(3, "counter", True, 1.0, torch.bfloat16, 1023, (walk, tile))
    walk, tile = Blocks(0, 256, 4), Blocks(16, 32, 8)
    for order, noise in itertools.product((1, 2, 3), noises):
        update(order, noise, True, 1.0, torch.float64, 4096, (walk, tile), torch.float64)
    for noise in noises:
        update(3, noise, False, None, torch.float64, 1023, (walk, tile), torch.float64)
    update(3, "counter", True, 1.0, torch.bfloat16, 4096, (walk, tile), torch.float64)
    secant_calls()
    for dtype in (torch.float32, torch.float64):
        for blocks, (num_elements, length) in block_shapes(dtype.itemsize).items():
            update(3, "counter", True, None, torch.float32, num_elements, (blocks,), dtype, length)
            if not blocks.length:
                guess_points(3, "counter", num_elements, length, dtype)
        for order, noise in itertools.product((1, 2, 3), noises):
            guess_points(order, noise, 4096, 16, dtype)
        for order, noise in itertools.product((1, 3), noises):
            guess_points(order, noise, 1023, 16, dtype)
            update(order, noise, False, None, torch.float32, 1, (Blocks(0, 4, 1),), dtype)
            guess_points(order, noise, 1, 16, dtype)


def coefficients(order, dtype, clip=None):
    table, vector = torch.zeros(20, order, dtype=dtype), torch.zeros(20, dtype=dtype)
    return Coefficients(table, table, vector, table, vector, vector, clip)


def secant_calls():
    """Updates with slopes by row on the largest shapes, and every form of the slopes themselves."""
    for size, order in itertools.product((4096, 1023), (1, 2, 3)):
        walk, tile = Blocks(0, 512, 4), Blocks(16, 64, 8)
        update(order, "counter", True, 1.0, torch.bfloat16, size, (walk, tile), is_secant=True)
        walk, tile = Blocks(0, 256, 4), Blocks(16, 32, 8)
        double = torch.float64
        update(order, "counter", True, 1.0, double, size, (walk, tile), double, is_secant=True)
    for order, guided, clip in itertools.product((1, 2, 3), (False, True), (None, 1.0)):
        slopes(order, guided, clip, torch.float32, torch.float32, 4096)
    for m_dtype, size in itertools.product(
        (torch.float16, torch.bfloat16, torch.float32), (4096, 1023)
    ):
        slopes(3, True, 1.0, m_dtype, torch.float32, size)
    for size in (1, 17, 33, 65, 129, 300, 600, 4096):
        for dtype in (torch.float32, torch.float64):
            slopes(3, True, 1.0, dtype, dtype, size)


def slopes(order, guided, clip, m_dtype, dtype, num_elements):
    x = torch.empty(3, 16 + order, num_elements, dtype=dtype)
    index = torch.arange(48)
    w = Windows(index, index, index, index, index, index, index, index, 16, index)
    out = torch.empty(2 * len(index) + 1, num_elements, dtype=m_dtype)
    secant.secant_slopes_triton(
        x,
        x,
        x,
        out[len(index) + 1 :] if guided else out[: len(index)],
        w,
        index,
        coefficients(order, dtype, clip),
        m_null=out[: len(index)] if guided else None,
        guidance_scale=2.0,
    )


def update(
    order,
    noise,
    guided,
    clip,
    m_dtype,
    num_elements,
    shapes,
    dtype=torch.float32,
    length=16,
    is_secant=False,
):
    slots = 3
    x = torch.empty(slots, length + order, num_elements, dtype=dtype)
    index, rows = torch.arange(slots), torch.arange(slots * length)
    lengths = torch.full((slots,), length)
    w = Windows(index, index, lengths, length * index, rows, rows, rows, rows, length)
    # one output for both halves of a guided batch, as the denoiser gives it
    out = torch.empty(2 * len(rows) + 1, num_elements, dtype=m_dtype)
    m, m_null = (out[len(rows) + 1 :], out[: len(rows)]) if guided else (out[: len(rows)], None)
    for blocks in shapes:
        picard.launch(
            x,
            x,
            m,
            w,
            coefficients(order, dtype, clip),
            z=torch.empty(len(rows), num_elements, dtype=dtype) if noise == "given" else None,
            seeds=index if noise == "counter" else None,
            m_null=m_null,
            guidance_scale=2.0,
            slopes=torch.empty(len(rows), dtype=dtype) if is_secant else None,
            change=x if is_secant else None,
            blocks=blocks,
        )


def guess_points(order, noise, num_elements, length, dtype):
    # as many windows as fill a GPU with the largest blocks
    slots = 64
    x = torch.empty(slots, length + order, num_elements, dtype=dtype)
    index = torch.arange(slots)
    guess.predict_guess_triton(
        x,
        x,
        index,
        index,
        index,
        length,
        coefficients(order, dtype),
        z=torch.empty(slots, length, num_elements, dtype=dtype) if noise == "given" else None,
        seeds=index if noise == "counter" else None,
    )


def other_calls():
    """The remaining kernels: every shape of work once, every type on aligned and odd rows."""
    dtypes = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
    index, vector = torch.arange(4), torch.zeros(20)
    sizes = {elementwise_blocks(size): size for size in (1, 17, 33, 65, 129, 300, 600, 3072)}
    shapes = [(torch.bfloat16, size) for size in sizes.values()]
    for dtype, size in [*itertools.product(dtypes, (4096, 1023, 1)), *shapes]:
        state = torch.float64 if dtype == torch.float64 else torch.float32
        scale = vector.to(state)
        gather.gather_rows_triton(
            torch.empty(4, 20, size, dtype=state), index, index, scale, scale, dtype
        )
        eps = torch.empty(4, 3, size, dtype=state)
        contrast(eps, torch.empty(4, 3, size, dtype=dtype))
    eps = torch.empty(4, 3, 4096)
    contrast(eps, torch.empty(3, 4096, 4).permute(2, 0, 1))
    for needs in ((True, False), (False, True)):
        for dtype in dtypes:
            contrast(eps, torch.empty(4, 3, 4096, dtype=dtype), needs)
    for length in (2**i for i in range(11)):
        error.trajectory_error_triton(torch.empty(4, length, 4), 64, vector, index, index)
    for dtype, size in itertools.product((torch.float32, torch.float64), (4096, 1023, 64, 1)):
        x = torch.empty(4, 20, size, dtype=dtype)
        turn_over.turn_over_triton_(x, x, x[:, 0], index, index, index, index, 1000)
    for dtype, blocks in itertools.product((torch.float32, torch.float64), (1, 4, 16)):
        partials = torch.empty(4, 100, blocks, dtype=dtype)
        error.trajectory_error_triton(partials, 64, vector.to(dtype), index, index)


def contrast(eps, out, needs=(True, True)):
    dtype = torch.promote_types(eps.dtype, out.dtype)
    pair, one = torch.zeros(4, 3, dtype=dtype), torch.ones(4, dtype=dtype)
    contrastive.forward(eps, out, out, pair, pair, one, dtype)
    contrastive.backward(one, one, one, eps, out, out, pair, pair, one, *needs)


def recorded_calls():
    """Every distinct call, as JSON; the kernels are in their places again afterwards."""
    launches: dict[str, None] = {}
    originals = {
        (module, name): getattr(module, name)
        for module in MODULES.values()
        for name in vars(module)
        if name.endswith("_kernel")
    }
    record(launches)
    window_calls()
    other_calls()
    for (module, name), kernel in originals.items():
        setattr(module, name, kernel)
    return list(launches)
