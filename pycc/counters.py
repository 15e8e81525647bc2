"""Questions about any counter: its device and type, its identity, its count of a sample.

Everything that other packages need to know of a counter besides its call is here, so that there is
one answer for modules, defended counters and plain callables.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from pycc.checks import check_image, check_whole, lacks_memory, naming
from pycc.grid import heads_in, in_region, window_field
from pycc.local.box import Box, influence
from pycc.random import Stream
from pycc.ranks import exact
from pycc.runs import fingerprint
from pycc.types import Counter, Sample, check_counter, each

__all__ = [
    "Count",
    "check_eval",
    "count",
    "count_of",
    "counts",
    "density_in_roi",
    "device_of",
    "frozen",
    "heads_of",
    "identity",
    "like_of",
    "tiled_density",
]


def like_of(counter: Counter | nn.Module) -> Tensor:
    """Return a tensor of the device and floating-point type that a counter's images should have.

    It is the first floating-point parameter or buffer of a module, or a float32 scalar on the CPU
    for a counter without any.

    >>> like_of(torch.nn.Conv2d(3, 1, 1).double()).dtype
    torch.float64
    """
    state = [*counter.parameters(), *counter.buffers()] if isinstance(counter, nn.Module) else []
    return next((tensor for tensor in state if tensor.is_floating_point()), torch.zeros(()))


def device_of(counter: Counter | nn.Module) -> torch.device:
    """Return the device that a counter's images should be on.

    >>> device_of(torch.nn.Conv2d(3, 1, 1))
    device(type='cpu')
    """
    return like_of(counter).device


def check_eval(op: str, counter: Counter) -> None:
    """Raise ValueError if a part of a counter is in train mode: counts then depend on batches.

    >>> check_eval("masked", torch.nn.Dropout())
    Traceback (most recent call last):
    ...
    ValueError: masked: counter must be in eval mode, got one in train mode
    """
    if isinstance(counter, nn.Module) and any(part.training for part in counter.modules()):
        raise ValueError(f"{op}: counter must be in eval mode, got one in train mode")


@contextmanager
def frozen(counter: Counter) -> Iterator[None]:
    """Keep a counter in eval mode without parameter gradients; restore both afterwards.

    A counter that is not a module is left unchanged.

    >>> layer = torch.nn.Dropout()
    >>> with frozen(layer):
    ...     layer.training
    False
    >>> layer.training
    True
    """
    if not isinstance(counter, nn.Module):
        yield
        return
    modes = [(module, module.training) for module in counter.modules()]
    wanted = [(parameter, parameter.requires_grad) for parameter in counter.parameters()]
    try:
        counter.eval()
        for module, _ in modes:  # one by one too: ``train`` of a module may be overridden
            module.training = False
        counter.requires_grad_(False)
        yield
    finally:
        for module, mode in modes:
            module.training = mode
        for parameter, want in wanted:
            parameter.requires_grad_(want)


def identity(counter: Counter) -> str:
    """Return a SHA-256 of a counter: its class, geometry, options, weights, count of a fixed image.

    Options are what the method ``options`` of the counter, and of counters inside it, returns. The
    count, to four digits, covers what nothing else states, such as a function in a closure.

    >>> from pycc import models
    >>> counter = models.load("mcnn-synthetic")
    >>> identity(counter) == identity(models.load("mcnn-synthetic"))
    True
    >>> identity(counter) == identity(models.create("mcnn"))
    False
    """
    kind = f"{type(counter).__module__}.{type(counter).__qualname__}"
    facts: list[tuple[str, Tensor | str]] = [
        ("kind", kind),
        ("geometry", f"{counter.stride} {counter.receptive_field}"),
    ]
    if isinstance(counter, nn.Module):
        facts += [(f"options {name}", text) for name, text in _options(counter)]
        facts += [(name, value) for name, value in counter.state_dict().items()]
    facts.append(("says", _fixed_count(counter)))
    return fingerprint(facts)


def _options(counter: nn.Module) -> Iterator[tuple[str, str]]:
    """The options of a counter and of all counters inside it, as text, by the name of the part."""
    for name, part in counter.named_modules():
        stated = getattr(part, "options", None)
        if isinstance(part, Counter) and callable(stated):
            yield name, repr(sorted(stated().items()))


def _fixed_count(counter: Counter) -> str:
    image = torch.from_numpy(Stream(0, "identity").uniform(size=(1, 3, 64, 64)))
    with frozen(counter), exact(), torch.no_grad():
        try:
            return f"{float(counter(image.to(like_of(counter))).double().sum()):.3e}"
        except (ValueError, RuntimeError) as error:  # the counter does not take this size
            if lacks_memory(error):
                raise
            return "nothing"


@exact()
@torch.no_grad()
def density_in_roi(counter: Counter, sample: Sample) -> Tensor:
    """Compute the density map [1,h,w] of a sample, zero outside its region of interest.

    A cell that the region's border cuts keeps the share of it that lies inside (``pycc.grid``).
    Errors name the image.

    >>> from pycc import data, models
    >>> sample = data.open("synthetic", split="test", shape=(96, 128), heads=20)[0]
    >>> list(density_in_roi(models.load("mcnn-synthetic"), sample).shape)
    [1, 24, 32]
    """
    with naming(sample.name, sample.image.shape):
        density = counter(sample.image[None].to(like_of(counter)))
    return in_region(density, sample.roi, counter.stride)[:, 0]


def count_of(counter: Counter, sample: Sample) -> float:
    """Count the people inside a sample's region of interest with a counter in eval mode.

    >>> from pycc import data, models
    >>> sample = data.open("synthetic", split="test", shape=(96, 128), heads=20)[0]
    >>> round(count_of(models.load("mcnn-synthetic"), sample))
    22
    """
    return float(density_in_roi(counter, sample).double().sum())


def heads_of(counter: Counter, sample: Sample) -> Tensor | None:
    """Locate the heads in a sample's region of interest with a counter that counts points.

    Returns:
        [M,2] (x, y) in pixels on the CPU, by the counter's ``heads``; None for a counter of maps.

    >>> from pycc import data, models
    >>> sample = data.open("synthetic", split="test", shape=(96, 128), heads=20)[0]
    >>> heads_of(models.load("mcnn-synthetic"), sample) is None
    True
    """
    locate: Callable[[Tensor], list[Tensor]] | None = getattr(counter, "heads", None)
    if locate is None:
        return None
    with frozen(counter), exact(), naming(sample.name, sample.image.shape):
        (heads,) = locate(sample.image[None].to(like_of(counter)))
    heads = heads.detach().cpu()
    return heads if sample.roi is None else heads[heads_in(heads, sample.roi)]


@dataclass(frozen=True, eq=False)
class Count:
    """The count of one image.

    >>> counted = Count("street", 2.0, 3, torch.full((4, 6), 2 / 24), seconds=0.1)
    >>> counted.count - counted.truth
    -1.0
    """

    name: str
    """The sample's name, or ``image N`` for a tensor, from 0 on."""
    count: float
    """People inside the region of interest."""
    truth: int | None
    """Annotated heads; None without annotation."""
    density: Tensor
    """[h,w] float32 on the CPU, people per cell; 0 outside the region of interest."""
    seconds: float
    """Time that the counter took."""


