"""The code blocks of README.md and docs/, and what they need to run: a user's folder of files."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import h5py
import numpy as np
import torch
from PIL import Image

from pycc import backdoor, data, models
from pycc.data import save_image

ROOT = Path(__file__).resolve().parents[2]
LONG = "long"
"""``<!-- long -->`` before a block: it runs under ``-m long``; otherwise its flags are parsed."""
READ = "read"
"""``<!-- read: REASON -->``: its flags are parsed and it never runs here, for the reason given."""
EXTRA = "extra"
"""``<!-- extra: PACKAGE -->``: it runs where the package is installed."""
_FENCE = re.compile(r"^( *)(`{3,}|:{3,})(\S*)")
_MARK = re.compile(r"<!-- (read|extra): ?(.*?) ?-->|<!-- (long) -->")


@dataclass(frozen=True)
class Block:
    """A fenced block of a page."""

    page: str
    line: int
    language: str
    text: str
    mark: str
    """``long``, ``read``, ``extra`` or empty."""
    after: str = ""
    """The language of the block just before it, without anything between; of ``text`` only."""
    package: str = ""
    """What it needs, if its mark is ``extra``."""

    def runs(self, *, long: bool) -> bool:
        """Whether it is to be run, here and now."""
        if self.mark == EXTRA:
            return find_spec(self.package) is not None
        return not self.mark or (self.mark == LONG and long)

    @property
    def where(self) -> str:
        return f"{self.page}:{self.line}"

    def commands(self) -> Iterator[tuple[list[str], bool]]:
        """The commands of a shell block in words, and whether each stands alone on its line.

        Continued lines are joined; comments and variables before a command are left out.
        """
        for line in self.text.replace("\\\n", " ").splitlines():
            parts = [part.strip() for part in line.split("&&")]
            for part in parts:
                words = shlex.split(part, comments=True)
                while words and re.fullmatch(r"[A-Z_]+=\S*", words[0]):
                    words.pop(0)
                if words:
                    yield words, len(parts) == 1


def pages() -> list[Path]:
    """README.md and every page of the documentation that is written by hand."""
    generated = ("docs/reference/commands/", "docs/reference/api/")
    found = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    return [page for page in found if not name_of(page).startswith(generated)]


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def blocks(page: Path) -> list[Block]:
    """The fenced blocks of a page, except directives of Sphinx."""
    found: list[Block] = []
    lines = page.read_text("utf-8").splitlines()
    at, mark, detail, before = 0, "", "", ""
    while at < len(lines):
        line = lines[at]
        if match := _FENCE.match(line):
            fence, language, start = match[2], match[3], at + 1
            at = start
            while lines[at].strip() != fence:
                at += 1
            text = "\n".join(lines[start:at]) + "\n"
            if not language.startswith("{"):
                found.append(Block(name_of(page), start, language, text, mark, before, detail))
            mark, detail, before = "", "", language
        elif match := _MARK.match(line.strip()):
            mark, detail = match[1] or match[3], match[2] or ""
        elif line.strip():
            mark, detail, before = "", "", ""
        at += 1
    return found


def differences(shown: str, printed: str) -> list[str]:
    """The lines of an excerpt that are not among the printed lines, in their order.

    A line ``…`` stands for any lines. Numbers may differ by a hundredth, or by one in the last
    digit shown, since arithmetic differs between machines; seconds may differ at will.
    """
    rest, missing = printed.splitlines(), []
    for line in shown.splitlines():
        if line.strip() in ("…", ""):
            continue
        for number, candidate in enumerate(rest):
            if _alike(line, candidate):
                rest = rest[number + 1 :]
                break
        else:
            missing.append(line)
    return missing


_NUMBER = re.compile(r"[-+]?\d[\d,]*\.?\d*")
_SECONDS = re.compile(r"\d[\d,.]* s\b|\d+\.\d{2,3}$")


def _alike(shown: str, printed: str) -> bool:
    left, right = (_SECONDS.sub("T", line.rstrip()) for line in (shown, printed))
    if _words(left) != _words(right):
        return False
    for a, b in zip(_NUMBER.findall(left), _NUMBER.findall(right), strict=True):
        digits = len(a.partition(".")[2])
        x, y = (float(number.replace(",", "")) for number in (a, b))
        if abs(x - y) > max(0.01 * abs(y), 1.001 * 10**-digits if digits else 0.0):
            return False
    return True


def _words(line: str) -> list[str]:
    """The words of a line, with ``#`` for each number; rules of a table are left out."""
    return re.sub(r"[\s-]+", " ", _NUMBER.sub("#", line)).split()


SHAPE = (96, 128)


def write_user_folder(folder: Path) -> None:
    """The files that the pages name: photographs, data sets, weights, a picture, a polygon."""
    scenes = data.open("synthetic", split="test", shape=SHAPE, heads=24, limit=3)
    photos = folder / "photos"
    photos.mkdir()
    for number, sample in enumerate(scenes):
        save_image(photos / f"p{number}.png", sample.image)
        rows = [f"{x:.1f},{y:.1f}" for x, y in sample.points.tolist()]
        (photos / f"p{number}.csv").write_text("x,y\n" + "\n".join(rows) + "\n")
    Image.open(photos / "p0.png").save(folder / "street.jpg", quality=95)
    for name in ("clean", "attacked"):
        (folder / "taken" / name).mkdir(parents=True)
        save_image(folder / "taken" / name / "p0.png", scenes[name == "attacked"].image)
    parts = {
        split: data.open("synthetic", split=split, shape=SHAPE, heads=20, limit=number)
        for split, number in (("train", 6), ("test", 2))
    }
    for part in ("part_A", "part_B"):
        backdoor.export(parts, folder / "shanghaitech" / part)
    write_h5(folder / "mcnn_shtechA_660.h5")
    torch.save(models.load("mcnn-synthetic").net.state_dict(), folder / "mine.pth")
    noise = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    Image.fromarray(noise).save(folder / "mine.png")
    (folder / "square.json").write_text("[[10, 10], [110, 10], [110, 90], [10, 90]]")


def write_h5(path: Path) -> None:
    """The built-in counter's weights as the published file stores its own."""
    state = models.load("mcnn-synthetic").net.state_dict()
    with h5py.File(path, "w") as file:
        for key, value in state.items():
            file.create_dataset(f"DME.{key}", data=value.numpy())
