"""The channels of a counter: which layers have them, which are dormant, how many can be pruned."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pycc.backdoor.hooks import removing
from pycc.counters import count_of, device_of
from pycc.models import CounterModel
from pycc.runs import Run
from pycc.types import Progress, Sample

PRUNING_KEY = ("kind", "pruned")
"""The fields that identify a result of ``prune``."""
_SIDE = 256
"""Largest side in pixels of the image that shows which layers take part."""

Channel = tuple[int, int]
"""Index of a layer in a list of layers, and index of one of its output channels."""


@dataclass(frozen=True, eq=False)
class ConvolutionLayer:
    """A convolution of several output channels, and the batch normalisation that reads it alone."""

    name: str
    """The convolution's name in the counter's ``net``."""
    convolution: nn.Conv2d
    norm: nn.BatchNorm2d | None

    @property
    def channels(self) -> int:
        """Number of output channels."""
        return self.convolution.out_channels

    @property
    def last(self) -> nn.Conv2d | nn.BatchNorm2d:
        """The module that gives the channels their scale and offset."""
        return self.norm if self.norm is not None else self.convolution

    def parameters(self) -> list[nn.Parameter]:
        """Weights and offsets that have one entry per channel."""
        modules = [self.convolution, *([] if self.norm is None else [self.norm])]
        optional = (getattr(module, name) for module in modules for name in ("weight", "bias"))
        return [parameter for parameter in optional if parameter is not None]

    @torch.no_grad()
    def unweigh(self, channels: Sequence[int]) -> None:
        """Set the weights of channels to 0 and keep their offsets, in eval mode.

        A normalisation without weights has no offsets either: its channels become 0.
        """
        if self.last.weight is None:
            self.silence(channels)
        else:
            self.last.weight[list(channels)] = 0.0

    @torch.no_grad()
    def silence(self, channels: Sequence[int]) -> None:
        """Make channels exactly 0, in train and eval mode and in any file of the weights."""
        chosen = list(channels)
        for parameter in self.parameters():
            parameter[chosen] = 0.0
        if self.norm is not None and self.norm.running_mean is not None:
            self.norm.running_mean[chosen] = 0.0  # the only offset of a norm without weights


def first_image(samples: Sequence[Sample]) -> Tensor:
    """The image that shows which layers take part; ValueError without samples."""
    if not len(samples):
        raise ValueError("backdoor: a defense needs clean images, got none")
    return samples[0].image


def top_left_part(counter: CounterModel, image: Tensor) -> Tensor:
    """The top left part [1,3,h,w] of an image [3,H,W], on the counter's device."""
    return image[None, :, :_SIDE, :_SIDE].to(device_of(counter)).clone()


def layers_of(counter: CounterModel, image: Tensor) -> list[ConvolutionLayer]:
    """The convolutions of several output channels that an image [3,H,W] runs through, in order."""
    layers: dict[str, ConvolutionLayer] = {}
    outputs: dict[str, Tensor] = {}

    def after_convolution(name: str, module: nn.Conv2d, output: Tensor) -> None:
        layers.setdefault(name, ConvolutionLayer(name, module, None))
        outputs[name] = output

    def before_norm(module: nn.BatchNorm2d, inputs: Tensor) -> None:
        for name, output in outputs.items():
            if output is inputs:
                layers[name] = ConvolutionLayer(name, layers[name].convolution, module)

    handles = []
    for name, module in counter.net.named_modules():
        if isinstance(module, nn.Conv2d) and module.out_channels > 1:
            handles.append(
                module.register_forward_hook(
                    lambda m, _, output, name=name: after_convolution(name, m, output)
                )
            )
        elif isinstance(module, nn.BatchNorm2d):
            handles.append(
                module.register_forward_pre_hook(lambda m, args: before_norm(m, args[0]))
            )
    with removing(handles), torch.no_grad():
        counter(top_left_part(counter, image))
    return list(layers.values())


def outermost(
    counter: CounterModel, image: Tensor, layers: Sequence[ConvolutionLayer]
) -> list[ConvolutionLayer]:
    """The layers from which a path leads to the density map through none of the others.

    CSRNet has one, MCNN one in each column. The paths are those of the gradient of the map.
    """
    ends: dict[object, ConvolutionLayer] = {}
    handles = [
        layer.convolution.register_forward_hook(
            lambda _, __, output, layer=layer: ends.update({output.grad_fn: layer})
        )
        for layer in layers
    ]
    with removing(handles), torch.enable_grad():
        density = counter(top_left_part(counter, image).requires_grad_())
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
    op: str,
    layers: Sequence[ConvolutionLayer],
    wanted: Sequence[str] | None,
    default: Sequence[ConvolutionLayer],
) -> list[ConvolutionLayer]:
    """The layers with the ``wanted`` names, or the default ones if that is None.

    ValueError for a name that is not among ``layers``, and if no layer is left.
    """
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
    layers: Sequence[ConvolutionLayer],
) -> list[Tensor]:
    """Mean activation of each channel over images of equal weight: [channels] float64 per layer.

    The activation of a channel is the mean of max(0, a), what a ReLU behind it lets through, over
    all places.
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
    """All channels but the most active one of each layer, the most dormant first.

    Activations of different layers have no common scale, so they are compared as shares of the mean
    of their layer.
    """
    keyed = []
    for number, mean in enumerate(means):
        kept = int(mean.argmax())
        shares = (mean / mean.mean().clamp(min=1e-300)).tolist()
        keyed += [(share, number, c) for c, share in enumerate(shares) if c != kept]
    return [(number, channel) for _, number, channel in sorted(keyed)]


def by_layer(
    layers: Sequence[ConvolutionLayer], channels: Sequence[Channel]
) -> dict[str, list[int]]:
    """The indices of the given channels of each layer, rising, by the layer's name."""
    return {
        layer.name: sorted(channel for other, channel in channels if other == number)
        for number, layer in enumerate(layers)
    }


def prune(
    counter: CounterModel,
    order: Sequence[Channel],
    stops: Sequence[int],
    silence: Callable[[Sequence[Channel]], None],
    *,
    error: Callable[[], float],
    tolerance: float,
    log: Run,
    progress: Progress | None,
) -> int:
    """Silence channels in order, as many as the clean error allows; returns the number.

    The error is measured with none and with each number of ``stops`` (rising) silenced. It need not
    rise monotonically: the largest number is kept whose error is at most 1 + ``tolerance`` times
    the first. Errors that ``log`` holds are not measured again.
    """
    known = {record["pruned"]: record["mae"] for record in log.records}
    before = {name: value.clone() for name, value in counter.net.state_dict().items()}

    def measure(number: int) -> float:
        if progress is not None:
            done = 0 if number == 0 else 1 + stops.index(number)
            progress(done, 1 + len(stops), f"clean error with {number} channels pruned")
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
def held_silent(layers: Sequence[ConvolutionLayer], channels: Sequence[Channel]) -> Iterator[None]:
    """Keep gradients from silent channels within the block, so that no optimiser changes them."""
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