def count(
    counter: Counter,
    images: Tensor | Iterable[Tensor | Sample],
    *,
    max_pixels: int | None = None,
) -> list[Count]:
    """Count people in images, one image at a time.

    Args:
        counter: a module is put into eval mode meanwhile.
        images: a tensor [N,3,H,W] or [3,H,W], RGB in [0,1]; or a list or another iterable of
            tensors [3,H,W] of any sizes, or of samples, such as a data set.
        max_pixels: the most pixels that the counter is given at once. A larger image is counted in
            overlapping tiles, which give the map of the whole image (``tiled_density``).

    Raises:
        TypeError: an object that is not an image or not a counter.
        ValueError: an image of another shape or outside [0,1]; a map that is not finite;
            with ``max_pixels``, a counter without a bounded receptive field for a larger image, or
            tiles that are too small.

    >>> from pycc import data, models
    >>> scene = data.open("synthetic", split="test")[0]
    >>> counted = count(models.load("mcnn-synthetic"), [scene])[0]
    >>> counted.name, counted.truth, tuple(counted.density.shape)
    ('test-0-0', 45, (120, 160))
    >>> [c.name for c in count(models.load("mcnn-synthetic"), [scene.image, scene.image[:, :64]])]
    ['image 0', 'image 1']
    """
    return list(counts(counter, images, max_pixels=max_pixels))


def counts(
    counter: Counter,
    images: Tensor | Iterable[Tensor | Sample],
    *,
    max_pixels: int | None = None,
) -> Iterator[Count]:
    """Yield the results of ``count``, each as soon as it is known.

    Arguments and errors are those of ``count``; an error comes with the image that it is about.

    >>> from pycc import models
    >>> results = counts(models.load("mcnn-synthetic"), torch.rand(2, 3, 64, 96))
    >>> next(results).name
    'image 0'
    """
    check_counter("count", counter)
    if max_pixels is not None:
        check_whole("count", "max_pixels", max_pixels, 1)
    for sample in _samples(images):
        named = naming(sample.name, sample.image.shape)
        with frozen(counter), exact(), torch.no_grad(), named:
            check_image("count", sample.image)
            began = time.perf_counter()
            image = sample.image[None].to(like_of(counter))
            density = tiled_density(counter, image, max_pixels)
            inside = in_region(density, sample.roi, counter.stride)[0, 0]
            people = float(inside.double().sum())
            seconds = time.perf_counter() - began
            if not math.isfinite(people):
                raise ValueError(f"count: the counter's map must be finite, its sum is {people}")
        truth = sample.count if sample.annotated else None
        yield Count(sample.name, people, truth, inside.float().cpu(), seconds)


