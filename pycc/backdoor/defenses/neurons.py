"""Adversarial neuron pruning: what a backdoor hangs on breaks first when neurons are perturbed."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pycc.backdoor.defenses.base import (
    Defense,
    defenses,
    finished,
    opened,
    twin,
)
from pycc.backdoor.defenses.pruning import (
    KEY,
    Channel,
    Layer,
    glanced,
    layers_of,
    pruned,
    removing,
    some,
)
from pycc.counters import device_of
from pycc.models import CounterModel
from pycc.random import Stream
from pycc.ranks import Ranks
from pycc.settings import flag
from pycc.train import NotFiniteError, checkpoint, origin_of, resolved
from pycc.train.config import with_own_truths
from pycc.train.held import measured
from pycc.train.items import Item, Items
from pycc.train.step import Objective, Part, together
from pycc.types import Progress, Sample

THRESHOLDS = tuple(n / 20 for n in range(20))
"""Masks up to which neurons are pruned, tried from the least on: 0, 0.05, … 0.95."""


class Shaken:
    """Masks of a counter's neurons, and the perturbations of their weights and offsets.

    A neuron is an output channel y = w x + b of a convolution or, where that is normalised, of its
    batch normalisation. It becomes (m + d) w x + (1 + e) b, with m its mask, d and e perturbations.
    """

    def __init__(self, layers: Sequence[Layer], device: torch.device) -> None:
        self.layers = layers
        sizes = [layer.channels for layer in layers]
        self.masks = [torch.ones(size, device=device) for size in sizes]
        self.weights = [torch.zeros(size, device=device) for size in sizes]
        self.offsets = [torch.zeros(size, device=device) for size in sizes]

    def _of(self, number: int, output: Tensor) -> Tensor:
        """A layer's output [N,C,h,w] with mask and perturbation."""
        scale = (self.masks[number] + self.weights[number])[:, None, None]
        bias = self.layers[number].last.bias
        if bias is None:
            return output * scale
        offset = bias.detach()[:, None, None]
        return (output - offset) * scale + offset * (1.0 + self.offsets[number])[:, None, None]

    @contextmanager
    def applied(self) -> Iterator[None]:
        """While it lasts, the counter runs with masks and perturbations."""
        handles = [
            layer.last.register_forward_hook(lambda _, __, output, n=number: self._of(n, output))
            for number, layer in enumerate(self.layers)
        ]
        with removing(handles):
            yield

    def perturb(self, seed: int, step: int, epsilon: float) -> None:
        """Uniformly random perturbations within ±``epsilon``."""
        for kind, values in (("weights", self.weights), ("offsets", self.offsets)):
            for number, value in enumerate(values):
                stream = Stream(seed, f"anp, {kind}", step=step, draw=number)
                drawn = torch.from_numpy(stream.uniform(-epsilon, epsilon, len(value)))
                values[number] = drawn.to(value)

    def rest(self) -> None:
        """No perturbation."""
        self.weights = [torch.zeros_like(value) for value in self.weights]
        self.offsets = [torch.zeros_like(value) for value in self.offsets]


