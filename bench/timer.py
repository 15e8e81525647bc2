"""The timer of all benchmarks (warm-up, synchronise, median), and the files of their results."""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

import pycc
import pycc.ops

RESULTS = Path(__file__).resolve().parent / "results"


def seconds(work: Callable[[], object], *, budget: float = 1.0, most: int = 200) -> float:
    """Return the median wall time of a call, over as many calls as fit the budget (at least 3)."""

    def synchronise() -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()

    times: list[float] = []
    work()
    while len(times) < 3 or (sum(times) < budget and len(times) < most):
        synchronise()
        start = time.perf_counter()
        work()
        synchronise()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def check(got: Tensor, expected: Tensor | np.ndarray, bound: float) -> None:
    """Stop unless both sides agree to ``bound`` times the largest value."""
    wanted = torch.as_tensor(expected)
    error = float((got - wanted).abs().max() / wanted.abs().max())
    if not error <= bound:
        raise SystemExit(f"the two sides differ by {error:.1e} of the maximum, bound {bound:.0e}")


@dataclass(frozen=True)
class Row:
    """One comparison of a kernel with a baseline, or with the machine's limit.

    The ratio says how many times faster than the baseline the kernel is, and ``target`` is its
    minimum. Against a limit it says how many times slower the kernel is, and ``target`` is its
    maximum.
    """

    subject: str
    kernel: str
    kernel_seconds: float
    baseline: str
    baseline_seconds: float
    target: float | None = None
    note: str = ""
    bytes: int = 0
    """The minimum number of bytes that the kernel has to read and write."""
    limit: bool = False

    @property
    def ratio(self) -> float:
        if self.limit:
            return self.kernel_seconds / self.baseline_seconds
        return self.baseline_seconds / self.kernel_seconds

    @property
    def met(self) -> bool:
        if self.target is None:
            return True
        return self.ratio <= self.target if self.limit else self.ratio >= self.target


def machine() -> dict[str, str | int]:
    model = platform.processor()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        lines = (line for line in cpuinfo.read_text().splitlines() if "model name" in line)
        model = next(lines, ":" + model).split(":", 1)[1].strip()
    facts: dict[str, str | int] = {"cpu": model, "cores": os.cpu_count() or 0}
    if torch.cuda.is_available():
        facts["gpu"] = torch.cuda.get_device_name()
    return facts


def commit() -> str:
    run = subprocess.run(
        ["git", "describe", "--always", "--dirty", "--exclude=*"],
        capture_output=True,
        text=True,
        cwd=RESULTS.parent,
        check=False,
    )
    return run.stdout.strip() or "unknown"


def _time(value: float) -> str:
    if value < 1e-3:
        return f"{value * 1e6:.0f} us"
    return f"{value * 1e3:.2f} ms" if value < 1 else f"{value:.2f} s"


def table(rows: Sequence[Row]) -> str:
    lines = [
        "| subject | kernel | time | GB/s | against | its time | ratio | target |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        target = "" if row.target is None else f"{'≤' if row.limit else '≥'} {row.target:,g}"
        note = f" ({row.note})" if row.note else ""
        against = f"limit: {row.baseline}" if row.limit else row.baseline
        lines.append(
            f"| {row.subject} | {row.kernel} | {_time(row.kernel_seconds)} "
            f"| {row.bytes / row.kernel_seconds / 1e9:,.2f} | {against}{note} "
            f"| {_time(row.baseline_seconds)} | {row.ratio:,.2f} | {target} |"
        )
    return "\n".join(lines)


def compare(name: str, rows: Sequence[Row]) -> None:
    """Print which ratios have changed since ``bench/results/NAME.json`` was stored."""
    path = RESULTS / f"{name}.json"
    if not path.exists():
        return
    before = {
        (row["subject"], row["kernel"], row["baseline"]): row["ratio"]
        for row in json.loads(path.read_text())["rows"]
    }
    for row in rows:
        old = before.get((row.subject, row.kernel, row.baseline))
        if old and not 0.8 < row.ratio / old < 1.25:
            print(
                f"{row.subject}, {row.kernel} against {row.baseline}: "
                f"ratio {old:,.2f} before, {row.ratio:,.2f} now"
            )


def store(name: str, rows: Sequence[Row]) -> Path:
    """Write ``bench/results/NAME.json``."""
    path = RESULTS / f"{name}.json"
    content = {
        "machine": machine(),
        "threads": torch.get_num_threads(),
        "commit": commit(),
        "versions": {"pycc": pycc.__version__, "torch": torch.__version__},
        "kernels": pycc.ops.info(),
        "rows": [{**asdict(row), "ratio": row.ratio} for row in rows],
    }
    RESULTS.mkdir(exist_ok=True)
    path.write_text(json.dumps(content, indent=1) + "\n")
    return path
