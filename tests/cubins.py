"""Compile every kernel specialisation to a cubin, without a GPU, and tell what it uses.

Each distinct call of `kernel_calls.py` is compiled for every architecture as Triton's own launcher
would compile it. Run in a process without TRITON_INTERPRET: `python tests/cubins.py`.
"""

from __future__ import annotations

import json
import math
import os
import re
import subprocess
import sys
import tempfile
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from kernel_calls import MODULES, recorded_calls

ARCHITECTURES = (80, 90, 100)
TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"


def needed_loads(ttgir, block, threads):
    """Loads per width in bytes that the operands of rows of D need, as wide as a thread's share."""
    needed = Counter()
    for shape, kind in re.findall(r"tt\.load .*: tensor<([\dx]+)x!tt\.ptr<\D+(\d+)>", ttgir):
        dims = [int(d) for d in shape.split("x")]
        if dims[-1] == block:
            share = math.prod(dims) // threads * int(kind) // 8
            width = min(16, share)
            if width > int(kind) // 8:
                needed[width] += share // width
    # numbers of 8 bytes that all threads share, so that they do not pass for pairs of 4
    needed[8] += len(re.findall(r"tt\.load [^:]*: !tt\.ptr<[if]64>", ttgir))
    return needed


def state_layouts(ttgir, pointer):
    """Layouts in which pointers to the state's type are loaded and stored."""
    kind = pointer.replace("*fp", "f")
    accesses = rf"tt\.(?:load|store) .*: tensor<[\dx]+x!tt\.ptr<{kind}>, (#\w+)>"
    return sorted(set(re.findall(accesses, ttgir)))


def made_loads(ptx):
    """Loads per width in bytes."""
    found = re.findall(r"ld\.global[.:\w]*?(?:\.v(\d))?\.[a-z](\d+)\b", ptx)
    return Counter(int(vector or 1) * int(bits) // 8 for vector, bits in found)


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
    file.unlink()
    flags = {k: v for k, v in constants.items() if not k.startswith("stride")}
    return {
        "kernel": name.strip("_"),
        "sm": architecture,
        "flags": flags,
        "types": sorted({t for t in signature.values() if t.startswith("*")}),
        # whole rows of 16-byte pieces, element beside element: only then can loads be wide
        "is_aligned": "num_elements" in attributes
        and all(n in attributes for n in signature if n.endswith(("_r", "_l", "_n", "_ptr")))
        and all(
            constants.get(n) == 1 for n in signature if n.startswith("stride") and n[-1] == "d"
        ),
        "num_warps": num_warps,
        "registers": int(numbers["REG"]),
        "stack": int(numbers["STACK"]),
        "local": int(numbers["LOCAL"]),
        "shared": kernel.metadata.shared,
        "needed_loads": needed_loads(kernel.asm["ttgir"], constants.get("BLOCK_D"), 32 * num_warps),
        "made_loads": made_loads(kernel.asm["ptx"]),
        # how threads share the elements of the states, in loads and in stores
        "state_layouts": state_layouts(kernel.asm["ttgir"], signature.get("x_ptr", "")),
    }


def main():
    launches = recorded_calls()
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
