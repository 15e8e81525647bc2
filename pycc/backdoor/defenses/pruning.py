"""Fine-pruning, and what pruning of channels needs: which there are, and how far it may go."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from pycc.backdoor.defenses.base import (
    Retraining,
    defenses,
    finished,
    opened,
    twin,
)
from pycc.backdoor.poisoning.keys import names_of, shuffled
from pycc.counters import count_of, device_of
from pycc.models import CounterModel
from pycc.ranks import Ranks
from pycc.runs import Run
from pycc.settings import flag
from pycc.train.held import measured
from pycc.types import Progress, Sample

KEY = ("kind", "pruned")
_GLANCE = 256
"""Side in pixels, at most, of the picture that shows which layers take part."""

Channel = tuple[int, int]
"""Number of a layer in a list of them, and of one of its output channels."""


@dataclass(frozen=True, eq=False)
class Layer:
    """A convolution of several output channels, and the batch normalisation that reads it alone."""

    name: str
    """The convolution's, in the counter's ``net``."""
    convolution: nn.Conv2d
    norm: nn.BatchNorm2d | None

    @property
    def channels(self) -> int:
        """Number of output channels."""
        return self.convolution.out_channels

    @property
    def last(self) -> nn.Conv2d | nn.BatchNorm2d:
        """What gives the channels their scale and offset."""
        return self.norm if self.norm is not None else self.convolution

    def parameters(self) -> list[nn.Parameter]:
        """Weights and offsets of which each channel has its own."""
        both = [self.convolution, *([] if self.norm is None else [self.norm])]
        found = (getattr(module, name) for module in both for name in ("weight", "bias"))
        return [one for one in found if one is not None]

    @torch.no_grad()
    def unweigh(self, channels: Sequence[int]) -> None:
        """Take the weights of channels and leave their offsets, in eval mode.

        A normalisation without weights of its own has no offsets either: there nothing is left.
        """
        if self.last.weight is None:
            self.silence(channels)
        else:
            self.last.weight[list(channels)] = 0.0

    @torch.no_grad()
    def silence(self, channels: Sequence[int]) -> None:
        """Make channels exactly 0, in train and eval mode: what stays so in any file of weights."""
        chosen = list(channels)
        for parameter in self.parameters():
            parameter[chosen] = 0.0
        if self.norm is not None and self.norm.running_mean is not None:
            self.norm.running_mean[chosen] = 0.0  # without weights of its own, it is all there is


def layers_of(counter: CounterModel, image: Tensor) -> list[Layer]:
    """The convolutions of several output channels that an image [3,H,W] runs through, in order."""
    found: dict[str, Layer] = {}
    outputs: dict[str, Tensor] = {}

    def ran(name: str, module: nn.Conv2d, output: Tensor) -> None:
        found.setdefault(name, Layer(name, module, None))
        outputs[name] = output

    def read(module: nn.BatchNorm2d, inputs: Tensor) -> None:
        for name, output in outputs.items():
            if output is inputs:
                found[name] = Layer(name, found[name].convolution, module)

    handles = []
    for name, module in counter.net.named_modules():
        if isinstance(module, nn.Conv2d) and module.out_channels > 1:
            handles.append(
                module.register_forward_hook(lambda m, _, output, name=name: ran(name, m, output))
            )
        elif isinstance(module, nn.BatchNorm2d):
            handles.append(module.register_forward_pre_hook(lambda m, args: read(m, args[0])))
    with removing(handles), torch.no_grad():
        counter(_glance(counter, image))
    return list(found.values())


def outermost(counter: CounterModel, image: Tensor, layers: Sequence[Layer]) -> list[Layer]:
    """Those layers from which a way to the density map leads through none of the others.

    CSRNet has one, MCNN one in each column. The ways are those of the gradient of the map.
    """
    ends: dict[object, Layer] = {}
    handles = [
        layer.convolution.register_forward_hook(
            lambda _, __, output, layer=layer: ends.update({output.grad_fn: layer})
        )
        for layer in layers
    ]
    with removing(handles), torch.enable_grad():
        density = counter(_glance(counter, image).requires_grad_())
    reached, seen, ahead = [], set(), [density.grad_fn]
    while ahead:
        node = ahead.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if node in ends:
            reached.append(ends[node])
        else:
            ahead += [following for following, _ in node.next_functions]
    return [layer for layer in layers if layer in reached]


def chosen_layers(
    op: str, layers: Sequence[Layer], wanted: Sequence[str] | None, default: Sequence[Layer]
) -> list[Layer]:
    """The layers of these names; ValueError for a name that no convolution in use has, or none."""
    if wanted is None:
        if not default:
            raise ValueError(f"{op}: no convolution of several channels leads to the density map")
        return list(default)
    known = {layer.name: layer for layer in layers}
    unknown = [name for name in wanted if name not in known]
    if unknown or not wanted:
        raise ValueError(
            f"{op}: layers must be convolutions of several channels, of {', '.join(known)}; got "
            f"{', '.join(unknown) or 'none'}"
        )
    return [known[name] for name in dict.fromkeys(wanted)]


@torch.no_grad()
def activity(
    counter: CounterModel,
    samples: Sequence[Sample],
    indices: Sequence[int],
    layers: Sequence[Layer],
) -> list[Tensor]:
    """Mean activation of each channel over images, each with the same weight: [channels] float64.

    That of a channel is the mean over its places of max(0, a): what a ReLU behind it lets through.
    """
    sums = [torch.zeros(layer.channels, dtype=torch.float64) for layer in layers]

    def add(number: int, output: Tensor) -> None:
        sums[number] += output.detach().clamp(min=0.0).mean((0, 2, 3)).double().cpu()

    handles = [
        layer.last.register_forward_hook(lambda _, __, output, n=number: add(n, output))
        for number, layer in enumerate(layers)
    ]
    with removing(handles):
        for index in indices:
            count_of(counter, samples[index])
    return [total / len(indices) for total in sums]


def dormancy(means: Sequence[Tensor]) -> list[Channel]:
    """Channels from the most dormant one on, but for each layer's most active one.

    Activations of different layers have no common scale: they are compared as shares of their
    layer's mean.
    """
    keyed = []
    for number, mean in enumerate(means):
        kept = int(mean.argmax())
        shares = (mean / mean.mean().clamp(min=1e-300)).tolist()
        keyed += [(share, number, c) for c, share in enumerate(shares) if c != kept]
    return [(number, channel) for _, number, channel in sorted(keyed)]


def pruned(
    counter: CounterModel,
    order: Sequence[Channel],
    stops: Sequence[int],
    silence: Callable[[Sequence[Channel]], None],
    *,
    error: Callable[[], float],
    tolerance: float,
    log: Run,
) -> int:
    """Silence channels in order, as many as the clean error allows; returns how many.

    The error is measured with none and with each of ``stops`` (rising) of them silenced. It need
    not rise all the way, so the most channels stay silent with which it is at most 1 +
    ``tolerance`` times the first. Errors that ``log`` knows are not measured again.
    """
    known = {record["pruned"]: record["mae"] for record in log.records}
    before = {name: value.clone() for name, value in counter.net.state_dict().items()}

    def measure(number: int) -> float:
        if number not in known:
            log.append({"kind": "pruning", "pruned": number, "mae": error()})
            known[number] = log.records[-1]["mae"]
        return float(known[number])

    most, good, silent = (1.0 + tolerance) * measure(0), 0, 0
    for number in stops:
        silence(order[silent:number])
        silent = number
        if measure(number) <= most:
            good = number
    counter.net.load_state_dict(before)
    silence(order[:good])
    return good


@contextmanager
def held_silent(layers: Sequence[Layer], channels: Sequence[Channel]) -> Iterator[None]:
    """While it lasts no gradient reaches silent channels: no optimiser moves a zero without one."""
    handles = []
    for number, layer in enumerate(layers):
        silent = [channel for other, channel in channels if other == number]
        for parameter in layer.parameters():
            if silent and parameter.requires_grad:
                learning = torch.ones_like(parameter)
                learning[silent] = 0.0
                hook = parameter.register_hook(  # type: ignore[no-untyped-call]
                    lambda grad, on=learning: grad * on
                )
                handles.append(hook)
    with removing(handles):
        yield


def some(samples: Sequence[Sample], images: int | None, seed: int) -> list[int]:
    """Numbers of the images that are measured on: all, or as many as seed and names choose."""
    if images is None or images >= len(samples):
        return list(range(len(samples)))
    return sorted(shuffled(names_of(samples), "backdoor, measured on", seed=seed)[:images])


@contextmanager
def removing(handles: Sequence[RemovableHandle]) -> Iterator[None]:
    """Take hooks away at the end, however it comes."""
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def glanced(samples: Sequence[Sample]) -> Tensor:
    """The image that shows which layers take part; ValueError where there is none."""
    if not len(samples):
        raise ValueError("backdoor: a defense needs clean images, got none")
    return samples[0].image


def _glance(counter: CounterModel, image: Tensor) -> Tensor:
    """A part [1,3,h,w] of an image, where the counter is."""
    device = device_of(counter)
    return image[None, :, :_GLANCE, :_GLANCE].to(device).clone()


@defenses.register("fine-pruning")
@dataclass(frozen=True)
class FinePruning(Retraining):
    """Channels that clean images leave dormant are pruned, then the counter is fine-tuned.

    Source: Liu, Dolan-Gavitt and Garg, "Fine-Pruning: Defending Against Backdooring Attacks on Deep
    Neural Networks", RAID 2018. Of the layers next to the density map as many channels are pruned,
    in the order of their mean activation on clean images, as the clean MAE (there: the accuracy)
    allows. They are exactly 0 from then on, through fine-tuning too. Of each layer the most active
    channel stays.

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
        "convolutions that are pruned, by their names in the network (default: those that no other "
        "one of several channels parts from the density map)",
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
        """The pruned and fine-tuned counter; ``out/training`` is the run of its training."""
        folder, counter = Path(out), twin(model, self.name)
        image = glanced(samples)
        there = layers_of(counter, image)
        layers = chosen_layers(self.name, there, self.layers, outermost(counter, image, there))
        with closing(
            opened(self, model, samples, seed=seed, out=folder, resume=resume, key=KEY, ranks=ranks)
        ) as log:
            indices = some(samples, self.images, seed)
            order = ranks.agreed(dormancy(activity(counter, samples, indices, layers)))
            step = max(1, round(self.step_fraction * len(order)))

            def silence(channels: Sequence[Channel]) -> None:
                for number, layer in enumerate(layers):
                    layer.silence([channel for other, channel in channels if other == number])

            good = pruned(
                counter, order, [*range(step, len(order), step), len(order)], silence,
                error=lambda: measured(counter, samples, indices, ranks).mae,
                tolerance=self.tolerance, log=log,
            )  # fmt: skip
            with held_silent(layers, order[:good]):
                self.trained(
                    counter, samples, seed=seed, out=folder / "training", resume=resume,
                    ranks=ranks, progress=progress,
                )  # fmt: skip
            silent = {
                layer.name: sorted(channel for other, channel in order[:good] if other == number)
                for number, layer in enumerate(layers)
            }
            finished(log, counter, {"pruned": silent, "channels": sum(x.channels for x in layers)})
        return counter
