"""All sanity checks of a run, in the order of its table."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from pycc.attack.evaluation.builder import Member
from pycc.attack.evaluation.checks import Results
from pycc.attack.evaluation.counter_checks import (
    finite_differences,
    planted,
    same_count,
    unchanged,
)
from pycc.attack.evaluation.jobs import EvaluationJobs
from pycc.attack.evaluation.result_checks import RESULT_CHECKS
from pycc.attack.evaluation.trial_checks import (
    more_restarts,
    more_steps,
    per_image,
    random_search,
    whole_image,
)
from pycc.report import Check

TRIALS: Sequence[Callable[[EvaluationJobs, Results], Check]] = (
    whole_image,
    more_steps,
    more_restarts,
    per_image,
    finite_differences,
    planted,
    random_search,
    same_count,
)
"""The checks that try something."""


def run_checks(jobs: EvaluationJobs, weights: Mapping[Member, str]) -> list[Check]:
    """The outcomes of all checks on a finished run.

    ``weights`` are the identities (``pycc.counters.identity``) that the counters had before it.
    """
    results = Results(jobs.ordered(jobs.run.records), jobs.attacks)
    checks = [check(results) for check in RESULT_CHECKS]
    for number, trial in enumerate(TRIALS, 1):
        jobs.advance(0.0, f"check {number} of {len(TRIALS)}")
        checks.append(trial(jobs, results))
    return [*checks, unchanged(jobs, weights)]
