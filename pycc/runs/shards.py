"""Runs that several processes write: each writes to its own folder, and the first merges them.

The results of a run are a set with one result per key, and everything derived from them is
independent of their order (``Run.ordered``). A run may therefore be stopped and resumed with
another number of processes: existing results are merged before it continues.
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
    """A run and this process's part of it, from :func:`sharded`.

    Example:
        >>> from pycc.ranks import Ranks
        >>> from pycc.runs import Run, Shards
        >>> run = Run.create(None, {"kind": "example"})
        >>> Shards(Ranks(), main=run, mine=run, folder=None).merge()  # one process: nothing to do
    """

    ranks: Ranks
    """This process and the number of processes."""
    main: Run | None
    """The run itself, in the first process; None in all others."""
    mine: Run
    """The run to which this process writes; the run itself if there is one process."""
    folder: Path | None
    """The folder of the run; None in memory."""

    def merge(self) -> None:
        """Wait for all processes and make all results known to each of them."""
        if self.ranks.world == 1:
            return
        assert self.folder is not None
        self.ranks.wait()
        if self.main is not None:
            _absorb(self.main, self.folder)
            self.mine.include(self.main.records)
        self.ranks.wait()
        if self.main is None:
            self.mine.include(_known(self.folder))


@contextmanager
def sharded(
    opened: Callable[[], Run],
    path: str | os.PathLike[str] | None,
    ranks: Ranks,
    key: Sequence[str],
) -> Iterator[Shards]:
    """Open a run in each of several processes, and close it at the end of the block.

    Args:
        opened: creates or resumes the run; called in the first process alone.
        path: the folder of the run.
        ranks: this process and the number of processes.
        key: names of the fields that identify a result.

    Raises:
        ValueError: several processes without a folder, through which they exchange results.

    Example:
        >>> from pycc.ranks import Ranks
        >>> from pycc.runs import Run, sharded
        >>> run = Run.create(None, {"kind": "example"}, key=("index",))
        >>> with sharded(lambda: run, None, Ranks(), ("index",)) as shards:
        ...     shards.mine.append({"index": 0})
        ...     shards.merge()
        >>> run.records
        [{'index': 0}]
    """
    if ranks.world == 1:
        with opened() as run:
            yield Shards(ranks, run, run, run.path)
        return
    if path is None:
        raise ValueError(
            "torchrun: several processes need a run folder to exchange results, got none; give one"
        )
    folder = Path(path)
    main = opened() if ranks.first else None
    mine: Run | None = None
    try:
        if main is not None:
            _absorb(main, folder)
        ranks.wait()
        known = _known(folder) if main is None else main.records
        mine = Run.create(folder / _FOLDER / str(ranks.rank), read_manifest(folder), key=key)
        mine.include(known)
        mine.files = folder
        ranks.wait()
        yield Shards(ranks, main, mine, folder)
    finally:
        for opened_run in (mine, main):
            if opened_run is not None:
                opened_run.close()


def replicated(opened: Callable[[], Run], ranks: Ranks, key: Sequence[str]) -> Run:
    """Return the run that ``opened`` makes, for processes that all append every result.

    The first process has the run itself; the others have a copy in memory with the results so far.
    ``key`` are the fields that identify a result. If the first cannot open the run, all of them
    raise its ValueError or OSError.

    >>> from pycc.ranks import Ranks
    >>> from pycc.runs import Run, replicated
    >>> run = replicated(lambda: Run.create(None, {"kind": "example"}), Ranks(), ("index",))
    >>> run.append({"index": 0})
    >>> len(run.records)
    1
    """
    run: Run | None = None
    error: ValueError | OSError | None = None
    if ranks.first:
        try:
            run = opened()
        except (ValueError, OSError) as refusal:
            error = refusal
    known = ({}, []) if run is None else (run.manifest, run.records)
    error, manifest, records = ranks.agreed((error, *known))
    if error is not None:
        raise error
    if run is None:
        run = Run(None, manifest, key)
        run.include(records)
    return run


def _known(folder: Path) -> list[dict[str, object]]:
    return parse_records((folder / RESULTS).read_bytes(), folder / RESULTS)


def _absorb(main: Run, folder: Path) -> None:
    """Move the results of all processes into the run; ignore a partly written last result."""
    for part in sorted((folder / _FOLDER).glob("*")):
        file = part / RESULTS
        if file.exists():
            for record in parse_records(cut_torn_line(file), file):
                main.append(record)
    shutil.rmtree(folder / _FOLDER, ignore_errors=True)
