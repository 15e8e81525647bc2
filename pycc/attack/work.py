"""The work of a run: what is measured on which image, in which order."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Protocol

from pycc.attack.apam import APAM
from pycc.attack.base import Found, PatchAttack
from pycc.attack.baseline import baselines
from pycc.attack.location import Candidates, worst_place
from pycc.attack.location import cost as search_cost
from pycc.attack.measure import Case, Judge
from pycc.attack.patch import Place
from pycc.attack.pgd import PGD
from pycc.attack.plan import Source, batches, everyone
from pycc.attack.scenes import Problem
from pycc.attack.stage import Clean, Member, Stage
from pycc.attack.survey import Item, Shelf, Survey
from pycc.attack.universal import Universal
from pycc.checks import naming
from pycc.ranks import Ranks
from pycc.runs import Record, Run

_FORWARD = 1 / 3
"""Share of a forward pass in the time of a forward and a backward pass."""


class Progress(Protocol):
    """Told how far a run is."""

    def __call__(self, done: float, total: float, label: str, /) -> None:
        """``done`` of ``total`` megapixels, forward and backward; and what is going on."""


class Work:
    """Everything a run has to measure, and measuring what is not known yet."""

    def __init__(
        self,
        attacks: Sequence[PatchAttack],
        sources: Sequence[Source],
        samples: Shelf,
        found: Survey,
        seeds: Sequence[int],
        run: Run,
        *,
        train: tuple[Shelf, Survey] | None = None,
        combine: str = "mean",
        pgd: PGD | None = None,
        compare: bool = True,
        candidates: Candidates | None = None,
        progress: Progress | None = None,
        ranks: Ranks = Ranks(),
    ) -> None:
        self.ranks, self._pieces = ranks, 0
        self.attacks, self.sources, self.seeds = tuple(attacks), tuple(sources), tuple(seeds)
        self.samples, self.items, self.run, self.pgd = samples, found.items, run, pgd
        self._train = train
        victims = {m.label: m for source in sources for m in source.victims}
        self.victims = tuple(victims.values())
        self.members = everyone(self.sources)
        self.clean = Clean()
        for record in run.records:
            if record["condition"] == "none":
                cells = record["cells"][0], record["cells"][1]
                self.clean.tell(record["victim"], record["image"], record["count"], cells)
        self.stages = [Stage(s.members, samples, self.clean, combine=combine) for s in sources]
        self._training = (
            [Stage(s.members, train[0], Clean(), combine=combine) for s in sources]
            if train is not None
            else []
        )
        self.judge = Judge(samples, run)
        self._baselines = baselines.names() if compare else []
        self._candidates = candidates
        self._places: dict[tuple[int, int, int, int], Place] = self._searched(run.records)
        self._progress, self._done, self._total = progress, 0.0, 0.0

    def do(self) -> None:
        """Measure what is missing: all without optimisation, then each attack in batches.

        Of several processes each does its turns; what is one for all does not depend on who does
        it.
        """
        self._total = self._cost()
        for item in self.items:
            if self._turn():
                self._measure_clean(item)
        for seed in self.seeds:
            for number in range(len(self.sources)):
                for attack in range(len(self.attacks)):
                    self._measure_attack(seed, number, attack)
        for item in self.items:
            if self._turn():
                self._measure_baselines(item)

    def ordered(self, records: Sequence[Record]) -> list[Record]:
        """Results in the order of what was asked for, whoever found them and when."""
        orders: dict[str, list[Any]] = {
            "victim": [victim.label for victim in self.victims],
            "condition": ["none", *self._baselines, "pgd", *(a.name for a in self.attacks)],
            "size": [None, *(a.size for a in self.attacks)],
            "source": [None, *(source.label for source in self.sources)],
        }
        ranks = {name: {one: n for n, one in reversed([*enumerate(order)])}
                 for name, order in orders.items()}  # fmt: skip

        def key(record: Record) -> list[int]:
            places = [rank[record.get(name)] for name, rank in ranks.items()]
            return [*places, int(record["index"]), int(record.get("seed") or 0)]

        return sorted(records, key=key)

    def _turn(self) -> bool:
        """Whether the next piece of work is this process's."""
        self._pieces += 1
        return self._pieces % self.ranks.world == self.ranks.rank

    # Planning

    def place(self, item: Item, attack: int, seed: int, source: int = 0) -> Place:
        """Where a patch goes; searched for once where the attack asks for the worst place."""
        chosen = self.attacks[attack]
        if chosen.location != "worst":
            return chosen.place(item.shape, seed=seed, image=item.index)
        key = item.index, attack, seed, source
        if key not in self._places:
            assert isinstance(chosen, APAM)
            stage = self.stages[source]
            with naming(item.name, item.shape):
                self._places[key] = worst_place(
                    chosen, stage, item, seed=seed, candidates=self._candidates
                )
            self._advance(
                item.shape[0] * item.shape[1]
                + search_cost(chosen) * stage.pixels(chosen, item, self._places[key]),
                f"where to attack {item.name}",
            )
        return self._places[key]

    def _searched(self, records: Sequence[Record]) -> dict[tuple[int, int, int, int], Place]:
        """The worst places that a stopped run has found."""
        attacks = {(a.name, a.size): n for n, a in enumerate(self.attacks)}
        sources = {source.label: n for n, source in enumerate(self.sources)}
        found = {}
        for record in records:
            attack = attacks.get((record["condition"], record["size"]))
            if attack is not None and self.attacks[attack].location == "worst":
                key = record["index"], attack, record["seed"], sources[record["source"]]
                found[key] = Place(record["side"], tuple(record["top_left"]))
        return found

    def _plan(self, seed: int, source: int, attack: int) -> list[tuple[list[Item], list[Place]]]:
        """Batches of one kind, a function of images and settings alone.

        A resumed run therefore computes an unfinished batch as a whole, with the same bits.
        """
        chosen, stage = self.attacks[attack], self.stages[source]
        places = [self.place(item, attack, seed, source) for item in self.items]
        return batches(chosen, stage, self.items, places)

    def _case(self, item: Item, attack: int, condition: str, seed: int, source: int | None) -> Case:
        chosen = self.attacks[attack]
        return Case(
            item,
            condition,
            chosen.size,
            source=None if source is None else self.sources[source].label,
            seed=seed,
        )

    def _known(self, case: Case, victims: Sequence[Member]) -> bool:
        return all(self.judge.knows(case, victim) for victim in victims)

    def _attack_cases(self, seed: int, source: int, attack: int) -> list[Case]:
        name = self.attacks[attack].name
        cases = [self._case(item, attack, name, seed, source) for item in self.items]
        return [c for c in cases if not self._known(c, self.sources[source].victims)]

    def _cost(self) -> float:
        """Megapixels of what is still to be measured."""
        total = 0.0
        for item in self.items:
            pixels = item.shape[0] * item.shape[1]
            free = [Case(item, "none", None, seed=self.seeds[0])]
            free += [
                self._case(item, attack, name, seed, None)
                for attack in range(len(self.attacks))
                for seed in self._baseline_seeds(attack)
                for name in self._baselines
            ]
            if self.pgd is not None and self.attacks:
                reference = Case(item, "pgd", None, seed=self.seeds[0])
                free.append(reference)
                if not self._known(reference, self.victims):
                    total += pixels * self.pgd.steps
            total += (
                pixels
                * _FORWARD
                * len(self.victims)
                * sum(not self._known(case, self.victims) for case in free)
            )
        for seed in self.seeds:
            for source, of in enumerate(self.sources):
                for attack, chosen in enumerate(self.attacks):
                    cases = self._attack_cases(seed, source, attack)
                    for case in cases:
                        pixels = case.item.shape[0] * case.item.shape[1]
                        total += pixels * _FORWARD * len(of.victims)
                        place = chosen.place(case.item.shape, seed=seed, image=case.item.index)
                        window = self.stages[source].pixels(chosen, case.item, place)
                        if not isinstance(chosen, Universal):
                            total += window * chosen.work
                        if chosen.location == "worst" and isinstance(chosen, APAM):
                            total += pixels + search_cost(chosen) * window
                    if isinstance(chosen, Universal) and cases:
                        total += self._training_pixels(chosen, seed, source) * chosen.work
        return total / 1e6

    def _training_pixels(self, chosen: Universal, seed: int, source: int) -> float:
        """Of one step, on average."""
        assert self._train is not None
        items, stage = self._train[1].items, self._training[source]
        places = [chosen.place(i.shape, seed=seed, image=i.index) for i in items]
        plan = batches(chosen, stage, items, places)
        pixels = [len(group) * stage.pixels(chosen, group[0], at[0]) for group, at in plan]
        return sum(pixels) / len(pixels)

    def _advance(self, pixels: float, label: str) -> None:
        self._done += pixels / 1e6
        if self._progress is not None:
            self._progress(min(self._done, self._total), self._total, label)

    # Measuring

    def _judge(self, case: Case, victims: Sequence[Member], **what: Any) -> None:
        """Count one image under one condition by all victims that have not yet."""
        for victim in victims:
            if not self.judge.knows(case, victim):
                record = self.judge.measure(case, victim, **what)
                if case.condition == "none":
                    cells = record["cells"][0], record["cells"][1]
                    self.clean.tell(victim.label, case.item.name, record["count"], cells)
                pixels = case.item.shape[0] * case.item.shape[1]
                self._advance(pixels * _FORWARD, f"counting {case.item.name}, {case.condition}")

    def _measure_clean(self, item: Item) -> None:
        self._judge(Case(item, "none", None, seed=self.seeds[0]), self.victims)

    def _baseline_seeds(self, attack: int) -> tuple[int, ...]:
        """The seeds of baselines: the first, or all where the place of the patch depends on it."""
        fixed = self.attacks[attack].location in ("centre", "given")
        return self.seeds[:1] if fixed else self.seeds

    def _home(self, victim: Member) -> int:
        """The source whose places a victim's baselines have: the white-box one, or the first."""
        own = [n for n, source in enumerate(self.sources) if source.is_white_box(victim)]
        return own[0] if own else 0

    def _measure_baselines(self, item: Item) -> None:
        """The patches that nobody optimised, at the places of the white-box ones; and PGD."""
        for attack, chosen in enumerate(self.attacks):
            for seed in self._baseline_seeds(attack):
                for name in self._baselines:
                    case = self._case(item, attack, name, seed, None)
                    for victim in self.victims:
                        if self.judge.knows(case, victim):
                            continue
                        place = self.place(item, attack, seed, self._home(victim))
                        patch = baselines[name](
                            place.side, seed=seed, item=item, items=self.items, samples=self.samples
                        )
                        if patch is not None:
                            mask = chosen.mask(place.side)
                            self._judge(case, [victim], place=place, patch=patch, mask=mask)
        if self.pgd is None or not self.attacks:
            return
        case = Case(item, "pgd", None, seed=self.seeds[0])
        for victim in self.victims:
            if not self.judge.knows(case, victim):
                stage = Stage([victim], self.samples, self.clean)
                with naming(item.name, item.shape):
                    image = self.pgd.attack(stage, item, self.attacks[0])
                self._advance(item.shape[0] * item.shape[1] * self.pgd.steps, f"PGD, {item.name}")
                self._judge(case, [victim], image=image)

    def _measure_attack(self, seed: int, source: int, attack: int) -> None:
        """Optimise patches in batches and measure what they do."""
        chosen, of = self.attacks[attack], self.sources[source]
        missing = {case.item.index for case in self._attack_cases(seed, source, attack)}
        if not missing:
            return
        if isinstance(chosen, Universal):
            if not self._turn():  # one training for all images
                return
            found = self._trained(chosen, seed, source)
            for item in self.items:
                place = self.place(item, attack, seed, source)
                problem = self.stages[source].problem(chosen, [item], [place])
                (reach,) = problem.reach()
                self._judge_found(found, 0, item, place, seed, source, attack, reach)
            return
        for items, places in self._plan(seed, source, attack):
            if not self._turn() or not missing & {item.index for item in items}:
                continue
            pixels = float(len(items) * self.stages[source].pixels(chosen, items[0], places[0]))
            origin = "" if of.label is None else f" from {of.label}"
            what = f"{chosen.name} {chosen.size}{origin}, {_range(items)} of {len(self.items)}"
            step_done = self._steps(chosen, pixels, what)
            with naming(", ".join(item.name for item in items), items[0].shape):
                problem = self.stages[source].problem(chosen, items, places)
                found = chosen.optimise(problem, seed=seed, step_done=step_done)
            rows = zip(items, places, problem.reach(), strict=True)
            for row, (item, place, reach) in enumerate(rows):
                self._judge_found(found, row, item, place, seed, source, attack, reach)

    def _steps(self, chosen: PatchAttack, pixels: float, what: str) -> Callable[[int], None]:
        each = pixels * chosen.work / max(chosen.rounds, 1)

        def step_done(step: int) -> None:
            self._advance(each, f"{what}, step {step} of {chosen.rounds}")

        return step_done

    def _judge_found(
        self,
        found: Found,
        row: int,
        item: Item,
        place: Place,
        seed: int,
        source: int,
        attack: int,
        reach: float,
    ) -> None:
        chosen, of = self.attacks[attack], self.sources[source]
        facts: dict[str, Any] = {"path": list(found.path[row]), "reach": reach}
        if found.zero:
            facts["zero"] = found.zero[row]
        unrounded = None if found.unrounded is None else float(found.unrounded[row])
        for victim in of.victims:
            known = unrounded is not None and of.is_white_box(victim)
            own = {"unrounded": unrounded} if known else {}
            self._judge(
                self._case(item, attack, chosen.name, seed, source),
                [victim],
                place=place,
                patch=found.patch[row].cpu().float(),
                mask=chosen.mask(place.side),
                facts=facts | own,
            )

    def _trained(self, chosen: Universal, seed: int, source: int) -> Found:
        """The universal patch of one source, from the training images."""
        assert self._train is not None
        survey, stage = self._train[1], self._training[source]
        places = [chosen.place(i.shape, seed=seed, image=i.index) for i in survey.items]
        plan = batches(chosen, stage, survey.items, places)
        problems: list[Callable[[], Problem]] = [
            partial(stage.problem, chosen, items, at) for items, at in plan
        ]
        pixels = self._training_pixels(chosen, seed, source)
        what = f"{chosen.name} {chosen.size} on {len(survey.items)} images"
        step_done = self._steps(chosen, pixels, what)
        return chosen.train(problems, seed=seed, step_done=step_done)


def _range(batch: list[Item]) -> str:
    if len(batch) == 1:
        return f"image {batch[0].index + 1}"
    return f"images {batch[0].index + 1} to {batch[-1].index + 1}"
