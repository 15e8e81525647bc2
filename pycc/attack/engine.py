"""The entry: check everything, open the run folder, work, sum up."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from pycc import ops
from pycc.attack.base import Attack
from pycc.attack.survey import Shelf, survey
from pycc.attack.work import Progress, Work
from pycc.report import summarise
from pycc.run import Run, differences, environment, fingerprint
from pycc.types import Counter, Sample


def run(
    attack: Attack | Sequence[Attack],
    counter: Counter,
    samples: Sequence[Sample],
    *,
    seed: int = 0,
    out: str | os.PathLike[str] | None = None,
    resume: bool = False,
    save_images: bool = True,
    save_maps: bool = False,
    progress: Progress | None = None,
    manifest: Mapping[str, Any] | None = None,
) -> Run:
    """Attack a counter on every sample, beside the baselines, and measure the counts.

    ``attack`` is one attack, several (of different sizes), or none at all (the clean counts
    alone). Each patch is compared with grey (0.5) and uniform noise of the same shape and place.
    Every count is one of the full image after rounding to 8 bits; attacked images are written as
    PNG and counted as read back (``save_images`` False rounds in memory, which gives the same
    numbers).

    ``out`` is the run folder (new or empty), or None to keep the results in memory; ``resume``
    continues the run in ``out``. ``save_maps`` also keeps the density maps that pictures need.
    ``manifest`` adds entries to the manifest. A counter that is a module is put in eval mode and
    frozen meanwhile. The result holds ``records`` and ``summary``.

    ValueError for bad input, before anything is written; for a resumed run whose settings, data or
    weights are not those of its manifest; and for a counter whose maps are not finite or do not
    match its stride.
    """
    chosen = tuple(attack) if isinstance(attack, Sequence) else (attack,)
    labels = [(a.name, a.size) for a in chosen]
    if len(set(labels)) < len(labels):
        raise ValueError(f"attack: attacks must differ in name or size, got {labels}")
    found = survey(samples, chosen, counter.stride, seed=seed)
    asked = {
        "seed": seed,
        "attacks": [{"name": a.name, **a.settings()} for a in chosen],
        "save_images": save_images,
        "save_maps": save_maps,
        "fingerprints": {"data": found.fingerprint, "weights": _identity(counter)},
    }
    if resume:
        if out is None:
            raise ValueError("attack: resume needs the run folder as out")
        log = Run.resume(out)
        changed = differences({name: log.manifest.get(name) for name in asked}, asked)
        if changed:
            log.close()
            raise ValueError(
                f"{out}: a resumed run keeps its settings, data and weights; {'; '.join(changed)}"
            )
    else:
        facts = {"kind": "attack", "environment": {**environment(), "ops": ops.info()}}
        log = Run.create(out, {**(manifest or {}), **facts, **asked})
    exact = torch.backends.cudnn.flags(
        enabled=True, deterministic=True, benchmark=False, allow_tf32=False
    )
    try:
        with frozen(counter), exact:
            Work(chosen, counter, Shelf(samples), found, seed, log, progress).do()
    finally:
        log.close()
    log.finish(summarise(log.records))
    return log


@contextmanager
def frozen(counter: Counter) -> Iterator[None]:
    """Eval mode and no parameter gradients, as they were afterwards; nothing for a non-module."""
    if not isinstance(counter, nn.Module):
        yield
        return
    modes = [(module, module.training) for module in counter.modules()]
    wanted = [(parameter, parameter.requires_grad) for parameter in counter.parameters()]
    counter.eval()
    counter.requires_grad_(False)
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode
        for parameter, want in wanted:
            parameter.requires_grad_(want)


def _identity(counter: Counter) -> str:
    """A fingerprint of a counter: its kind, geometry and, for a module, its weights."""
    kind = f"{type(counter).__module__}.{type(counter).__qualname__}"
    facts: list[tuple[str, Tensor | str]] = [
        ("kind", kind),
        ("geometry", f"{counter.stride} {counter.receptive_field}"),
    ]
    if isinstance(counter, nn.Module):
        facts += [(name, value) for name, value in counter.state_dict().items()]
    return fingerprint(facts)
