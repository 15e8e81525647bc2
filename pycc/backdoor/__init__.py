"""Backdoors in crowd counters: poisoned training sets, their effects, and defenses.

Triggers, density manipulations and poisoned data sets; the measures of an attack with their chance
levels; defenses, a detector, and the experiment that compares all of them.
"""

from pycc.backdoor.defenses.base import Defense, DefenseJob, Retraining, defenses
from pycc.backdoor.defenses.detector import BlendConsistency, Blended, deviations
from pycc.backdoor.defenses.distillation import AttentionDistillation
from pycc.backdoor.defenses.finetuning import FineTuning, clean_images, clean_mixture
from pycc.backdoor.defenses.neurons import AdversarialNeuronPruning
from pycc.backdoor.defenses.pruning import FinePruning
from pycc.backdoor.evaluation.counting import EvaluationSet, counted, detected
from pycc.backdoor.evaluation.evaluate import evaluate
from pycc.backdoor.evaluation.experiment import Experiment, Partitions
from pycc.backdoor.evaluation.gradcam import GradCam, default_layers, gradcam
from pycc.backdoor.evaluation.measures import KEY, record
from pycc.backdoor.evaluation.summary import curves, distributions, summarise
from pycc.backdoor.evaluation.verdict import verdict
from pycc.backdoor.poisoning.overlap import Overlap, PoisonedImage, contents, overlap
from pycc.backdoor.poisoning.poison import Poisoned, PoisonedTraining, Triggered, export, poison
from pycc.backdoor.poisoning.strategies import Add, Divide, Minus, Multiply, Strategy, strategies
from pycc.backdoor.poisoning.triggers import (
    Blend,
    Corner,
    Layer,
    Noise,
    Sinusoid,
    Trigger,
    Warp,
    triggers,
)
from pycc.metrics.backdoor import BackdoorMetrics, BackdoorSummary, Detection, row

__all__ = [
    "KEY",
    "Add",
    "AdversarialNeuronPruning",
    "AttentionDistillation",
    "BackdoorMetrics",
    "BackdoorSummary",
    "Blend",
    "BlendConsistency",
    "Blended",
    "Corner",
    "Defense",
    "DefenseJob",
    "Detection",
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
    "PoisonedImage",
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
    "evaluate",
    "export",
    "gradcam",
    "overlap",
    "poison",
    "record",
    "row",
    "strategies",
    "summarise",
    "triggers",
    "verdict",
]
