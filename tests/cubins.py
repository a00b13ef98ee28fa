"""Compile every kernel specialisation to a cubin, without a GPU, and tell what it uses.

The launchers run as they are, on tensors of the CPU, with kernels that record how they are called;
each distinct call is then compiled for every architecture as Triton's own launcher would compile
it. Run in a process without TRITON_INTERPRET: `python tests/cubins.py > cubins.jsonl`.
"""

from __future__ import annotations

import itertools
import json
import os
import re
import subprocess
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from ctd_engine.ops._tuning import Blocks
from ctd_engine.ops.contrastive_reduction import kernel as contrastive
from ctd_engine.ops.gather_rows import kernel as gather
from ctd_engine.ops.picard_update import Coefficients, Windows
from ctd_engine.ops.picard_update import kernel as picard
from ctd_engine.ops.predict_guess import kernel as guess
from ctd_engine.ops.trajectory_error import kernel as error

ARCHITECTURES = (80, 90, 100)
MODULES = {m.__name__: m for m in (contrastive, gather, picard, guess, error)}
POINTERS = {
    torch.float64: "*fp64",
    torch.float32: "*fp32",
    torch.float16: "*fp16",
    torch.bfloat16: "*bf16",
    torch.int64: "*i64",
}
TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"


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
                    # torch's allocations are aligned to 16 bytes
                    signature[name], attributes[name] = POINTERS[value.dtype], 16
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


def window_calls():
    """Every combination that the sampler can ask of the update and the guess."""
    sizes = {"aligned": 4096, "odd": 1023}
    cross = itertools.product(
        (1, 2, 3),
        ("none", "given", "counter"),
        (False, True),
        (None, 1.0),
        (torch.float32, torch.float16, torch.bfloat16),
    )
    for order, noise, guided, clip, m_dtype in cross:
        for size, num_elements in sizes.items():
            # odd sizes differ in their loads alone: one precision of the model is enough
            if size == "odd" and (m_dtype != torch.float32 or clip is not None):
                continue
            update_and_guess(order, noise, guided, clip, m_dtype, num_elements)
    # states in fp64, where neither guidance nor clipping changes the types
    for order, noise in itertools.product((1, 2, 3), ("none", "given", "counter")):
        update_and_guess(order, noise, False, None, torch.float64, 4096, torch.float64)


def update_and_guess(order, noise, guided, clip, m_dtype, num_elements, dtype=torch.float32):
    slots, ring, nodes = 2, 16 + order, 20
    x = torch.zeros(slots, ring, num_elements, dtype=dtype)
    table, vector = torch.zeros(nodes, order, dtype=dtype), torch.zeros(nodes, dtype=dtype)
    c = Coefficients(table, table, vector, table, vector, vector, clip)
    index = torch.arange(slots)
    length = torch.full((slots,), 16)
    rows = torch.arange(32)
    w = Windows(index, index, length, 16 * index, rows, rows, rows, rows, 16)
    m = torch.zeros(32, num_elements, dtype=m_dtype)
    z, seeds = torch.zeros(32, num_elements, dtype=dtype), index
    given = dict(
        z=z if noise == "given" else None,
        seeds=seeds if noise == "counter" else None,
    )
    null = dict(m_null=m if guided else None, guidance_scale=2.0)
    # the largest blocks, which need the most registers, in all combinations
    shapes = [Blocks(0, 512, 4), Blocks(16, 64, 8)]
    if dtype == torch.float64:
        shapes = [Blocks(0, 256, 4), Blocks(16, 32, 8)]
    elif clip is None and m_dtype == torch.float32:
        shapes += [Blocks(0, 128, 1), Blocks(128, 8, 8)]
    for blocks in shapes:
        picard.launch(x, x, m, w, c, **given, **null, blocks=blocks)
    if given["z"] is not None:
        given["z"] = torch.zeros(slots, 16, num_elements, dtype=dtype)
    for size in (num_elements, 64):
        guess.predict_guess_triton(
            x[:, :, :size], x[:, :, :size], index, index, length, 16, c, **given
        )


def other_calls():
    """The remaining kernels, in every dtype and alignment."""
    dtypes = (torch.float32, torch.float16, torch.bfloat16)
    index, vector = torch.arange(4), torch.zeros(20)
    for dtype, size in itertools.product(dtypes, (4096, 1023, 64)):
        gather.gather_rows_triton(torch.zeros(4, 20, size), index, index, vector, vector, dtype)
        eps = torch.zeros(4, 3, size)
        out = torch.zeros(4, 3, size, dtype=dtype)
        pair, one = torch.zeros(4, 3), torch.ones(4)
        contrastive.forward(eps, out, out, pair, pair, one, torch.float32)
        for needs in ((True, True), (True, False), (False, True)):
            contrastive.backward(one, one, one, eps, out, out, pair, pair, one, *needs)
    for length, blocks in itertools.product((1, 32, 100, 1000), (1, 4)):
        error.trajectory_error_triton(torch.zeros(4, length, blocks), 64, vector, index, index)


def compile_call(call, architecture, folder):
    """Resources and load widths of one specialisation on one architecture."""
    module, name, num_warps, signature, constants, attributes = json.loads(call)
    fn = getattr(MODULES[module], name)
    position = {argument: i for i, argument in enumerate(fn.arg_names)}
    source = ASTSource(
        fn,
        signature,
        constexprs={(position[n],): v for n, v in constants.items()},
        attrs={(position[n],): [["tt.divisibility", v]] for n, v in attributes.items()},
    )
    target = GPUTarget("cuda", architecture, 32)
    kernel = triton.compile(source, target=target, options={"num_warps": num_warps})
    file = Path(folder) / f"{abs(hash(call))}-{architecture}.cubin"
    file.write_bytes(kernel.asm["cubin"])
    usage = subprocess.run(
        [TOOLS / "cuobjdump", "--dump-resource-usage", file],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    numbers = dict(re.findall(r"\b(REG|STACK|SHARED|LOCAL):(\d+)", usage))
    loads = sorted(set(re.findall(r"ld\.global[.\w]*", kernel.asm["ptx"])))
    file.unlink()
    flags = {k: v for k, v in constants.items() if not k.startswith("stride")}
    return {
        "kernel": name.strip("_"),
        "sm": architecture,
        "flags": flags,
        "types": sorted({t for t in signature.values() if t.startswith("*")}),
        # whole rows of 16-byte pieces: only then can loads be wide
        "is_aligned": "num_elements" in attributes
        and all(name in attributes for name in signature if name.endswith(("_r", "_l", "_n"))),
        "num_warps": num_warps,
        "registers": int(numbers["REG"]),
        "stack": int(numbers["STACK"]),
        "local": int(numbers["LOCAL"]),
        "shared": kernel.metadata.shared,
        "spills": getattr(kernel, "n_spills", 0) or 0,
        "has_16_byte_loads": any(".v4.b32" in w or ".v2.b64" in w for w in loads),
    }


def main():
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
    print(f"{len(launches)} specialisations", file=sys.stderr)
    jobs = [(call, sm) for call in launches for sm in ARCHITECTURES]
    only = [int(a) for a in sys.argv[1:]]
    jobs = jobs[: only[0]] if only else jobs
    with tempfile.TemporaryDirectory() as folder, ProcessPoolExecutor(os.cpu_count()) as pool:
        done = [pool.submit(compile_call, call, sm, folder) for call, sm in jobs]
        for future in done:
            print(json.dumps(future.result()), flush=True)


if __name__ == "__main__":
    main()
