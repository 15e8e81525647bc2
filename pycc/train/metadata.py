"""The part of the weights metadata that describes their training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pycc.models.recipe import Recipe
from pycc.settings import values_of
from pycc.train.config import TrainConfig
from pycc.train.items import Joined
from pycc.types import Sample


def described(
    config: TrainConfig, recipe: Recipe, samples: Sequence[Sample], facts: Mapping[str, object]
) -> dict[str, object]:
    """The config, the recipe that results from it, and ``facts``, as JSON values.

    Of joined data sets each has a ground truth of its own; the recipe names only one.
    """
    content: dict[str, object] = {"recipe": {**recipe.json(), "kind": config.recipe}}
    if isinstance(samples, Joined):
        content["density"] = samples.rules or {}
    content |= {"config": values_of(config), **facts}
    return {name: _json(value) for name, value in content.items()}


def _json(value: object) -> object:
    """Tuples and mappings as JSON has them."""
    if isinstance(value, Mapping):
        return {str(key): _json(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_json(inner) for inner in value]
    return value
