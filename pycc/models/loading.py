"""From a weights file to a counter: recognise, build, fit, check."""

from __future__ import annotations

import inspect
import os
import warnings
from collections.abc import Callable, Mapping
from typing import cast

import torch
from torch import Tensor

from pycc.models.base import MODELS, CounterModel
from pycc.models.exchange import BlackBox, black_box
from pycc.models.known import PROBE_TOLERANCE, passport_of
from pycc.models.options import known
from pycc.models.passport import TOLERANCE, check_passport
from pycc.models.probe import diagnose, probe_image
from pycc.models.weights import fit, locate, misfit, read_weights


def names() -> list[str]:
    """The known models, in alphabetical order of their files."""
    return MODELS.names()


def create(name: str, **options: object) -> CounterModel:
    """A freshly initialised counter, in train mode; the options are the model's own.

    Raises ValueError for an unknown model or option, naming the known ones.
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
    """A counter with trained weights, on the CPU, in eval mode.

    ``weights`` is a path or one of ``builtin()``. The model (unless ``name`` says it) and its
    variant are recognised by the keys; the counter's ``origin`` says as what. ``options`` are
    those of ``create`` and take precedence, which conventions that leave no trace in the keys need
    (``input="gray_half"``, ``final_relu=False`` for MCNN weights converted from TensorFlow, say).

    Weights with a passport (``save`` writes one, a JSON file may lie beside; public checkpoints of
    ``pycc.models.known`` are recognised by their content) bring their options along: contradicting
    these is an error, except where an option is free (``resize``), and their answer on a fixed
    probe image is checked. Weights without one are asked too: where the count is far off, and
    another convention or output scale makes it plausible, a warning names it.

    ONNX files (.onnx; TorchScript files with ``name="black_box"``) become counters without
    gradients; their options are those of ``black_box``.

    With a ``name``, weights of a backbone alone are taken too (torchvision's VGG-16 for "csrnet",
    "can" and "mask_aware", OpenAI's CLIP archive for "clip_ebc"): a warning says that the rest is
    untrained.

    Raises FileNotFoundError or ValueError, in one line that names the file: missing, unreadable,
    of an unknown format, asking to run code, or not fitting the model (listing missing and
    unexpected keys, wrong shapes and types; without ``name``, against the nearest model).
    """
    source = str(weights)
    if name == BlackBox.name or (name is None and source.lower().endswith(".onnx")):
        return _black_box(source, options)
    asked = None if name is None else MODELS[name]  # an unknown model is told before a bad file
    path = locate(weights)
    state, passport = read_weights(path)
    tensors = f"{len(state)} tensors of {path.name}"
    public = None if "model" in passport else passport_of(state)
    if public is not None:
        passport = {**passport, **public}
    stated = passport.get("model", name)
    if stated is None:
        name, recognised = _recognise(state, source)
        options = {**recognised, **options}
    elif name is not None and stated != name:
        raise ValueError(f"weights: {source} is of model {stated!r}, not {name!r}")
    elif "model" in passport:
        name = str(stated)
        options = _with_passport(MODELS[name], passport, options, source)
    elif asked is not None:
        found = asked.recognise(state)
        if found is None and (counter := _adopted(asked, state, options, source)) is not None:
            return counter
        options = {**(found or {}), **options}
    counter = create(str(name), **options)
    fit(counter, state, source)
    counter.eval()
    if "model" in passport:
        tolerance = TOLERANCE if public is None else PROBE_TOLERANCE
        check_passport(counter, passport, source, tolerance=tolerance)
        counter.passport = passport
        how = "its passport" if public is None else f"its content: {public['source']}"
    else:
        if (warning := diagnose(counter)) is not None:
            warnings.warn(f"weights: {source} {warning}", UserWarning, stacklevel=2)
        how = "its keys" if asked is None else "its name"
    counter.origin = f"{counter.name} by {how} ({tensors})"
    return counter


def _black_box(source: str, options: Mapping[str, object]) -> CounterModel:
    known_options = list(inspect.signature(black_box).parameters)[1:]
    unknown = [option for option in options if option not in known_options]
    if unknown:
        raise ValueError(
            f"{BlackBox.name}: unknown option {unknown[0]!r}; known: {', '.join(known_options)}"
        )
    if "stride" not in options:
        raise ValueError(f"weights: {source} needs the option stride, pixels per cell of its map")
    counter = cast("Callable[..., CounterModel]", black_box)(source, **options)
    counter.origin = f"{BlackBox.name} of {source}"
    probed = tuple(probe_image().shape[-2:])
    # A network for one size of image cannot be asked about another.
    fits = getattr(counter.net, "sides", None) in (None, probed)
    if fits and (warning := diagnose(counter)) is not None:
        warnings.warn(f"weights: {source} {warning}", UserWarning, stacklevel=3)
    return counter


def _adopted(
    model: type[CounterModel],
    state: Mapping[str, Tensor],
    options: Mapping[str, object],
    source: str,
) -> CounterModel | None:
    """A counter whose backbone alone is trained, or None if these weights hold none."""
    counter = create(model.name, **options)
    try:
        taken = counter.adopt(state)
    except ValueError as error:
        raise ValueError(f"weights: {source}: {error}") from None
    if taken is None:
        return None
    warnings.warn(
        f"weights: {source} gives {model.name} {taken}; the rest is untrained",
        UserWarning,
        stacklevel=3,
    )
    counter.origin = f"{model.name} with {taken}, the rest untrained"
    return counter.eval()


def _recognise(state: Mapping[str, Tensor], source: str) -> tuple[str, dict[str, object]]:
    for name in MODELS.names():
        options = MODELS[name].recognise(state)
        if options is not None:
            return name, options
    with torch.device("meta"):
        fresh = {name: create(name) for name in MODELS.names()}
    shapes = {key: value.to("meta") for key, value in state.items()}
    takers = [name for name, counter in fresh.items() if _would_adopt(counter, shapes)]
    if takers:
        raise ValueError(
            f"weights: {source} holds a backbone, not a counter: say which counter is to start "
            f"from it, {known(takers)}"
        )
    return min(fresh, key=lambda name: misfit(fresh[name], state)[0]), {}


def _would_adopt(counter: CounterModel, state: Mapping[str, Tensor]) -> bool:
    try:
        return counter.adopt(state) is not None
    except ValueError:
        return False


def _with_passport(
    model: type[CounterModel],
    passport: Mapping[str, object],
    options: Mapping[str, object],
    source: str,
) -> dict[str, object]:
    stated = passport.get("options", {})
    if not isinstance(stated, dict):
        raise ValueError(f"weights: {source}: the passport's options must be a JSON object")
    for key, value in options.items():
        same = list(value) if isinstance(value, tuple) else value  # JSON knows lists only
        if key in stated and key not in model.adjustable and stated[key] != same:
            raise ValueError(
                f"weights: {source} was trained with {key}={stated[key]!r}, got {key}={value!r}"
            )
    return {**stated, **options}
