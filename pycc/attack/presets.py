"""Presets: settings of an attack and of its evaluation that go together, by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields

from pycc.attack.base import PatchAttack, attacks
from pycc.attack.methods.apam import APAM
from pycc.attack.methods.pgd import PGD
from pycc.registry import Registry

Value = bool | int | float | str


@dataclass(frozen=True)
class Preset:
    """The values of a preset: fields of the attack, the reference, and the number of images.

    >>> quick = presets["quick"]
    >>> quick.pgd, quick.max_images
    (PGD(epsilon=0.01568627450980392, steps=4), 4)
    >>> quick.values(APAM)["steps"]
    200
    """

    attack: Mapping[str, Value]
    """Values of the attack's fields by name. All others keep the method's defaults."""
    pgd: PGD = PGD()  # noqa: RUF009  (frozen)
    """The reference on all pixels, ``pgd`` of ``attack.run``."""
    max_images: int | None = None
    """How many images are attacked; None: all."""
    patch_sizes: tuple[int | float, ...] | None = None
    """Sides of the patches, in pixels or as shares of the width; None: the command's default."""

    def values(self, method: type[PatchAttack], *, has_target: bool = True) -> dict[str, Value]:
        """The values that apply to an attack method, by field.

        Fields that the method does not have are left out. The steps of a method without gradients
        are queries, of which its default is kept. Without a target (``has_target`` is False:
        images without head annotations, and no ``target_count``) the objective ``target`` becomes
        ``over``, which raises the count.
        """
        known = {entry.name for entry in fields(method)}
        values = {name: value for name, value in self.attack.items() if name in known}
        if not method.uses_gradient:
            values.pop("steps", None)
        if not has_target and values.get("objective") == "target":
            values["objective"] = "over"
        return values


presets: Registry[Preset] = Registry("preset")
"""The presets by the names that ``--preset`` takes.

``paper``: nothing, the attacks' defaults are the paper's, which are weak. ``strong``: those of the
results in the README. ``quick``: a minute or so on the built-in scenes on two cores, without the
largest of the published sizes, which takes as long as the three others. Few large steps that shrink
to nothing reach as far as many of the published 2/255. They raise the count outright: the paper's
target, ten times the true density, also punishes people counted where none stand, and noise alone
raises the built-in counter's count by more than it allows.
"""

presets.register("paper")(Preset({}))
presets.register("strong")(
    Preset({
        "objective": "target", "steps": 240, "step_size": 0.25, "decay": "cosine",
        "smoothness": 0.0, "transform": "none",
    })
)  # fmt: skip
presets.register("quick")(
    Preset(
        {"objective": "over", "steps": 200, "step_size": 64 / 255, "decay": "cosine"},
        pgd=PGD(steps=4),
        max_images=4,
        patch_sizes=(0.02, 0.04, 0.08),
    )
)


def preset(
    name: str, method: str = APAM.name, *, annotated: bool = True, **settings: object
) -> PatchAttack:
    """Make an attack with the settings of a preset, as ``pycc attack --preset`` does.

    ``presets[name]`` also has the preset's settings of the evaluation: ``pgd``, ``max_images`` and
    ``patch_sizes``.

    Args:
        name: ``paper``, ``strong`` or ``quick``, or another of ``presets``.
        method: the attack's name in ``attacks``.
        annotated: whether the images have head annotations. Without them, and without
            ``target_count``, objective ``target`` becomes ``over``.
        settings: fields of the attack; they take precedence over the preset.

    Raises:
        ValueError: for an unknown preset or method, and for a field out of range.
        TypeError: for a field that the method does not have.

    >>> attack = preset("strong", patch_size=81)
    >>> attack.name, attack.objective, attack.steps, attack.patch_size
    ('apam', 'target', 240, 81)
    >>> preset("strong", "query", annotated=False).objective
    'over'
    """
    kind = attacks[method]
    has_target = annotated or settings.get("target_count") is not None
    return kind(**{**presets[name].values(kind, has_target=has_target), **settings})  # type: ignore[arg-type]
