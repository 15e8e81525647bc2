"""``pycc attack``: attack a counter with patches on images, and measure what they do."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from pycc import attack, data, defense, report
from pycc.attack import AttackRun, attacks
from pycc.commands.attack_physical import MODES, ModeFlags
from pycc.commands.attack_settings import (
    APAM,
    CLEAN,
    PRESETS,
    AttackSettings,
    methods,
    preset_text,
    preset_values,
    variants,
)
from pycc.commands.base import DONE, FAILED, Context, RunCommand, argument
from pycc.commands.machine import set_threads
from pycc.commands.progress import say
from pycc.registry import nearest
from pycc.settings import Flag, flags_of, values_of
from pycc.types import Counter

_CHOICES = ("attack", "preset")
_SET = frozenset(name for values in PRESETS.values() for name in values)
"""Flags that some preset sets."""


class Attack(RunCommand[AttackSettings]):
    """``pycc attack``."""

    name = "attack"
    summary = (
        "Attack a crowd counter with adversarial patches and print its counts, beside those under "
        "patches of the same size and place that were not optimised."
    )
    settings = AttackSettings
    kind = "attack"
    machine = frozenset()
    epilog = (
        "--print and --photo have flags of their own, which follow from --print --help and "
        "--photo --help."
    )

    def main(self, argv: Sequence[str], prog: str) -> int:
        """Run the command, or its mode if the flag of one is given."""
        names = {text.partition("=")[0] for text in argv}
        for mode in MODES:
            if mode.shown in names:
                others = [flag.shown for flag in self.flags(["--attack", APAM])]
                return mode(others).main(argv, prog)
        return super().main(argv, prog)

    def variants(self, argv: Sequence[str]) -> Mapping[str, type[Any]]:
        """The flags of the attack method."""
        return variants(_attack_of(argv))

    def as_arguments(self, flags: Mapping[str, Any]) -> list[str]:
        """The attack method of an earlier run."""
        return ["--attack", str(flags.get("attack", APAM))]

    def flags(self, argv: Sequence[str]) -> list[Flag]:
        """The command's flags, with the defaults of the preset, and those of its modes."""
        flags = super().flags(argv)
        chosen = {name: argument(argv, f"--{name}") for name in ("attack", "preset", "data")}
        preset = self.presets({name: value for name, value in chosen.items() if value})
        flags = [replace(flag, default=preset.get(flag.name, flag.default)) for flag in flags]
        return [*flags, *flags_of(ModeFlags, title="physical world, in place of an attack")]

    def elsewhere(self, argv: Sequence[str]) -> Mapping[str, str]:
        """The flags of other attack methods and of the modes."""
        errors: dict[str, str] = {}
        for mode in MODES:
            for flag in flags_of(mode.settings):
                errors[flag.shown] = f"{flag.shown}: expected {mode.shown} beside it, got none"
        owners: dict[str, list[str]] = {}
        for name in attacks.names():
            for flag in flags_of(AttackSettings, variants(name)):
                owners.setdefault(flag.shown, []).append(name)
        for shown, names in owners.items():
            errors[shown] = (
                f"{shown}: expected --attack {' or '.join(names)} beside it, got "
                f"--attack {_attack_of(argv)}"
            )
        return errors

    def presets(self, given: Mapping[str, Any]) -> Mapping[str, Any]:
        """What the preset sets."""
        chosen = variants(given.get("attack", APAM))
        return preset_values(given, {flag.name for flag in flags_of(AttackSettings, chosen)})

    def completed(
        self, given: Mapping[str, Any], earlier: Mapping[str, Any], variants: Mapping[str, type]
    ) -> tuple[AttackSettings, frozenset[str]]:
        """Settings whose preset, if another than the earlier run's is given, sets what it does."""
        if any(given.get(name, earlier.get(name)) != earlier.get(name) for name in _CHOICES):
            earlier = {name: value for name, value in earlier.items() if name not in _SET}
        return super().completed(given, earlier, variants)

    def check(self, settings: AttackSettings, given: frozenset[str]) -> AttackSettings:
        """The settings with threads and pictures decided."""
        counters = settings.black_box
        if {"model", "weights"} & given == {"model"} and not counters.transfer:
            model = settings.counter.model
            raise ValueError(f"--model {model}: expected --weights FILE beside it, got none")
        if counters.transfer and {"weights", "surrogates"} & given:
            raise ValueError("--transfer: expected neither --weights nor --surrogates beside it")
        if settings.ablation.ablate is None:
            for name in ("ablation_samples", "ablation_unit", "ablation_fill"):
                if name in given:
                    shown = name.replace("_", "-")
                    raise ValueError(f"--{shown}: expected --ablate K beside it, got none")
        elif counters.transfer:
            raise ValueError("--ablate: expected one counter, with --weights, got --transfer")
        settings.evaluation.pgd()
        settings.patches.attacks()
        problem = _no_pictures(settings)
        if problem is not None and settings.output.pictures:
            raise ValueError(f"--pictures: {problem}")
        drawn = settings.output.pictures is not False and problem is None
        return replace(
            settings,
            output=replace(settings.output, pictures=drawn),
            machine=replace(settings.machine, threads=set_threads(settings.machine.threads)),
        )

    def run(self, settings: AttackSettings, context: Context) -> int:
        """Attack, draw, and print the table."""
        counters = _Counters(settings, context.device)
        stored: dict[str, Any] = {"flags": values_of(settings)}
        if settings.black_box.transfer:
            work: Callable[..., AttackRun] = partial(
                attack.transfer, counters.named(settings.black_box.transfer)
            )
        else:
            fill = counters.fill()
            if fill is not None:
                stored["fill"] = fill
            work = partial(
                attack.run,
                counters.victim(fill),
                surrogates=counters.named(settings.black_box.surrogates),
            )
        samples, wanted = settings.samples(), settings.patches.attacks()
        universal = any(method.is_universal for method in wanted)
        train = settings.samples(train=True) if universal else None
        if context.ranks.first and wanted and not context.resume:
            _note_pictures(settings, context)
        with context.progress("megapixels") as progress:
            done = work(
                samples,
                wanted,
                train=train,
                seed=settings.machine.seed,
                seeds=settings.evaluation.seeds,
                combine=settings.black_box.combine,
                pgd=settings.evaluation.pgd(),
                out=context.run_folder,
                resume=context.resume,
                save_images=settings.output.save_images,
                save_maps=bool(settings.output.pictures),
                progress=progress,
                ranks=context.ranks,
                settings=stored,
                command=context.command,
            )
        return _report(settings, context, done, samples) if context.ranks.first else DONE


