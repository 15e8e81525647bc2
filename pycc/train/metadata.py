"""What weights say of how they were trained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from pycc.models.recipe import Recipe
from pycc.train.items import Joined
from pycc.train.plan import Plan
from pycc.types import Sample


def described(
    plan: Plan, recipe: Recipe, samples: Sequence[Sample], facts: Mapping[str, Any]
) -> dict[str, Any]:
    """The plan, the recipe that it came to, and ``facts``, as JSON values.

    Of joined data sets each has a ground truth of its own; the recipe names but one.
    """
    found: dict[str, Any] = {"recipe": {**asdict(recipe), "kind": plan.recipe}}
    if isinstance(samples, Joined):
        found["density"] = dict(samples.rules or {})
    plain: dict[str, Any] = _plain({**found, "plan": asdict(plan), **facts})
    return plain


def _plain(value: Any) -> Any:
    """Dataclasses' tuples and mappings as JSON has them."""
    if isinstance(value, Mapping):
        return {str(key): _plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    return value
