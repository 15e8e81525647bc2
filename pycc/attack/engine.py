"""The entry: check everything, open the run folder, work, judge, sum up."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from functools import partial
from typing import Any

from torch import nn

from pycc.attack.base import PatchAttack
from pycc.attack.controls import CONTROLS
from pycc.attack.gates import FROM_RESULTS, Gate, Results, judged, not_applicable
from pycc.attack.location import Candidates
from pycc.attack.measure import KEY
from pycc.attack.pgd import PGD
from pycc.attack.plan import Source, everyone
from pycc.attack.probes import PROBES
from pycc.attack.scenes import combinations
from pycc.attack.stage import Member
from pycc.attack.survey import Shelf, Survey, survey
from pycc.attack.universal import Universal
from pycc.attack.work import Progress, Work
from pycc.counters import frozen, identity
from pycc.ranks import Ranks, exact
from pycc.report import summarise
from pycc.runs import Run, open_or_resume, sharded, write_json
from pycc.types import Counter, Sample

GATES = "gates.json"
_VICTIM = "victim"
"""What the manifest calls a counter without a name."""


def run(
    attack: PatchAttack | Sequence[PatchAttack],
    counter: Counter,
    samples: Sequence[Sample],
    *,
    seed: int = 0,
    seeds: int = 1,
    substitutes: Mapping[str, Counter] | None = None,
    combine: str = "mean",
    train: Sequence[Sample] | None = None,
    pgd: PGD | None = PGD(),  # noqa: B008  (frozen)
    compare: bool = True,
    candidates: Candidates | None = None,
    gates: bool = True,
    out: str | os.PathLike[str] | None = None,
    resume: bool = False,
    save_images: bool = True,
    save_maps: bool = False,
    progress: Progress | None = None,
    settings: Mapping[str, Any] | None = None,
    command: Sequence[str] = (),
    ranks: Ranks = Ranks(),
) -> Run:
    """Attack a counter on every sample, beside the baselines, and measure the counts.

    ``attack`` is one attack, several (of different sizes), or none at all (the clean counts
    alone). Each patch is compared with grey, black, uniform noise and a crowd from another image,
    of the same shape and place (``compare`` False: without these), and with ``pgd`` on all pixels
    (None: without it). Location ``worst`` is searched for among ``candidates`` (y, x) of a sample
    and a patch's side, where they are given. Every count is one of the full image after rounding to
    8 bits; attacked images are written as PNG and counted as read back (``save_images`` False
    rounds in memory, which gives the same numbers).

    ``seeds`` repeats the attack from as many seeds, ``seed`` the first. With ``substitutes``
    (counters by name) patches are also made on these, together as ``combine`` says (``mean`` or
    ``worst``), and tried on ``counter`` (black-box, arXiv 2104.10868, eq. 9). ``train`` are the
    images of a universal attack.

    ``gates`` also judges the run by ``pycc.attack.gates``; the outcomes are in
    ``summary["gates"]``. ``out`` is the run folder (new or empty), or None to keep the results in
    memory; ``resume`` continues the run in ``out``. ``save_maps`` also keeps the density maps that
    pictures need. ``command`` (arguments) and ``settings`` (its ``flags``, say) are for the
    manifest. Under torchrun every process calls this with its ``ranks`` and takes its turns; the
    results are those of one process, and the first writes the summary. Counters that are modules
    are put in eval mode and frozen meanwhile. The result holds ``records`` and ``summary``.

    ValueError for bad input, before anything is written; for a resumed run whose settings, data or
    weights are not those of its manifest; and for a counter whose maps are not finite or do not
    match its stride.
    """
    victim = Member(counter)
    sources = [Source(None, (victim,), (victim,))]
    if substitutes:
        own = identity(counter)
        _check_names(substitutes)
        for label, other in substitutes.items():
            if other is counter or identity(other) == own:
                raise ValueError(
                    f"attack: substitutes must not hold the victim itself, got it as {label!r}"
                )
        members = tuple(Member(other, label) for label, other in substitutes.items())
        sources.append(Source("+".join(substitutes), members, (victim,)))
    return _run(
        attack, sources, samples, seed=seed, seeds=seeds, combine=combine, train=train, pgd=pgd,
        compare=compare, candidates=candidates, gates=gates, out=out, resume=resume,
        save_images=save_images, save_maps=save_maps, progress=progress, settings=settings,
        command=command, ranks=ranks,
    )  # fmt: skip


def transfer(
    attack: PatchAttack | Sequence[PatchAttack],
    counters: Mapping[str, Counter],
    samples: Sequence[Sample],
    *,
    combine: str = "mean",
    **options: Any,
) -> Run:
    """The transfer matrix: patches made on each counter, and tried on every one.

    From three counters on, each is also attacked by patches made on all the others together
    (leave-one-out ensembles, weighted as ``combine`` says). Options are those of ``run``.

    ValueError for fewer than two counters or two of the same weights, and as ``run``.
    """
    if len(counters) < 2:
        raise ValueError(f"transfer: expected two counters or more, got {list(counters)}")
    _check_names(counters)
    known: dict[str, str] = {}
    for label, counter in counters.items():
        if (before := known.setdefault(identity(counter), label)) != label:
            raise ValueError(
                f"transfer: counters must differ, got the same weights as {before!r} and {label!r}"
            )
    members = tuple(Member(counter, label) for label, counter in counters.items())
    sources = [Source(member.label, (member,), members) for member in members]
    if len(members) > 2:
        for left_out in members:
            others = tuple(member for member in members if member is not left_out)
            sources.append(Source("+".join(str(m.label) for m in others), others, (left_out,)))
    return _run(attack, sources, samples, combine=combine, **options)


def _run(
    attack: PatchAttack | Sequence[PatchAttack],
    sources: Sequence[Source],
    samples: Sequence[Sample],
    *,
    seed: int = 0,
    seeds: int = 1,
    combine: str = "mean",
    train: Sequence[Sample] | None = None,
    pgd: PGD | None = None,
    compare: bool = True,
    candidates: Candidates | None = None,
    gates: bool = True,
    out: str | os.PathLike[str] | None = None,
    resume: bool = False,
    save_images: bool = True,
    save_maps: bool = False,
    progress: Progress | None = None,
    settings: Mapping[str, Any] | None = None,
    command: Sequence[str] = (),
    ranks: Ranks = Ranks(),
) -> Run:
    chosen = tuple(attack) if isinstance(attack, Sequence) else (attack,)
    _check(chosen, seeds, combine, train)
    members = everyone(sources)
    stride = max(member.counter.stride for member in members)
    found = survey(samples, chosen, stride, seed=seed)
    learned = None
    if train is not None:
        learned = _apart(survey(train, chosen, stride, seed=seed), found)
        _check_sides(chosen, [item.shape for item in (*found.items, *learned.items)])
    weights = {m.label or _VICTIM: identity(m.counter) for m in members}
    fingerprints: dict[str, Any] = {"data": found.fingerprint, "weights": weights}
    if learned is not None:
        fingerprints["train"] = learned.fingerprint
    if resume and out is None:
        raise ValueError("attack: resume needs the run folder as out")
    opened = partial(
        open_or_resume,
        out,
        kind="attack",
        command=command,
        settings={
            **(settings or {}),
            "seed": seed,
            "seeds": seeds,
            "combine": combine,
            "attacks": [{"name": a.name, **a.settings()} for a in chosen],
            "pgd": None if pgd is None else asdict(pgd),
            "compare": compare,
            "candidates": candidates is not None,
            "save_images": save_images,
            "save_maps": save_maps,
        },
        fingerprints=fingerprints,
        key=KEY,
        resume=resume,
    )
    with sharded(opened, out, ranks, KEY) as shards:
        log = shards.mine
        with ExitStack() as stack:
            for member in members:
                stack.enter_context(frozen(member.counter))
            stack.enter_context(exact())
            work = Work(
                chosen,
                sources,
                Shelf(samples),
                found,
                range(seed, seed + seeds),
                log,
                train=None if train is None or learned is None else (Shelf(train), learned),
                combine=combine,
                pgd=pgd,
                compare=compare,
                candidates=candidates,
                progress=progress,
                ranks=ranks,
            )
            work.do()
            shards.merge()
            if shards.main is not None:
                log = shards.main
                log.finish(summarise(work.ordered(log.records)))
                if gates and chosen:
                    log.finish({**log.summary, "gates": _judge(work, log, weights)})
    return log


def _check_names(counters: Mapping[str, Counter]) -> None:
    for label in counters:
        if "+" in label or label == _VICTIM:
            raise ValueError(
                f"attack: a counter's name must hold no + and not be {_VICTIM!r}, got {label!r}"
            )


def _check(
    chosen: Sequence[PatchAttack], seeds: int, combine: str, train: Sequence[Sample] | None
) -> None:
    labels = [(a.name, a.size) for a in chosen]
    if len(set(labels)) < len(labels):
        raise ValueError(f"attack: attacks must differ in name or size, got {labels}")
    if len({(a.objective, a.aim) for a in chosen}) > 1:
        raise ValueError("attack: attacks of one run must have one objective")
    if seeds < 1:
        raise ValueError(f"attack: seeds must be at least 1, got {seeds}")
    combinations[combine]
    universal = [a for a in chosen if isinstance(a, Universal)]
    if universal and train is None:
        raise ValueError("attack: a universal attack needs training images, got none")
    if train is not None and not universal:
        raise ValueError("attack: training images are for a universal attack, got another")


def _check_sides(chosen: Sequence[PatchAttack], shapes: Sequence[tuple[int, int]]) -> None:
    for attack in (a for a in chosen if isinstance(a, Universal)):
        sides = {attack.side(shape) for shape in shapes}
        if len(sides) > 1:
            raise ValueError(
                f"attack: a universal patch needs one size in pixels, got size {attack.size}, "
                f"which gives {min(sides)} to {max(sides)} pixels in these images"
            )


def _apart(train: Survey, test: Survey) -> Survey:
    """The training images that are no test images; a warning names each that is left out."""
    tested = {item.content: item.name for item in test.items}
    kept = tuple(item for item in train.items if item.content not in tested)
    if not kept:
        raise ValueError("attack: expected training images, got none that is no test image")
    for item in train.items:
        if item.content in tested:
            warnings.warn(
                f"training image {item.name} is test image {tested[item.content]}: left out",
                stacklevel=2,
            )
    return Survey(kept, train.fingerprint)


def _judge(work: Work, log: Run, weights: Mapping[str, str]) -> list[dict[str, str]]:
    """The outcomes of all gates, in the run's folder and as JSON values."""
    results = Results(work.ordered(log.records), work.attacks)
    gates: list[Gate] = [gate(results) for gate in FROM_RESULTS]
    gates += [probe(work, results) for probe in (*PROBES, *CONTROLS)]
    modules = [m for m in work.members if isinstance(m.counter, nn.Module)]
    gates.append(_unchanged(modules, weights))
    outcomes = [gate.json() for gate in gates]
    file = log.file(GATES)
    if file is not None:
        write_json(file, {"gates": outcomes})
    return outcomes


def _unchanged(members: Sequence[Member], weights: Mapping[str, str]) -> Gate:
    """9: the weights are those of before, and every part of the counters is in eval mode."""
    name = "the counter stays as it was"
    if not members:
        return not_applicable(name, "counters that are no modules")
    same = all(identity(m.counter) == weights[m.label or _VICTIM] for m in members)
    parts = [
        part for m in members if isinstance(m.counter, nn.Module) for part in m.counter.modules()
    ]
    still = not any(part.training for part in parts)
    figure = f"weights {'unchanged' if same else 'changed'}, {'eval' if still else 'train'} mode"
    return judged(name, same and still, figure)