@defenses.register("anp")
@dataclass(frozen=True)
class AdversarialNeuronPruning(Defense):
    """Neurons are pruned that a counter is better without when all are perturbed at their worst.

    Source: Wu and Wang, "Adversarial Neuron Pruning Purifies Backdoored Deep Models", NeurIPS 2021:

        min over m in [0,1]^n of  alpha L(m w, b) + (1 - alpha) max L((m + d) w, (1 + e) b)

    with the maximum over perturbations d, e in [-epsilon, epsilon]^n of all neurons, L the
    counter's own loss on clean crops in eval mode, and one mask for each output channel of every
    convolution of several. Then channels lose their weights (their offsets stay): all whose mask
    is below the largest threshold that the clean MAE allows. Losses of counters have no common
    scale: in a step the most sensitive mask moves by ``mask_lr`` (times what momentum adds), which
    falls linearly to 0.

    >>> import tempfile
    >>> from pycc import data, models
    >>> samples = data.open("synthetic", split="train", limit=2, shape=(64, 96))
    >>> defense = AdversarialNeuronPruning(steps=2, crop="64x64", crops=1)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     counter = defense(models.load("mcnn-synthetic"), samples, out=folder)
    >>> counter.name, counter.training
    ('mcnn', False)
    """

    name = "anp"

    steps: int = flag(300, "steps of the masks")
    epsilon: float = flag(0.4, "largest relative perturbation of a neuron")
    inner_steps: int = flag(1, "steps of the perturbations in each")
    alpha: float = flag(0.2, "weight of the loss without perturbation, in [0,1]")
    mask_lr: float = flag(0.01, "largest change of a mask in a step, before momentum")
    momentum: float = flag(0.9, "momentum of the masks, in [0,1)")
    threshold: float = flag(0.95, "masks above it are never pruned")
    tolerance: float = flag(0.1, "share by which pruning may raise the MAE on clean images")
    images: int | None = flag(None, "clean images that the MAE is measured on (default: all)")

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check("steps", self.steps >= 1, "at least 1")
        self.check("epsilon", 0.0 <= self.epsilon <= 1.0, "in [0,1]")
        self.check("inner_steps", self.inner_steps >= 1, "at least 1")
        self.check("alpha", 0.0 <= self.alpha <= 1.0, "in [0,1]")
        self.check("mask_lr", 0.0 < self.mask_lr <= 1.0, "in (0,1]")
        self.check("momentum", 0.0 <= self.momentum < 1.0, "in [0,1)")
        self.check("threshold", 0.0 <= self.threshold < 1.0, "in [0,1)")
        self.check("tolerance", 0.0 <= self.tolerance < math.inf, "at least 0 and finite")
        self.check("images", self.images is None or self.images >= 1, "at least 1")

    def __call__(
        self,
        model: CounterModel,
        samples: Sequence[Sample],
        *,
        seed: int = 0,
        out: str | os.PathLike[str],
        resume: bool = False,
        ranks: Ranks = Ranks(),
        progress: Progress | None = None,
    ) -> CounterModel:
        """The pruned counter; its run's records are clean errors by number of pruned neurons."""
        folder, counter = Path(out), twin(model, self.name)
        layers = layers_of(counter, glanced(samples))
        if not layers:
            raise ValueError("anp: the counter has no convolution of several channels")
        with closing(
            opened(self, model, samples, seed=seed, out=folder, resume=resume, key=KEY, ranks=ranks)
        ) as log:
            masks = None
            if ranks.first:  # the search is no training that several processes could share
                search = _Search(
                    self, counter, samples, layers, seed, folder, log.manifest, progress
                )
                masks = search.run()
            masks = ranks.agreed(masks)
            assert masks is not None
            order, stops = self._order(masks)
            indices = some(samples, self.images, seed)

            def silence(channels: Sequence[Channel]) -> None:
                for number, channel in channels:
                    layers[number].unweigh([channel])

            good = pruned(
                counter, order, stops, silence,
                error=lambda: measured(counter, samples, indices, ranks).mae,
                tolerance=self.tolerance, log=log,
            )  # fmt: skip
            found = {
                layer.name: sorted(channel for other, channel in order[:good] if other == number)
                for number, layer in enumerate(layers)
            }
            least = {
                layer.name: float(mask.min()) for layer, mask in zip(layers, masks, strict=True)
            }
            neurons = sum(layer.channels for layer in layers)
            finished(log, counter, {"pruned": found, "least_mask": least, "channels": neurons})
        return counter

    def _order(self, masks: Sequence[Tensor]) -> tuple[list[Channel], list[int]]:
        """Neurons from the smallest mask on, and how many lie under each threshold."""
        keyed = sorted(
            (float(value), number, channel)
            for number, mask in enumerate(masks)
            for channel, value in enumerate(mask.tolist())
            if value <= self.threshold
        )
        tried = [*(t for t in THRESHOLDS if t < self.threshold), self.threshold]
        counts = [sum(value <= t for value, _, _ in keyed) for t in tried]
        order = [(number, channel) for _, number, channel in keyed]
        return order, sorted({count for count in counts if count})


