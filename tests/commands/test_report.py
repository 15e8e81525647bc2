"""``pycc report``, and the page that every run leaves behind."""

from __future__ import annotations

import json
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
from support.reports import replaced, write_attack, write_certify

from pycc.commands import main
from pycc.report import page


@pytest.fixture
def call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """Runs the command in an empty folder, on a machine without matplotlib, which takes a while."""
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.chdir(home)
    monkeypatch.setattr("pycc.report.pictures.find_spec", lambda name: None)

    def run(*argv: object, name: str = "report") -> tuple[int, str, str]:
        capsys.readouterr()
        with warnings.catch_warnings():
            code = main(name, [str(argument) for argument in argv])
        return code, *capsys.readouterr()

    return run


def test_the_page_of_a_run(call, tmp_path: Path) -> None:
    run = write_attack(tmp_path / "run")
    assert call(run, "--alarm", "15") == (0, f"report: {run / 'report.html'}\n", "")
    html = (run / "report.html").read_text()
    assert "Alarm from 15 people on" in html
    assert "pip install &#39;pycc[plot]&#39;" in html, "without matplotlib it says what to install"
    assert json.loads((run / "card.json").read_text())["kind"] == "attack"
    (run / "card.json").unlink()
    out = tmp_path / "elsewhere/page.html"
    assert call(run, "--out", out)[0] == 0
    assert out.exists()
    assert not (run / "card.json").exists(), "nothing but the page"


def test_several_runs_and_a_leaderboard(call, tmp_path: Path) -> None:
    attack = write_attack(tmp_path / "runs/attack")
    certify = write_certify(tmp_path / "runs/certify")
    code, out, _ = call(attack, certify)
    assert code == 0
    file = Path(out.removeprefix("report: ").strip())
    assert file.parent == Path("runs")
    assert "2 runs side by side" in file.read_text()
    assert call(attack)[0] == 0
    code, out, err = call("--leaderboard", tmp_path / "runs")
    assert (code, out) == (0, f"report: {tmp_path / 'runs/leaderboard.html'}\n")
    assert err.startswith("warning: without card.json, left out: 1 run, such as ")
    assert call(certify)[0] == 0
    assert call("--leaderboard", tmp_path / "runs", "--out", "board.html")[2] == ""
    assert Path("board.html").exists()


def unfinished(run: Path) -> None:
    (run / "summary.json").unlink()


def newer(run: Path) -> None:
    replaced(run / "manifest.json", schema=2)


def foreign(run: Path) -> None:
    replaced(run / "manifest.json", kind="survey")


def damaged(run: Path) -> None:
    (run / "results.jsonl").write_text('{"index": 0}\n')


def gone(run: Path) -> None:
    (run / "manifest.json").unlink()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (unfinished, "expected a finished run, got one with 10 results and no summary.json; "
         "continue it with: pycc attack --resume"),
        (newer, "expected a run of schema 1, got one of schema 2, of another version of pycc"),
        (foreign, "unknown kind of run 'survey'; known: attack, train"),
        (damaged, "results.jsonl, line 1: expected a field 'image', got none"),
        (gone, "expected a run folder, got none"),
    ],
)  # fmt: skip
def test_a_run_that_cannot_be_shown_is_one_line(call, tmp_path: Path, change, says: str) -> None:
    whole, run = write_attack(tmp_path / "whole"), write_attack(tmp_path / "run")
    change(run)
    before = sorted(tmp_path.rglob("*"))
    for argv in ([run], [whole, run, "--out", "both.html"]):
        code, out, err = call(*argv)
        assert (code, out, err.count("\n")) == (2, "", 1)
        assert says in err
        assert str(run) in err or change is foreign
        assert sorted(tmp_path.rglob("*")) == before, "nothing half-written"


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        ([], "RUN: expected a run folder or --leaderboard FOLDER, got none"),
        (["run", "--alarm", "0"], "--alarm: expected a number of people above 0, got 0"),
        (["run", "--alarm", "nan"], "--alarm: expected a number of people above 0, got nan"),
        (["run", "--leaderboard", "."], "--leaderboard: expected neither RUN nor --alarm beside"),
        (["--leaderboard", "nowhere"], "--leaderboard nowhere: expected a folder of runs"),
        (["--leaderboard", "."], "--leaderboard .: expected runs with card.json, got none"),
        (["run", "--out", "."], "--out .: expected a file, got a folder"),
        (["run", "--alarms", "5"], "unknown flag --alarms; did you mean '--alarm'?"),
    ],
)  # fmt: skip
def test_bad_usage(call, argv: list[str], says: str) -> None:
    code, out, err = call(*argv)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert says in err
    assert list(Path().iterdir()) == []


def test_every_run_leaves_a_page_and_a_card(call, tmp_path: Path) -> None:
    out = tmp_path / "run"
    argv = ["--attack", "clean", "--max-images", "1", "--no-pictures", "--threads", "1"]
    code, _, err = call(*argv, "--out", out, name="attack")
    assert (code, err) == (0, "")
    html = (out / "report.html").read_text()
    assert "mcnn-synthetic counted 1 image without any patch" in html
    card = (out / "card.json").read_bytes()
    assert page.Card.read(out / "card.json").data.split == "test"
    (out / "report.html").unlink()
    assert call("--resume", out, name="attack")[0] == 0
    assert (out / "report.html").read_text() == html
    assert (out / "card.json").read_bytes() == card


def test_a_page_that_fails_is_a_warning(call, tmp_path: Path, monkeypatch) -> None:
    def fail(*args: object) -> None:
        raise KeyError("a defect")

    out = tmp_path / "run"
    argv = ["--attack", "clean", "--max-images", "1", "--no-pictures", "--threads", "1"]
    with monkeypatch.context() as patched:
        patched.setattr(page, "write_run", fail)
        code, text, err = call(*argv, "--out", out, name="attack")
    assert (code, text.splitlines()[-1]) == (0, f"run folder: {out}")
    assert err.count("\n") == 1
    assert err.startswith(f"warning: {out}: no report.html: unexpected KeyError")
    assert err.endswith(f"try again with: pycc report {out}\n")
    assert (out / "summary.json").exists()
    assert not (out / "report.html").exists()
    assert call(out)[0] == 0


@pytest.mark.long
def test_a_certificate_leaves_a_page_in_a_process_of_its_own(tmp_path: Path) -> None:
    """Nothing but the command has registered the page of its kind."""
    out = tmp_path / "run"
    argv = ["certify", "--max-images", "1", "--patch-size", "40", "--method", "masked",
            "--allowance", "5", "--no-pictures", "--threads", "1", "--out", str(out)]  # fmt: skip
    subprocess.run([sys.executable, "-m", "pycc", *argv], check=True, capture_output=True)
    assert "No patch of 40 x 40 pixels" in (out / "report.html").read_text()
    assert page.Card.read(out / "card.json").kind == "certify"
