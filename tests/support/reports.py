"""Run folders of each kind, written as commands write them, in milliseconds: for their pages."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

import pycc.commands.report  # noqa: F401  (registers the page of every kind of run)
from pycc import runs
from pycc.report import summarise
from pycc.runs import Record

ATTACK_KEY = ("index", "condition", "patch_size", "surrogates", "victim", "seed")
CERTIFY_KEY = ("image", "method", "patch_size")
BACKDOOR_KEY = ("strategy", "model", "defense", "images", "index")


def write_run(
    folder: Path, kind: str, records: Sequence[Record], summary: Record, key: Sequence[str],
    settings: Mapping[str, Any],
) -> Path:  # fmt: skip
    """A finished run of these results."""
    run = runs.open_or_resume(
        folder, kind=kind, settings=settings, key=key, command=["--out", "here"],
        fingerprints={"data": {"images": 2, "pixels": "ab" * 32}, "weights": {"victim": "cd" * 32}},
    )  # fmt: skip
    for record in records:
        run.append(record)
    run.finish(summary)
    run.close()
    return folder


def attack_records(
    names: Sequence[str], *, sizes: Sequence[float] = (8, 16), gain: float = 10.0,
    shape: tuple[int, int] = (48, 64), annotated: bool = True,
) -> list[Record]:  # fmt: skip
    """Clean, noise and apam counts: image i has 10·(i+1) people, and a patch of side s adds
    gain·s·(i+1)."""
    records: list[Record] = []
    for index, name in enumerate(names):
        clean = 10.0 * (index + 1)
        common: Record = {
            "index": index, "image": name, "surrogates": None, "victim": None, "seed": 0,
            "height": shape[0], "width": shape[1], "truth": int(clean) if annotated else None,
            "cells": [shape[0] // 4, shape[1] // 4],
        }  # fmt: skip
        records.append({
            **common, "condition": "clean", "patch_size": None, "count": clean + 1, "area": 0.0,
            "file": f"{index:04d}-image.clean",
        })  # fmt: skip
        for size in sizes:
            placed = {**common, "patch_size": size, "side": int(size), "top_left": [4, 8],
                      "area": size * size / (shape[0] * shape[1])}  # fmt: skip
            records.append({**placed, "condition": "noise", "count": clean + 2})
            records.append({
                **placed, "condition": "apam", "count": clean + 1 + gain * size * (index + 1),
                "file": f"{index:04d}-image.apam-{size}", "reach": 9.0,
                "loss_history": [0.0, -size, -gain * size],
            })  # fmt: skip
    return records


def write_attack(
    folder: Path, names: Sequence[str] = ("one", "two"), *, checks: Sequence[Record] = (),
    images: bool = True, maps: bool = True, dense: bool = False, shape: tuple[int, int] = (48, 64),
    victims: Sequence[str | None] = (None,), **options: Any,
) -> Path:  # fmt: skip
    """An attack on images of noise, with its images, patches and maps.

    Of several ``victims`` patches are made on the first; the second counts half as many people.
    """
    records = [
        {**record, "victim": victim, "count": record["count"] / number,
         "surrogates": victims[0] if record["condition"] == "apam" else None}
        for number, victim in enumerate(victims, start=1)
        for record in attack_records(names, shape=shape, **options)
    ]  # fmt: skip
    sizes = list(dict.fromkeys(r["patch_size"] for r in records if r["patch_size"] is not None))
    flags = {"data": "/somewhere/<crowd>", "split": "test", "weights": "mcnn-synthetic",
             "pictures": True, "steps": 3}  # fmt: skip
    attacks = [{"name": "apam", "patch_size": size, "objective": "over", "location": "centre",
                "steps": 3} for size in sizes]  # fmt: skip
    settings = {"flags": flags, "attacks": attacks, "save_images": images, "save_maps": maps}
    summary = summarise(records).json()
    if checks:
        summary["checks"] = list(checks)
    write_run(folder, "attack", records, summary, ATTACK_KEY, settings)
    random = np.random.default_rng(0)
    for record in records:
        if images and record["condition"] == "clean":
            noise = random.integers(0, 256, (*shape, 3), dtype=np.uint8)
            save(folder / "images" / f"{record['file']}.png", noise)
        if "side" in record and "file" in record:
            side = record["side"]
            save(folder / "patches" / f"{record['file']}.png",
                 random.integers(0, 256, (side, side, 3), dtype=np.uint8))  # fmt: skip
        if maps and "file" in record:
            cells = np.zeros(record["cells"], np.float32)
            cells[3, 4] = record["count"]
            if dense:
                cells = random.random(record["cells"], np.float32)
            (folder / "maps").mkdir(exist_ok=True)
            np.savez_compressed(folder / "maps" / f"{record['file']}.npz", density=cells)
    return folder


def save(file: Path, pixels: np.ndarray[Any, np.dtype[np.uint8]]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(file, compress_level=1)


def write_certify(
    folder: Path, *, high: float | None = 30.0, violations: int | None = None,
    sizes: Sequence[int] = (8, 16),
) -> Path:  # fmt: skip
    """Certificates of two images: image i has 10·(i+1) people, interval from 5 to ``high``."""
    records: list[Record] = []
    for index in (0, 1):
        truth = 10.0 * (index + 1)
        common: Record = {"index": index, "image": f"photo {index}", "truth": truth, "height": 48,
                          "width": 64, "seconds": 0.1}  # fmt: skip
        records.append({**common, "method": "clean", "patch_size": None, "count": truth + 2})
        records += [
            {**common, "method": "masked", "patch_size": size, "count": truth + 1, "low": 5.0,
             "high": high, "deterministic": True, "confidence": 1.0, "vacuous": high is None,
             "reason": None}
            for size in sizes
        ]  # fmt: skip
    rows = [
        {"method": "masked", "patch_size": size, "images": 2, "clean_mae": 1.0,
         "certified_mae": None if high is None else 15.0,
         "width": None if high is None else high - 5.0, "unbounded": 2 if high is None else 0,
         "vacuous": 0.0, "reasons": {}}
        for size in sizes
    ]  # fmt: skip
    attacks = [] if violations is None else [
        {"method": "masked", "patch_size": sizes[0], "attacked_mae": 4.0, "violations": violations,
         "images": 2}
    ]  # fmt: skip
    calibration = [{"kind": "allowance", "value": 2.5, "source": "crowd, train", "images": 4,
                    "patch_size": sizes[0], "counter": 0}]  # fmt: skip
    summary = {"images": 2, "undefended_mae": 2.0, "rows": rows, "attacks": attacks,
               "calibration": calibration}  # fmt: skip
    flags = {"data": "crowd", "split": "test", "weights": "net.pth", "pictures": True}
    return write_run(folder, "certify", records, summary, CERTIFY_KEY, {"flags": flags})


def write_training(folder: Path, epochs: int = 3) -> Path:
    """A training whose loss falls from 8 by half each epoch."""
    records: list[Record] = []
    for epoch in range(epochs):
        records.append({"kind": "train", "epoch": epoch, "loss": 8.0 / 2**epoch, "lr": 0.1,
                        "seconds": 1.5, "images_per_second": 2.0})  # fmt: skip
        records.append({"kind": "validation", "epoch": epoch, "mae": 20.0 - epoch, "rmse": 30.0,
                        "bias": -1.0, "images": 4})  # fmt: skip
    tested = {"plain": {"mae": 21.0, "rmse": 33.0, "bias": 2.0, "images": 7}}
    best = {"images": 4, "mae": 20.0 - (epochs - 1)}
    summary = {"epochs": epochs, "best_epoch": epochs - 1, "stopped_early": False,
               "validation": best, "test": tested}  # fmt: skip
    flags = {"data": "crowd", "split": "train", "model": "mcnn", "weights": None}
    return write_run(folder, "train", records, summary, ("kind", "epoch"), {"flags": flags})


def replaced(file: Path, **values: Any) -> None:
    """Replace entries of a JSON file; those that are None are removed."""
    content = json.loads(file.read_text())
    content = {name: value for name, value in {**content, **values}.items() if value is not None}
    file.write_text(json.dumps(content))
