"""Grad-CAM of a count: the places of a layer's map that raise it.

Selvaraju et al., "Grad-CAM: Visual Explanations from Deep Networks via Gradient-Based
Localization", IJCV 2019, eqs. 1 and 2, where the score of a class is the count.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from pycc.backdoor.hooks import removing
from pycc.checks import check_image
from pycc.counters import frozen, like_of
from pycc.grid import in_region, minimum_side
from pycc.types import Counter

_ACTIVATIONS = (
    nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.RReLU, nn.PReLU, nn.ELU, nn.SELU, nn.CELU, nn.GELU,
    nn.SiLU, nn.Mish, nn.Hardswish, nn.Softplus,
)  # fmt: skip
"""Without the sigmoid, whose output multiplies another map."""
_PROBE = 64
"""Smallest side in pixels of the image that shows which layers run."""


@dataclass(frozen=True, eq=False)
class GradCam:
    """A Grad-CAM: the places of a layer's map that raise the count of an image.

    >>> from pycc import data, models
    >>> counter = models.load("mcnn-synthetic")
    >>> image = data.open("synthetic", limit=1, shape=(64, 96))[0].image
    >>> cam = gradcam(counter, image, default_layers(counter)[-1])
    >>> cam.heat.shape, float(cam.heat.max()) <= 1.0
    (torch.Size([64, 96]), True)
    """

    layer: str
    heat: Tensor
    """[H,W] float32 in [0,1], the map enlarged to the image and divided by ``maximum``."""
    maximum: float
    """Maximum of the layer's map itself; 0 (with a heat of 0) if nothing raises the count."""
    count: float
    """People counted in the image, in its region of interest."""


@dataclass
class _Pass:
    """The layer's output in one call of the counter around it."""

    output: Tensor | None = None
    """The output in the autograd graph."""
    value: Tensor | None = None
    """A copy of its values, which later layers may change in place."""


@dataclass
class _Watch:
    """The observations of a layer's hooks."""

    passes: list[_Pass] = field(default_factory=list)
    without_gradient: bool = False


def gradcam(counter: Counter, image: Tensor, layer: str, roi: Tensor | None = None) -> GradCam:
    """Compute Grad-CAM of the count of one image with respect to the output of a named layer.

    The weight α_k of a channel is the mean over places of the gradient of the count (the sum of the
    density map, in the region of interest) by the layer's output A_k; the map is ReLU(Σ_k α_k A_k),
    enlarged bilinearly to the image. If a defense calls the counter around the layer several times
    (draws of an ablated image, a batch), the maps are added before the ReLU, as their counts are.
    If the layer runs repeatedly within one such call, its last run is used. In-place activations
    after the layer have no influence.

    The counter is called in eval mode; the mode of each part is restored. Gradients of parameters
    are not changed, and no hook remains.

    Args:
        counter: a module; also a defended one, if the defense is differentiable.
        image: [3,H,W] RGB in [0,1], on the counter's device.
        layer: a name of ``counter.named_modules()``; ``layers`` lists candidates.
        roi: [H,W] bool, the region of interest that people are counted in; None: the whole image.

    Raises:
        TypeError: the counter is not a module.
        ValueError: an image of another shape, or a roi of another size; an unknown layer (the
            nearest are named); a layer that does not run, runs only without gradient, does not
            reach the count, does not return [N,K,h,w], or sees parts of the image only.

    >>> from pycc import data, models
    >>> counter = models.load("mcnn-synthetic")
    >>> image = data.open("synthetic", limit=1, shape=(64, 96))[0].image
    >>> cam = gradcam(counter, image, default_layers(counter)[-1])
    >>> abs(cam.count - float(counter(image[None]).sum().detach())) < 1e-3
    True
    """
    module = _module("gradcam", counter)
    check_image("gradcam", image)
    named = dict(module.named_modules())
    named.pop("")
    if layer not in named:
        raise ValueError(f"gradcam: layer must be one of the counter's, {_nearest(layer, named)}")
    watch = _Watch()
    handles = [named[layer].register_forward_hook(_note(watch, layer))]
    around = _counter_around(module, layer)
    if around is not None:
        handles.append(around.register_forward_pre_hook(_begin(watch, layer, image.shape[1:])))
    with (
        removing(handles),
        frozen(counter),
        torch.inference_mode(False),
        torch.enable_grad(),
    ):
        density = in_region(counter(image.detach().clone()[None]), roi, counter.stride)
        # Listed before the gradient, for which a defense may compute its draws again.
        ran = [run for run in watch.passes if run.output is not None and run.value is not None]
        if not ran:
            how = "ran only without gradient" if watch.without_gradient else "did not run"
            raise ValueError(f"gradcam: layer must run when the image is counted, {layer!r} {how}")
        outputs = [run.output for run in ran if run.output is not None]
        count = density.sum(dtype=torch.float64)
        reached = count.requires_grad
        gradients = torch.autograd.grad(count, outputs, allow_unused=True) if reached else ()
    weighted = [
        _weighted(run.value, gradient)
        for run, gradient in zip(ran, gradients, strict=reached)
        if run.value is not None and gradient is not None
    ]
    if not weighted:
        raise ValueError(
            f"gradcam: the count must depend on layer, it has no gradient by {layer!r}"
        )
    shapes = sorted({tuple(cells.shape) for cells in weighted})
    if len(shapes) > 1:
        raise ValueError(f"gradcam: layer must return maps of one size, {layer!r} gave {shapes}")
    cells = torch.stack(weighted).sum(0).relu()
    maximum = float(cells.max())
    if maximum > 0:
        cells = cells / maximum
    size = (image.shape[1], image.shape[2])
    heat = functional.interpolate(cells[None, None], size, mode="bilinear", align_corners=False)
    # Rounding may push a bilinear mean slightly above 1.
    return GradCam(layer, heat[0, 0].clamp(0, 1).float(), maximum, float(count.detach()))


