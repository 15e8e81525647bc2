"""The entry: check everything, open the run folder, measure, sum up."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, replace
from functools import partial
from typing import TypedDict, Unpack

from pycc.attack.base import PatchAttack
from pycc.attack.evaluation.all_checks import run_checks
from pycc.attack.evaluation.baselines import baselines
from pycc.attack.evaluation.builder import Member
from pycc.attack.evaluation.checked import CheckedSamples, SampleCache, check_samples, held_out
from pycc.attack.evaluation.jobs import EvaluationJobs
from pycc.attack.evaluation.location import Candidates
from pycc.attack.evaluation.plan import Surrogates, all_members
from pycc.attack.evaluation.recorder import KEY
from pycc.attack.methods.pgd import PGD
from pycc.attack.problem import combinations
from pycc.attack.result import AttackRun
from pycc.checks import check_type, check_whole
from pycc.counters import frozen, identity
from pycc.ranks import Ranks, exact
from pycc.report import AttackSummary, summarise
from pycc.runs import Run, open_or_resume, sharded, write_json
from pycc.settings import values_of
from pycc.types import Counter, Progress, Sample, check_counter, check_sequence

CHECKS = "checks.json"
_VICTIM = "victim"
"""The manifest's name of a counter without a name."""


class RunOptions(TypedDict, total=False):
    """The options that ``run`` and ``transfer`` share; ``run`` describes them."""

    seed: int
    seeds: int
    combine: str
    train: Sequence[Sample] | None
    compare: bool
    candidates: Candidates | None
    checks: bool
    out: str | os.PathLike[str] | None
    resume: bool
    machine: Collection[str]
    save_images: bool
    save_maps: bool
    progress: Progress | None
    settings: object | None
    fill: tuple[float, float, float] | None
    command: Sequence[str]
    ranks: Ranks


def run(
    counter: Counter,
    samples: Sequence[Sample],
    attacks: PatchAttack | Sequence[PatchAttack],
    *,
    surrogates: Mapping[str, Counter] | None = None,
    pgd: PGD | None = PGD(),  # noqa: B008  (frozen)
    **options: Unpack[RunOptions],
) -> AttackRun:
    """Attack a counter on every sample, beside baselines, and measure the counts.

    Each optimised patch is compared with grey, black, uniform noise and a crowd from another image,
    of the same shape and place, and with PGD on all pixels. Every count is one of the full image
    after rounding to 8 bits; attacked images are written as PNG and counted as read back. Under
    torchrun every process calls this with its ``ranks`` and measures its share; the rows are those
    of one process, and the first writes the summary. Counters that are modules are put in eval mode
    and frozen meanwhile.

    Args:
        counter: the victim.
        samples: the images; without annotation, errors are unknown.
        attacks: one attack, several (of different sizes), or none (the clean counts alone).
        surrogates: counters by name; patches are also made on these, together, and tried on
            ``counter`` (black-box, arXiv 2104.10868, eq. 9).
        pgd: the reference on all pixels; None: without it.
        seed: key of all randomness; by default 0.
        seeds: repeats the attack from so many seeds, ``seed`` the first; by default 1.
        combine: the loss over several surrogates, ``mean`` (default) or ``worst``.
        train: the images that a universal attack is made on; those among the samples are left out.
        compare: False: without baselines.
        candidates: for location ``worst``: the places (y, x) to try, from a sample and a patch's
            side, in place of the search.
        checks: False: without the sanity checks (``pycc.attack.evaluation.checks``).
        out: the run folder, new or empty; None (default) keeps the results in memory.
        resume: continues the run in ``out``.
        machine: names of settings that no result depends on; a resumed run may change them.
        save_images: False: attacked images are rounded in memory, which gives the same numbers.
        save_maps: also keeps the density maps, which pictures need.
        progress: called with megapixels.
        settings: a dataclass with the settings of a command, for the manifest (``flags``).
        fill: the colour of the pixels that an ablated victim does not see, for the manifest.
        command: arguments of the command line, for the manifest.
        ranks: the processes.

    Raises:
        TypeError: for a counter or samples of another type.
        ValueError: for bad input, before anything is written; for a resumed run whose settings,
            data or weights are not those of its manifest; for a counter whose maps are not finite
            or do not match its stride.

    >>> from pycc import data, models
    >>> from pycc.attack import APAM
    >>> samples = data.open("synthetic", split="test", limit=1)
    >>> counter = models.load("mcnn-synthetic")
    >>> attack = APAM(patch_size=16, steps=1, objective="over")
    >>> done = run(counter, samples, attack, pgd=None, compare=False, checks=False)
    >>> [row.condition for row in done.rows], len(done.patches), len(done.images(0))
    (['clean', 'apam'], 1, 2)
    """
    victim = Member(counter)
    made_on = [Surrogates(None, (victim,), (victim,))]
    if surrogates:
        check_type("attack", "surrogates", surrogates, Mapping, "counters by name")
        check_counter("attack", counter)
        before = identity(counter)
        _check_names(surrogates)
        for label, other in surrogates.items():
            if other is counter or identity(other) == before:
                raise ValueError(
                    f"attack: surrogates must not hold the victim itself, got it as {label!r}"
                )
        members = tuple(Member(other, label) for label, other in surrogates.items())
        made_on.append(Surrogates("+".join(surrogates), members, (victim,)))
    return execute(made_on, samples, attacks, pgd=pgd, **options)


