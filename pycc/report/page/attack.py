"""The page of an attack: errors by patch size, worst images, places, shifts, alarms."""

from __future__ import annotations

from collections.abc import Sequence

from pycc.report.page.alarms import Reading, Readings, alarm_blocks
from pycc.report.page.attack_charts import curves, places
from pycc.report.page.attack_facts import (
    CLEAN,
    NOISE,
    AttackFacts,
    Change,
)
from pycc.report.page.attack_gallery import gallery
from pycc.report.page.blocks import UNKNOWN, Block, Cell, Content, Table, Tone, Verdict, number
from pycc.report.page.card import (
    Card,
    Errors,
    FailedCheck,
    Threat,
    data_facts,
    model_facts,
    version_of,
)
from pycc.report.page.contents import Options, contents
from pycc.report.page.provenance import provenance
from pycc.report.page.stored import StoredRun
from pycc.report.page.words import listed, number_of, people, size_text
from pycc.report.summary import Check, SummaryRow

MOST_ROWS = 300
"""Most rows of the table by image."""


@contents.register("attack")
def attack_content(run: StoredRun, options: Options) -> Content:
    """Build the page of an attack."""
    facts = AttackFacts(run)
    model, data = model_facts(run), data_facts(run, facts.summary.images)
    names = listed(facts.names) if facts.names else "no patch"
    return Content(
        title=f"Attack on {model.title}: {names} on {data.title}",
        verdict=verdict(facts),
        card=card(facts),
        main=(main_table(facts), *checks_table(facts)),
        curves=curves(facts, options),
        gallery=gallery(facts, options),
        places=places(facts, options),
        shift=shifts(facts),
        alarm=alarms(facts, options),
        settings=provenance(run),
    )


def worst_of(facts: AttackFacts) -> SummaryRow | None:
    """The attack of the largest error, or of the largest change where errors are unknown."""

    def size(row: SummaryRow) -> float:
        clean = facts.means(row, CLEAN)
        if row.mae is not None or clean is None:
            return row.mae or 0.0
        return abs(row.mean_count - clean.mean_count)

    return max(facts.optimised, key=size, default=None)


def verdict(facts: AttackFacts) -> Verdict:
    """Sum up an attack in one sentence, with the outcome of its checks."""
    model, images = facts.run.text("weights"), number_of(facts.summary.images, "image")
    counter = model_facts(facts.run).weights if model else "the counter"
    row = worst_of(facts)
    first = facts.means(row, CLEAN) if row else next(iter(facts.summary.rows), None)
    if row is None or first is None:
        errors = "" if first is None or first.mae is None else (
            f", with a mean absolute error of {people(first.mae)} people"
        )  # fmt: skip
        return Verdict(f"{counter} counted {images} without any patch{errors}.")
    patch = f"patches of {size_text(row.patch_size)} ({row.condition})"
    noise = facts.means(row, NOISE)
    if row.mae is None or first.mae is None:
        sentence = (
            f"With {patch} the mean count goes from {people(first.mean_count)} to "
            f"{people(row.mean_count)} people on {images}"
        )
        beside = None if noise is None else noise.mean_count
    else:
        verb = "raise" if row.mae > first.mae else "do not raise"
        sentence = (
            f"{patch[0].upper()}{patch[1:]} {verb} the mean absolute error of {counter} from "
            f"{people(first.mae)} to {people(row.mae)} people on {images}"
        )
        if verb == "do not raise":
            sentence = sentence.replace(f"from {people(first.mae)} to", f"({people(first.mae)}):")
        beside = None if noise is None else noise.mae
    if beside is not None:
        sentence += f"; noise of the same size and place: {people(beside)}"
    return Verdict(f"{sentence}.", checks=checks_text(facts.summary.checks))


def checks_text(outcomes: Sequence[Check]) -> str:
    """Sum up the checks of an attack in one sentence."""
    if not outcomes:
        return (
            "The run folder holds no checks: nothing says whether the attack is as strong as it "
            "can be."
        )
    failed = sum(outcome.verdict == "fail" for outcome in outcomes)
    applied = sum(outcome.verdict != "not applicable" for outcome in outcomes)
    if failed:
        return f"{failed} of {number_of(applied, 'check')} that apply failed:"
    return f"All checks that apply passed ({applied})."


def card(facts: AttackFacts) -> Card:
    """Build the card of an attack: its threat, data and errors."""
    failed = tuple(
        FailedCheck(outcome.name, outcome.figure)
        for outcome in facts.summary.checks
        if outcome.verdict == "fail"
    )
    methods = facts.settings.attacks
    first = methods[0] if methods else None
    clean = next((row for row in facts.summary.rows if row.condition == CLEAN), None)

    def errors(rows: Sequence[SummaryRow]) -> tuple[Errors, ...]:
        return tuple(
            Errors(row.mae, row.mean_count, row.patch_size, row.condition, row.victim,
                   row.surrogates, row.mae_low, row.mae_high)
            for row in rows
        )  # fmt: skip

    return Card(
        kind="attack",
        run=facts.run.name,
        pycc=version_of(facts.run),
        model=model_facts(facts.run),
        data=data_facts(facts.run, facts.summary.images),
        threat=Threat(
            "patch" if methods else "none",
            tuple(facts.names),
            tuple(dict.fromkeys(method.patch_size for method in methods)),
            first.objective if first else None,
            first.location if first else None,
            first.steps if first else None,
        ),
        clean=None if clean is None else errors([clean])[0],
        noise=errors([row for row in facts.summary.rows if row.condition == NOISE]),
        attacked=errors(facts.optimised),
        failed_checks=failed,
        unreliable=bool(failed),
    )


