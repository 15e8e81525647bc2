"""The generated parts of the documentation: command reference, tables, registries, gallery."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sphinx.application import Sphinx


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the directives, and write the generated pages before any is read."""
    # Imported here: the README's tables need neither Sphinx nor torch.
    from pycc_docs import commands, docstrings, gallery, mathml
    from pycc_docs.directives import Benchmark, Gallery, RegistryTable, Results

    app.add_directive("results", Results)
    app.add_directive("benchmark", Benchmark)
    app.add_directive("gallery", Gallery)
    app.add_directive("registry", RegistryTable)
    mathml.setup(app)
    app.connect("builder-inited", commands.write_pages)
    app.connect("builder-inited", gallery.draw)
    app.connect("autodoc-process-docstring", docstrings.escape_bars)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
