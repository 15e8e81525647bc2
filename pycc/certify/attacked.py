"""Attacks on certified counters: every attacked count has to stay inside its interval."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from pycc import attack
from pycc.certify.methods import Plan
from pycc.certify.weakest import Weakest
from pycc.ranks import Ranks
from pycc.runs import Run
from pycc.types import Counter, Sample


class Shown(Protocol):
    """A line that tells how far an attack is."""

    def __call__(self, done: float, total: float, label: str, /) -> None:
        """``done`` of ``total`` are through; ``label`` says what goes on."""

    def close(self) -> None:
        """End the line."""


def attacks(
    settings: Mapping[str, Any],
    plan: Plan,
    defended: Callable[[str, int], Counter | None],
    weakest: Weakest,
    samples: Sequence[Sample],
    log: Run,
    folder: Path,
    shown: Callable[[], Shown],
    ranks: Ranks = Ranks(),
) -> list[dict[str, Any]]:
    """Attacked error and violations, by method and patch: counts pushed up and down.

    The error is None where images are not annotated.

    ``defended`` gives the counter of a method and patch, or None where no attack can be run on it;
    ``weakest`` where the certificate is reached; ``shown`` makes what shows an attack's progress.
    Patches that nobody optimised are counted once, where those that push up are. Each attack is a
    run in a folder of its own, so that a stopped one goes on where it was.
    """
    bounds = {(r["image"], r["method"], r["patch"]): r for r in log.records}
    annotated = all(r["truth"] is not None for r in log.records)
    found = []
    for method in plan.methods:
        for patch in plan.patches:
            victim = defended(method, patch)
            if victim is None:
                continue
            errors: dict[str, float] = {}
            violations = 0
            for objective in ("over", "under"):
                apam = attack.APAM(
                    patch_size=patch, steps=settings["steps"], step_size=settings["step_size"],
                    decay="cosine", objective=objective, transform="none", smoothness=0.0,
                    location="worst",
                )  # fmt: skip
                own = folder / f"{method}-{patch}-{objective}"
                progress = shown()
                try:
                    done = attack.run(
                        victim, samples, apam, seed=settings["seed"], pgd=None, checks=False,
                        compare=objective == "over",
                        candidates=weakest.candidates(method, objective),
                        save_images=False, progress=progress, out=own, ranks=ranks,
                        resume=(own / "manifest.json").exists(),
                    )  # fmt: skip
                finally:
                    progress.close()
                for record in done.run.ordered():
                    if record["condition"] == "clean":
                        continue  # every other patch, optimised or not, has to stay inside
                    bound = bounds[record["image"], method, patch]
                    high = float("inf") if bound["high"] is None else bound["high"]
                    violations += not bound["low"] <= record["count"] <= high
                    error = abs(record["count"] - bound["truth"]) if annotated else 0.0
                    name = record["image"]
                    errors[name] = max(errors.get(name, 0.0), error)
            attacked = sum(errors.values()) / len(errors) if annotated else None
            found.append({
                "method": method, "patch": patch, "attacked_mae": attacked,
                "violations": violations, "images": len(errors),
            })  # fmt: skip
    return found
