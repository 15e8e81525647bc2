"""Neural attention distillation: a counter learns the attention maps of a fine-tuned teacher."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from typing import Self, cast

import torch
from torch import Tensor, nn

from pycc.backdoor.defenses.base import (
    DefenseJob,
    DefenseSummary,
    Retraining,
    TrainingSettings,
    defenses,
    finish,
    twin,
)
from pycc.backdoor.defenses.channels import first_image, top_left_part
from pycc.backdoor.defenses.finetuning import FineTuning
from pycc.backdoor.hooks import removing
from pycc.counters import device_of
from pycc.models import CounterModel
from pycc.models.heads import Heads
from pycc.models.recipe import Recipe
from pycc.runs import fingerprint
from pycc.settings import flag
from pycc.train import origin_of, resolved
from pycc.train.config import with_own_truths
from pycc.train.items import Items
from pycc.train.step import Objective, together
from pycc.types import Sample

KEY = ("kind",)
_MEASURED = 16
"""Crops over which the loss of the counter is averaged before it is trained."""
_TINY = 1e-12
"""Norm of an attention map below which nothing is active."""
_SMALLEST = 4
"""Maps with fewer cells than a fourth of the density map's are left out: they locate nothing."""


def attention(features: Tensor, power: float = 2.0) -> Tensor:
    """Attention map [N,h*w] of features [N,C,h,w]: sum over channels of \\|a\\|^power, of norm 1.

    It is 0 if all features are. Source: Zagoruyko and Komodakis, ICLR 2017.
    """
    active: Tensor = features.abs().pow(power).sum(1).flatten(1)
    norm: Tensor = torch.linalg.vector_norm(active, dim=1, keepdim=True)
    return active / norm.clamp(min=_TINY)


def attention_distance(ours: Tensor, theirs: Tensor, power: float = 2.0) -> Tensor:
    """Euclidean distance between the attention maps of features [N,C,h,w], mean over images.

    Within [0, sqrt 2]; its gradient is 0 where the maps are equal.
    """
    difference = attention(ours, power) - attention(theirs, power)
    distances: Tensor = torch.linalg.vector_norm(difference, dim=1)
    return distances.mean()


@contextmanager
def watched(net: nn.Module, layers: Sequence[str]) -> Iterator[dict[str, Tensor]]:
    """Collect the outputs of the named modules of a network, by name, in its last run in the block.

    ValueError for a name that the network does not have.
    """
    seen: dict[str, Tensor] = {}
    modules = dict(net.named_modules())
    unknown = [name for name in layers if name not in modules or not name]
    if unknown:
        raise ValueError(f"nad: the network has no layer {', '.join(map(repr, unknown))}")

    def keep(name: str, output: object) -> None:
        if not isinstance(output, Tensor) or output.ndim != 4:
            raise ValueError(f"nad: layer {name!r} gives no feature maps [N,C,h,w]")
        seen[name] = output.clone()  # what follows may change it in place

    handles = [
        modules[name].register_forward_hook(lambda _, __, output, name=name: keep(name, output))
        for name in layers
    ]
    with removing(handles):
        yield seen


@torch.no_grad()
def stages(counter: CounterModel, image: Tensor) -> list[str]:
    """The modules whose output ends a stage, in the order in which they run on an image [3,H,W].

    A stage is a sequence of modules of one resolution; the last one to finish, activation included,
    ends it. Maps of one channel or of few cells are left out.
    """
    finishes: list[tuple[str, tuple[int, int]]] = []

    def note(name: str, output: object) -> None:
        if isinstance(output, Tensor) and output.ndim == 4 and output.shape[1] > 1:
            finishes.append((name, (output.shape[2], output.shape[3])))

    handles = [
        module.register_forward_hook(lambda _, __, output, name=name: note(name, output))
        for name, module in counter.net.named_modules()
        if name
    ]
    with removing(handles):
        density = counter(top_left_part(counter, image))
    least = density[0, 0].numel() / _SMALLEST
    large = [(name, size) for name, size in finishes if size[0] * size[1] >= least]
    ends = [
        name
        for number, (name, size) in enumerate(large)
        if number + 1 == len(large) or large[number + 1][1] != size
    ]
    return list(dict.fromkeys(ends))


