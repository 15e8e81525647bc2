"""Every example in a docstring of pycc runs and prints what the docstring says."""

from __future__ import annotations

import ast
import doctest
import importlib
import io
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
RUNS = tuple(  # modules whose examples are whole runs
    f"pycc.{name}"
    for name in ("attack.engine", "attack.methods", "attack.result", "backdoor", "models.exchange")
)


def examples(path: Path) -> Iterator[doctest.DocTest]:
    """The docstrings with examples of a file; found in its text, since decorators hide some."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    module = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
    for node in ast.walk(ast.parse(path.read_text())):
        if not isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
            continue
        text = ast.get_docstring(node, clean=False) or ""
        if ">>> " in text:
            name = getattr(node, "name", "")
            line = node.body[0].lineno - 1
            yield doctest.DocTestParser().get_doctest(
                text, {"__name__": module}, f"{module}:{name}", str(path), line
            )


EXAMPLES = [example for path in sorted(ROOT.glob("pycc/**/*.py")) for example in examples(path)]


def report(example: doctest.DocTest) -> str:
    """What differs from the docstring when an example runs in its module; "" if nothing does."""
    try:
        example.globs.update(vars(importlib.import_module(example.globs["__name__"])))
    except ImportError as error:
        if "pip install 'pycc[" not in str(error):
            raise
        pytest.skip(str(error))  # the extra of an adapter
    output = io.StringIO()
    doctest.DocTestRunner().run(example, out=output.write)
    return output.getvalue()


def marked(example: doctest.DocTest) -> pytest.ParameterSet:
    """As a parameter; with the marker of whole runs if the example is one."""
    marks = [pytest.mark.command] if example.name.startswith(RUNS) else []
    return pytest.param(example, marks=marks, id=example.name)


@pytest.mark.parametrize("example", [marked(example) for example in EXAMPLES])
def test_example(example: doctest.DocTest) -> None:
    assert report(example) == ""


def test_a_wrong_example_is_reported() -> None:
    text = ">>> check_images('count', torch.zeros(1, 3, 4, 4)) is None\nFalse\n"
    globs = {"__name__": "pycc.checks"}
    wrong = doctest.DocTestParser().get_doctest(text, globs, "wrong", "checks.py", 0)
    assert "Expected:\n    False\nGot:\n    True" in report(wrong)
