"""How a training set was poisoned, as the manifest of a training states it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pycc import runs
from pycc.backdoor.poisoning.strategies import Strategy
from pycc.backdoor.poisoning.triggers import Trigger
from pycc.runs import Record
from pycc.settings import Options

_CONTENT = "picture_content"


@dataclass(frozen=True)
class StatedTrigger:
    """A trigger's name, its fields, and the fingerprint of the picture that it shows, if any."""

    name: str
    fields: Options
    picture_content: str | None = None

    @classmethod
    def read(cls, record: Mapping[str, Any]) -> StatedTrigger:
        """The trigger whose ``settings`` a manifest states."""
        fields = {name: v for name, v in record.items() if name not in ("trigger", _CONTENT)}
        return cls(record["trigger"], fields, record.get(_CONTENT))

    def json(self) -> Record:
        """As of ``Trigger.settings``."""
        content = {} if self.picture_content is None else {_CONTENT: self.picture_content}
        return {"trigger": self.name, **self.fields, **content}

    def content(self) -> Record:
        """Its record without the file's name, if the file's content is known."""
        named = self.picture_content is None
        return {name: v for name, v in self.json().items() if named or name != "picture"}


@dataclass(frozen=True)
class StatedStrategy:
    """A strategy's name and its fields."""

    name: str
    fields: Options

    @classmethod
    def read(cls, record: Mapping[str, Any]) -> StatedStrategy:
        """The strategy whose ``settings`` a manifest states."""
        return cls(record["strategy"], {n: v for n, v in record.items() if n != "strategy"})

    def json(self) -> Record:
        """As of ``Strategy.settings``."""
        return {"strategy": self.name, **self.fields}


@dataclass(frozen=True)
class StatedPoisoning:
    """The poisoning of a training set."""

    trigger: StatedTrigger
    strategy: StatedStrategy
    seed: int
    fraction: float | None = None
    defended: str | None = None
    """The defense that its counter has had since."""

    @classmethod
    def of(
        cls, trigger: Trigger, strategy: Strategy, *, seed: int, defended: str | None
    ) -> StatedPoisoning:
        """Make the statement of a poisoning with this trigger and strategy."""
        stated = {"trigger": trigger.settings(), "strategy": strategy.settings(), "seed": seed,
                  "defended": defended}  # fmt: skip
        return cls.read(json.loads(json.dumps(stated)))

    @classmethod
    def read(cls, record: Mapping[str, Any]) -> StatedPoisoning:
        """From the JSON values of a manifest; ValueError if they are none of a poisoning."""
        try:
            return cls(
                StatedTrigger.read(record["trigger"]), StatedStrategy.read(record["strategy"]),
                int(record["seed"]), record.get("fraction"), record.get("defended"),
            )  # fmt: skip
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise ValueError(
                f"expected a trigger, a strategy and a seed as poisoning, got {error!r}"
            ) from None

    def json(self) -> Record:
        """JSON values, as a manifest states them."""
        known = {"fraction": self.fraction, "defended": self.defended}
        return {
            "trigger": self.trigger.json(), "strategy": self.strategy.json(),
            "seed": self.seed, **{name: v for name, v in known.items() if v is not None},
        }  # fmt: skip

    def changes(self, tested: StatedPoisoning) -> list[str]:
        """The differences of the ``tested`` trigger, strategy, seed and defense from these."""

        def compared(stated: StatedPoisoning) -> Record:
            return {"trigger": stated.trigger.content(), "strategy": stated.strategy.json(),
                    "seed": stated.seed, "defended": stated.defended}  # fmt: skip

        return runs.differences(compared(self), compared(tested))
