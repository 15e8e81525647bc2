"""The checks of the project, each in a virtual environment of its own: ``nox -s NAME``.

``.ci/run`` runs all of them but ``docs`` and ``bench`` in one environment, as the CI does.
"""

from __future__ import annotations

import nox

nox.options.default_venv_backend = "venv"
nox.options.sessions = ["lint", "types", "tests"]
CONSTRAINTS = ("-c", "constraints.txt")


@nox.session
def tests(session: nox.Session) -> None:
    """The test suite; arguments after -- go to pytest, such as -m long."""
    session.install(*CONSTRAINTS, ".[test]")
    session.run("pytest", *(session.posargs or ["-n", "auto"]))


@nox.session
def lint(session: nox.Session) -> None:
    """ruff and clang-format."""
    session.install(*CONSTRAINTS, "ruff", "clang-format")
    session.run("ruff", "check")
    session.run("ruff", "format", "--check")
    listed = session.run("git", "ls-files", "csrc", external=True, silent=True)
    session.run("clang-format", "--dry-run", "-Werror", *str(listed).split())


@nox.session
def types(session: nox.Session) -> None:
    """mypy --strict."""
    session.install(*CONSTRAINTS, ".[test]")
    session.run("mypy", "--strict")


@nox.session
def docs(session: nox.Session) -> None:
    """The documentation, with warnings as errors."""
    session.install(*CONSTRAINTS, ".[docs]")
    session.run("sphinx-build", "-n", "-W", "--keep-going", "-b", "html", "docs", "build/docs")


@nox.session
def sanitize(session: nox.Session) -> None:
    """The kernels' tests under address, undefined-behaviour and thread sanitizers."""
    session.install(*CONSTRAINTS, ".[test]")
    session.run(".ci/sanitize", external=True)


@nox.session
def bench(session: nox.Session) -> None:
    """Speed of the kernels, stored in bench/results; arguments go to bench/ops.py."""
    session.install(*CONSTRAINTS, ".")
    session.run("python", "bench/ops.py", *session.posargs)


@nox.session
def wheel(session: nox.Session) -> None:
    """Build the source archive and the wheel, audit them, and test what they install."""
    session.run("tools/check_wheel.sh", external=True)
