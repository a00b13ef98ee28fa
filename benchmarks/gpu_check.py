"""Everything that needs a GPU, in one go: `make gpu-check`.

Runs the tests marked gpu, then times every operation and the sampler, and writes
benchmarks/results/<gpu>/<date>-<commit>.json and .md. Ends with an error when a test fails.
"""

from __future__ import annotations

import argparse
import datetime
import json
import platform
import re
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path

import torch
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).parent))

import ctd_engine
from ctd_engine import ParallelSampler, SequentialSampler, solvers
from ctd_engine.demo import demo_checkpoint
from gpu_timing import copy_bandwidth, measure
from op_cases import LARGE, PROVIDERS, SMALL, is_correct, provider_call

RESULTS = Path(__file__).parent / "results"


def commit() -> str:
    done = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
    )
    return done.stdout.strip() or "unknown"


def time_ops() -> list[dict]:
    rows = []
    bandwidth = copy_bandwidth()
    for case in tqdm(SMALL + LARGE, desc="operations"):
        row = {"case": case.name, "megabytes": case.num_bytes / 1e6, "is_large": case in LARGE}
        for provider in PROVIDERS:
            call = provider_call(case, provider)
            if not is_correct(case, call, "cuda"):
                row[provider] = None
                continue
            timing = measure(case, call)
            speed = case.num_bytes / timing.median_us / 1e3
            row[provider] = {
                **asdict(timing),
                "gigabytes_per_s": speed,
                "of_copy": speed / bandwidth,
            }
            torch.cuda.empty_cache()
        rows.append(row)
    return [{"case": "copy of 1 GiB", "gigabytes_per_s": bandwidth}, *rows]


def time_sampler(num_samples: int) -> list[dict]:
    """The demo's network, DDPM-1000, sequentially and in parallel; all of the time counts."""
    checkpoint = demo_checkpoint()
    table = solvers.ddpm(checkpoint.schedule, 1000, prediction=checkpoint.prediction, clip_x0=1.0)
    model = checkpoint.model.to("cuda")
    labels = torch.arange(num_samples, device="cuda") % 10
    shared = dict(shape=checkpoint.shape, solver=table, device="cuda")
    samplers = {
        "sequential": SequentialSampler(model, **shared),
        "parallel": ParallelSampler(model, **shared, window_size=32),
    }
    rows = []
    for name, sampler in samplers.items():
        sampler.sample(num_samples, seed=0, cond={"label": labels})
        torch.cuda.synchronize()
        begin = time.perf_counter()
        result = sampler.sample(num_samples, seed=1, cond={"label": labels})
        torch.cuda.synchronize()
        rows.append(
            {
                "sampler": name,
                "samples": num_samples,
                "rounds": result.stats.rounds,
                "evaluations_per_sample": result.stats.evaluations / num_samples,
                "seconds": time.perf_counter() - begin,
            }
        )
    return rows


def markdown(report: dict) -> str:
    copy, *ops = report["ops"]
    lines = [
        f"# {report['gpu']}, {report['date']}, commit {report['commit']}",
        "",
        f"torch {report['torch']}, Triton {report['triton']}, CUDA {report['cuda']}, driver "
        f"{report['driver']}; a copy of 1 GiB moves {copy['gigabytes_per_s']:.0f} GB/s; reproduce "
        "with `make gpu-check`.",
        "",
        f"Tests marked gpu: {report['tests']}.",
        "",
        "| operation | MB | eager us | compiled us | fused us (p20, p80) | fused: of copy "
        "| x eager | x compiled |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in ops:
        eager, compiled, fused = (row[p] for p in PROVIDERS)

        def number(entry: dict | None) -> str:
            return "wrong numbers" if entry is None else f"{entry['median_us']:.1f}"

        def ratio(entry: dict | None, fused: dict | None = fused) -> str:
            if entry is None or fused is None:
                return "-"
            return f"{entry['median_us'] / fused['median_us']:.1f}"

        spread, share = "", "-"
        if fused is not None:
            spread = f" ({fused['p20_us']:.1f}, {fused['p80_us']:.1f})"
            share = f"{100 * fused['of_copy']:.0f} %"
        lines.append(
            f"| {row['case']} | {row['megabytes']:.1f} | {number(eager)} | {number(compiled)} "
            f"| {number(fused)}{spread} | {share} | {ratio(eager)} | {ratio(compiled)} |"
        )
    lines += ["", "| sampler | samples | rounds | evaluations/sample | seconds |"]
    lines.append("|---|---|---|---|---|")
    for row in report["samplers"]:
        lines.append(
            f"| {row['sampler']} | {row['samples']} | {row['rounds']} "
            f"| {row['evaluations_per_sample']:.0f} | {row['seconds']:.3f} |"
        )
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the results")
    out = parser.parse_args().out
    if not torch.cuda.is_available():
        print("gpu-check needs a CUDA device and torch finds none; nothing was measured")
        return 2
    import triton

    tests = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "tests"],
        capture_output=True,
        text=True,
        check=False,
    )
    print(tests.stdout[-3000:], tests.stderr[-2000:], flush=True)
    properties = torch.cuda.get_device_properties(0)
    report = {
        "gpu": properties.name,
        "date": datetime.date.today().isoformat(),
        "commit": commit(),
        "ctd_engine": ctd_engine.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "triton": triton.__version__,
        "cuda": torch.version.cuda,
        "driver": subprocess.run(
            ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"],
            capture_output=True,
            text=True,
            check=False,
        ).stdout.strip(),
        "tests": tests.stdout.strip().splitlines()[-1] if tests.stdout.strip() else "did not run",
        "ops": time_ops(),
        "samplers": [row for count in (1, 16) for row in time_sampler(count)],
    }
    folder = out / re.sub(r"[^a-z0-9]+", "-", properties.name.lower()).strip("-")
    folder.mkdir(parents=True, exist_ok=True)
    stem = folder / f"{report['date']}-{report['commit']}"
    stem.with_suffix(".json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    stem.with_suffix(".md").write_text(markdown(report), encoding="utf-8")
    print(markdown(report))
    print(f"wrote {stem}.json and {stem}.md")
    return tests.returncode


if __name__ == "__main__":
    sys.exit(main())
