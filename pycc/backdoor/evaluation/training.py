"""How the counters of an experiment are trained: the paper's settings, and what validates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from pycc.backdoor.defenses.base import Published, begun
from pycc.backdoor.poisoning.keys import names_of, shuffled
from pycc.backdoor.poisoning.overlap import contents
from pycc.backdoor.poisoning.poison import PoisonedTraining, chosen
from pycc.models import CounterModel
from pycc.ranks import Ranks
from pycc.runs import Record
from pycc.settings import Options
from pycc.train import TrainConfig, TrainRun, fit
from pycc.types import Progress, Sample

PUBLISHED: Mapping[str, Published] = {
    "csrnet": Published(lr=1e-5, epochs=100),
    "clip_ebc": Published(lr=4e-4, epochs=150, batch=8),
}
"""Settings of the paper's attacks (3.2) by model, for what a plan leaves open."""
PUBLISHED_DEFENSE: Mapping[str, Published] = {
    "csrnet": Published(lr=1e-5, epochs=100),
    "clip_ebc": Published(lr=1e-4, epochs=100, batch=8),
}
"""Those of its defense (3.3): the attack's but for CLIP-EBC's rate and epochs."""
PUBLISHED_OPTIONS: Mapping[str, Options] = {"csrnet": {"variant": "commissarma"}}
"""Of a fresh counter: the variant whose recipe has the paper's optimiser, Adam, and sigma 15."""


def train(
    model: CounterModel,
    samples: Sequence[Sample],
    plan: TrainConfig,
    *,
    seed: int,
    out: Path,
    fraction: float,
    ranks: Ranks = Ranks(),
    progress: Progress | None = None,
    settings: Record | None = None,
    command: Sequence[str] = (),
) -> TrainRun:
    """Train a counter in the folder ``out``, from its beginning or from where it was stopped there.

    Of a poisoned set the run's settings hold under ``poisoned`` what its images were made of
    (``overlap.contents``), unless ``settings`` holds it already. The plan's share validates as
    ``held_out`` chooses for the ``fraction`` that is poisoned, here or in the set of the counter
    that this one is compared with. Else as ``pycc.train.fit``.
    """
    stored: Record = dict(settings or {})
    resume = begun(out, ranks)
    if isinstance(samples, PoisonedTraining):
        stored["poisoning"] = samples.settings()
        if not resume:  # to be read in the manifest; the data's fingerprint holds the same pixels
            stored.setdefault("poisoned", contents(samples))
    # A poisoned set holds its clean images first, so that indices are the same in both.
    clean = samples.samples if isinstance(samples, PoisonedTraining) else samples
    held = held_out(clean, plan.validation_share, fraction, seed=seed)
    return fit(
        model, samples, plan, seed=seed, out=out, resume=resume, facts=stored, command=command,
        machine=("poisoned",), ranks=ranks, progress=progress,
        held=[names_of(clean).index(name) for name in held],
    )  # fmt: skip


def held_out(samples: Sequence[Sample], share: float, fraction: float, *, seed: int) -> list[str]:
    """Names of the images that validate where ``fraction`` of the samples is poisoned.

    ``share`` of all, at least one if it is above 0, by seed and names: of those without a poisoned
    duplicate, so that neither the clean nor the backdoored counter is chosen by what an attacker
    made, and both by the same images. ValueError where there are too few.
    """
    if share == 0.0:
        return []
    names = names_of(samples)
    poisoned = {names[index] for index in chosen(names, fraction, seed=seed)}
    free = [name for name in names if name not in poisoned]
    number = max(1, round(share * len(names)))
    if number > len(free) or number == len(names):
        raise ValueError(
            f"--validation-share {share:g}: {number} images are to validate, but {len(free)} of "
            f"{len(names)} have no poisoned duplicate"
        )
    order = shuffled(free, "backdoor, validation", seed=seed)
    return [free[index] for index in sorted(order[:number])]