class Distilled(CounterModel):
    """A counter whose loss makes its attention maps those of a teacher.

    It counts as the student, whose network it has. The loss is the student's own plus
    ``beta`` times the sum over ``layers`` of ``attention_distance``. The teacher is not changed
    and not part of the weights. The loss raises ValueError for a layer that does not run.
    """

    name = "distilled"

    def __init__(
        self,
        student: CounterModel,
        teacher: CounterModel,
        *,
        layers: Sequence[str],
        beta: float,
        power: float = 2.0,
    ) -> None:
        super().__init__(
            student.net, stride=student.stride, receptive_field=student.receptive_field
        )
        # In a tuple they are not registered as modules: the weights are those of ``net`` alone.
        self._parts = (student, teacher)
        self.layers, self.beta, self.power = list(layers), float(beta), float(power)
        self.minimum_side = student.minimum_side
        self.train(student.training)

    def train(self, mode: bool = True) -> Self:
        """Set the student's mode; the teacher's layers stay in eval mode."""
        super().train(mode)
        student, teacher = self._parts
        student.train(mode)
        teacher.eval()
        # CAN, for example, divides an image into quadrants to count it, but not in training.
        teacher.training = mode
        return self

    @property
    def period(self) -> int:
        """The student's."""
        return self._parts[0].period

    def forward(self, images: Tensor) -> Tensor:
        """The student's density map."""
        density: Tensor = self._parts[0](images)
        return density

    def loss(
        self,
        images: Tensor,
        target: Tensor,
        *,
        points: Sequence[Tensor] | None = None,
        region: Tensor | None = None,
        heads: Sequence[Heads] | None = None,
    ) -> Tensor:
        """The student's loss plus the weighted distances of the attention maps."""
        student, teacher = self._parts
        boxed = {} if heads is None else {"heads": heads}
        student_loss_of = cast("Callable[..., Tensor]", student.loss)
        with watched(student.net, self.layers) as ours:
            student_loss = student_loss_of(images, target, points=points, region=region, **boxed)
        with watched(teacher.net, self.layers) as theirs, torch.no_grad():
            teacher(images)
        idle = [name for name in self.layers if name not in ours or name not in theirs]
        if idle:
            raise ValueError(f"nad: layers {', '.join(idle)} do not run while the counter learns")
        distances = (attention_distance(ours[n], theirs[n], self.power) for n in self.layers)
        return student_loss + self.beta * torch.stack(list(distances)).sum()

    def recipe(self) -> Recipe:
        """The student's."""
        return self._parts[0].recipe()

    def options(self) -> dict[str, object]:
        """The settings that its training depends on; JSON values."""
        student, teacher = self._parts
        return {
            "student": {"model": student.name, **student.options()},
            "teacher": fingerprint(teacher.net.state_dict().items()),
            "layers": self.layers, "beta": self.beta, "power": self.power,
        }  # fmt: skip


@dataclass(frozen=True)
class DistillationSummary(DefenseSummary):
    """The result of attention distillation.

    >>> DistillationSummary(layers=["2"], unit=0.5).unit
    0.5
    """

    layers: Sequence[str]
    """Names of the modules whose outputs are compared."""
    unit: float
    """Loss of the counter before it is trained: the unit of ``beta``."""


@defenses.register("nad")
@dataclass(frozen=True)
class AttentionDistillation(Retraining):
    """Train the counter, on clean images, to the attention maps of a fine-tuned copy of itself.

    Source: Li et al., "Neural Attention Distillation: Erasing Backdoor Triggers from Deep Neural
    Networks", ICLR 2021, eq. 2 to 4. The teacher is the counter, fine-tuned on the same images. The
    losses of counters have no common scale, so ``beta`` is in units of the counter's loss before it
    is trained.

    >>> import tempfile
    >>> from pycc import data, models
    >>> samples = data.open("synthetic", split="train", limit=2, shape=(64, 96))
    >>> defense = AttentionDistillation(epochs=1, crop="64x64", crops=1)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     counter = defense(models.load("mcnn-synthetic"), samples, out=folder)
    >>> counter.name, counter.training
    ('mcnn', False)
    """

    name = "nad"

    layers: list[str] | None = flag(
        None,
        "modules whose outputs are compared, by their names in the network (default: the last of "
        "each stage of one resolution)",
        metavar="LAYER", advanced=True,
    )  # fmt: skip
    beta: float = flag(0.1, "weight of the attention, in units of the counter's first loss")
    power: float = flag(2.0, "exponent of the activations in an attention map")
    teacher_epochs: int | None = flag(None, "epochs of the teacher (default: those of the student)")

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check("beta", 0.0 <= self.beta < float("inf"), "at least 0 and finite")
        self.check("power", 1.0 <= self.power <= 8.0, "in 1…8")
        epochs = self.teacher_epochs
        self.check("teacher_epochs", epochs is None or epochs >= 1, "at least 1")

    def apply(self, counter: CounterModel, job: DefenseJob) -> None:
        """Distil the counter; ``out/teacher`` and ``out/student`` are the runs of the trainings."""
        image, samples = first_image(job.samples), job.samples
        layers = stages(counter, image) if self.layers is None else list(self.layers)
        if not layers:
            raise ValueError("nad: layers must be named, no module gives maps of several channels")
        with watched(counter.net, layers):  # refuses unknown names before anything is written
            pass
        with self.run(counter, job, KEY) as log:
            teacher = twin(counter, FineTuning.name)
            teaching = {entry.name: getattr(self, entry.name) for entry in fields(TrainingSettings)}
            teaching["epochs"] = self.teacher_epochs or self.epochs
            FineTuning(**teaching).apply(teacher, replace(job, out=job.out / "teacher"))
            teacher.eval()
            if not log.has(kind="unit"):
                loss = job.ranks.agreed(self._first_loss(counter, samples, job.seed))
                log.append({"kind": "unit", "loss": loss})
            (unit,) = (record["loss"] for record in log.records)
            pupil = Distilled(
                counter, teacher, layers=layers, beta=self.beta * unit, power=self.power
            )
            self.retrain(pupil, job, job.out / "student")
            finish(log, counter.eval(), DistillationSummary(layers, unit))

    @torch.no_grad()
    def _first_loss(self, counter: CounterModel, samples: Sequence[Sample], seed: int) -> float:
        """Mean loss of the counter before it is trained, over crops of the first epoch."""
        plan = self.plan()
        recipe = resolved(plan, counter, origin_of(samples))
        with_truths = with_own_truths(samples, plan, counter)
        items = Items(with_truths, range(len(samples)), recipe, counter.stride, seed=seed)
        device, objective = device_of(counter), Objective(counter)
        losses = [
            float(objective([together([items[0, number]], 1.0, device)]))
            for number in items.order(0)[:_MEASURED]
        ]
        return sum(losses) / len(losses)
