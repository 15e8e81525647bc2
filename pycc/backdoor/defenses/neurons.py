"""Adversarial neuron pruning: neurons that worst-case perturbations reach first are pruned."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from pycc.backdoor.defenses.base import (
    Defense,
    DefenseJob,
    DefenseSummary,
    defenses,
    finish,
)
from pycc.backdoor.defenses.channels import (
    PRUNING_KEY,
    Channel,
    ConvolutionLayer,
    by_layer,
    first_image,
    layers_of,
    prune,
)
from pycc.backdoor.hooks import removing
from pycc.backdoor.poisoning.keys import drawn_indices
from pycc.counters import device_of
from pycc.models import CounterModel
from pycc.random import Stream
from pycc.runs import Record, Run
from pycc.settings import flag
from pycc.train import NotFiniteError, checkpoint, origin_of, resolved
from pycc.train.config import with_own_truths
from pycc.train.held import measured
from pycc.train.items import Item, Items
from pycc.train.step import Objective, Part, together
from pycc.types import Sample

THRESHOLDS = tuple(n / 20 for n in range(20))
"""Masks up to which neurons are pruned, tried in this order: 0, 0.05, … 0.95."""


class PerturbedNeurons:
    """Masks of the neurons of a counter, and perturbations of their weights and offsets.

    A neuron is an output channel y = w x + b of a convolution or, if that is normalised, of its
    batch normalisation. It becomes (m + d) w x + (1 + e) b, with m its mask, d and e perturbations.
    """

    def __init__(self, layers: Sequence[ConvolutionLayer], device: torch.device) -> None:
        self.layers = layers
        sizes = [layer.channels for layer in layers]
        self.masks = [torch.ones(size, device=device) for size in sizes]
        self.weights = [torch.zeros(size, device=device) for size in sizes]
        self.offsets = [torch.zeros(size, device=device) for size in sizes]

    def _perturbed(self, number: int, output: Tensor) -> Tensor:
        """The output [N,C,h,w] of a layer with its masks and perturbations."""
        scale = (self.masks[number] + self.weights[number])[:, None, None]
        bias = self.layers[number].last.bias
        if bias is None:
            return output * scale
        offset = bias.detach()[:, None, None]
        return (output - offset) * scale + offset * (1.0 + self.offsets[number])[:, None, None]

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Run the counter with masks and perturbations within the block."""
        handles = [
            layer.last.register_forward_hook(
                lambda _, __, output, n=number: self._perturbed(n, output)
            )
            for number, layer in enumerate(self.layers)
        ]
        with removing(handles):
            yield

    def perturb(self, seed: int, step: int, epsilon: float) -> None:
        """Draw uniformly random perturbations within ±``epsilon``."""
        for kind, values in (("weights", self.weights), ("offsets", self.offsets)):
            for number, value in enumerate(values):
                stream = Stream(seed, f"anp, {kind}", step=step, draw=number)
                drawn = torch.from_numpy(stream.uniform(-epsilon, epsilon, len(value)))
                values[number] = drawn.to(value)

    def rest(self) -> None:
        """Set the perturbations to 0."""
        self.weights = [torch.zeros_like(value) for value in self.weights]
        self.offsets = [torch.zeros_like(value) for value in self.offsets]


@dataclass(frozen=True)
class NeuronSummary(DefenseSummary):
    """The result of adversarial neuron pruning.

    >>> NeuronSummary(pruned={"0": [6]}, least_mask={"0": 0.1}, channels=7).least_mask["0"]
    0.1
    """

    pruned: Mapping[str, Sequence[int]]
    """Indices of the pruned channels by the layer's name."""
    least_mask: Mapping[str, float]
    """The smallest mask of each layer, within [0,1]."""
    channels: int
    """Channels in all."""