def layers(counter: Counter, image: Tensor | None = None) -> list[str]:
    """Names of the layers with outputs [N,K,h,w], as ``gradcam`` needs them, in running order.

    ``image`` [3,H,W] is counted to find them; by default a grey one with sides of 64 pixels, or of
    the smallest side that the counter accepts. Nested layers are listed too. A listed layer need
    not reach the count. TypeError, ValueError as for :func:`gradcam`.
    """
    return [run.name for run in _runs(counter, image)]


def default_layers(counter: Counter, image: Tensor | None = None) -> tuple[str, str]:
    """Choose two layers for pictures, an earlier and a later one, by the structure of the counter.

    With a front and a back end (parts named ``frontend`` and ``backend``, as in CSRNet), they are
    the last activation of each; else the last two activations before the head, which is the last
    convolution that runs; else (activations that are functions instead of modules, as in a CLIP
    ResNet) the last part before the head that returns a map and the last part that it is computed
    from, outside of it if possible. ValueError if the counter does not have two.

    >>> from pycc import models
    >>> default_layers(models.load("mcnn-synthetic"))
    ('net.branch3.4', 'net.branch3')
    """
    before = _before_head(_runs(counter, image))
    active = [run.name for run in before if isinstance(run.module, _ACTIVATIONS)]
    front, back = (
        [name for name in active if part in name.split(".")] for part in ("frontend", "backend")
    )
    if front and back:
        return front[-1], back[-1]
    return (active[-2], active[-1]) if len(active) > 1 else _last_parts(counter, image)


def _last_parts(counter: Counter, image: Tensor | None) -> tuple[str, str]:
    """The last part before the head, and the last part that it is computed from."""
    before = _before_head(_runs(counter, image, gradient=True))
    # If a block and its last layer return the same tensor, the block is listed.
    parts = [
        run
        for k, run in enumerate(before)
        if k + 1 == len(before) or before[k + 1].output is not run.output
    ]
    parts = [run for run in parts if run.output.requires_grad]
    if parts:
        last = parts.pop()
        total = last.output.sum()
        feeding = [run.name for run in parts if _depends(total, run.output)]
        outside = [name for name in feeding if not name.startswith(f"{last.name}.")]
        if feeding:
            return (outside or feeding)[-1], last.name
    raise ValueError(
        "default_layers: the counter must have two layers with maps before its head, "
        f"got {[run.name for run in before]}; name layers"
    )


