"""``pycc attack``: attack a counter with patches on images, and measure what they do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from pycc import attack, data, defense, report
from pycc.attack import AttackRun, attacks
from pycc.attack.engine import RunOptions
from pycc.commands.arguments import argument, earlier_manifest
from pycc.commands.attack_physical import MODES, ModeFlags
from pycc.commands.attack_settings import (
    APAM,
    CLEAN,
    SIZES,
    AttackSettings,
    methods,
    preset_flags,
    preset_text,
    preset_values,
    variants,
)
from pycc.commands.base import DONE, FAILED, Context, RunCommand
from pycc.commands.checks import check_beside
from pycc.commands.pictures import drawn
from pycc.registry import nearest
from pycc.settings import Flag, flags_of
from pycc.types import Counter, each

_CHOICES = ("attack", "preset")


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
        """Run the command, or its mode if the flag of one or a run of one is given."""
        names = {text.partition("=")[0] for text in argv}
        kind = earlier_manifest(argv).get("kind")
        for mode in MODES:
            if mode.shown in names or (kind is not None and kind == getattr(mode, "kind", None)):
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
        """Return the values of the chosen preset."""
        chosen = variants(given.get("attack", APAM))
        return preset_values(given, {flag.name for flag in flags_of(AttackSettings, chosen)})

    def completed(
        self, given: Mapping[str, Any], earlier: Mapping[str, Any], variants: Mapping[str, type]
    ) -> tuple[AttackSettings, frozenset[str]]:
        """Settings whose preset, if another than the earlier run's is given, sets what it does."""
        if any(given.get(name, earlier.get(name)) != earlier.get(name) for name in _CHOICES):
            changed = preset_flags()
            sizes = self.presets(earlier).get("patch_size", list(SIZES))
            if earlier.get("patch_size", sizes) != sizes:
                changed -= {"patch_size"}  # the sizes are no preset's: they were given
            earlier = {name: value for name, value in earlier.items() if name not in changed}
        return super().completed(given, earlier, variants)

    def check(self, settings: AttackSettings, given: frozenset[str]) -> AttackSettings:
        """The settings with pictures decided."""
        counters = settings.black_box
        if {"model", "weights"} & given == {"model"} and not counters.transfer:
            model = settings.counter.model
            raise ValueError(f"--model {model}: expected --weights FILE beside it, got none")
        if counters.transfer and {"weights", "surrogates"} & given:
            raise ValueError("--transfer: expected neither --weights nor --surrogates beside it")
        of_ablation = ("ablation_samples", "ablation_unit", "ablation_fill")
        check_beside(given, of_ablation, "--ablate K", settings.ablation.ablate is not None)
        if settings.ablation.ablate is not None and counters.transfer:
            raise ValueError("--ablate: expected one counter, with --weights, got --transfer")
        settings.evaluation.pgd()
        settings.patches.attacks()
        pictures = drawn(settings.output.pictures, _no_pictures(settings))
        return replace(settings, output=replace(settings.output, pictures=pictures))

    def draws(self, settings: AttackSettings) -> bool:
        """Whether pictures are drawn."""
        return bool(settings.output.pictures)

    def run(self, settings: AttackSettings, context: Context) -> int:
        """Attack, draw, and print the table."""
        black_box = settings.black_box
        fill = _fill(settings)
        counter = None if black_box.transfer else settings.counter.load(context.device)
        victim = None if counter is None else _ablated(settings, counter, fill)
        members = _named(settings, black_box.transfer or black_box.surrogates, context.device)
        samples, wanted = settings.samples(), settings.patches.attacks()
        universal = any(method.is_universal for method in wanted)
        pgd = settings.evaluation.pgd()
        with context.progress("megapixels") as progress:
            options: RunOptions = {
                "train": settings.samples(train=True) if universal else None,
                "seed": settings.machine.seed,
                "seeds": settings.evaluation.seeds,
                "combine": black_box.combine,
                "out": context.run_folder,
                "resume": context.resume,
                "save_images": settings.output.save_images,
                "save_maps": bool(settings.output.pictures),
                "progress": progress,
                "ranks": context.ranks,
                "settings": settings,
                "fill": fill,
                "command": context.command,
            }
            if victim is None:
                done = attack.transfer(members, samples, wanted, pgd=pgd, **options)
            else:
                done = attack.run(victim, samples, wanted, surrogates=members, pgd=pgd, **options)
        if not context.ranks.first:
            return DONE
        published = None if counter is None else _published(settings, samples, counter.name)
        return _report(settings, context, done, published)


def _named(
    settings: AttackSettings, weights: Sequence[str], device: torch.device
) -> dict[str, Counter]:
    """Counters by the stem of their file; ValueError for two of one name."""
    named: dict[str, Counter] = {}
    for file in weights:
        name = Path(file).stem
        if name in named:
            raise ValueError(f"--transfer, --surrogates: names must differ, got {name!r} twice")
        named[name] = settings.counter.load(device, file)
    return named


def _fill(settings: AttackSettings) -> tuple[float, float, float] | None:
    """The colour of the pixels that ``--ablate`` hides; None without it."""
    ablation = settings.ablation
    if ablation.ablate is None:
        return None
    if ablation.ablation_fill is not None:
        return (ablation.ablation_fill,) * 3
    images = settings.samples(train=True)
    return data.mean_colour(sample.image for sample in each(images))


def _ablated(
    settings: AttackSettings, counter: Counter, fill: tuple[float, float, float] | None
) -> Counter:
    """The counter of ablated images if there is a ``fill``, or else the counter."""
    ablation = settings.ablation
    if fill is None or ablation.ablate is None:
        return counter
    return defense.ablated(
        counter, ablation.ablate, draws=ablation.ablation_samples, fill=fill,
        unit=ablation.ablation_unit, seed=settings.machine.seed,
    )  # fmt: skip


def _report(
    settings: AttackSettings,
    context: Context,
    done: AttackRun,
    published: Mapping[int, tuple[float, float]] | None,
) -> int:
    """Print the results, draw the pictures; the exit code."""
    if settings.attack != CLEAN:
        print(preset_text(settings))
    print(report.table(done.summary, published=published))
    if done.checks:
        print(report.checks_table(done.checks))
    print(f"run folder: {context.run_folder}", flush=True)
    if settings.output.pictures:
        with context.progress("pictures") as progress:
            report.draw(context.run_folder, progress=progress)
    failed = any(check.failed for check in done.checks)
    return FAILED if failed and settings.evaluation.checks else DONE


def _published(
    settings: AttackSettings, samples: data.Dataset, family: str
) -> Mapping[int, tuple[float, float]] | None:
    """Return the paper's figures for a family of counters, if the images are those of its table."""
    images = settings.images
    same = samples.origin == "shanghaitech_a" and images.split == "test"
    same = same and images.max_images is None and not images.unannotated
    plain = not settings.black_box.transfer and settings.ablation.ablate is None
    if not (same and plain and settings.attack in (APAM, CLEAN)):
        return None
    return report.APAM_TABLE_1.get(family)


def _no_pictures(settings: AttackSettings) -> str | None:
    """Return why pictures cannot be drawn with these settings; None if they can."""
    if settings.black_box.transfer:
        return "pictures show one counter, but --transfer has several"
    if not settings.output.save_images:
        return "pictures need the saved images, but --no-save-images was given"
    return None


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
