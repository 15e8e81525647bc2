"""What a run of the command depends on, its flags and its defaults."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pycc.certify.methods import Plan, methods
from pycc.data.outside import SHOW
from pycc.data.reading import Reading
from pycc.defense.mask_pairs import check_masks

QUICK = {"limit": 6, "calibrate_limit": 12}
"""For the built-in scenes."""


@dataclass(frozen=True)
class Settings(Reading):
    """What a run depends on, how pictures are read among it; kept in its manifest."""

    data: str = field(
        default="synthetic",
        metadata={"help": "folder of annotated images, or a built-in data set", "metavar": "DATA"},
    )
    split: str = field(default="test", metadata={"help": "part that is certified"})
    unannotated: bool = field(
        default=False,
        metadata={
            "help": "images of --data alone, without their annotation or where there is none: "
            "errors against heads are unknown; what calibration needs heads for is read with them"
        },
    )
    calibrate_data: str | None = field(
        default=None,
        metadata={"help": "another folder to calibrate on (default: --data)", "metavar": "DATA"},
    )
    calibrate_split: str = field(
        default="train", metadata={"help": "part that allowances, caps and colours are fixed on"}
    )
    calibrate_limit: int | None = field(
        default=None, metadata={"help": "use its first images only"}
    )
    model: str | None = field(
        default=None, metadata={"help": "the counter; without it the weights tell"}
    )
    weights: str = field(
        default="mcnn-synthetic", metadata={"help": "file with weights, or built-in ones"}
    )
    option: dict[str, Any] = field(
        default_factory=dict, metadata={"help": "an option of the counter; may be repeated"}
    )
    also: list[str] = field(
        default_factory=list,
        metadata={"help": "weights of further counters: the mean of all is certified, each of them "
                  "masked by itself", "metavar": "WEIGHTS"},
    )  # fmt: skip
    shares: list[float] | None = field(
        default=None, metadata={"help": "their shares, --weights first (default: equal)"}
    )
    patch: list[int] = field(
        default_factory=lambda: [20, 40, 81, 163],
        metadata={"help": "sides of square patches, pixels", "metavar": "PIXELS"},
    )
    method: list[str] = field(
        default_factory=lambda: ["masked"],
        metadata={"help": "certificates", "choices": methods.names()},
    )
    tile: int | None = field(
        default=None,
        metadata={
            "help": "count isolated tiles of this side: for counters without a bounded field"
        },
    )
    allowance: float | None = field(
        default=None, metadata={"help": "masked: people a window may hold (default: calibrated)"}
    )
    cap: float | None = field(
        default=None, metadata={"help": "additive: people a cell may hold (default: calibrated)"}
    )
    block_cap: float | None = field(
        default=None,
        metadata={"help": "additive: people 8 x 8 cells may hold (default: calibrated)"},
    )
    force_calibration: bool = field(
        default=False,
        metadata={"help": "allow calibration on the certified part itself; the table says so"},
    )
    masks: int = field(default=36, metadata={"help": "two-mask: a square number"})
    k: int = field(default=45, metadata={"help": "quantile, fixed-masks: pixels of a draw"})
    draws: int = field(default=1000, metadata={"help": "quantile, fixed-masks: draws"})
    alpha: float = field(default=0.001, metadata={"help": "quantile: error probability of a run"})
    attack: bool = field(
        default=False, metadata={"help": "attack the defended counters too; exit code 1 if a count "
                                 "leaves its interval"}
    )  # fmt: skip
    steps: int = field(default=40, metadata={"help": "of the attack"})
    step_size: float = field(default=0.25, metadata={"help": "of the attack, of [0,1]"})
    limit: int | None = field(default=None, metadata={"help": "use the first images only"})
    outside: str = field(
        default="keep",
        metadata={
            "help": "what images show outside their region of interest",
            "choices": list(SHOW),
        },
    )
    on_error: str = field(
        default="raise",
        metadata={"help": "what to do with broken items", "choices": ["raise", "skip"]},
    )
    device: str = field(default="cpu", metadata={"help": "cpu or cuda[:N]"})
    seed: int = field(default=0, metadata={"help": "key of all randomness"})
    threads: int | None = field(default=None, metadata={"help": "threads (default: torch's)"})
    pictures: bool | None = field(
        default=None, metadata={"help": "draw the curve and where a patch would hurt most"}
    )


def plan_of(settings: Mapping[str, Any]) -> Plan:
    """What the settings ask for; ValueError for a number out of range."""
    if not 0 < settings["alpha"] < 1:
        raise ValueError(f"--alpha must lie inside (0, 1), got {settings['alpha']}")
    for name in ("k", "draws", "steps", "masks", "threads"):
        if settings[name] is not None and settings[name] < 1:
            raise ValueError(f"--{name} must be at least 1, got {settings[name]}")
    if min(settings["patch"]) < 1:
        raise ValueError(f"--patch must be at least 1 pixel, got {min(settings['patch'])}")
    check_masks(settings["masks"])
    for name, least in (("allowance", 0.0), ("cap", 1e-30), ("block_cap", 1e-30)):
        value = settings[name]
        if value is not None and not least <= value < float("inf"):
            flag = name.replace("_", "-")
            raise ValueError(
                f"--{flag} must be people {'from 0 on' if not least else 'above 0'}, "
                f"finite, got {value}"
            )
    if not 0 < settings["step_size"] <= 1:
        raise ValueError(f"--step-size must lie in (0,1], got {settings['step_size']}")
    return Plan(
        patches=tuple(dict.fromkeys(settings["patch"])),
        methods=tuple(dict.fromkeys(settings["method"])),
        masks=settings["masks"],
        k=settings["k"],
        draws=settings["draws"],
        alpha=settings["alpha"],
        seed=settings["seed"],
        allowance=settings["allowance"],
        cap=settings["cap"],
        block_cap=settings["block_cap"],
    )
