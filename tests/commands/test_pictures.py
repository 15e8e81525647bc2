"""Whether pictures are drawn: requested, possible, or neither."""

from __future__ import annotations

import pytest

from pycc.commands.pictures import drawn

MISSING = "pictures need matplotlib: pip install 'pycc[plot]'"


@pytest.fixture(params=[None, MISSING])
def library(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str | None:
    missing: str | None = request.param
    monkeypatch.setattr("pycc.report.missing_library", lambda: missing)
    return missing


@pytest.mark.parametrize("problem", [None, "nothing to show"])
def test_drawn(
    library: str | None,
    problem: str | None,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    reason = library or problem
    assert drawn(False, problem) is False
    assert capsys.readouterr().err == "", "nobody wants any"
    if reason is None:
        assert drawn(True)
        assert drawn(None)
        assert capsys.readouterr().err == ""
        return
    with pytest.raises(ValueError, match=r"^--pictures: (pictures need matplotlib|nothing to)"):
        drawn(True, problem)
    assert not drawn(None, problem)
    assert capsys.readouterr().err == f"note: no pictures: {reason}\n"
    monkeypatch.setenv("RANK", "1")
    assert not drawn(None, problem)
    assert capsys.readouterr().err == "", "the first process says it for all"
