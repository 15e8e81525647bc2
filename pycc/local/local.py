"""A counter's map as a function of the pixels in one box of its image."""

from __future__ import annotations

import operator
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn

from pycc.checks import lacks_memory, one_line, unchecked
from pycc.local import layers, neighbourhoods  # noqa: F401  (register their rules)
from pycc.local.box import Box
from pycc.local.program import Field, Program, UnchangedError, UnsupportedError, embedding
from pycc.local.rules import RULES
from pycc.local.whole import WholeLayer
from pycc.types import Counter


class TracedGraph:
    """The graph of a counter's layers, traced on a window and kept per shape, dtype and device.

    A counter that is not an ``nn.Module``, that cannot be traced, that draws random numbers, or
    whose trace gives other values or gradients, is treated as a black box: its graph is None, and
    ``obstacle`` says why. Pass one object to several ``Local`` to trace the counter once.

    Example:
        >>> import torch
        >>> from pycc.local import TracedGraph
        >>> graph = TracedGraph(torch.nn.Conv2d(3, 1, 3, padding=1)).of(torch.rand(1, 3, 8, 8))
        >>> [node.op for node in graph.graph.nodes if node.op == "call_function"]
        ['call_function']
    """

    def __init__(self, counter: Counter) -> None:
        self.counter = counter
        self._known: dict[Any, fx.GraphModule | None] = {}
        self._black_box = not isinstance(counter, nn.Module)
        self._proved = False
        self.obstacle: str | None = None
        """Why the layers of a module cannot be followed; None as long as they can."""
        self._reported = False

    def of(self, windows: Tensor) -> fx.GraphModule | None:
        """Return the graph for windows [N,3,h,w] of this shape and type; None for a black box."""
        if self._black_box:
            return None
        key = tuple(windows.shape[1:]), windows.dtype, windows.device
        if key not in self._known:
            try:
                graph = _watched(self.counter, windows[:1].clone())
                if not self._proved:
                    self._prove(graph, windows[:1])
                self._known[key] = graph
            except UnsupportedError as error:
                self.obstacle = str(error)
                self._known[key] = None
        return self._known[key]

    def _prove(self, graph: fx.GraphModule, window: Tensor) -> None:
        """UnsupportedError, for all windows, unless the graph is the counter."""
        self._proved = _same(graph, self.counter, window)
        self._black_box = not self._proved
        if self._black_box:
            raise UnsupportedError("what it computes cannot be traced")

    def report(self) -> None:
        """Warn, once, that the layers cannot be followed and why; nothing for other black boxes."""
        if self.obstacle is not None and not self._reported:
            self._reported = True
            name = getattr(self.counter, "name", type(self.counter).__name__)
            warnings.warn(
                f"{name}: layers cannot be followed ({self.obstacle}): each step counts a whole "
                "window, with the same results and more work",
                stacklevel=3,
            )


def _watched(counter: Counter, window: Tensor) -> fx.GraphModule:
    """Trace the counter on a window [1,3,h,w]; UnsupportedError if it is random."""
    from torch.func import functionalize
    from torch.fx.experimental.proxy_tensor import make_fx  # takes a second to import

    with torch.no_grad(), unchecked():  # traced tensors have no values to check
        try:
            graph: fx.GraphModule = make_fx(functionalize(counter))(window)
        except Exception as error:  # whatever prevents tracing, the counter itself still works
            if lacks_memory(error):
                raise
            raise UnsupportedError(f"tracing: {one_line(error)}") from None
    graph.graph.eliminate_dead_code()
    for node in graph.graph.nodes:
        if _is_random(node):
            raise UnsupportedError(f"{node.target} is random")
    return graph


def _is_random(node: fx.Node) -> bool:
    """Whether a node draws random numbers; attention without dropout does not."""
    if torch.Tag.nondeterministic_seeded not in getattr(node.target, "tags", ()):
        return False
    schema: Any = getattr(node.target, "_schema", None)
    for position, argument in enumerate(schema.arguments if schema else ()):
        if argument.name == "dropout_p":
            given = node.args[position : position + 1] or (node.kwargs.get("dropout_p"),)
            return bool((argument.default_value if given[0] is None else given[0]) != 0.0)
    return True


