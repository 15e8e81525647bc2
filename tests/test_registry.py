from __future__ import annotations

import pytest

from pycc.registry import Registry


def test_names_keep_their_order_and_unknown_ones_list_the_known() -> None:
    things: Registry[int] = Registry("thing")
    things.register("b")(1)
    things.register("a")(2)
    assert things.names() == ["b", "a"]
    assert things["a"] == 2
    with pytest.raises(ValueError, match="unknown thing 'c'; known: b, a"):
        things["c"]
    with pytest.raises(ValueError, match="thing 'a' is registered twice"):
        things.register("a")
