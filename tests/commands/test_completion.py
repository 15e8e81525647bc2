"""``pycc completion``: the shells complete commands, flags and values."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from pycc import models
from pycc.commands import COMMANDS, main

pytest.importorskip("shtab", reason="needs pip install 'pycc[completion]'")


@pytest.fixture(scope="module")
def script(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file with bash's script."""
    with pytest.MonkeyPatch.context() as patch:
        texts: list[str] = []
        patch.setattr("builtins.print", lambda text, **_: texts.append(text))
        assert main("completion", ["bash"]) == 0
    path = tmp_path_factory.mktemp("bash") / "pycc.bash"
    path.write_text(texts[0])
    return path


def completed(script: Path, *words: str) -> list[str]:
    """What bash offers after these words, of which the last is being typed."""
    assert shutil.which("bash")
    typed = " ".join(f"'{word}'" for word in ("pycc", *words))
    code = (
        f"source {script}; COMP_WORDS=({typed}); COMP_CWORD={len(words)}; _shtab_pycc; "
        "printf '%s\\n' \"${COMPREPLY[@]}\""
    )
    done = subprocess.run(
        ["bash", "-c", code], capture_output=True, text=True, cwd=script.parent, check=True
    )
    assert done.stderr == ""
    return done.stdout.split()


def test_bash_completes_commands_flags_and_values(script: Path) -> None:
    assert {*completed(script, "")} == {*COMMANDS}
    assert completed(script, "mod") == ["models"]
    assert completed(script, "models", "ch") == ["check"]
    assert completed(script, "attack", "--patch-s") == ["--patch-size"]
    assert completed(script, "attack", "--pre") == ["--preset"]
    assert completed(script, "attack", "--preset", "q") == ["quick"]
    assert {*completed(script, "count", "photos", "--model", "")} >= {*models.names()}
    assert completed(script, "completion", "") == ["bash", "zsh"]


def test_flags_that_other_flags_bring_are_offered_too(script: Path) -> None:
    """``--share`` belongs to --attack query, ``--dpi`` to --print."""
    offered = {*completed(script, "attack", "--")}
    assert {"--share", "--decay", "--dpi", "--resume", "--help-all"} <= offered


def test_files_are_offered_where_a_flag_names_one(script: Path) -> None:
    (script.parent / "mine.pth").write_text("")
    assert completed(script, "count", "street.jpg", "--weights", "mi") == ["mine.pth"]
    assert completed(script, "train", "--out", "mi") == ["mine.pth"]
    assert completed(script, "count", "street.jpg", "--threads", "mi") == []


def test_zsh_and_wrong_shells(capsys: pytest.CaptureFixture[str]) -> None:
    assert main("completion", ["zsh"]) == 0
    text = capsys.readouterr().out
    assert text.startswith("#compdef pycc")
    assert "--patch-size" in text
    assert main("completion", ["fisch"]) == 2
    assert capsys.readouterr().err == ("error: SHELL: expected one of bash, zsh, got 'fisch'\n")


def test_without_shtab_the_extra_is_named(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "shtab", None)
    assert main("completion", ["bash"]) == 2
    assert capsys.readouterr().err == (
        "error: completion needs shtab: pip install 'pycc[completion]'\n"
    )