def main_table(facts: AttackFacts) -> Table:
    """The rows of the summary."""
    victims, surrogates = facts.several
    head = ["patch", "size", *(["counter"] if victims else []),
            *(["made on"] if surrogates else []), "MAE", "95 % interval", "RMSE", "bias",
            "mean count", "error rate", "gain over noise", "area"]  # fmt: skip
    rows = []
    for row in facts.summary.rows:
        ends = Cell(UNKNOWN)
        if row.mae_low is not None and row.mae_high is not None:
            ends = Cell(f"{row.mae_low:,.1f} … {row.mae_high:,.1f}", row.mae_low)
        rows.append((
            Cell(row.condition), Cell(size_text(row.patch_size)),
            *([Cell(row.victim or "")] if victims else []),
            *([Cell(row.surrogates or "")] if surrogates else []),
            number(row.mae), ends, number(row.rmse), number(row.bias, signed=True),
            number(row.mean_count), number(row.error_rate, unit=" %"),
            number(row.gain_over_noise, signed=True), number(row.area, 2, unit=" %"),
        ))  # fmt: skip
    seeds = max((row.seeds for row in facts.summary.rows), default=1)
    notes = [
        f"{number_of(facts.summary.images, 'image')}, {number_of(seeds, 'seed')}. MAE, RMSE and "
        "bias in people against the annotated heads; intervals by bootstrap over the images; error "
        "rate against the count of the clean image; area of the patch in the image. A patch that "
        "was not optimised says what its place and size do alone."
    ]
    if not facts.annotated:
        notes.append("Images without annotation: errors against their heads are unknown.")
    return Table("Errors by patch", tuple(head), tuple(rows), tuple(notes))


def checks_table(facts: AttackFacts) -> tuple[Table, ...]:
    """The sanity checks, failed ones first; () if none were made."""
    order = {"fail": 0, "pass": 1}
    outcomes = sorted(facts.summary.checks, key=lambda outcome: order.get(outcome.verdict, 2))
    if not outcomes:
        return ()
    tones: dict[str, Tone] = {"fail": "bad", "pass": "good"}
    rows = tuple(
        (Cell(outcome.verdict, tone=tones.get(outcome.verdict, "plain")),
         Cell(outcome.name), Cell(outcome.figure))
        for outcome in outcomes
    )  # fmt: skip
    return (Table("Sanity checks: facts that hold for every sound attack",
                  ("verdict", "check", "figure"), rows),)  # fmt: skip


def shifts(facts: AttackFacts) -> tuple[Block, ...]:
    """Build the changes of counts, with sign: by patch, and by image under the worst patch."""
    rows = []
    for means in facts.reported:
        changes = facts.changes(facts.rows_of(means))
        if not changes:
            continue
        total = sum(change.clean.count for change in changes)
        moved = sum(change.people for change in changes)
        up, down = (end(changes, key=lambda change: change.people) for end in (max, min))
        rows.append((
            Cell(facts.label(means)), number(moved / len(changes), signed=True),
            number(100 * moved / total if total > 0 else None, signed=True, unit=" %"),
            *_extreme(up), *_extreme(down),
        ))  # fmt: skip
    if not rows:
        return ()
    head = ("patch", "mean shift, people", "of the clean count", "highest shift", "on image",
            "lowest shift", "on image")  # fmt: skip
    note = "Shift: the count with the patch less the count of the clean image; + people added."
    return (Table("Shift of the count by patch", head, tuple(rows), (note,)), *_by_image(facts))


def _extreme(change: Change) -> tuple[Cell, Cell]:
    return number(change.people, signed=True), Cell(change.attacked.image)


def _by_image(facts: AttackFacts) -> tuple[Table, ...]:
    """The images under the patch of the largest error, the largest shift first."""
    worst = worst_of(facts)
    if worst is None:
        return ()
    changes = facts.changes(facts.rows_of(worst))
    changes.sort(key=lambda change: -abs(change.people))
    rows = tuple(
        (Cell(change.attacked.image), number(change.clean.truth, 0), number(change.clean.count),
         number(change.attacked.count), number(change.people, signed=True),
         number(change.percent, signed=True, unit=" %"))
        for change in changes[:MOST_ROWS]
    )  # fmt: skip
    notes: tuple[str, ...] = ()
    if len(changes) > MOST_ROWS:
        notes = (f"The {MOST_ROWS} largest shifts of {len(changes):,}; all are in results.jsonl.",)
    head = ("image", "heads", "clean count", "attacked count", "shift, people", "shift")
    return (Table(f"Shift by image: {facts.label(worst)}", head, rows, notes, sortable=True),)


def alarms(facts: AttackFacts, options: Options) -> tuple[Block, ...]:
    """Missed and false alarms of the clean and the attacked counts."""
    conditions = []
    clean = [row for row in facts.summary.rows if row.condition == CLEAN]
    for means in (*clean, *facts.reported):
        readings = tuple(
            Reading(
                change.clean.count if change.clean.truth is None else change.clean.truth,
                change.attacked.count, change.attacked.count,
            )
            for change in facts.changes(facts.rows_of(means))
        )  # fmt: skip
        conditions.append(Readings(facts.label(means), readings))
    return alarm_blocks(conditions, options.alarm, annotated=facts.annotated)
