"""Rules for how a change spreads through a network, one for each kind of layer.

A rule takes the arguments of a layer, of which some tensors change inside a box. It determines the
box in which the layer's result changes, and a function that computes this part from the changed
parts of the arguments. A convolution, for example, is computed from the changed pixels and the
unchanged ones around them that its kernel also reads. A rule raises UnsupportedError if it is not
certain to be exact.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from pycc.local.box import Box
from pycc.local.program import Field, Program, UnsupportedError

Rule = Callable[..., Any]
"""(program, target, *args, **kwargs) -> Field or a sequence of fields."""

RULES: dict[Any, Rule] = {}
"""The rules by operator; a rule serves all overloads of its operator."""


def rule(*operators: Any) -> Callable[[Rule], Rule]:
    """Register a rule of layers with one changing argument, the first."""

    def add(made: Rule) -> Rule:
        def sure(program: Program, target: Any, x: Any, *args: Any, **kwargs: Any) -> Any:
            others = (*args, *kwargs.values())
            if not isinstance(x, Field) or any(isinstance(value, Field) for value in others):
                raise UnsupportedError(f"{target}: a change among the options")
            return made(program, target, x, *args, **kwargs)

        RULES.update(dict.fromkeys(operators, sure))
        return made

    return add


def rule_of_many(*operators: Any) -> Callable[[Rule], Rule]:
    """Register a rule of layers with one or several changing arguments."""

    def add(made: Rule) -> Rule:
        RULES.update(dict.fromkeys(operators, made))
        return made

    return add


def clean_of(args: Sequence[Any]) -> list[Any]:
    """Return arguments with the clean values of those that change."""
    return [value.clean if isinstance(value, Field) else value for value in args]


def union_of(fields: Sequence[Field]) -> Box:
    """Return the smallest box that holds the changing parts of all fields."""
    box = fields[0].box
    for field in fields[1:]:
        box = box.union(field.box)
    return box