def _samples(images: Tensor | Iterable[Tensor | Sample]) -> Iterator[Sample]:
    expected = "a tensor [N,3,H,W] or [3,H,W], or a list of tensors [3,H,W] or of samples"
    sized = hasattr(images, "__len__") and hasattr(images, "__getitem__")  # as data sets of torch
    if isinstance(images, Tensor):
        if images.ndim not in (3, 4):
            raise ValueError(f"count: images must be {expected}, got {list(images.shape)}")
        images = images[None] if images.ndim == 3 else images
    elif isinstance(images, str | bytes | Mapping) or not (sized or isinstance(images, Iterable)):
        raise TypeError(
            f"count: images must be {expected}, got {type(images).__name__}; pycc.data.open reads "
            "a folder of images"
        )
    items = each(cast("Sequence[Tensor | Sample]", images)) if sized else images
    for number, image in enumerate(items):
        if not isinstance(image, Tensor | Sample):
            raise TypeError(
                f"count: images must be {expected}, got {type(image).__name__} at index {number}"
            )
        if isinstance(image, Tensor):
            yield Sample(f"image {number}", image, None)
        else:
            yield image


def tiled_density(counter: Counter, image: Tensor, max_pixels: int | None = None) -> Tensor:
    """Compute the density map [1,1,h,w] of an image [1,3,H,W], in tiles if it is larger.

    It is larger if it has more than ``max_pixels`` pixels (None: no limit). Every tile shows its
    cells their whole receptive field, and padding only at the image's own border, so the map is
    that of the whole image but for rounding. ValueError for a larger image and a counter that does
    not count windows as parts of images (``pycc.grid.window_field``), and for ``max_pixels`` that
    hold no tile.

    >>> layer = torch.nn.Conv2d(3, 1, 3, padding=1)
    >>> layer.stride, layer.receptive_field = 1, 3
    >>> image = torch.rand(1, 3, 40, 50)
    >>> with torch.no_grad():
    ...     torch.allclose(tiled_density(layer, image, 300), layer(image), atol=1e-6)
    True
    """
    height, width = image.shape[2:]
    if max_pixels is None or height * width <= max_pixels:
        return counter(image)
    field, stride = window_field(counter), counter.stride
    if field is None:
        raise ValueError(
            f"count: {height}x{width} pixels are more than the {max_pixels:,} allowed at once, and "
            f"{_why_whole(counter)} cannot count in tiles; allow more memory, "
            "or count smaller images (pycc data convert --max-side N)"
        )
    side = _tile_side((height, width), stride, field, max_pixels)
    rows = []
    for top in range(0, height, side):
        row = []
        for left in range(0, width, side):
            tile = Box(top, left, min(top + side, height), min(left + side, width))
            window = influence(tile, (height, width), stride=stride, receptive_field=field)
            cells = counter(image[..., *window.slices])
            first = (top - window.top) // stride, (left - window.left) // stride
            # Networks differ in whether a last, incomplete cell is kept: the last tile keeps it.
            last = tuple(
                None if stop == end else start + side // stride
                for stop, end, start in zip(
                    (tile.bottom, tile.right), (height, width), first, strict=True
                )
            )
            row.append(cells[..., first[0] : last[0], first[1] : last[1]])
        rows.append(torch.cat(row, -1))
    return torch.cat(rows, -2)


def _why_whole(counter: Counter) -> str:
    """Name the kind of counter that no window of an image can be counted with."""
    if counter.receptive_field is None:
        return "a counter without a bounded receptive field"
    return "a counter whose network enlarges a grid coarser than its cells"


def _tile_side(shape: tuple[int, int], stride: int, field: int, max_pixels: int) -> int:
    """The side of the largest square tile, a multiple of the stride, whose window is allowed."""
    least = _window_pixels(shape, stride, stride, field)
    if least > max_pixels:
        raise ValueError(
            f"count: a tile of one cell needs {least:,} pixels with its receptive field, got "
            f"{max_pixels:,} allowed at once; allow more memory"
        )
    low, high = 1, -(-max(shape) // stride)
    while low < high:
        middle = (low + high + 1) // 2
        fits = _window_pixels(shape, middle * stride, stride, field) <= max_pixels
        low, high = (middle, high) if fits else (low, middle - 1)
    return low * stride


def _window_pixels(shape: tuple[int, int], side: int, stride: int, field: int) -> int:
    """Pixels of the window of a tile in the middle of an image of ``shape``, the most it can be."""
    reach = side + 2 * (field - 1) + 2 * (stride - 1)
    return min(reach, shape[0]) * min(reach, shape[1])
