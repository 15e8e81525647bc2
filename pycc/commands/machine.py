"""The device and the threads that a command's flags name."""

from __future__ import annotations

import os

import torch


def device_of_name(name: str) -> torch.device:
    """The device of this name; ValueError if it does not exist."""
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ValueError(f"--device: expected cpu or cuda[:N], got {name!r}") from None
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"--device: expected cpu or cuda[:N], got {name!r}")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ValueError(f"--device: expected a device of this machine, got {name!r}")
    return device


def set_threads(threads: int | None, *, given: bool = True) -> int:
    """Set torch's number of threads, or leave it unchanged for None; returns the number.

    ValueError for none, or for more than four per core if the number was ``given`` here: a run that
    began on a larger machine keeps its own.
    """
    if threads is not None:
        most = 4 * (os.cpu_count() or 1)
        if not isinstance(threads, int) or threads < 1 or (given and threads > most):
            raise ValueError(f"--threads must be within [1, {most}], got {threads!r}")
        torch.set_num_threads(threads)
    return torch.get_num_threads()
