"""A counter's map as a function of what one box of its image holds."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn

from pycc.checks import unchecked
from pycc.local.box import Box
from pycc.local.layers import RULES
from pycc.local.program import Field, Program, UnsupportedError, embedding
from pycc.types import Counter


class TracedGraph:
    """The layers of a counter, found by watching it count; kept for each shape of window."""

    def __init__(self, counter: Counter) -> None:
        self.counter = counter
        self._known: dict[Any, fx.GraphModule | None] = {}
        self._black_box = not isinstance(counter, nn.Module)
        self._proved = False

    def of(self, windows: Tensor) -> fx.GraphModule | None:
        """The layers through which windows of this shape and type go; None for a black box."""
        if self._black_box:
            return None
        key = tuple(windows.shape[1:]), windows.dtype, windows.device
        if key not in self._known:
            graph = _watched(self.counter, windows[:1].clone())
            if graph is not None and not self._proved:
                self._proved = _same(graph, self.counter, windows[:1])
                self._black_box = not self._proved
            self._known[key] = graph if self._proved else None
        return self._known[key]


def _watched(counter: Counter, window: Tensor) -> fx.GraphModule | None:
    """What the counter does with a window, step by step; None if there is a step without rule."""
    from torch.func import functionalize
    from torch.fx.experimental.proxy_tensor import make_fx  # takes a second to import

    with torch.no_grad(), unchecked():  # tensors that are recorded have no values
        try:
            graph: fx.GraphModule = make_fx(functionalize(counter))(window)
        except Exception:  # whatever keeps a network from being watched, it still counts
            return None
    graph.graph.eliminate_dead_code()
    changing: set[fx.Node] = set()
    for node in graph.graph.nodes:
        if node.op == "placeholder" or not changing.isdisjoint(node.all_input_nodes):
            changing.add(node)
            if node.op == "call_function" and _operator(node.target) not in RULES:
                return None
        elif torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ()):
            return None
    return graph


def _same(graph: fx.GraphModule, counter: Counter, window: Tensor) -> bool:
    """Whether the graph has the counter's values and gradients on another image.

    It has not where something takes place behind torch's back: numbers that go through NumPy, the
    gradient of a ``torch.autograd.Function``, parts that compute without gradient.
    """
    sides = []
    with torch.inference_mode(False), torch.enable_grad():
        for network in (counter, graph):
            image = (1 - window).detach().requires_grad_()
            try:
                cells: Tensor = network(image)
                slope = torch.zeros_like(image)
                if cells.requires_grad:
                    weights = torch.linspace(0.5, 1.5, cells.numel()).to(cells).view_as(cells)
                    (slope,) = torch.autograd.grad(cells, image, weights)
            except Exception:  # whatever it is, the counter is then asked itself
                return False
            sides.append((cells.detach(), slope))
    bound = 1e3 * torch.finfo(window.dtype).eps
    return all(
        got.shape == wanted.shape and bool((got - wanted).abs().max() <= bound * wanted.abs().max())
        for got, wanted in zip(*sides, strict=True)
    )


class Local:
    """A counter's map in the cells that a box of pixels can change, everything else fixed.

    ``windows`` [N,3,h,w] are images, or windows of images that ``influence`` cut for ``box``: then
    the result changes as that of the whole image does. ``box`` lies inside them, the same in each.

    Each layer of the network is computed only where the change has spread to, from the clean
    values around it, which are kept. Where that is not known (a layer without a rule, a counter
    that is no module) the counter is asked about the whole window, and the result has all of its
    cells, those too that a cut window does not show their whole field; these do not change. A
    counter that knows better how its map changes may say so: ``around(windows, box)`` returns the
    function of the changed pixels and the cells that it gives, or None. Values
    agree with those of the whole image up to the rounding of sums. The counter must be in eval mode
    and stay as it is.

    Raises ValueError for a box that is empty or sticks out of the windows.
    """

    cells: Box
    """The cells of the window's map that the result holds."""
    clean: Tensor
    """[N,1,*cells.shape], people per cell: what the clean windows give there."""
    follows_layers: bool
    """Whether only what changes is computed, rather than the whole window."""

    def __init__(
        self, counter: Counter, windows: Tensor, box: Box, *, traced: TracedGraph | None = None
    ) -> None:
        shape = (windows.shape[-2], windows.shape[-1])
        if box.empty or box.clipped(shape) != box:
            raise ValueError(
                f"Local: box must lie inside the {shape[0]}x{shape[1]} pixels, got {box}"
            )
        self.box = box
        self._rows = len(windows)
        offered: Callable[..., _Built | None] | None = getattr(counter, "around", None)
        built: _Built | None = None
        with torch.no_grad():
            if offered is not None:
                built = offered(windows, box)
            graph = None if built is not None else (traced or TracedGraph(counter)).of(windows)
            if graph is not None:
                try:
                    built = _build(graph, windows, box)
                except UnsupportedError:
                    built = None
            self.follows_layers = built is not None
            if built is None:
                built = _whole(counter, windows, box)
            self._compute, self.cells = built
            self.clean = self._compute(windows[..., *box.slices])

    def __call__(self, pixels: Tensor) -> Tensor:
        """The map [N·draws,1,*cells.shape] with pixels [N·draws,3,*box.shape] in the box.

        Rows n·draws … n·draws + draws − 1 belong to window n. Differentiable in the pixels.

        Raises ValueError for another shape.
        """
        wanted = (3, *self.box.shape)
        if pixels.shape[1:] != wanted or not len(pixels) or len(pixels) % self._rows:
            raise ValueError(
                f"Local: pixels must be [{self._rows}*draws, 3, {wanted[1]}, {wanted[2]}], "
                f"got {list(pixels.shape)}"
            )
        return self._compute(pixels)


