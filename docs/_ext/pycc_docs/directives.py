"""Directives that put generated Markdown into a page."""

from __future__ import annotations

import ast
import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from pathlib import Path

from docutils import nodes
from docutils.statemachine import StringList
from sphinx.util.docutils import SphinxDirective

from pycc_docs import tables
from pycc_docs.gallery import EXAMPLES, FOLDER


class Generated(SphinxDirective, ABC):
    """A directive whose content is Markdown that ``markdown`` makes."""

    required_arguments = 1
    final_argument_whitespace = False

    @abstractmethod
    def markdown(self, name: str) -> str:
        """Return the content for the argument ``name``."""

    def run(self) -> list[nodes.Node]:
        """Parse the Markdown in place."""
        try:
            text = self.markdown(self.arguments[0])
        except ValueError as error:
            raise self.error(str(error)) from None
        container = nodes.Element()
        self.state.nested_parse(StringList(text.splitlines(), source=""), 0, container)
        return list(container.children)


class Gallery(Generated):
    """``{gallery}``: every script of ``examples/``, with its picture."""

    required_arguments = 0

    def run(self) -> list[nodes.Node]:
        """One section per script."""
        self.arguments = [""]
        return super().run()

    def markdown(self, name: str) -> str:
        """Picture, title and code of each script."""
        return "\n\n".join(map(self._entry, sorted(EXAMPLES.glob("*.py"))))

    def _entry(self, script: Path) -> str:
        self.env.note_dependency(str(script))
        code = script.read_text("utf-8")
        title = ast.get_docstring(ast.parse(code)) or script.stem
        first, _, rest = title.partition(":")
        body = code.split('"""\n', 1)[1].strip()
        return (
            f"**{first.rstrip('.')}**{':' + rest if rest else ''}\n\n"
            f"```{{image}} {FOLDER}/{script.stem}.png\n:alt: {first}\n```\n\n"
            f"`examples/{script.name}`\n\n```python\n{body}\n```"
        )


class Results(Generated):
    """``{results} NAME``: the table of ``docs/results/NAME.json`` with its commands."""

    def markdown(self, name: str) -> str:
        """Return the title, the commands and the table of a result."""
        content = tables.read(name)
        self.env.note_dependency(str(tables.RESULTS / f"{name}.json"))
        commands = "\n".join(content["commands"])
        return f"{content['title']}\n\n```text\n{commands}\n```\n\n{tables.results_table(name)}\n"


class Benchmark(Generated):
    """``{benchmark} NAME``: the table of ``bench/results/NAME.json`` with its machine."""

    def markdown(self, name: str) -> str:
        """Return the machine and the table of a benchmark."""
        self.env.note_dependency(str(tables.BENCHMARKS / f"{name}.json"))
        return f"{tables.machine(name)}\n\n{tables.benchmark_table(name)}\n"


def _families() -> str:
    """The counters that can be created, with their geometry."""
    import torch

    from pycc import models

    rows = []
    for name in models.names():
        with torch.device("meta"):
            counter = models.create(name)
        field = counter.receptive_field
        rows.append([
            f"`{name}`", _summary(type(counter)),
            f"{sum(parameter.numel() for parameter in counter.net.parameters()):,}",
            str(counter.stride), "none declared" if field is None else str(field),
        ])  # fmt: skip
    titles = ["name", "what it is", "parameters", "stride", "receptive field"]
    return tables.markdown(titles, rows)


def _kernels() -> str:
    """The public kernels, each with the first sentence of its docstring."""
    from pycc import ops

    names = [name for name in ops.__all__ if f"{name}_reference" in ops.__all__]
    rows = [[f"{{py:func}}`~pycc.ops.{name}`", _summary(getattr(ops, name))] for name in names]
    return tables.markdown(["kernel", "what it computes"], rows)


def _metrics() -> str:
    """The public functions of metrics, each with the first sentence of its docstring."""
    from pycc import metrics

    names = [name for name in metrics.__all__ if inspect.isfunction(getattr(metrics, name))]
    rows = [
        [f"{{py:func}}`~pycc.metrics.{name}`", _summary(getattr(metrics, name))] for name in names
    ]
    return tables.markdown(["function", "what it computes"], rows)


def _triggers() -> str:
    from pycc.backdoor import triggers

    return _registered(triggers.names(), triggers.__getitem__)


def _strategies() -> str:
    from pycc.backdoor import strategies

    return _registered(strategies.names(), strategies.__getitem__)


def _defenses() -> str:
    from pycc.backdoor import defenses

    return _registered(defenses.names(), defenses.__getitem__)


def _attacks() -> str:
    from pycc.attack import attacks

    return _registered(attacks.names(), attacks.__getitem__)


def _certificates() -> str:
    from pycc.certify import certificates

    return _registered(certificates.names(), certificates.__getitem__)


def _registered(names: list[str], entry: Callable[[str], object]) -> str:
    rows = [[f"`{name}`", _summary(entry(name))] for name in names]
    return tables.markdown(["name", "what it is"], rows)


def _summary(thing: object) -> str:
    """The first paragraph of a docstring in one line, with Markdown's code marks."""
    text = inspect.getdoc(thing) or ""
    first = " ".join(text.split("\n\n")[0].split())
    return first.replace("``", "`").replace("|", "\\|")


REGISTRIES: Mapping[str, Callable[[], str]] = {
    "attacks": _attacks,
    "certificates": _certificates,
    "defenses": _defenses,
    "families": _families,
    "kernels": _kernels,
    "metrics": _metrics,
    "strategies": _strategies,
    "triggers": _triggers,
}


class RegistryTable(Generated):
    """``{registry} NAME``: what is registered under names, and its summary."""

    def markdown(self, name: str) -> str:
        """The table of the registry."""
        if name not in REGISTRIES:
            raise ValueError(f"no registry {name!r}; known: {', '.join(REGISTRIES)}")
        return REGISTRIES[name]()