def _same(graph: fx.GraphModule, counter: Counter, window: Tensor) -> bool:
    """Whether the graph gives the counter's values and gradients on another image.

    It does not if something is invisible to tracing: values that pass through NumPy, the gradient
    of a ``torch.autograd.Function``, parts that run without gradient.
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
            except Exception as error:  # whatever fails, the counter itself is then evaluated
                if lacks_memory(error):
                    raise
                return False
            sides.append((cells.detach(), slope))
    bound = 1e3 * torch.finfo(window.dtype).eps
    return all(
        got.shape == wanted.shape and bool((got - wanted).abs().max() <= bound * wanted.abs().max())
        for got, wanted in zip(*sides, strict=True)
    )


class Local:
    """A counter's map in the cells that a box of pixels can change, with all other pixels fixed.

    ``windows`` [N,3,h,w] are images, or windows of images that ``influence`` computed for ``box``;
    then the map changes as that of the full image does. ``box`` lies inside the windows, at the
    same place in each.

    Each layer of the network is computed only where the change has spread to, from the stored clean
    values around it. A layer without a rule in ``pycc.local.layers``, such as a mean over the
    image, is computed whole, and so is what depends on it. A counter that is not a module, or that
    cannot be traced, is evaluated on the full window. The result then has all cells. Cells
    at the border of a cut window, whose field the window does not contain, then have values that
    differ from the full image's, but these do not change. A counter may provide a faster method
    ``around(windows, box)``, which returns the function of the changed pixels and the cells that it
    computes, or None. Values agree with those of the full image up to the rounding of sums. The
    counter must be in eval mode and must not be modified.

    Raises:
        ValueError: a box that is empty or not inside the windows.

    Example:
        >>> import torch
        >>> from pycc.local import Box, Local
        >>> counter = torch.nn.Conv2d(3, 1, 3, padding=1).eval()
        >>> image = torch.rand(1, 3, 32, 32)
        >>> local = Local(counter, image, Box(8, 8, 12, 12))
        >>> changed = image.clone()
        >>> changed[:, :, 8:12, 8:12] = 0.5
        >>> with torch.no_grad():
        ...     part, full = local(changed[:, :, 8:12, 8:12]), counter(changed)
        >>> local.cells, torch.allclose(part, full[:, :, 7:13, 7:13], atol=1e-6)
        (Box(top=7, left=7, bottom=13, right=13), True)
    """

    cells: Box
    """The cells of the window's map that the result contains."""
    clean: Tensor
    """[N,1,*cells.shape], people per cell: the map of the clean windows there."""
    whole_layers: int | None
    """The number of layers that are computed whole; None if the counter is, on the full window."""

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
        offered: Callable[..., tuple[Any, Box] | None] | None = getattr(counter, "around", None)
        built: _Built | None = None
        with torch.no_grad():
            around = None if offered is None else offered(windows, box)
            if around is not None:
                built = *around, 0
            traced = traced or TracedGraph(counter)
            graph = None if built is not None else traced.of(windows)
            if graph is not None:
                try:
                    built = _build(graph, windows, box)
                except UnchangedError:
                    pass  # all of the change is cut off
                except UnsupportedError as error:
                    traced.obstacle = str(error)
            if built is None:
                traced.report()
                built = _full(counter, windows, box)
            self._compute, self.cells, self.whole_layers = built
            self.clean = self._compute(windows[..., *box.slices])

    @property
    def follows_layers(self) -> bool:
        """Whether only the changed part of each layer is computed."""
        return self.whole_layers == 0

    def __call__(self, pixels: Tensor) -> Tensor:
        """Compute the map [N·draws,1,*cells.shape] for pixels [N·draws,3,*box.shape] in the box.

        Rows n·draws … n·draws + draws − 1 belong to window n. Differentiable in the pixels.

        Raises:
            ValueError: pixels of another shape.
        """
        wanted = (3, *self.box.shape)
        if pixels.shape[1:] != wanted or not len(pixels) or len(pixels) % self._rows:
            raise ValueError(
                f"Local: pixels must be [{self._rows}*draws, 3, {wanted[1]}, {wanted[2]}], "
                f"got {list(pixels.shape)}"
            )
        return self._compute(pixels)


