"""Runs that are killed at random moments, again and again, end with the bytes of undisturbed ones.

``tools/kill_runs.py`` kills more often.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from support.processes import python

SCRIPT = Path(__file__).parents[2] / "tools" / "kill_runs.py"


@pytest.mark.long
@pytest.mark.parametrize(
    ("names", "kills", "processes"),
    [(["attack", "certify", "train", "backdoor"], 8, 1), (["certify"], 2, 2)],
)
def test_killed_at_random_moments(names: list[str], kills: int, processes: int) -> None:
    done = python(SCRIPT, "--only", *names, "--kills", kills, "--processes", processes, "--seed", 5)
    assert done.returncode == 0, done.stdout + done.stderr
    head, *rows = (line.split() for line in done.stdout.splitlines())
    assert head[-1] == "different"
    each = kills // len(names)
    assert [(row[0], int(row[2]) >= each, row[-1]) for row in rows] == [
        (name, True, "0") for name in names
    ]
