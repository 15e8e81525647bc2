"""The training of the counters of an experiment: published settings, and images that validate."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from pycc.backdoor.defenses.base import Published, begun
from pycc.backdoor.poisoning.keys import names_of, shuffled
from pycc.backdoor.poisoning.overlap import PoisonedImage, contents
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
"""Settings of the paper's attacks (3.2) by model; they replace None in a plan."""
PUBLISHED_DEFENSE: Mapping[str, Published] = {
    "csrnet": Published(lr=1e-5, epochs=100),
    "clip_ebc": Published(lr=1e-4, epochs=100, batch=8),
}
"""Settings of its defense (3.3): those of the attack, except for CLIP-EBC's rate and epochs."""
PUBLISHED_OPTIONS: Mapping[str, Options] = {"csrnet": {"variant": "commissarma"}}
"""Options of a fresh counter: the variant whose recipe has the paper's optimiser, Adam, and sigma
15."""


@dataclass(frozen=True)
class PoisoningFacts:
    """The facts of a poisoned set that the manifest of its training states."""

    training: PoisonedTraining
    poisoned: Sequence[PoisonedImage] | None
    """The poisoned images; None if the manifest already lists them."""

    def json(self) -> Record:
        """JSON values by name."""
        record: Record = {"poisoning": self.training.settings()}
        if self.poisoned is not None:
            record["poisoned"] = [asdict(image) for image in self.poisoned]
        return record


def train(
    model: CounterModel,
    samples: Sequence[Sample],
    plan: TrainConfig,
    *,
    seed: int,
    out: Path,
    fraction: float,
    poisoned: Sequence[PoisonedImage] | None = None,
    ranks: Ranks = Ranks(),
    progress: Progress | None = None,
    settings: object | None = None,
    command: Sequence[str] = (),
) -> TrainRun:
    """Train a counter in the folder ``out``, or continue its training there.

    The manifest of a poisoned set lists the poisoned images: ``poisoned``, or ``contents`` of the
    samples. The images that validate are those of ``held_out`` for the ``fraction`` that is
    poisoned, here or in the set of the counter that this one is compared with. Everything else
    as of ``pycc.train.fit``.
    """
    resume = begun(out, ranks)
    facts: PoisoningFacts | None = None
    if isinstance(samples, PoisonedTraining):
        listed: Sequence[PoisonedImage] | None = None
        if not resume:  # for readers of the manifest; the data's fingerprint covers these pixels
            listed = contents(samples) if poisoned is None else poisoned
        facts = PoisoningFacts(samples, listed)
    # A poisoned set holds its clean images first, so that indices are the same in both.
    clean = samples.samples if isinstance(samples, PoisonedTraining) else samples
    held = held_out(clean, plan.validation_share, fraction, seed=seed)
    return fit(
        model, samples, plan, seed=seed, out=out, resume=resume, settings=settings, facts=facts,
        command=command, machine=("poisoned",), ranks=ranks, progress=progress,
        held=[names_of(clean).index(name) for name in held],
    )  # fmt: skip


def held_out(samples: Sequence[Sample], share: float, fraction: float, *, seed: int) -> list[str]:
    """Names of the images that validate if ``fraction`` of the samples is poisoned.

    They are ``share`` of all images, at least one if it is above 0, chosen by seed and names among
    those without a poisoned duplicate: clean and backdoored counter are chosen by the same images,
    and neither by images that an attacker made. ValueError if there are too few.
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