def transfer(
    counters: Mapping[str, Counter],
    samples: Sequence[Sample],
    attacks: PatchAttack | Sequence[PatchAttack],
    *,
    pgd: PGD | None = None,
    **options: Unpack[RunOptions],
) -> AttackRun:
    """Measure the transfer matrix: make patches on each counter and try them on every one.

    From three counters on, each is also attacked by patches made on all the others together
    (leave-one-out ensembles, with the loss ``combine``). Options are those of ``run``.

    Args:
        counters: two or more by name, of different weights.
        samples: the images.
        attacks: one attack or several.
        pgd: the reference on all pixels; None (default): without it.

    Raises:
        TypeError: as ``run``.
        ValueError: for fewer than two counters or two of the same weights, and as ``run``.

    >>> from pycc import data, models
    >>> from pycc.attack import APAM
    >>> counters = {"a": models.load("mcnn-synthetic"), "b": models.create("mcnn").eval()}
    >>> samples = data.open("synthetic", split="test", limit=1)
    >>> attack = APAM(patch_size=16, steps=1, objective="over")
    >>> done = transfer(counters, samples, attack, compare=False, checks=False)
    >>> [(row.surrogates, row.victim) for row in done.rows if row.condition == "apam"]
    [('a', 'a'), ('b', 'a'), ('a', 'b'), ('b', 'b')]
    """
    check_type("transfer", "counters", counters, Mapping, "counters by name")
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
    made_on = [Surrogates(member.label, (member,), members) for member in members]
    if len(members) > 2:
        for left_out in members:
            others = tuple(member for member in members if member is not left_out)
            made_on.append(Surrogates("+".join(str(m.label) for m in others), others, (left_out,)))
    return execute(made_on, samples, attacks, pgd=pgd, **options)