_Built = tuple[Callable[[Tensor], Tensor], Box]
"""The function of changed pixels, and the cells that it gives."""


def _operator(target: Any) -> Any:
    return getattr(target, "overloadpacket", target)


def _build(
    graph: fx.GraphModule, windows: Tensor, box: Box
) -> tuple[Callable[[Tensor], Tensor], Box]:
    """The function for changes inside ``box``, and the cells that it computes."""
    program = Program()
    known: dict[fx.Node, Any] = {}
    uses = {node: len(node.users) for node in graph.graph.nodes}
    result: Any = None
    for node in graph.graph.nodes:
        if node.op == "placeholder":
            known[node] = program.start(windows, box)
        elif node.op == "get_attr":
            known[node] = operator.attrgetter(node.target)(graph)
        elif node.op == "output":
            (result,) = fx.node.map_arg(node.args, known.__getitem__)
        else:
            known[node] = _step(program, node, known)
            for value in node.all_input_nodes:  # clean values that nobody asks for again
                uses[value] -= 1
                if not uses[value]:
                    del known[value]
    if not isinstance(result, Field) or result.clean.ndim != 4:
        raise UnsupportedError("the map does not depend on the image")
    return program.to(result), result.box


def _step(program: Program, node: fx.Node, known: dict[fx.Node, Any]) -> Any:
    """What a layer makes of its inputs: fields or, where nothing changes, tensors."""
    args: Any = fx.node.map_arg(node.args, known.__getitem__)
    kwargs: Any = fx.node.map_arg(node.kwargs, known.__getitem__)
    target: Any = node.target
    if not any(isinstance(known[value], (Field, list)) for value in node.all_input_nodes):
        return target(*args, **kwargs)
    try:
        return RULES[_operator(target)](program, target, *args, **kwargs)
    except TypeError as error:  # a signature that the rule does not know
        raise UnsupportedError(f"{target}: {error}") from error


def _whole(counter: Counter, windows: Tensor, box: Box) -> tuple[Callable[[Tensor], Tensor], Box]:
    """The counter itself on the whole window, and all its cells."""
    part = embedding(Field(windows, box, 0), Box(0, 0, windows.shape[-2], windows.shape[-1]))

    def compute(pixels: Tensor) -> Tensor:
        return counter(part(pixels))

    height, width = counter(windows[:1]).shape[-2:]
    return compute, Box(0, 0, height, width)
