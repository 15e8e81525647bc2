"""Every code block of README.md and docs/ runs, and its commands print what the page shows.

The blocks of a page run in their order in one folder: ``python`` blocks in one namespace, each
``pycc`` line of an ``sh`` block as the command. A ``text`` block that follows is an excerpt of what
was printed. Blocks marked ``<!-- long -->`` run under ``-m long``; the default suite parses them.
"""

from __future__ import annotations

import io
import json
import re
import shlex
import shutil
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from support import documents
from support.documents import EXTRA, LONG, READ, ROOT, Block, blocks, name_of, pages

from pycc import commands, runs
from pycc.attack import attacks
from pycc.commands.attack_physical import MODES
from pycc.commands.base import CommandGroup, Entry
from pycc.data.dataset import formats
from pycc.models.base import MODELS

sys.path.insert(0, str(ROOT / "docs" / "_ext"))

from pycc_docs import tables

PAGES = {name_of(page): blocks(page) for page in pages()}
RUN = [name for name, found in PAGES.items() if any(b.language in ("python", "sh") for b in found)]
WITH_LONG = [name for name in RUN if any(block.mark == LONG for block in PAGES[name])]
SCHEMA = json.loads((ROOT / "docs" / "schema" / "run.schema.json").read_text("utf-8"))
ELSEWHERE = ("cd", "git", "nox", "pip", "pytest", "ruff", "mypy", "sphinx-build", "python3", ".")
"""Programs that the pages name and that are not pycc's to test."""


@pytest.fixture(scope="session")
def user_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("user")
    documents.write_user_folder(folder)
    return folder


