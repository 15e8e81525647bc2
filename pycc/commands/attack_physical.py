"""``pycc attack --print`` and ``--photo``: a patch on paper, and photographs of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

from pycc.attack.physical.photo import KIND, photo_table, photographed
from pycc.attack.physical.printing import print_kit
from pycc.commands.base import DONE, Command, Context, RunCommand, folder_by_time
from pycc.commands.flags import CounterFlags, DeviceFlags
from pycc.data.reading import Reading
from pycc.settings import flag, group, no_names

S = TypeVar("S")


@dataclass(frozen=True)
class ModeFlags:
    """The flags that choose a mode."""

    print: str | None = flag(
        None, "make a kit to print this patch at its true size: PNG and PDF", metavar="PATCH"
    )
    photo: tuple[str, str] | None = flag(
        None,
        "count photographs in two folders, paired by name, without and with the printed patch",
        metavar=("CLEAN", "ATTACKED"),
    )


@dataclass(frozen=True)
class PrintSettings:
    """The patch that is printed."""

    print: str = flag(help="a patch as attack runs keep it, in RUN/patches", metavar="PATCH")
    width_mm: float = flag(help="true width of the printed patch", metavar="MM")
    dpi: float = flag(300.0, "dots per inch of the printer")
    out: str | None = flag(None, "folder of the kit (default: runs/kit-TIME)", metavar="FOLDER")


@dataclass(frozen=True)
class PhotoSettings:
    """The photographs that are counted, and the counter."""

    photo: tuple[str, str] = flag(
        help="folders of photographs without and with the patch, paired by name",
        metavar=("CLEAN", "ATTACKED"),
        names=no_names,
    )
    counter: CounterFlags = group(CounterFlags, "counter")
    reading: Reading = group(Reading, "picture files")
    machine: DeviceFlags = group(DeviceFlags, "machine")


class _Mode(Command[S]):
    """A command that a flag chooses in place of an attack."""

    shown: ClassVar[str]
    """The flag that chooses it."""

    def __init__(self, others: Sequence[str]) -> None:
        super().__init__()
        self._others = others
        """Flags of the attack, which have no meaning here."""

    def elsewhere(self, argv: Sequence[str]) -> Mapping[str, str]:
        """The flags of the attack."""
        return {name: f"{self.shown}: expected no {name} beside it" for name in self._others}


class Print(_Mode[PrintSettings]):
    """``pycc attack --print``."""

    name = "attack --print"
    summary = "Make a kit to print a patch at its true size."
    shown = "--print"
    settings = PrintSettings

    def run(self, settings: PrintSettings, context: Context) -> int:
        """Write the kit and print its sizes."""
        kit = print_kit(
            settings.print,
            settings.out or folder_by_time("kit"),
            width_mm=settings.width_mm,
            dpi=settings.dpi,
        )
        print(
            f"{kit.width_mm:.1f} x {kit.height_mm:.1f} mm at {kit.dpi:g} dpi, "
            f"{kit.pixels_per_inch:.1f} patch pixels per inch: {kit.patch}, {kit.page}",
            flush=True,
        )
        return DONE


class Photo(_Mode[PhotoSettings], RunCommand[PhotoSettings]):
    """``pycc attack --photo``."""

    name = "attack --photo"
    summary = "Count photographs of scenes without and with a printed patch."
    shown = "--photo"
    settings = PhotoSettings
    kind = KIND

    def new_folder(self) -> str:
        """A folder that names photographs."""
        return folder_by_time(KIND)

    def completed(
        self, given: Mapping[str, Any], earlier: Mapping[str, Any], variants: Mapping[str, type]
    ) -> tuple[PhotoSettings, frozenset[str]]:
        """Refuse the built-in weights unless they are given: they count drawn scenes only."""
        if "weights" not in {**earlier, **given}:
            raise ValueError("--photo: expected --weights beside it, got none")
        return super().completed(given, earlier, variants)

    def run(self, settings: PhotoSettings, context: Context) -> int:
        """Count the photographs and print the error rates; several processes share them."""
        counter = settings.counter.load(context.device)
        with context.progress("photos") as progress:
            done = photographed(
                counter,
                *settings.photo,
                out=context.run_folder,
                resume=context.resume,
                bit_depth=settings.reading.bit_depth,
                max_image_pixels=settings.reading.max_image_pixels,
                progress=progress,
                ranks=context.ranks,
                settings=settings,
                command=context.command,
                machine=self.machine,
            )
        if context.ranks.first:
            print(photo_table(done.summary, done.rows))
            print(f"run folder: {context.run_folder}", flush=True)
        return DONE


MODES: Sequence[type[_Mode[Any]]] = (Print, Photo)
