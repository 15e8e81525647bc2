"""Fine-pruning: dormant channels are pruned, then the counter is fine-tuned."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pycc.backdoor.defenses.base import (
    DefenseJob,
    DefenseSummary,
    Retraining,
    defenses,
    finish,
)
from pycc.backdoor.defenses.channels import (
    PRUNING_KEY,
    Channel,
    activity,
    by_layer,
    chosen_layers,
    dormancy,
    first_image,
    held_silent,
    layers_of,
    outermost,
    prune,
)
from pycc.backdoor.poisoning.keys import drawn_indices
from pycc.models import CounterModel
from pycc.settings import flag
from pycc.train.held import measured


@dataclass(frozen=True)
class PruningSummary(DefenseSummary):
    """The result of fine-pruning.

    >>> PruningSummary(pruned={"0": [1, 4]}, channels=6).channels
    6
    """

    pruned: Mapping[str, Sequence[int]]
    """Indices of the pruned channels by the layer's name."""
    channels: int
    """Channels of these layers in all."""


@defenses.register("fine-pruning")
@dataclass(frozen=True)
class FinePruning(Retraining):
    """Prune the channels that clean images leave dormant, then fine-tune the counter.

    Source: Liu, Dolan-Gavitt and Garg, "Fine-Pruning: Defending Against Backdooring Attacks on Deep
    Neural Networks", RAID 2018. In the layers next to the density map channels are pruned in the
    order of their mean activation on clean images, as many as the clean MAE (in the paper: the
    accuracy) allows. They stay exactly 0, also while the counter is fine-tuned. The most active
    channel of each layer is kept.

    >>> import tempfile
    >>> from pycc import data, models
    >>> samples = data.open("synthetic", split="train", limit=2, shape=(64, 96))
    >>> defense = FinePruning(epochs=1, crop="64x64", crops=1, step_fraction=0.5)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     counter = defense(models.load("mcnn-synthetic"), samples, out=folder)
    >>> counter.name, counter.training
    ('mcnn', False)
    """

    name = "fine-pruning"

    layers: list[str] | None = flag(
        None,
        "convolutions that are pruned, by their names in the network (default: those with no other "
        "convolution of several channels between them and the density map)",
        metavar="LAYER", advanced=True,
    )  # fmt: skip
    tolerance: float = flag(0.1, "share by which pruning may raise the MAE on clean images")
    step_fraction: float = flag(
        0.05, "share of the channels that is pruned between two measurements"
    )
    images: int | None = flag(None, "clean images that are measured on (default: all)")

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check("tolerance", 0.0 <= self.tolerance < float("inf"), "at least 0 and finite")
        self.check("step_fraction", 0.0 < self.step_fraction <= 1.0, "in (0,1]")
        self.check("images", self.images is None or self.images >= 1, "at least 1")

    def apply(self, counter: CounterModel, job: DefenseJob) -> None:
        """Prune and fine-tune the counter; ``out/training`` is the run of the training."""
        image, samples, ranks = first_image(job.samples), job.samples, job.ranks
        candidates = layers_of(counter, image)
        default = outermost(counter, image, candidates)
        layers = chosen_layers(self.name, candidates, self.layers, default)
        with self.run(counter, job, PRUNING_KEY) as log:
            indices = drawn_indices(samples, self.images, job.seed)
            order = ranks.agreed(dormancy(activity(counter, samples, indices, layers)))
            step = max(1, round(self.step_fraction * len(order)))

            def silence(channels: Sequence[Channel]) -> None:
                for number, layer in enumerate(layers):
                    layer.silence([channel for other, channel in channels if other == number])

            good = prune(
                counter, order, [*range(step, len(order), step), len(order)], silence,
                error=lambda: measured(counter, samples, indices, ranks).mae,
                tolerance=self.tolerance, log=log, progress=job.progress,
            )  # fmt: skip
            with held_silent(layers, order[:good]):
                self.retrain(counter, job, job.out / "training")
            total = sum(layer.channels for layer in layers)
            finish(log, counter, PruningSummary(by_layer(layers, order[:good]), total))