@dataclass(frozen=True)
class _Counters:
    """Makes the counters of a run, on its device."""

    settings: AttackSettings
    device: torch.device

    def named(self, weights: Sequence[str]) -> dict[str, Counter]:
        """Counters by the stem of their file; ValueError for two of one name."""
        named: dict[str, Counter] = {}
        for file in weights:
            name = Path(file).stem
            if name in named:
                raise ValueError(f"--transfer, --surrogates: names must differ, got {name!r} twice")
            named[name] = self.settings.counter.load(self.device, file)
        return named

    def fill(self) -> tuple[float, float, float] | None:
        """The colour of the pixels that ``--ablate`` hides; None without it."""
        ablation = self.settings.ablation
        if ablation.ablate is None:
            return None
        if ablation.ablation_fill is not None:
            return (ablation.ablation_fill,) * 3
        shown = self.settings.samples(train=True)
        return data.mean_colour(shown[index].image for index in range(len(shown)))

    def victim(self, fill: tuple[float, float, float] | None) -> Counter:
        """The attacked counter, of ablated images if there is a ``fill``."""
        counter, ablation = self.settings.counter.load(self.device), self.settings.ablation
        if fill is None or ablation.ablate is None:
            return counter
        return defense.ablated(
            counter, ablation.ablate, draws=ablation.ablation_samples, fill=fill,
            unit=ablation.ablation_unit, seed=self.settings.machine.seed,
        )  # fmt: skip


def _report(
    settings: AttackSettings, context: Context, done: AttackRun, samples: data.Dataset
) -> int:
    """Print the results, draw the pictures; the exit code."""
    if settings.attack != CLEAN:
        print(preset_text(settings))
    print(report.table(done.summary, published=_published(settings, samples)))
    outcomes = done.summary.get("checks", [])
    if outcomes:
        print(report.checks_table(outcomes))
    print(f"run folder: {context.run_folder}", flush=True)
    if settings.output.pictures:
        with context.progress("pictures") as progress:
            assert progress is not None
            report.draw(
                context.run_folder, drawn=lambda done, total: progress(done, total, "drawing")
            )
    failed = any(outcome["verdict"] == "fail" for outcome in outcomes)
    return FAILED if failed and settings.evaluation.checks else DONE


def _published(
    settings: AttackSettings, samples: data.Dataset
) -> Mapping[int, tuple[float, float]] | None:
    """What the paper printed for this counter, if the images are those of its table."""
    images = settings.images
    same = samples.origin == "shanghaitech_a" and images.split == "test"
    same = same and images.max_images is None and not images.unannotated
    plain = not settings.black_box.transfer and settings.ablation.ablate is None
    if not (same and plain and settings.attack in (APAM, CLEAN)):
        return None
    return report.APAM_TABLE_1.get(settings.counter.model or "mcnn")


def _no_pictures(settings: AttackSettings) -> str | None:
    """Why pictures cannot be drawn; None if they can."""
    problem = report.missing_library()
    if problem is None and settings.black_box.transfer:
        return "pictures show one counter, but --transfer has several"
    if problem is None and not settings.output.save_images:
        return "pictures need the saved images, but --no-save-images was given"
    return problem


def _note_pictures(settings: AttackSettings, context: Context) -> None:
    """Print why no pictures are drawn, if nobody switched them off."""
    problem = _no_pictures(settings)
    if problem is not None and "pictures" not in context.given:
        say(f"note: no pictures: {problem}")


def _attack_of(argv: Sequence[str]) -> str:
    """The attack method that arguments name; ValueError for an unknown one."""
    name = argument(argv, "--attack") or APAM
    if name not in methods():
        raise ValueError(
            f"--attack: expected one of {', '.join(methods())}, got {name!r}"
            f"{nearest(name, methods())}"
        )
    return name


command = Attack()
