"""Backdoors in crowd counters: how they come in, what they do, and what takes them out.

Triggers, density manipulations and poisoned data sets; the measures of an attack with their chance
levels; defenses, a detector, and the experiment that puts all of them side by side.
"""

from pycc.backdoor.detector import BlendConsistency, Blended, deviations
from pycc.backdoor.distillation import AttentionDistillation
from pycc.backdoor.evaluation import EvaluationSet, counted, detected
from pycc.backdoor.experiment import Experiment, Partitions, clean_images
from pycc.backdoor.finetuning import (
    Defense,
    FineTuning,
    Retraining,
    clean_mixture,
    defenses,
)
from pycc.backdoor.gradcam import GradCam, default_layers, gradcam
from pycc.backdoor.measures import record, row
from pycc.backdoor.neurons import AdversarialNeuronPruning
from pycc.backdoor.overlap import Overlap, contents, overlap
from pycc.backdoor.poison import (
    Poisoned,
    PoisonedTraining,
    Triggered,
    export,
    poisoned_training,
)
from pycc.backdoor.pruning import FinePruning
from pycc.backdoor.strategies import Add, Divide, Minus, Multiply, Strategy, strategies
from pycc.backdoor.summary import curves, distributions, summarise
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
from pycc.backdoor.verdict import verdict

__all__ = [
    "Add",
    "AdversarialNeuronPruning",
    "AttentionDistillation",
    "Blend",
    "BlendConsistency",
    "Blended",
    "Corner",
    "Defense",
    "Divide",
    "EvaluationSet",
    "Experiment",
    "FinePruning",
    "FineTuning",
    "GradCam",
    "Layer",
    "Minus",
    "Multiply",
    "Noise",
    "Overlap",
    "Partitions",
    "Poisoned",
    "PoisonedTraining",
    "Retraining",
    "Sinusoid",
    "Strategy",
    "Trigger",
    "Triggered",
    "Warp",
    "clean_images",
    "clean_mixture",
    "contents",
    "counted",
    "curves",
    "default_layers",
    "defenses",
    "detected",
    "deviations",
    "distributions",
    "export",
    "gradcam",
    "overlap",
    "poisoned_training",
    "record",
    "row",
    "strategies",
    "summarise",
    "triggers",
    "verdict",
]
