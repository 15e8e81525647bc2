"""The evaluation of a backdoored counter, beside a clean one, as a run."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from os import PathLike

from pycc.backdoor.evaluation.counting import EvaluationSet, counted
from pycc.backdoor.evaluation.folders import EVALUATE, model_of, open_run
from pycc.backdoor.evaluation.summary import summarise
from pycc.backdoor.poisoning.strategies import Strategy
from pycc.backdoor.poisoning.triggers import Trigger
from pycc.checks import check_type, check_whole
from pycc.counters import frozen
from pycc.data.dataset import check_sample
from pycc.metrics.backdoor import BACKDOORED, BackdoorMetrics
from pycc.ranks import Ranks
from pycc.types import Counter, Progress, Sample, check_counter, check_sequence, each


def evaluate(
    counter: Counter,
    samples: Sequence[Sample],
    trigger: Trigger,
    strategy: Strategy,
    *,
    clean_counter: Counter | None = None,
    defense: str | None = None,
    seed: int = 0,
    out: str | PathLike[str] | None = None,
    resume: bool = False,
    ranks: Ranks = Ranks(),
    progress: Progress | None = None,
    settings: object | None = None,
    command: Sequence[str] = (),
    machine: Collection[str] = (),
) -> BackdoorMetrics:
    """Count test images with a backdoored counter, without and with the trigger.

    Args:
        counter: the counter with the backdoor, or after a ``defense`` of that name.
        samples: annotated test images with unique names; they are counted in 8 bits.
        trigger, strategy, seed: those of the poisoned training set.
        clean_counter: a counter trained in the same way on clean images. Its attack success on
            triggered images is one chance level; without it ``excess`` and ``left`` are None.
        out: run folder, new or empty; None keeps the results in memory. ``pycc backdoor report``
            reads it.
        resume: continue the run in ``out``.
        ranks: the processes of torchrun, which share the images.
        progress: called with (images done, images in all, text).
        settings: a dataclass with the settings of a command, for the manifest (``flags``).
        command, machine: stored and compared as in ``pycc.runs.open_or_resume``.

    Raises:
        TypeError: an argument of another type.
        ValueError: no samples, samples whose names are not unique, an image that is too small for
            the trigger or the counter; for a resumed run, settings, data or weights other than
            those of its manifest.

    >>> from pycc import backdoor, data, models
    >>> samples = data.open("synthetic", limit=1, shape=(64, 96))
    >>> counter = models.load("mcnn-synthetic")
    >>> metrics = evaluate(counter, samples, backdoor.Noise(), backdoor.Minus())
    >>> metrics.clean.images, metrics.triggered.images, metrics.excess
    (1, 1, None)
    """
    check_sequence("backdoor", samples)
    check_whole("backdoor", "seed", seed, 0)
    check_type("backdoor", "trigger", trigger, Trigger, "a trigger, such as Noise()")
    check_type("backdoor", "strategy", strategy, Strategy, "a strategy, such as Add(20)")
    if not len(samples):
        raise ValueError("backdoor: samples must be at least one, got none")
    for part in (counter,) if clean_counter is None else (counter, clean_counter):
        check_counter("backdoor", part)
    tested = EvaluationSet(samples, trigger, seed)
    for index, sample in enumerate(each(samples)):  # before all the work
        check_sample(sample)
        tested.triggered.marked(index, sample)
    facts = {"strategy": strategy.settings(), "defense": defense, "seed": seed}
    log = open_run(
        out, resume=resume, settings=settings, name=EVALUATE, command=command, machine=machine,
        counter=counter, samples={"clean_weights": clean_counter, "test": samples},
        trigger=trigger, facts=facts if settings is None else {}, ranks=ranks,
    )  # fmt: skip
    with log:
        if clean_counter is not None:
            with frozen(clean_counter):
                counted(
                    log, lambda: clean_counter, tested, strategy=None, defense=None, ranks=ranks,
                    progress=progress,
                )  # fmt: skip
        with frozen(counter):
            counted(
                log, lambda: counter, tested, strategy=strategy, defense=defense, ranks=ranks,
                progress=progress,
            )  # fmt: skip
        summary = summarise(log.records)
        log.finish({**summary.json(), "model": model_of(counter)})
    (backdoored,) = (row for row in summary.rows if row.model == BACKDOORED)
    return backdoored
