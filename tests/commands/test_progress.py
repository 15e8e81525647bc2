"""Progress of a command: lines in a log, a bar on a terminal."""

from __future__ import annotations

import io

import pytest

from pycc.commands.progress import TerminalProgress, note


def test_progress_as_lines() -> None:
    now = [0.0]
    stream = io.StringIO()
    progress = TerminalProgress("megapixels", stream, every=10, clock=lambda: now[0])
    for step in range(1, 31):
        now[0] = step
        progress(0.5 * step, 4000.0, f"step {step}")
    progress.close()
    assert stream.getvalue().splitlines() == [
        "0 %, 0.50 megapixels/s, 2:13:10 left: step 10",
        "0 %, 0.50 megapixels/s, 2:13:00 left: step 20",
        "0 %, 0.50 megapixels/s, 2:12:50 left: step 30",
    ]


def test_a_note_is_printed_by_the_first_process(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for rank in (None, "1", "0"):
        monkeypatch.delenv("RANK", raising=False)
        if rank is not None:
            monkeypatch.setenv("RANK", rank)
        note(f"of {rank}\n process")
    assert capsys.readouterr().err == "note: of None process\nnote: of 0 process\n"


def test_progress_of_a_resumed_run_has_the_rate_of_this_one() -> None:
    now = [0.0]
    stream = io.StringIO()
    progress = TerminalProgress("batches", stream, every=10, clock=lambda: now[0])
    for second in range(21):
        now[0] = second
        progress(30_001 + 2 * second, 40_041, f"batch {second}")
    assert stream.getvalue().splitlines() == [
        "75 %, 2.00 batches/s, 1:23:30 left: batch 10",
        "75 %, 2.00 batches/s, 1:23:20 left: batch 20",
    ]


def test_progress_begins_anew_with_the_next_stage() -> None:
    now = [0.0]
    stream = io.StringIO()
    progress = TerminalProgress("images", stream, every=10, clock=lambda: now[0])
    for second, done in ((0, 0), (9, 90), (10, 0), (20, 5)):
        now[0] = second
        progress(done, 100, "an image")
    assert stream.getvalue().splitlines() == [
        "0 %: an image",
        "5 %, 0.50 images/s, 0:03:10 left: an image",
    ]


def test_progress_as_a_bar() -> None:
    pytest.importorskip("tqdm")

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    stream = Terminal()
    progress = TerminalProgress("megapixels", stream)
    progress(2.0, 4.0, "half")
    progress(4.0, 4.0, "whole")
    progress.close()
    assert "100%" in stream.getvalue()
    assert "megapixels/s, whole" in stream.getvalue()


def test_progress_without_work() -> None:
    TerminalProgress("megapixels", io.StringIO(), every=0)(0.0, 0.0, "nothing")


def test_nothing_is_left_at_the_end() -> None:
    """What follows the measured work, such as checks, has no rate and no time left."""
    clock = iter([0.0, 1.0, 2.0, 13.0]).__next__
    stream = io.StringIO()
    progress = TerminalProgress("megapixels", stream, clock=clock)
    progress(1.0, 4.0, "step 1")
    progress(4.0, 4.0, "step 4")
    progress(4.0, 4.0, "check 1 of 8")
    assert stream.getvalue() == "100 %: check 1 of 8\n"
