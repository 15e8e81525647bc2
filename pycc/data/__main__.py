"""``python -m pycc.data``: what a data set consists of and what is wrong in it; its export."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from pycc import cli
from pycc.data.dataset import builtin
from pycc.data.export import export, targets
from pycc.data.inspect import inspect, table
from pycc.data.reading import Reading


def parser() -> cli.Parser:
    """The command's flags."""
    root = cli.Parser(
        prog="python -m pycc.data",
        description="Data sets: looked through, and written in another layout.",
        epilog=f"Exit codes: 0 done, 1 something is broken or there twice, {cli.ENDS}.",
    )
    commands = root.add_subparsers(dest="command", metavar="COMMAND", required=True)
    look = commands.add_parser(
        "inspect",
        help="figures of a data set, all that is broken in it, and images that it holds twice",
        epilog=f"Exit codes: 0 all whole, 1 something is broken or there twice, {cli.ENDS}.",
    )
    _add_source(look)
    look.add_argument("--json", action="store_true", help="print the report as JSON")
    write = commands.add_parser(
        "export", help="write a data set as a folder of images with points, or as ShanghaiTech"
    )
    _add_source(write)
    write.add_argument("out", metavar="OUT", help="the folder to write: new or empty")
    write.add_argument(
        "--layout", choices=targets.names(), help="of the folder written (default: folder)"
    )
    write.add_argument("--limit", type=int, metavar="N", help="the first N images of each split")
    write.add_argument(
        "--max-side", type=int, metavar="N", help="shrink images whose longer side exceeds N pixels"
    )
    write.add_argument(
        "--on-error", choices=("raise", "skip"), help="with what is broken (default: raise)"
    )
    return root


def _add_source(command: argparse.ArgumentParser) -> None:
    command.add_argument("path", metavar="PATH", help="the data set's folder")
    command.add_argument("--split", metavar="NAME", help="one split (default: all that there are)")
    cli.add_fields(command.add_argument_group("pictures"), Reading)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""

    def work(argv: list[str]) -> int:
        given = vars(parser().parse_args(argv))
        command, path = given.pop("command"), given.pop("path")
        if path in builtin.names():
            raise ValueError(f"{path}: built-in scenes are no files; expected a folder")
        options = (entry.name for entry in fields(Reading))
        given["reading"] = Reading(**{name: given.pop(name) for name in options if name in given})
        if command == "inspect":
            return _inspect(Path(path), as_json=given.pop("json", False), **given)
        return _export(Path(path), Path(given.pop("out")), **given)

    return cli.command(work, sys.argv[1:] if argv is None else argv)


def _inspect(root: Path, *, as_json: bool, reading: Reading, split: str | None = None) -> int:
    progress = cli.Progress("images")
    try:
        report = inspect(root, split=split, reading=reading, progress=progress)
    finally:
        progress.close()
    print(json.dumps(report.facts(), indent=1) if as_json else table(report), flush=True)
    return cli.DONE if report.whole else cli.FAILED


def _export(root: Path, out: Path, **options: Any) -> int:
    progress = cli.Progress("images")
    try:
        written = export(root, out, progress=progress, **options)
    finally:
        progress.close()
    for split in written:
        resized = f", {split.resized:,} of them resized" if split.resized else ""
        print(f"{split.folder}: {split.images:,} images{resized}, {split.heads:,} heads")
    sys.stdout.flush()
    return cli.DONE


if __name__ == "__main__":
    sys.exit(main())
