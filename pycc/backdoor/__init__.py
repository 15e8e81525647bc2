"""Backdoors in crowd counters: triggers, density manipulations, poisoned data sets."""

from pycc.backdoor.poison import (
    Poisoned,
    PoisonedTraining,
    Triggered,
    export,
    poisoned_training,
)
from pycc.backdoor.strategies import Add, Divide, Minus, Multiply, Strategy, strategies
from pycc.backdoor.triggers import (
    Blend,
    Corner,
    Layer,
    Noise,
    Sinusoid,
    Trigger,
    Warp,
    triggers,
)

__all__ = [
    "Add",
    "Blend",
    "Corner",
    "Divide",
    "Layer",
    "Minus",
    "Multiply",
    "Noise",
    "Poisoned",
    "PoisonedTraining",
    "Sinusoid",
    "Strategy",
    "Trigger",
    "Triggered",
    "Warp",
    "export",
    "poisoned_training",
    "strategies",
    "triggers",
]