_Built = tuple[Callable[[Tensor], Tensor], Box, int | None]
"""The function of the changed pixels, the cells that it computes, and ``whole_layers``."""


def _build(graph: fx.GraphModule, windows: Tensor, box: Box) -> _Built:
    """Build the function for changes inside ``box``."""
    program = Program()
    known: dict[fx.Node, Any] = {}
    uses = {node: len(node.users) for node in graph.graph.nodes}
    result: Any = None
    whole = 0
    for node in graph.graph.nodes:
        if node.op == "placeholder":
            known[node] = program.start(windows, box)
        elif node.op == "get_attr":
            known[node] = operator.attrgetter(node.target)(graph)
        elif node.op == "output":
            (result,) = fx.node.map_arg(node.args, known.__getitem__)
        else:
            known[node], by_rule = _step(program, node, known)
            whole += not by_rule
            for value in node.all_input_nodes:  # free clean values after their last use
                uses[value] -= 1
                if not uses[value]:
                    del known[value]
    if isinstance(result, Field) and result.unchanged:
        raise UnchangedError("the change does not reach the map")
    if not isinstance(result, Field) or not result.grid or result.clean.ndim != 4:
        raise UnsupportedError("the map does not depend on the image")
    return program.to(result), result.box, whole


def _step(program: Program, node: fx.Node, known: dict[fx.Node, Any]) -> tuple[Any, bool]:
    """Apply a layer to its inputs: fields, or tensors if it depends on no image.

    Return the result, and False if the layer is computed whole.
    """
    args: Any = fx.node.map_arg(node.args, known.__getitem__)
    kwargs: Any = fx.node.map_arg(node.kwargs, known.__getitem__)
    target: Any = node.target
    fields = [known[value] for value in node.all_input_nodes if isinstance(known[value], Field)]
    changing = [field for field in fields if not field.unchanged]
    if not fields:  # of constants, or one of a layer's several results
        result = target(*args, **kwargs)
        if target is operator.getitem and result is None:
            raise UnsupportedError("a result that the layer's rule does not give")
        return result, True
    if not changing:
        return WholeLayer(target, args, kwargs).unchanged(), True

    def as_changing(value: Any) -> Any:
        if not isinstance(value, Field) or not value.unchanged:
            return value
        same = value.grid and changing[0].grid and value.shape == changing[0].shape
        return program.still(value, changing[0].box if same else Box(0, 0, 1, 1))

    args, kwargs = fx.node.map_aggregate((args, kwargs), as_changing)
    rule = RULES.get(getattr(target, "overloadpacket", target))
    if rule is not None and all(field.grid for field in changing):
        try:
            return rule(program, target, *args, **kwargs), True
        except UnchangedError:
            return WholeLayer(target, args, kwargs).unchanged(), True
        except (UnsupportedError, TypeError):  # options or a signature that the rule does not know
            pass
    if not program.steps:
        raise UnsupportedError(f"its first layer, {target}, has no rule")
    return WholeLayer(target, args, kwargs).add_to(program), False


def _full(counter: Counter, windows: Tensor, box: Box) -> _Built:
    """Return a function that evaluates the counter on the full window, and all its cells."""
    part = embedding(Field(windows, box, 0), Box(0, 0, windows.shape[-2], windows.shape[-1]))

    def compute(pixels: Tensor) -> Tensor:
        return counter(part(pixels))

    height, width = counter(windows[:1]).shape[-2:]
    return compute, Box(0, 0, height, width), None