def execute(
    surrogates: Sequence[Surrogates],
    samples: Sequence[Sample],
    attacks: PatchAttack | Sequence[PatchAttack],
    *,
    seed: int = 0,
    seeds: int = 1,
    combine: str = "mean",
    train: Sequence[Sample] | None = None,
    unseen: bool = True,
    pgd: PGD | None = None,
    compare: bool = True,
    candidates: Candidates | None = None,
    checks: bool = True,
    out: str | os.PathLike[str] | None = None,
    resume: bool = False,
    machine: Collection[str] = (),
    save_images: bool = True,
    save_maps: bool = False,
    progress: Progress | None = None,
    settings: object | None = None,
    fill: tuple[float, float, float] | None = None,
    command: Sequence[str] = (),
    ranks: Ranks = Ranks(),
) -> AttackRun:
    """The run of ``run`` and ``transfer``; ``unseen`` leaves test images out of ``train``."""
    expected = "an attack, such as APAM(), or a list"
    for attack in attacks if isinstance(attacks, list | tuple) else [attacks]:
        check_type("attack", "attacks", attack, PatchAttack, expected)
    chosen = (attacks,) if isinstance(attacks, PatchAttack) else tuple(attacks)
    check_whole("attack", "seed", seed, 0)
    check_whole("attack", "seeds", seeds, 1)
    if pgd is not None:
        check_type("attack", "pgd", pgd, PGD, "a PGD or None")
    _check(chosen, combine, train)
    members = all_members(surrogates)
    for member in members:
        check_counter("attack", member.counter)
    stride = max(member.counter.stride for member in members)
    check_sequence("attack", samples)
    checked = check_samples(samples, chosen, stride, seed=seed)
    training = None
    if train is not None:
        check_sequence("attack", train)
        training = check_samples(train, chosen, stride, seed=seed)
        training = held_out(training, checked) if unseen else training
        _check_sides(chosen, [item.shape for item in (*checked.items, *training.items)])
    if resume and out is None:
        raise ValueError("attack: resume needs the run folder as out")
    weights = {member: identity(member.counter) for member in members}
    stored: dict[str, object] = {
        "seed": seed,
        "seeds": seeds,
        "combine": combine,
        "attacks": [{"name": a.name, **a.settings()} for a in chosen],
        "pgd": None if pgd is None else asdict(pgd),
        "compare": compare,
        "candidates": candidates is not None,
        "save_images": save_images,
        "save_maps": save_maps,
    }
    if settings is not None:
        stored["flags"] = values_of(settings)
    if fill is not None:
        stored["fill"] = fill
    opened = partial(
        open_or_resume,
        out,
        kind="attack",
        command=command,
        settings=stored,
        fingerprints=_fingerprints(checked, training, weights),
        key=KEY,
        machine=machine,
        resume=resume,
    )
    summary = AttackSummary(images=0, rows=())
    with sharded(opened, out, ranks, KEY) as shards, ExitStack() as stack:
        for member in members:
            stack.enter_context(frozen(member.counter))
        stack.enter_context(exact())
        jobs = EvaluationJobs(
            chosen,
            surrogates,
            SampleCache(samples),
            checked,
            range(seed, seed + seeds),
            shards.mine,
            train=None if train is None or training is None else (SampleCache(train), training),
            combine=combine,
            pgd=pgd,
            compare=compare,
            candidates=candidates,
            progress=progress,
            ranks=ranks,
        )
        jobs.do()
        shards.merge()
        log = shards.mine if shards.main is None else shards.main
        if shards.main is not None:
            summary = _finished(shards.main, jobs, weights if checks and chosen else None)
    rows = jobs.ordered(log.records)
    return AttackRun(log, rows, summary, samples, chosen, jobs.recorder.patches)


def _fingerprints(
    checked: CheckedSamples, training: CheckedSamples | None, weights: Mapping[Member, str]
) -> dict[str, object]:
    """Fingerprint everything that results depend on besides the settings."""
    fingerprints: dict[str, object] = {
        "data": checked.fingerprint,
        "weights": {member.label or _VICTIM: value for member, value in weights.items()},
    }
    if training is not None:
        fingerprints["train"] = training.fingerprint
    return fingerprints


def _finished(
    log: Run, jobs: EvaluationJobs, weights: Mapping[Member, str] | None
) -> AttackSummary:
    """Write the summary of a run, then check it (not without ``weights``) and add the checks."""
    summary = summarise(jobs.ordered(log.records))
    log.finish(summary.json())
    if weights is not None:
        summary = replace(summary, checks=tuple(run_checks(jobs, weights)))
        log.finish(summary.json())
        if (file := log.file(CHECKS)) is not None:
            write_json(file, {"checks": [check.json() for check in summary.checks]})
    return summary


def _check_names(counters: Mapping[str, Counter]) -> None:
    for label, counter in counters.items():
        check_counter("attack", counter)
        if "+" in label or label == _VICTIM:
            raise ValueError(
                f"attack: a counter's name must hold no + and not be {_VICTIM!r}, got {label!r}"
            )


def _check(attacks: Sequence[PatchAttack], combine: str, train: Sequence[Sample] | None) -> None:
    labels = [(a.name, a.patch_size) for a in attacks]
    if len(set(labels)) < len(labels):
        raise ValueError(f"attack: attacks must differ in name or patch_size, got {labels}")
    if len({(a.objective, a.aim) for a in attacks}) > 1:
        raise ValueError("attack: attacks of one run must have one objective")
    combinations[combine]
    for attack in attacks:
        if attack.name in (*baselines.names(), "clean", "pgd"):
            raise ValueError(f"attack: an attack must not be named {attack.name!r}, a condition")
    universal = [a for a in attacks if a.is_universal]
    if universal and train is None:
        raise ValueError("attack: a universal attack needs training images, got none")
    if train is not None and not universal:
        raise ValueError("attack: training images are for a universal attack, got another")


def _check_sides(attacks: Sequence[PatchAttack], shapes: Sequence[tuple[int, int]]) -> None:
    for attack in (a for a in attacks if a.is_universal):
        sides = {attack.side(shape) for shape in shapes}
        if len(sides) > 1:
            raise ValueError(
                f"attack: a universal patch needs one size in pixels, got patch_size "
                f"{attack.patch_size}, which gives {min(sides)} to {max(sides)} pixels in "
                "these images"
            )
