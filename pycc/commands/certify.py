"""``pycc certify``: intervals on the counts of a data set that no patch can push them out of."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, make_dataclass, replace
from pathlib import Path
from typing import Any

from pycc import certify, data, defense, models
from pycc.certify import Certificate, CertifyRun, certificates
from pycc.certify.calibration import Calibration
from pycc.certify.engine import CALIBRATION, PATCH_SIZES, check
from pycc.certify.report import certificates_table, draw
from pycc.commands.base import DONE, FAILED, Context, RunCommand
from pycc.commands.checks import check_beside, check_least, check_share
from pycc.commands.flags import CounterFlags, DataFlags, MachineFlags
from pycc.commands.pictures import drawn
from pycc.commands.scenes import CERTIFY, OnScenes
from pycc.data.dataset import builtin as builtin_data
from pycc.data.dataset import data_fingerprint
from pycc.settings import flag, flags_of, group
from pycc.types import Counter, Progress, Sample


@dataclass(frozen=True)
class CalibrationFlags:
    """The images that allowances, caps and colours are computed from."""

    calibration_data: str | None = flag(
        None, "another data set to calibrate on (default: --data)",
        metavar="FOLDER", names=builtin_data.names,
    )  # fmt: skip
    calibration_split: str = flag(
        "train", "part that allowances, caps and colours are computed from"
    )
    calibration_max_images: int | None = flag(None, "use its first images only")
    force_calibration: bool = flag(
        False, "allow calibration on the certified part; the table reports it", advanced=True
    )

    def __post_init__(self) -> None:
        check_least("calibration_max_images", self.calibration_max_images, 1)


@dataclass(frozen=True)
class MethodFlags:
    """The settings of the certificate methods: the fields of their dataclasses."""

    def of(self, name: str) -> Certificate:
        """The method that is registered under a name."""
        method = vars(self)[_field_of(name)]
        assert isinstance(method, Certificate)
        return method


def _field_of(name: str) -> str:
    return name.replace("-", "_")


def _takers(flag_name: str) -> list[str]:
    """The methods that have a setting of this name; none if it is a flag of the command."""
    if any(entry.name == flag_name for entry in flags_of(CertifySettings)):
        return []
    return [
        name
        for name in certificates.names()
        if any(entry.name == flag_name for entry in flags_of(certificates[name]))
    ]


def all_method_flags() -> type[MethodFlags]:
    """The settings of the methods that are registered when this is called."""
    return make_dataclass(
        "AllMethodFlags",
        [
            (
                _field_of(name),
                certificates[name],
                group(certificates[name], f"method {name}"),
            )
            for name in certificates.names()
        ],
        bases=(MethodFlags,),
        frozen=True,
    )


@dataclass(frozen=True)
class CertifySettings:
    """The settings of ``pycc certify``."""

    method: tuple[str, ...] = flag(("completion",), "certificates", choices=certificates.names)
    patch_size: tuple[int, ...] = flag(
        PATCH_SIZES, "sides of square patches, pixels", metavar="PIXELS"
    )
    attack: bool = flag(
        False, "attack the defended counters too; exit code 1 if a count leaves its interval"
    )
    steps: int = flag(40, "steps of the attack", advanced=True)
    step_size: float = flag(0.25, "step size of the attack, of [0,1]", advanced=True)
    pictures: bool | None = flag(
        None,
        "draw the curve and where a patch can change counts most (default: if matplotlib is "
        "installed)",
    )
    images: DataFlags = group(DataFlags, "images")
    calibration: CalibrationFlags = group(CalibrationFlags, "calibration")
    counter: CounterFlags = group(CounterFlags, "counter")
    tile: int | None = flag(
        None, "count isolated tiles of this side: for counters without a bounded receptive field"
    )
    ensemble: tuple[str, ...] = flag(
        (), "weights of further counters: their mean is certified, each masked separately",
        metavar="WEIGHTS", names=models.builtin, advanced=True,
    )  # fmt: skip
    ensemble_weights: tuple[float, ...] | None = flag(
        None, "shares of the counters in the mean, --weights first (default: equal)", advanced=True
    )
    methods: MethodFlags = group(MethodFlags, "methods")
    machine: MachineFlags = group(MachineFlags, "machine")

    def __post_init__(self) -> None:
        check_least("patch_size", min(self.patch_size), 1)
        check_least("steps", self.steps, 1)
        check_share("step_size", self.step_size)

    @property
    def certificates(self) -> tuple[Certificate, ...]:
        """The methods, with their settings."""
        return tuple(self.methods.of(name) for name in dict.fromkeys(self.method))

    @property
    def calibration_images(self) -> DataFlags:
        """The flags of the calibration images, which may lack heads if no method needs them."""
        flags = self.calibration
        where = flags.calibration_data or self.images.data
        needs_heads = any(method.needs_heads for method in self.certificates)
        return replace(
            self.images, data=where, split=flags.calibration_split,
            max_images=flags.calibration_max_images,
            unannotated=self.images.unannotated and where == self.images.data and not needs_heads,
        )  # fmt: skip

    @property
    def calibrates_on_certified(self) -> bool:
        """Whether the calibration images are the certified ones."""
        images = self.calibration_images
        return (images.data, images.split) == (self.images.data, self.images.split)

    @property
    def needs_calibration_images(self) -> bool:
        """Whether a method needs calibration images."""
        return any(method.needs_images for method in self.certificates)


class Certify(OnScenes[CertifySettings], RunCommand[CertifySettings]):
    """``pycc certify``."""

    name = "certify"
    summary = (
        "Certify intervals on the counts of a data set that no patch of the stated sizes, at any "
        "place, of any content, can push them out of."
    )
    kind = "certify"
    settings = CertifySettings
    scenes = CERTIFY
    failure = "an attacked count left its interval"

    def variants(self, argv: Sequence[str]) -> Mapping[str, type[Any]]:
        """The settings of all registered methods."""
        return {"methods": all_method_flags()}

    def check(self, settings: CertifySettings, given: frozenset[str]) -> CertifySettings:
        """Refuse flags of methods that were not asked for, and calibration on certified images."""
        for name in sorted(given):
            takers = _takers(name)
            check_beside(
                given, (name,), f"--method {' or '.join(takers)}",
                not takers or bool({*takers} & {*settings.method}), " ".join(settings.method),
            )  # fmt: skip
        if settings.needs_calibration_images and settings.calibrates_on_certified:
            if not settings.calibration.force_calibration:
                raise ValueError(
                    f"--calibration-split {settings.images.split}: expected another part than the "
                    "certified one, or --force-calibration"
                )
            warnings.warn("calibrated on the certified images themselves", stacklevel=2)
        return replace(settings, pictures=drawn(settings.pictures))

    def draws(self, settings: CertifySettings) -> bool:
        """Whether pictures are drawn."""
        return bool(settings.pictures)

    def run(self, settings: CertifySettings, context: Context) -> int:
        """Calibrate, certify, print the table and draw the pictures."""
        counter = _counter(settings, context)
        samples = settings.images.samples()
        methods, sizes = settings.certificates, settings.patch_size
        attack = None
        if settings.attack:
            attack = certify.adaptive_attack(steps=settings.steps, step_size=settings.step_size)
        check(counter, samples, method=methods, patch_sizes=sizes)
        with context.progress("images") as progress:
            result = certify.run(
                counter, samples, method=methods, patch_sizes=sizes, attack=attack,
                calibration=_calibration(settings, context, counter, samples, progress),
                seed=settings.machine.seed, out=context.run_folder, resume=context.resume,
                progress=progress, ranks=context.ranks, command=context.command,
                settings=settings, machine=tuple(self.machine),
            )  # fmt: skip
        if context.ranks.first:
            _report(result, settings, counter, samples, context.run_folder)
        return FAILED if result.violated else DONE


command = Certify()


def _counter(settings: CertifySettings, context: Context) -> Counter:
    """Load the counter, or the ensemble of counters, with cells that are not negative."""
    first = settings.counter.load(context.device)
    counters: list[Counter] = []
    for counter in (first, *map(models.load, settings.ensemble)):
        part: Counter = counter.to(context.device)
        if settings.tile is not None:
            part = defense.tiled(part, settings.tile)
        # Networks whose last layer is linear predict negative cells, which certificates refuse.
        counters.append(defense.clipped(part))
    if len(counters) == 1 and settings.ensemble_weights is None:
        return counters[0]
    return defense.mixed(counters, settings.ensemble_weights)


def _calibration(
    settings: CertifySettings,
    context: Context,
    counter: Counter,
    samples: Sequence[Sample],
    progress: Progress | None,
) -> Calibration:
    """Calibrate on images, or read the calibration of a resumed run."""
    flags = settings.calibration_images
    source = f"{Path(flags.data).name}, {flags.split}"
    images: Sequence[Sample] = ()
    if settings.needs_calibration_images:
        opened = flags.samples()
        if settings.calibrates_on_certified:
            images, source = opened, f"{source} (the certified part itself)"
        else:
            images = data.apart(opened, samples, ("calibration", "certified"))
    file = context.run_folder / CALIBRATION
    if context.resume and file.exists():
        stored = Calibration.load(file)
        return replace(stored, data=data_fingerprint(images) if images else None)
    return certify.calibrate(
        counter, images, method=settings.certificates, patch_sizes=settings.patch_size,
        source=source, progress=progress, ranks=context.ranks,
    )  # fmt: skip


def _report(
    result: CertifyRun,
    settings: CertifySettings,
    counter: Counter,
    samples: Sequence[Sample],
    folder: Path,
) -> None:
    print(certificates_table(result.summary, result.seconds))
    print(f"run folder: {folder}", flush=True)
    if settings.pictures:
        method, sizes = settings.certificates[0], settings.patch_size
        draw(result, counter, samples, method, sizes, folder / "pictures")