def _before_head(runs: list[_Run]) -> list[_Run]:
    """The runs before the last convolution's."""
    heads = [k for k, run in enumerate(runs) if isinstance(run.module, nn.Conv2d)]
    return runs[: heads[-1]] if heads else runs


def _depends(total: Tensor, output: Tensor) -> bool:
    (gradient,) = torch.autograd.grad(total, output, retain_graph=True, allow_unused=True)
    return gradient is not None


@dataclass
class _Run:
    name: str
    module: nn.Module
    output: Tensor


def _runs(counter: Counter, image: Tensor | None, *, gradient: bool = False) -> list[_Run]:
    """The parts that return [N,K,h,w], in the order in which they last finish."""
    module = _module("layers", counter)
    if image is None:
        side = max(_PROBE, minimum_side(counter))
        like = like_of(module)
        image = torch.full((3, side, side), 0.5, dtype=like.dtype, device=like.device)
    check_image("layers", image)
    runs: dict[str, _Run] = {}
    handles = []
    for name, part in module.named_modules():
        if name:

            def note(part: nn.Module, _: Any, output: Any, name: str = name) -> None:
                runs.pop(name, None)
                if isinstance(output, Tensor) and output.ndim == 4:
                    runs[name] = _Run(name, part, output)

            handles.append(part.register_forward_hook(note))
    with (
        removing(handles),
        frozen(counter),
        torch.inference_mode(False),
        torch.set_grad_enabled(gradient),
    ):
        # A product is not a leaf, so layers may change it in place.
        counter(image.detach().clone().requires_grad_(gradient)[None] * 1)
    return list(runs.values())


def _module(op: str, counter: Counter) -> nn.Module:
    if not isinstance(counter, nn.Module):
        raise TypeError(
            f"{op}: counter must be a module with named layers, got {type(counter).__name__}"
        )
    return counter


def _nearest(layer: str, named: dict[str, nn.Module]) -> str:
    names = list(named)
    near = get_close_matches(layer, names, n=5, cutoff=0.3) or names[-5:]
    return f"got {layer!r}; nearest: {', '.join(near)}"


def _counter_around(module: nn.Module, layer: str) -> nn.Module | None:
    """The innermost counter that contains the layer: the module that images are passed to."""
    innermost: nn.Module | None = None
    for name, part in module.named_modules():
        inside = name == "" or layer.startswith(name + ".")
        counts: object = part  # mypy would narrow the module itself to a protocol
        if inside and isinstance(counts, Counter):
            innermost = part  # parents come before their children
    return innermost


def _begin(watch: _Watch, layer: str, size: torch.Size) -> Any:
    def begin(_: nn.Module, arguments: tuple[Any, ...]) -> None:
        if not torch.is_grad_enabled():
            return
        shown = arguments[0].shape[2:] if arguments and isinstance(arguments[0], Tensor) else size
        if shown != size:
            raise ValueError(
                f"gradcam: layer must see the whole image of {size[0]}x{size[1]} pixels, "
                f"{layer!r} is shown {shown[0]}x{shown[1]}; take the counter inside the defense"
            )
        watch.passes.append(_Pass())

    return begin


def _note(watch: _Watch, layer: str) -> Any:
    def note(_: nn.Module, __: Any, output: Any) -> Tensor | None:
        if not torch.is_grad_enabled():
            watch.without_gradient = True
            return None
        if not isinstance(output, Tensor) or output.ndim != 4:
            got = list(output.shape) if isinstance(output, Tensor) else type(output).__name__
            raise ValueError(f"gradcam: layer must return [N,K,h,w], {layer!r} returned {got}")
        # Without trainable parameters before it, the graph begins here.
        kept = output if output.requires_grad else output.detach().requires_grad_(True)
        if not watch.passes:
            watch.passes.append(_Pass())
        watch.passes[-1] = _Pass(kept, kept.detach().clone())
        # Later layers get a copy, so that an in-place activation leaves ``kept`` in the graph.
        return kept.clone()

    return note


def _weighted(values: Tensor, gradient: Tensor) -> Tensor:
    """Σ_k α_k A_k [h,w] in float64, added over the rows of a batch."""
    weights = gradient.double().mean((2, 3), keepdim=True)
    return (weights * values.double()).sum((0, 1))