@defenses.register("anp")
@dataclass(frozen=True)
class AdversarialNeuronPruning(Defense):
    """Prune the neurons without which a counter errs less under worst-case perturbations of all.

    Source: Wu and Wang, "Adversarial Neuron Pruning Purifies Backdoored Deep Models", NeurIPS 2021:

        min over m in [0,1]^n of  alpha L(m w, b) + (1 - alpha) max L((m + d) w, (1 + e) b)

    with the maximum over perturbations d, e in [-epsilon, epsilon]^n of all neurons, L the
    counter's loss on clean crops in eval mode, and one mask for each output channel of every
    convolution with several. Then channels lose their weights and keep their offsets: all whose
    mask is below the largest threshold that the clean MAE allows. The losses of counters have no
    common scale, so the most sensitive mask moves by ``mask_lr`` in a step (times the effect of
    momentum), which falls linearly to 0.

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
    inner_steps: int = flag(1, "steps of the perturbations in each step of the masks")
    alpha: float = flag(0.2, "weight of the loss without perturbation, in [0,1]")
    mask_lr: float = flag(0.01, "largest change of a mask in a step, before momentum")
    momentum: float = flag(0.9, "momentum of the masks, in [0,1)")
    threshold: float = flag(0.95, "neurons with a mask above it are never pruned")
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

    def apply(self, counter: CounterModel, job: DefenseJob) -> None:
        """Prune the counter; the results of its run are clean errors by number of channels."""
        samples, ranks = job.samples, job.ranks
        layers = layers_of(counter, first_image(samples))
        if not layers:
            raise ValueError("anp: the counter has no convolution of several channels")
        with self.run(counter, job, PRUNING_KEY) as log:
            masks: list[Tensor] = []
            if ranks.first:  # the search is sequential: several processes cannot share it
                masks = _Search(self, counter, layers, job, log).run()
            masks = ranks.agreed(masks)
            order, stops = self.pruning_order(masks)
            indices = drawn_indices(samples, self.images, job.seed)

            def unweigh(channels: Sequence[Channel]) -> None:
                for number, channel in channels:
                    layers[number].unweigh([channel])

            good = prune(
                counter, order, stops, unweigh,
                error=lambda: measured(counter, samples, indices, ranks).mae,
                tolerance=self.tolerance, log=log, progress=job.progress,
            )  # fmt: skip
            least = {
                layer.name: float(mask.min()) for layer, mask in zip(layers, masks, strict=True)
            }
            total = sum(layer.channels for layer in layers)
            finish(log, counter, NeuronSummary(by_layer(layers, order[:good]), least, total))

    def pruning_order(self, masks: Sequence[Tensor]) -> tuple[list[Channel], list[int]]:
        """Channels in the order of their masks, and the numbers of them under each threshold."""
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


class _SearchState(NamedTuple):
    """The progress of a search, as its checkpoint holds it; tensors are on the CPU."""

    step: int
    masks: list[Tensor]
    velocity: list[Tensor]


class _Search:
    """The minimax problem, and the progress of its solution."""

    def __init__(
        self,
        rule: AdversarialNeuronPruning,
        counter: CounterModel,
        layers: Sequence[ConvolutionLayer],
        job: DefenseJob,
        log: Run,
    ) -> None:
        self.rule, self.job = rule, job
        self.made_with: Record = {name: log.manifest[name] for name in ("settings", "fingerprints")}
        plan = rule.plan()
        self.recipe = resolved(plan, counter, origin_of(job.samples))
        samples: Sequence[Sample] = with_own_truths(job.samples, plan, counter)
        everything = range(len(samples))
        self.items = Items(samples, everything, self.recipe, counter.stride, seed=job.seed)
        self.device = device_of(counter)
        self.objective = Objective(counter)
        self.neurons = PerturbedNeurons(layers, self.device)
        self.velocity = [torch.zeros_like(mask) for mask in self.neurons.masks]
        self.step = 0
        self._order: tuple[int, list[int]] = (-1, [])

    def run(self) -> list[Tensor]:
        """Return the masks [channels] of all layers after the last step, on the CPU."""
        self._restore()
        saved = time.monotonic()
        while self.step < self.rule.steps:
            self._advance()
            self.step += 1
            if self.job.progress is not None:
                self.job.progress(self.step, self.rule.steps, "anp")
            if time.monotonic() - saved >= 60 * self.rule.every_minutes:
                self._save()
                saved = time.monotonic()
        self._save()
        return [mask.cpu() for mask in self.neurons.masks]

    def _advance(self) -> None:
        rule, neurons = self.rule, self.neurons
        parts = self._parts()
        neurons.perturb(self.job.seed, self.step, rule.epsilon)
        for _ in range(rule.inner_steps):
            perturbed = [*neurons.weights, *neurons.offsets]
            gradients = self._gradients(parts, perturbed)
            reach = rule.epsilon / rule.inner_steps
            moved = [
                (value + reach * gradient.sign()).clamp(-rule.epsilon, rule.epsilon)
                for value, gradient in zip(perturbed, gradients, strict=True)
            ]
            neurons.weights = moved[: len(neurons.layers)]
            neurons.offsets = moved[len(neurons.layers) :]
        robust = self._gradients(parts, neurons.masks)
        neurons.rest()
        natural = self._gradients(parts, neurons.masks)
        gradients = [
            _inward(mask, rule.alpha * a + (1.0 - rule.alpha) * b)
            for mask, a, b in zip(neurons.masks, natural, robust, strict=True)
        ]
        largest = max(1e-30, *(float(gradient.abs().max()) for gradient in gradients))
        rate = rule.mask_lr * (1.0 - self.step / rule.steps)
        for number, gradient in enumerate(gradients):
            self.velocity[number] = rule.momentum * self.velocity[number] + gradient / largest
            moved_mask = neurons.masks[number] - rate * self.velocity[number]
            neurons.masks[number] = moved_mask.clamp(0, 1)

    def _gradients(self, parts: Sequence[Part], inputs: Sequence[Tensor]) -> list[Tensor]:
        """Gradients of the loss, with the present masks and perturbations, by some of them."""
        for value in inputs:
            value.requires_grad_()
        with self.neurons.applied():
            loss = self.objective(parts)
        by_input = torch.autograd.grad(loss, list(inputs), allow_unused=True)
        for value in inputs:
            value.requires_grad_(False)
        gradients = [
            torch.zeros_like(value) if gradient is None else gradient
            for value, gradient in zip(inputs, by_input, strict=True)
        ]
        if not all(bool(torch.isfinite(gradient).all()) for gradient in gradients):
            raise NotFiniteError(f"anp: gradient is not finite in step {self.step + 1}")
        return gradients

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
        state = _SearchState(
            self.step, [mask.cpu() for mask in self.neurons.masks],
            [value.cpu() for value in self.velocity],
        )  # fmt: skip
        checkpoint.save(self.job.out, {"made_with": self.made_with, **state._asdict()})

    def _restore(self) -> None:
        content = checkpoint.load(self.job.out, self.made_with)
        if content is not None:
            state = _SearchState(*(content[name] for name in _SearchState._fields))
            self.step = state.step
            self.neurons.masks = [mask.to(self.device) for mask in state.masks]
            self.velocity = [value.to(self.device) for value in state.velocity]


def _inward(mask: Tensor, gradient: Tensor) -> Tensor:
    """The gradient without entries that push masks out of [0,1] and would set the common scale."""
    outward = ((mask >= 1.0) & (gradient < 0)) | ((mask <= 0.0) & (gradient > 0))
    return gradient.masked_fill(outward, 0.0)
