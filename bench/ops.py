"""Speed of the kernels against their twins, common Python code and the machine's limit.

    python bench/ops.py [--no-store] [--only SUBJECT ...]

Ratios are of one run on one machine. Both sides are first checked to compute the same result. Each
subject runs in a separate process: memory that one has used would speed up the next.
"""

from __future__ import annotations

import argparse
import multiprocessing
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

import ablate
import deform_conv
import density_map
import keep_windows
import log_probability
import mask_hits
import max_pair_sum
import max_window_sum
import pair_extremes
import paste_patch
import topk_overlap
from timer import Row, compare, store, table

from pycc.ops import info

SUBJECTS = {
    "density_map": density_map.rows,
    "paste_patch": paste_patch.rows,
    "ablate": ablate.rows,
    "log_probability": log_probability.rows,
    "keep_windows": keep_windows.rows,
    "mask_hits": mask_hits.rows,
    "topk_overlap": topk_overlap.rows,
    "max_window_sum": max_window_sum.rows,
    "max_pair_sum": max_pair_sum.rows,
    "pair_extremes": pair_extremes.rows,
    "deform_conv": deform_conv.rows,
}


def measure(subject: str) -> list[Row]:
    return SUBJECTS[subject]()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--no-store", action="store_true", help="print only")
    parser.add_argument(
        "--only", nargs="+", choices=SUBJECTS, help="these subjects, printed and not stored"
    )
    arguments = parser.parse_args()
    print(info())
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawn, max_tasks_per_child=1) as pool:
        rows = [row for rows in pool.map(measure, arguments.only or SUBJECTS) for row in rows]
    print(table(rows))
    compare("ops-cpu", rows)
    for row in rows:
        if not row.met:
            print(
                f"missed: {row.subject}, {row.kernel} against {row.baseline}: "
                f"{row.ratio:,.2f} of {row.target:,g}"
            )
    if not arguments.no_store and not arguments.only:
        print(f"stored in {store('ops-cpu', rows)}")


if __name__ == "__main__":
    main()
