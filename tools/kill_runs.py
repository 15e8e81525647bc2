"""Kill runs at random moments, resume them until they end, and compare them with undisturbed ones.

    python tools/kill_runs.py --kills 200
    python tools/kill_runs.py --kills 20 --processes 2 --only attack certify

Every run of ``attack``, ``certify``, ``train`` and ``backdoor`` gets SIGKILL after a random share
of the time that the undisturbed run took, again and again; a kill counts if the run was alive. The
summary must have the bytes of the undisturbed run's. A process is a fork of this one, so that no
time goes into imports; several processes are those of torchrun. The exit code is 1 if a summary
differs.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

SMALL = ["--no-pictures", "--threads", "1"]
RUNS = {
    "attack": [
        "attack", *SMALL, "--max-images", "3", "--preset", "paper", "--patch-size", "12", "20",
        "--steps", "10", "--pgd-steps", "2", "--no-checks",
    ],
    "certify": [
        "certify", *SMALL, "--max-images", "3", "--patch-size", "12", "20", "--method", "masked",
        "additive", "--attack", "--steps", "4",
    ],
    "train": [
        "train", *SMALL, "--weights", "mcnn-synthetic", "--epochs", "4", "--batch", "2", "--lr",
        "1e-6", "--crop", "64x64", "--validation-share", "0.25", "--every-minutes", "1e-9",
    ],
    "backdoor": [
        "backdoor", "run", *SMALL, "--max-images", "4", "--max-test-images", "3", "--trigger",
        "blend", "--fraction", "0.5", "--model", "mcnn", "--strategy", "minus", "--epochs", "2",
        "--defense-epochs", "1", "--every-minutes", "1e-9",
    ],
}  # fmt: skip
"""The arguments of ``pycc`` for runs of seconds, on scenes of 64 x 96 pixels."""


def start(arguments: Sequence[str], log: Path, processes: int) -> int:
    """Start ``pycc ARGUMENTS`` as a group of processes; return its number."""
    if processes > 1:
        launch = [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--standalone",
            "--nproc-per-node",
            str(processes),
        ]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
        with log.open("ab") as file:
            return subprocess.Popen(
                [*launch, "-m", "pycc", *arguments],
                stdout=file,
                stderr=file,
                env=environment,
                start_new_session=True,
            ).pid
    child = os.fork()
    if child:
        return child
    os.setsid()
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(file, 1)
    os.dup2(file, 2)
    from pycc.commands import ROOT

    code = 2
    try:
        code = ROOT.main(list(arguments), "pycc")
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        sys.stdout.flush()
        os._exit(code)


def ended(group: int, seconds: float | None) -> int | None:
    """Wait for a group of processes; return its exit code, or None if it runs after ``seconds``."""
    until = None if seconds is None else time.monotonic() + seconds
    while until is None or time.monotonic() < until:
        done, status = os.waitpid(group, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.005)
    return None


def family(process: int) -> list[int]:
    """Return a process and all that it has started, by /proc; torchrun's are in other groups."""
    try:
        children = Path(f"/proc/{process}/task/{process}/children").read_text().split()
    except OSError:
        return [process]
    return [process, *(each for child in children for each in family(int(child)))]


def kill(process: int) -> bool:
    """Kill a process and all that it has started; return whether it was killed in time."""
    os.kill(process, signal.SIGSTOP)  # it starts no more
    killed = family(process)
    for each in killed:
        with contextlib.suppress(ProcessLookupError):
            os.kill(each, signal.SIGKILL)
    _, status = os.waitpid(process, 0)
    while any(alive(each) for each in killed[1:]):
        time.sleep(0.005)
    return os.WIFSIGNALED(status)


def alive(process: int) -> bool:
    """Whether a process runs; one that only waits to be reaped does not."""
    try:
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


def disturbed(
    arguments: Sequence[str],
    folder: Path,
    log: Path,
    processes: int,
    took: float,
    draw: random.Random,
    most: int,
) -> int:
    """Run, kill and resume until the run ends; return the number of kills, at most ``most``."""
    kills = 0
    while True:
        resumes = (folder / "manifest.json").exists()
        command = arguments[: 2 if arguments[0] == "backdoor" else 1]
        asked = (
            [*command, "--resume", str(folder)] if resumes else [*arguments, "--out", str(folder)]
        )
        group = start(asked, log, processes)
        code = ended(group, draw.uniform(0.0, took) if kills < most else None)
        if code is None:
            kills += kill(group)
            if not resumes and not (folder / "manifest.json").exists():
                shutil.rmtree(folder, ignore_errors=True)  # nothing had begun: a user starts anew
            continue
        if code != 0:
            raise SystemExit(f"{' '.join(asked)}: exit code {code}\n{log.read_text()[-2000:]}")
        return kills


def main() -> int:
    """Kill the runs that are asked for and print a row for each; return 1 if a summary differs."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--kills", type=int, default=200, help="kills in all")
    parser.add_argument("--only", nargs="+", choices=RUNS, default=list(RUNS), help="runs")
    parser.add_argument("--processes", type=int, default=1, help="processes of a run")
    parser.add_argument("--seed", type=int, default=0, help="key of the moments")
    settings = parser.parse_args()
    import torch

    from pycc import data
    from pycc.data.export import export_samples

    for name in RUNS:  # once, before the first fork
        import_module(f"pycc.commands.{name}")
    torch.set_num_threads(1)
    draw = random.Random(settings.seed)
    differ = 0
    print(f"{'run':10} {'processes':>9} {'kills':>6} {'runs':>5} {'different':>10}")
    for name in settings.only:
        with tempfile.TemporaryDirectory() as work:
            log, whole, scenes = (Path(work, entry) for entry in ("log", "whole", "scenes"))
            export_samples(
                {
                    split: data.open("synthetic", split=split, limit=number, shape=(64, 96))
                    for split, number in (("train", 4), ("test", 3))
                },
                scenes,
            )
            arguments = [*RUNS[name], "--data", str(scenes)]
            began = time.monotonic()
            code = ended(start([*arguments, "--out", str(whole)], log, settings.processes), None)
            if code != 0:
                raise SystemExit(f"{name}: exit code {code}\n{log.read_text()[-2000:]}")
            took = time.monotonic() - began
            expected = (whole / "summary.json").read_bytes()
            kills = runs = different = 0
            wanted = settings.kills // len(settings.only)
            while kills < wanted:
                folder = Path(work, f"run-{runs}")
                kills += disturbed(
                    arguments, folder, log, settings.processes, took, draw, min(8, wanted - kills)
                )
                runs += 1
                different += (folder / "summary.json").read_bytes() != expected
            print(f"{name:10} {settings.processes:9} {kills:6} {runs:5} {different:10}", flush=True)
            differ += different
    return 1 if differ else 0


if __name__ == "__main__":
    sys.exit(main())