@pytest.fixture
def here(
    user_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    with_threads: Callable[[int], None],
) -> Iterator[Path]:  # fmt: skip
    """A fresh copy of the user's folder, which is the current one."""
    shutil.copytree(user_folder, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    with_threads(1)
    with attacks.restored(), formats.restored(), MODELS.restored():  # what pages add is theirs
        yield tmp_path


@pytest.mark.command
@pytest.mark.parametrize("page", RUN)
def test_the_blocks_of_a_page_run(page: str, here: Path) -> None:
    run_page(page, long=False)
    check_run_folders(here)


@pytest.mark.long
@pytest.mark.parametrize("page", WITH_LONG)
def test_the_long_blocks_of_a_page_run(page: str, here: Path) -> None:
    run_page(page, long=True)
    check_run_folders(here)


def run_page(page: str, *, long: bool) -> None:
    """Run the blocks of a page; those that are too long for now are parsed."""
    namespace: dict[str, Any] = {"__name__": "__main__"}
    printed: str | None = None
    for block in PAGES[page]:
        executed = block.runs(long=long)
        if block.language == "python":
            printed = run_python(block, namespace) if executed else compiled(block)
        elif block.language == "sh":
            lines = [
                run_words(words, block, executed=executed and alone)
                for words, alone in block.commands()
            ]
            printed = "".join(lines) if executed else None
        elif block.language == "text" and block.after in ("sh", "python") and printed is not None:
            missing = documents.differences(block.text, printed)
            assert missing == [], f"{block.where}: not printed: {missing}; printed:\n{printed}"


def run_python(block: Block, namespace: dict[str, Any]) -> str:
    output = io.StringIO()
    code = compile("\n" * block.line + block.text, block.page, "exec")
    with redirect_stdout(output):
        exec(code, namespace)
    return output.getvalue()


def compiled(block: Block) -> None:
    compile(block.text, block.page, "exec")


def run_words(words: list[str], block: Block, *, executed: bool) -> str:
    """Run or parse one command; what it printed. One of a chain is parsed: installs come first."""
    several = words[0] == "torchrun"
    if several:
        module, *rest = words[words.index("-m") + 1 :]
        words = ["pycc", *([] if module == "pycc" else [module.removeprefix("pycc.")]), *rest]
    if words[0] == "python" and words[1] not in ("-c", "-m"):
        assert (ROOT / words[1]).is_file(), f"{block.where}: {words[1]} does not exist"
        return ""
    if words[0] != "pycc":
        assert words[0] in (*ELSEWHERE, "python"), f"{block.where}: unknown program {words[0]}"
        return ""
    if several or not executed:
        parse(words[1:], block)
        return ""
    return run_command(words[1:], block)


def run_command(argv: list[str], block: Block) -> str:
    output, errors = io.StringIO(), io.StringIO()
    with redirect_stdout(output), redirect_stderr(errors), warnings.catch_warnings():
        code = commands.main(argv=argv)
    assert code == 0, f"{block.where}: pycc {shlex.join(argv)}: {code}, {errors.getvalue()}"
    return output.getvalue()


def parse(argv: list[str], block: Block) -> None:
    """Parse a command line that does not run: each flag and name in it exists."""
    entry, prog, rest = entry_of(argv)
    if "--resume" in rest or "--like" in rest:  # the run that it names would be read
        return
    try:
        entry.parser(rest, prog).given(rest)
    except ValueError as error:
        if "does not exist" not in str(error):
            raise AssertionError(f"{block.where}: pycc {shlex.join(argv)}: {error}") from None


def entry_of(argv: list[str]) -> tuple[Any, str, list[str]]:
    """The command that the first words name, its name, and the words left."""
    prog, rest = f"pycc {argv[0]}", argv[1:]
    entry: Entry = import_module(f"pycc.commands.{argv[0]}").command
    while isinstance(entry, CommandGroup):
        entry = next(inner for inner in entry.entries if inner.name == rest[0])
        prog, rest = f"{prog} {rest[0]}", rest[1:]
    for mode in MODES:
        if argv[0] == "attack" and mode.shown in rest:
            return mode(()), f"pycc {mode.name}", rest
    return entry, prog, rest


def check_run_folders(folder: Path) -> None:
    """Every run that a page made has the format that the documentation states."""
    jsonschema = pytest.importorskip("jsonschema")
    for manifest in sorted(folder.rglob("manifest.json")):
        run = {"manifest": json.loads(manifest.read_text("utf-8"))}
        lines = (manifest.parent / "results.jsonl").read_text("utf-8").splitlines()
        run["results"] = [json.loads(line) for line in lines]
        for name in ("summary", "checks", "calibration"):
            file = manifest.parent / f"{name}.json"
            if file.exists():
                run[name] = json.loads(file.read_text("utf-8"))
        jsonschema.validate(run, SCHEMA)


def test_the_schema_refuses_what_is_no_run() -> None:
    jsonschema = pytest.importorskip("jsonschema")
    manifest = {
        "schema": 1, "kind": "photo", "command": [], "settings": {}, "fingerprints": {},
        "environment": runs.environment(),
    }  # fmt: skip
    record = {
        "index": 0, "image": "a", "condition": "photo", "patch_size": None, "clean": 3.0,
        "count": 4.5, "error_rate": 50.0,
    }  # fmt: skip
    jsonschema.validate({"manifest": manifest, "results": [record]}, SCHEMA)
    for field, value in (("schema", 2), ("kind", "other"), ("settings", None)):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate({"manifest": {**manifest, field: value}, "results": []}, SCHEMA)
    for field, value in (("count", "4.5"), ("index", 0.5), ("condition", "clean")):
        wrong = {**record, field: value}
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate({"manifest": manifest, "results": [wrong]}, SCHEMA)


@pytest.mark.parametrize("page", PAGES)
def test_marks_are_of_a_known_kind_and_needed(page: str) -> None:
    text = (ROOT / page).read_text("utf-8")
    marks = re.findall(r"<!-- (?:extra|long|read)\b", text)
    assert len(marks) == sum(bool(block.mark) for block in PAGES[page])
    for block in PAGES[page]:
        assert block.mark in ("", EXTRA, LONG, READ)
        assert block.language in ("python", "sh", "text", "toml", "json", "console", "csv"), (
            block.where
        )


def test_the_commands_of_results_exist() -> None:
    for file in tables.RESULTS.glob("*.json"):
        block = Block(f"docs/results/{file.name}", 1, "sh", "", READ)
        for line in tables.read(file.stem)["commands"]:
            run_words(shlex.split(line), block, executed=False)


def test_readme_is_short_and_its_tables_are_made_from_results() -> None:
    text = (ROOT / "README.md").read_text("utf-8")
    assert len(text.splitlines()) <= 180
    found = tables.MARK.findall(text)
    assert len(found) == 3
    assert tables.filled(text) == text, "python tools/fill_readme.py makes its tables anew"
    assert all(len(table.splitlines()) <= 2 + 6 for _, table in found)


def test_the_reference_lists_every_public_module() -> None:
    package = ROOT / "pycc"
    folders = {path.parent.name for path in package.glob("*/__init__.py")}
    files = {path.stem for path in package.glob("[!_]*.py") if "__all__ = [" in path.read_text()}
    public = (folders | files) - {"adapters", "commands"}  # adapters need what they adapt to
    text = (ROOT / "docs" / "reference" / "python.md").read_text("utf-8")
    listed = re.findall(r"^   pycc\.(\w+)$", text, flags=re.MULTILINE)
    assert listed == sorted(public)


def links(text: str) -> Iterator[str]:
    yield from re.findall(r"\]\(([^)\s]+)\)", re.sub(r"```.*?```", "", text, flags=re.DOTALL))
    yield from re.findall(r'src="([^"]+)"', text)


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub and MyST make them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text("utf-8"), flags=re.MULTILINE)
    plain = [re.sub(r"[^\w\- ]", "", heading.lower()).strip() for heading in headings]
    return {text.replace(" ", "-") for text in plain}


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_to_files_and_headings_that_exist(page: str) -> None:
    source = ROOT / page
    for link in links(source.read_text("utf-8")):
        if re.match(r"https?:|mailto:", link):
            continue
        path, _, anchor = link.partition("#")
        target = source if not path else (source.parent / path).resolve()
        generated = "docs/reference/commands/" in target.as_posix()
        assert target.exists() or generated, f"{page}: {link}"
        if anchor and not generated:
            assert anchor in anchors(target), f"{page}: {link}"


def test_a_wrong_excerpt_is_found() -> None:
    printed = "image  count  seconds\na       41.0    0.721\nimages: 1; 2.5 s\n"
    assert documents.differences("a  41.1  0.913\n…\nimages: 1; 9.9 s\n", printed) == []
    assert documents.differences("a  45.0  0.721\n", printed) == ["a  45.0  0.721"]
    assert documents.differences("images: 1; 2.5 s\nimage  count  seconds\n", printed) == [
        "image  count  seconds"
    ]
