"""Exchange formats: write counters as ONNX; use ONNX and TorchScript files as counters."""

from __future__ import annotations

import logging
import os
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pycc import ops
from pycc.checks import lacks_memory, one_line
from pycc.counters import like_of
from pycc.models.base import CounterModel
from pycc.models.convention import Convention, Kind, convention
from pycc.models.foreign import content_of, third_party
from pycc.models.probe import probe_image
from pycc.runs import write_atomic

_TOLERANCE = 1e-4
"""Largest difference of onnxruntime's map, relative to the map's maximum."""
_NEEDS = "needs onnx, onnxscript and onnxruntime: pip install 'pycc[onnx]'"


class _Onnx(nn.Module):
    """A network that onnxruntime evaluates: on the CPU, without gradients."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        try:
            import onnxruntime
        except ImportError:
            raise ValueError(f"weights: running {path} {_NEEDS}") from None
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.log_severity_level = 4
        with third_party(path, "cannot be read"):
            self.session: Any = onnxruntime.InferenceSession(
                str(path), options, providers=["CPUExecutionProvider"]
            )
        inputs = self.session.get_inputs()
        if len(inputs) != 1 or inputs[0].type != "tensor(float)" or len(inputs[0].shape) != 4:
            got = ", ".join(f"{i.name} {i.type} {i.shape}" for i in inputs)
            raise ValueError(f"weights: {path} must have one float input [N,C,H,W], got {got}")
        self.path, self.input = path, inputs[0].name
        sides = tuple(inputs[0].shape[2:])
        self.sides = sides if all(isinstance(side, int) for side in sides) else None
        """Height and width that the network requires, None if it accepts any."""

    def forward(self, x: Tensor) -> Tensor:
        # The runtime documents no common type of its exceptions.
        try:
            (output, *_) = self.session.run(None, {self.input: x.detach().cpu().float().numpy()})
        except Exception as error:
            if lacks_memory(error):
                raise
            raise ValueError(f"{self.path}: {one_line(error)}") from None
        return torch.from_numpy(output).to(x)


class _Script(nn.Module):
    """A TorchScript network, used without gradients."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path
        with third_party(path, "cannot be read"):
            script: Any = torch.jit.load(path, map_location="cpu")  # type: ignore[no-untyped-call]
            self.script = script.eval()

    def forward(self, x: Tensor) -> object:
        with torch.no_grad():
            try:
                return self.script(x)
            except RuntimeError as error:
                if lacks_memory(error):
                    raise
                # The last line names the problem; the lines before are places in its code.
                reason = str(error).strip().splitlines()[-1]
                raise ValueError(f"{self.path}: {reason[:160]}") from None


class BlackBox(CounterModel):
    """A network in an exchange format as a counter without gradients; made by ``black_box``."""

    name = "black_box"

    def run(self, x: Tensor) -> object:
        """Compute the network's map; of several outputs the first."""
        output = self.net(x)
        return output[0] if isinstance(output, list | tuple) else output


def black_box(
    path: str | os.PathLike[str],
    *,
    stride: int,
    input: Kind | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    scale: float = 1.0,
    receptive_field: int | None = None,
) -> CounterModel:
    """Load a network from an ONNX (.onnx) or TorchScript file as a counter without gradients.

    ``path`` is the file. Attacks that need only counts (``query``, patches transferred from other
    counters) work on it.
    ``stride`` is pixels per cell of its map [N,1,h,w] or [N,h,w]. ``input``, ``mean`` and ``std``
    are its input convention (by default RGB in [0,1]). ``scale`` and ``receptive_field`` are as in
    ``wrap``. ONNX needs onnxruntime (``pycc[onnx]``) and runs on the CPU.

    A TorchScript file is a program: loading and calling it runs its author's code.

    FileNotFoundError or ValueError, in one line that names the file, for a missing or damaged file,
    a missing library, and inputs that are not images.

    >>> import tempfile
    >>> from pycc import models
    >>> net = models.wrap(nn.Conv2d(3, 1, 4, stride=4), stride=4)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     difference = export_onnx(net, f"{folder}/net.onnx", shape=(16, 24))
    ...     counter = black_box(f"{folder}/net.onnx", stride=4)
    >>> list(counter(torch.rand(1, 3, 16, 24)).shape)
    [1, 1, 4, 6]
    """
    file = network_file(path)
    net: nn.Module = _Onnx(file) if file.suffix.lower() == ".onnx" else _Script(file)
    return BlackBox(
        net,
        stride=stride,
        receptive_field=receptive_field,
        scale=scale,
        convention=convention("black_box", input, _default(input), mean=mean, std=std),
    ).eval()


