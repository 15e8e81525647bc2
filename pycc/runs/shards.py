"""A run that several processes write: each into a folder of its own, merged by the first.

The results of a run are a set, each under its key, and what is derived from them does not depend
on their order (``Run.ordered``). So a run may be stopped, and resumed by another number of
processes: what was found is merged before it goes on.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pycc.ranks import Ranks
from pycc.runs.folder import RESULTS, Run, cut_torn_line, parse_records
from pycc.runs.manifest import read_manifest

_FOLDER = "ranks"


@dataclass
class Shards:
    """A run, as one of its processes sees it."""

    ranks: Ranks
    main: Run | None
    """The run itself: the first process's alone."""
    mine: Run
    """Where this process writes: the run itself where it is the only one."""
    folder: Path | None

    def merge(self) -> None:
        """Wait for all processes, and let each know every result."""
        if self.ranks.world == 1:
            return
        assert self.folder is not None
        self.ranks.wait()
        if self.main is not None:
            _absorb(self.main, self.folder)
            self.mine.tell(self.main.records)
        self.ranks.wait()
        if self.main is None:
            self.mine.tell(_known(self.folder))


@contextmanager
def sharded(
    opened: Callable[[], Run],
    path: str | os.PathLike[str] | None,
    ranks: Ranks,
    key: Sequence[str],
) -> Iterator[Shards]:
    """The run that ``opened`` creates or resumes, for each of the processes.

    ValueError for many processes without a folder: they meet in one.
    """
    if ranks.world == 1:
        run = opened()
        try:
            yield Shards(ranks, run, run, run.path)
        finally:
            run.close()
        return
    if path is None:
        raise ValueError("torchrun: processes meet in a run folder, give one")
    folder = Path(path)
    main = opened() if ranks.first else None
    mine: Run | None = None
    try:
        if main is not None:
            _absorb(main, folder)
        ranks.wait()
        known = _known(folder) if main is None else main.records
        mine = Run.create(folder / _FOLDER / str(ranks.rank), read_manifest(folder), key=key)
        mine.tell(known)
        mine.files = folder
        ranks.wait()
        yield Shards(ranks, main, mine, folder)
    finally:
        for opened_run in (mine, main):
            if opened_run is not None:
                opened_run.close()


def replicated(opened: Callable[[], Run], ranks: Ranks, key: Sequence[str]) -> Run:
    """The run that ``opened`` creates or resumes, for processes that all append every result.

    The first process has the run itself; the others have a copy in memory with what is known.
    """
    run = opened() if ranks.first else None
    manifest, records = ranks.agreed(({}, []) if run is None else (run.manifest, run.records))
    if run is None:
        run = Run(None, manifest, key)
        run.tell(records)
    return run


def _known(folder: Path) -> list[dict[str, object]]:
    return parse_records((folder / RESULTS).read_bytes(), folder / RESULTS)


def _absorb(main: Run, folder: Path) -> None:
    """Move what processes have found into the run; a half-written last result is left out."""
    for part in sorted((folder / _FOLDER).glob("*")):
        file = part / RESULTS
        if file.exists():
            for record in parse_records(cut_torn_line(file), file):
                main.append(record)
    shutil.rmtree(folder / _FOLDER, ignore_errors=True)
