"""Published crowd counters, and any user network, behind one protocol.

Every counter maps images [N,3,H,W], RGB in [0,1], to a density map [N,1,h,w] in people per cell.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Mapping
from typing import cast

from torch import Tensor

from pycc.models import can as _can  # noqa: F401  (importing a model registers it)
from pycc.models import cmtl as _cmtl  # noqa: F401
from pycc.models import csrnet as _csrnet  # noqa: F401
from pycc.models import mcnn as _mcnn  # noqa: F401
from pycc.models.base import MODELS, CounterModel
from pycc.models.known import PROBE_TOLERANCE, passport_of
from pycc.models.verify import ReceptiveField, measure_receptive_field
from pycc.models.weights import builtin, check_passport, fit, locate, misfit, read_weights, save
from pycc.models.wrap import wrap

__all__ = [
    "CounterModel",
    "ReceptiveField",
    "builtin",
    "create",
    "load",
    "measure_receptive_field",
    "names",
    "save",
    "wrap",
]


def names() -> list[str]:
    """The known models, in the order of registration."""
    return MODELS.names()


def create(name: str, **options: object) -> CounterModel:
    """A freshly initialised counter, in train mode; the options are the model's own.

    Raises ValueError for an unknown model or option, naming the known ones.
    """
    model = MODELS[name]
    known = [
        parameter.name
        for parameter in inspect.signature(model.__init__).parameters.values()
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY
    ]
    unknown = [option for option in options if option not in known]
    if unknown:
        raise ValueError(f"{name}: unknown option {unknown[0]!r}; known: {', '.join(known)}")
    return cast("Callable[..., CounterModel]", model)(**options)


def load(
    weights: str | os.PathLike[str], *, name: str | None = None, **options: object
) -> CounterModel:
    """A counter with trained weights, on the CPU, in eval mode.

    ``weights`` is a path or one of ``builtin()``. The model (unless ``name`` says it) and its
    variant are recognised by the keys; ``options`` are those of ``create`` and take precedence,
    which conventions that leave no trace in the keys need (``input="gray_half"``,
    ``final_relu=False`` for MCNN weights converted from TensorFlow, say). Weights with a passport
    (``save`` writes one; public checkpoints of ``pycc.models.known`` are recognised by their
    content) bring their options along: contradicting these is an error, except where an option is
    free (``resize``), and the count on a fixed probe image is checked.

    Raises FileNotFoundError or ValueError, in one line that names the file: missing, unreadable,
    of an unknown format, asking to run code, or not fitting the model (listing missing and
    unexpected keys, wrong shapes and types; without ``name``, against the nearest model).
    """
    source = str(weights)
    known = None if name is None else MODELS[name]  # an unknown model is told before a bad file
    state, passport = read_weights(locate(weights))
    public = None if "model" in passport else passport_of(state)
    if public is not None:
        passport = {**passport, **public}
    stated = passport.get("model", name)
    if stated is None:
        name, recognised = _recognise(state)
        options = {**recognised, **options}
    elif name is not None and stated != name:
        raise ValueError(f"weights: {source} is of model {stated!r}, not {name!r}")
    elif "model" in passport:
        name = str(stated)
        options = _with_passport(MODELS[name], passport, options, source)
    elif known is not None:
        options = {**(known.recognise(state) or {}), **options}
    counter = create(str(name), **options)
    fit(counter, state, source)
    counter.eval()
    if public is None:
        check_passport(counter, passport, source)
    else:
        check_passport(counter, passport, source, tolerance=PROBE_TOLERANCE)
    return counter


def _recognise(state: Mapping[str, Tensor]) -> tuple[str, dict[str, object]]:
    for name in names():
        options = MODELS[name].recognise(state)
        if options is not None:
            return name, options
    return _nearest(state), {}


def _nearest(state: Mapping[str, Tensor]) -> str:
    """The model with the fewest missing and unexpected keys; what ``fit`` then complains about."""
    known = names()
    if len(known) == 1:
        return known[0]
    return min(known, key=lambda name: misfit(create(name), state)[0])


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