def network_file(path: str | os.PathLike[str]) -> Path:
    """Return the file of a network, as ``black_box`` accepts it.

    FileNotFoundError if it does not exist, ValueError if it is something else.
    """
    file = Path(path)
    if not file.is_file():
        raise FileNotFoundError(f"weights: no such file: {file}")
    content = content_of(file)
    if content is not None and (content.format != "torch" or file.suffix.lower() == ".onnx"):
        raise ValueError(f"weights: {file} cannot be read: it is {content.words}: {content.remedy}")
    return file


def _default(input: object) -> Convention:
    grey = isinstance(input, str) and input.startswith("gray")
    return Convention("gray255" if grey else "rgb_unit")


class _Counting(nn.Module):
    """A counter as one graph: images [N,3,H,W], RGB in [0,1], to density [N,1,h,w]."""

    def __init__(self, counter: CounterModel) -> None:
        super().__init__()
        self.counter = counter

    def forward(self, images: Tensor) -> Tensor:
        density: Tensor = self.counter(images)
        return density


def export_onnx(
    counter: CounterModel, path: str | os.PathLike[str], *, shape: tuple[int, int] = (768, 1024)
) -> float:
    """Write a counter as ONNX, for images [N,3,H,W] of one ``shape``; check it with onnxruntime.

    The graph maps RGB in [0,1] to people per cell, so that ``black_box(path,
    stride=counter.stride)`` counts as the counter does. Returns the largest difference of the two
    maps of one image, relative to their maximum.

    ValueError, and no file, for a counter that is not a torch network (a black box), if a library
    is missing, if ``shape`` is too small for the counter, or if the difference is above 1e-4;
    OSError if the file cannot be written.

    >>> import tempfile
    >>> from pycc import models
    >>> counter = models.wrap(nn.Conv2d(3, 1, 4, stride=4), stride=4)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     difference = export_onnx(counter, f"{folder}/counter.onnx", shape=(64, 96))
    >>> difference < 1e-4
    True
    """
    target = Path(path)
    if target.suffix.lower() != ".onnx":
        raise ValueError(f"export: the file must end in .onnx, got {target}")
    try:
        import onnx
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError:
        raise ValueError(f"export: writing {target} {_NEEDS}") from None
    if isinstance(counter, BlackBox):
        raise ValueError("export: expected a torch network, got a black box")
    if min(shape) < counter.minimum_side:
        raise ValueError(
            f"export: images must be at least {counter.minimum_side}x{counter.minimum_side} "
            f"pixels, got {shape[0]}x{shape[1]}"
        )
    mode = counter.training
    like = like_of(counter)
    images = nn.functional.interpolate(probe_image(), shape, mode="bilinear").to(like)
    counter.eval()
    try:
        # The runtime lacks pycc's kernels; their twins consist of operators that it has.
        with torch.no_grad(), ops.reference(), _quiet():
            expected = counter(images)
            program = torch.onnx.export(
                _Counting(counter), (images,), dynamo=True, verbose=False,
                input_names=["images"], output_names=["density"],
                dynamic_shapes={"images": {0: torch.export.Dim("batch", min=1, max=1 << 16)}},
            )  # fmt: skip
        assert program is not None
        with tempfile.TemporaryDirectory() as folder:
            draft = Path(folder) / target.name
            onnx.save(program.model_proto, str(draft))
            exported = black_box(draft, stride=counter.stride)(images.float().cpu())
            difference = float((exported - expected.float().cpu()).abs().max())
            most = float(expected.abs().max())
            share = difference / most if most > 0 else difference
            if not share <= _TOLERANCE:
                raise ValueError(
                    f"export: {target}: onnxruntime's map differs by {share:.2g} of its maximum, "
                    f"expected at most {_TOLERANCE:g}; nothing is written"
                )
            write_atomic(target, draft.read_bytes())
    finally:
        counter.train(mode)
    return share


@contextmanager
def _quiet() -> Iterator[None]:
    """Suppress the exporter's messages about its internals and libraries that it does not need."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
