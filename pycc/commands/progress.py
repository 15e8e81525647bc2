"""Progress on a terminal or in a log."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any, TextIO


def say(text: str, stream: TextIO | None = None) -> None:
    """Print one line on stderr."""
    print(" ".join(text.split()), file=stream or sys.stderr, flush=True)


def note(text: str) -> None:
    """Print what a user may want to know, once: the first process of torchrun does."""
    if os.environ.get("RANK", "0") == "0":
        say(f"note: {text}")


class TerminalProgress:
    """Progress with rate and time left: a bar on a terminal, else plain lines.

    ``every`` is the seconds between two lines; ``clock`` returns seconds that never go back, by
    default those of ``TerminalProgress.clock``.
    """

    clock: Callable[[], float] = staticmethod(time.monotonic)

    def __init__(
        self,
        unit: str,
        stream: TextIO | None = None,
        *,
        every: float = 10.0,
        clock: Callable[[], float] | None = None,
    ) -> None:
        self._unit = unit
        self._stream = stream or sys.stderr
        self._every = every
        self._clock = clock or self.clock
        self._last = self._clock()
        self._first: tuple[float, float] | None = None
        self._done = 0.0
        self._bar: Any = None
        if self._stream.isatty() and find_spec("tqdm") is not None:
            from tqdm import tqdm

            self._bar = tqdm(
                file=self._stream,
                total=1.0,
                bar_format="{percentage:3.0f}%|{bar}| {elapsed}<{remaining}, {postfix}",
            )

    def __call__(self, done: float, total: float, text: str, /) -> None:
        """Show that ``done`` of ``total`` units are done; ``text`` says what is being worked on.

        The rate is that since the first call, so that what an earlier process of a resumed run did
        does not count. When ``done`` falls, another stage begins and the rate begins anew.
        """
        now = self._clock()
        if self._first is None or done < self._done:
            self._first = done, now
        self._done = done
        before, start = self._first
        share = min(1.0, done / total) if total > 0 else 1.0
        rate = (done - before) / max(now - start, 1e-9)
        if self._bar is not None:
            self._bar.set_postfix_str(f"{rate:.2f} {self._unit}/s, {text}", refresh=False)
            self._bar.update(share - self._bar.n)
        elif now - self._last >= self._every:
            self._last = now
            parts = [f"{100 * share:.0f} %"]
            if rate > 0 and done < total:
                left = round((total - done) / rate)
                clock = f"{left // 3600}:{left // 60 % 60:02}:{left % 60:02} left"
                parts += [f"{rate:.2f} {self._unit}/s", clock]
            say(f"{', '.join(parts)}: {text}", self._stream)

    def close(self) -> None:
        """Leave the terminal as it was."""
        if self._bar is not None:
            self._bar.close()