class _Search:
    """The minimax problem, and where its solution stands."""

    def __init__(
        self,
        rule: AdversarialNeuronPruning,
        counter: CounterModel,
        samples: Sequence[Sample],
        layers: Sequence[Layer],
        seed: int,
        out: Path,
        made_with: Mapping[str, Any],
        progress: Progress | None,
    ) -> None:
        self.rule, self.seed, self.out, self.progress = rule, seed, out, progress
        self.made_with = {name: made_with[name] for name in ("settings", "fingerprints")}
        plan = rule.plan()
        self.recipe = resolved(plan, counter, origin_of(samples))
        known = with_own_truths(samples, plan, counter)
        self.items = Items(known, range(len(known)), self.recipe, counter.stride, seed=seed)
        self.device = device_of(counter)
        self.objective = Objective(counter)
        self.shaken = Shaken(layers, self.device)
        self.velocity = [torch.zeros_like(mask) for mask in self.shaken.masks]
        self.step = 0
        self._order: tuple[int, list[int]] = (-1, [])

    def run(self) -> list[Tensor]:
        """The masks [channels] of all layers after the last step, on the CPU."""
        self._restore()
        saved = time.monotonic()
        while self.step < self.rule.steps:
            self._advance()
            self.step += 1
            if self.progress is not None:
                self.progress(self.step, self.rule.steps, "anp")
            if time.monotonic() - saved >= 60 * self.rule.every_minutes:
                self._save()
                saved = time.monotonic()
        self._save()
        return [mask.cpu() for mask in self.shaken.masks]

    def _advance(self) -> None:
        rule, shaken = self.rule, self.shaken
        parts = self._parts()
        shaken.perturb(self.seed, self.step, rule.epsilon)
        for _ in range(rule.inner_steps):
            perturbed = [*shaken.weights, *shaken.offsets]
            _, gradients = self._loss(parts, perturbed)
            reach = rule.epsilon / rule.inner_steps
            moved = [
                (value + reach * gradient.sign()).clamp(-rule.epsilon, rule.epsilon)
                for value, gradient in zip(perturbed, gradients, strict=True)
            ]
            shaken.weights = moved[: len(shaken.layers)]
            shaken.offsets = moved[len(shaken.layers) :]
        _, robust = self._loss(parts, shaken.masks)
        shaken.rest()
        _, natural = self._loss(parts, shaken.masks)
        both = [
            self._inward(mask, rule.alpha * a + (1.0 - rule.alpha) * b)
            for mask, a, b in zip(shaken.masks, natural, robust, strict=True)
        ]
        largest = max(1e-30, *(float(gradient.abs().max()) for gradient in both))
        rate = rule.mask_lr * (1.0 - self.step / rule.steps)
        for number, gradient in enumerate(both):
            self.velocity[number] = rule.momentum * self.velocity[number] + gradient / largest
            shaken.masks[number] = (shaken.masks[number] - rate * self.velocity[number]).clamp(0, 1)

    @staticmethod
    def _inward(mask: Tensor, gradient: Tensor) -> Tensor:
        """Without what pushes masks out of [0,1], which would set the scale for all others."""
        outward = ((mask >= 1.0) & (gradient < 0)) | ((mask <= 0.0) & (gradient > 0))
        return gradient.masked_fill(outward, 0.0)

    def _loss(
        self, parts: Sequence[Part], inputs: Sequence[Tensor]
    ) -> tuple[float, tuple[Tensor, ...]]:
        """The loss with masks and perturbations as they are, and its gradient by some of them."""
        for value in inputs:
            value.requires_grad_()
        with self.shaken.applied():
            loss = self.objective(parts)
        gradients = torch.autograd.grad(loss, list(inputs), allow_unused=True)
        for value in inputs:
            value.requires_grad_(False)
        found = tuple(
            torch.zeros_like(value) if gradient is None else gradient
            for value, gradient in zip(inputs, gradients, strict=True)
        )
        if not all(bool(torch.isfinite(gradient).all()) for gradient in found):
            raise NotFiniteError(f"anp: gradient is not finite in step {self.step + 1}")
        return float(loss.detach()), found

    def _parts(self) -> list[Part]:
        """The crops of this step; those of one size together."""
        size = self.recipe.batch
        batches = -(-len(self.items) // size)
        epoch, batch = divmod(self.step, batches)
        if self._order[0] != epoch:
            self._order = (epoch, self.items.order(epoch))
        numbers = self._order[1][batch * size : (batch + 1) * size]
        grouped: dict[tuple[int, ...], list[Item]] = {}
        for number in numbers:
            item = self.items[epoch, number]
            grouped.setdefault(tuple(item.image.shape), []).append(item)
        return [
            together(group, len(group) / len(numbers), self.device) for group in grouped.values()
        ]

    def _save(self) -> None:
        content = {
            "made_with": self.made_with,
            "step": self.step,
            "masks": [mask.cpu() for mask in self.shaken.masks],
            "velocity": [value.cpu() for value in self.velocity],
        }
        checkpoint.save(self.out, content)

    def _restore(self) -> None:
        content = checkpoint.load(self.out, self.made_with)
        if content is not None:
            self.step = content["step"]
            self.shaken.masks = [mask.to(self.device) for mask in content["masks"]]
            self.velocity = [value.to(self.device) for value in content["velocity"]]
