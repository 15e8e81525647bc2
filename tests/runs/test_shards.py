"""Runs that several processes write, without starting any."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from pycc.ranks import Ranks
from pycc.runs import Run, open_or_resume, replicated

KEY = ("index",)


@dataclass(frozen=True)
class Told(Ranks):
    """Processes that run one after another: the first leaves its part for the others."""

    said: list[Any] = field(default_factory=list)

    def gathered(self, part: Sequence[Any]) -> list[Any]:
        if self.first:
            self.said[:] = part
        return list(self.said)


def pair() -> tuple[Told, Told]:
    said: list[Any] = []
    return Told(0, 2, said=said), Told(1, 2, said=said)


def opened(folder: Path, seed: int = 0, *, resume: bool = False) -> Run:
    return open_or_resume(
        folder, kind="example", settings={"seed": seed}, fingerprints={}, key=KEY, resume=resume
    )


def test_the_other_processes_know_the_run_without_its_folder(tmp_path: Path) -> None:
    run = opened(tmp_path)
    run.append({"index": 3, "count": 2.0})
    run.close()
    main, other = (
        replicated(partial(opened, tmp_path, resume=True), ranks, KEY) for ranks in pair()
    )
    main.close()
    assert (main.path, other.path) == (tmp_path, None)
    assert other.manifest == main.manifest
    assert other.records == main.records == [{"index": 3, "count": 2.0}]


def test_every_process_reports_a_run_that_cannot_be_opened(tmp_path: Path) -> None:
    opened(tmp_path).close()
    for ranks in pair():
        with pytest.raises(ValueError, match=r"settings\.seed was 0, is 1"):
            replicated(partial(opened, tmp_path, 1, resume=True), ranks, KEY)
