"""Parameters of tests that take minutes in all."""

from __future__ import annotations

from typing import Any

import pytest


def long(*values: object) -> list[Any]:
    """Each value as a parameter of a test that only ``-m long`` runs."""
    return [pytest.param(value, marks=pytest.mark.long) for value in values]
