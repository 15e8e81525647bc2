"""The jobs of a run: what is measured on which image, in which order."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

from torch import Tensor

from pycc.attack.base import PatchAttack
from pycc.attack.evaluation.baselines import baselines
from pycc.attack.evaluation.builder import CleanCounts, Member, ProblemBuilder
from pycc.attack.evaluation.checked import CheckedImage, CheckedSamples, SampleCache
from pycc.attack.evaluation.location import Candidates, PatchPlaces, search_cost
from pycc.attack.evaluation.plan import Surrogates, all_members, batches
from pycc.attack.evaluation.recorder import Case, PlacedPatch, ResultRecorder
from pycc.attack.methods.pgd import PGD
from pycc.attack.patch import Place
from pycc.attack.problem import Problem
from pycc.attack.tracker import LOOKS, OptimisedPatches
from pycc.checks import naming
from pycc.ranks import Ranks
from pycc.runs import Record, Run
from pycc.types import Progress

_FORWARD = 1 / 3
"""Share of a forward pass in the time of a forward and a backward pass."""


class EvaluationJobs:
    """All measurements of a run; those without a result yet are made by ``do``."""

    def __init__(
        self,
        attacks: Sequence[PatchAttack],
        surrogates: Sequence[Surrogates],
        samples: SampleCache,
        checked: CheckedSamples,
        seeds: Sequence[int],
        run: Run,
        *,
        train: tuple[SampleCache, CheckedSamples] | None = None,
        combine: str = "mean",
        pgd: PGD | None = None,
        compare: bool = True,
        candidates: Candidates | None = None,
        progress: Progress | None = None,
        ranks: Ranks = Ranks(),
    ) -> None:
        self.ranks, self._pieces = ranks, 0
        self.attacks, self.seeds = tuple(attacks), tuple(seeds)
        self.surrogates = tuple(surrogates)
        self.samples, self.items, self.run, self.pgd = samples, checked.items, run, pgd
        self._train = train
        victims = {m.label: m for made_on in surrogates for m in made_on.victims}
        self.victims = tuple(victims.values())
        self.members = all_members(self.surrogates)
        self.clean = CleanCounts()
        for record in run.records:
            if record["condition"] == "clean":
                cells = record["cells"][0], record["cells"][1]
                self.clean.remember(record["victim"], record["image"], record["count"], cells)
        self.builders = [
            ProblemBuilder(made_on.members, samples, self.clean, combine=combine)
            for made_on in surrogates
        ]
        self._training = [
            ProblemBuilder(made_on.members, train[0], CleanCounts(), combine=combine)
            for made_on in surrogates
            if train is not None
        ]
        self.recorder = ResultRecorder(samples, run)
        self._baselines = baselines.names() if compare else []
        self.place = PatchPlaces(
            self.attacks, surrogates, self.builders, run.records, candidates, self.advance
        )
        self._progress, self._done, self._total = progress, 0.0, 0.0

    def do(self) -> None:
        """Measure what is missing: clean images, then each attack in batches, then baselines.

        Each of several processes takes its turns; results do not depend on which process it is.
        """
        self._total = self._cost()
        for item in self.items:
            if self._turn():
                self._measure_clean(item)
        for seed in self.seeds:
            for number in range(len(self.surrogates)):
                for attack in range(len(self.attacks)):
                    self._measure_attack(seed, number, attack)
        for item in self.items:
            if self._turn():
                self._measure_baselines(item)
        self._done = self._total  # baselines that an image cannot have are done as well

    def ordered(self, records: Sequence[Record]) -> list[Record]:
        """Results in the order of the settings, whichever process found them and when."""
        orders: dict[str, list[object]] = {
            "victim": [victim.label for victim in self.victims],
            "condition": ["clean", *self._baselines, "pgd", *(a.name for a in self.attacks)],
            "patch_size": [None, *(a.patch_size for a in self.attacks)],
            "surrogates": [None, *(made_on.label for made_on in self.surrogates)],
        }
        ranks = {name: {value: n for n, value in reversed([*enumerate(order)])}
                 for name, order in orders.items()}  # fmt: skip

        def key(record: Record) -> list[int]:
            places = [rank[record.get(name)] for name, rank in ranks.items()]
            return [*places, int(record["index"]), int(record.get("seed") or 0)]

        return sorted(records, key=key)

    def _turn(self) -> bool:
        """Whether the next job is this process's."""
        self._pieces += 1
        return self._pieces % self.ranks.world == self.ranks.rank

    # Planning

    def _plan(
        self, seed: int, made_on: int, attack: int
    ) -> list[tuple[list[CheckedImage], list[Place]]]:
        """Batches of one kind, a function of images and settings alone.

        A resumed run therefore computes an unfinished batch as a whole, with the same bits.
        """
        places = [self.place(item, attack, seed, made_on) for item in self.items]
        return batches(self.attacks[attack], self.builders[made_on], self.items, places)

    def _case(
        self, item: CheckedImage, attack: int, condition: str, seed: int, made_on: int | None
    ) -> Case:
        label = None if made_on is None else self.surrogates[made_on].label
        return Case(item, condition, self.attacks[attack].patch_size, seed, label)

    def _known(self, case: Case, victims: Sequence[Member]) -> bool:
        return all(self.recorder.knows(case, victim) for victim in victims)

    def _attack_cases(self, seed: int, made_on: int, attack: int) -> list[Case]:
        name = self.attacks[attack].name
        cases = [self._case(item, attack, name, seed, made_on) for item in self.items]
        return [c for c in cases if not self._known(c, self.surrogates[made_on].victims)]

    def _cost(self) -> float:
        """Megapixels of what is still to be measured."""
        total = sum(self._fixed_pixels(item) for item in self.items)
        for seed in self.seeds:
            for made_on in range(len(self.surrogates)):
                for attack in range(len(self.attacks)):
                    total += self._attack_pixels(seed, made_on, attack)
        return total / 1e6

    def _fixed_pixels(self, item: CheckedImage) -> float:
        """Count the pixels still to be computed for the clean image, the baselines and PGD."""
        cases = [Case(item, "clean", None, seed=self.seeds[0])]
        cases += [
            self._case(item, attack, name, seed, None)
            for attack in range(len(self.attacks))
            for seed in self._baseline_seeds(attack)
            for name in self._baselines
        ]
        steps = 0
        if self.pgd is not None and self.attacks:
            reference = Case(item, "pgd", None, seed=self.seeds[0])
            cases.append(reference)
            steps = 0 if self._known(reference, self.victims) else self.pgd.steps
        missing = sum(not self._known(case, self.victims) for case in cases)
        return item.shape[0] * item.shape[1] * (steps + _FORWARD * len(self.victims) * missing)

    def _attack_pixels(self, seed: int, made_on: int, attack: int) -> float:
        """Count the pixels still to be computed for one attack, seed and surrogates."""
        chosen, counters = self.attacks[attack], self.surrogates[made_on]
        cases, total = self._attack_cases(seed, made_on, attack), 0.0
        for case in cases:
            pixels = case.item.shape[0] * case.item.shape[1]
            total += pixels * _FORWARD * len(counters.victims)
            place = chosen.place(case.item.shape, seed=seed, image=case.item.index)
            window = self.builders[made_on].pixels(chosen, case.item, place)
            if not chosen.is_universal:
                total += window * chosen.cost
            if chosen.location == "worst":
                total += pixels + search_cost(chosen) * window
        if chosen.is_universal and cases:
            total += self._training_pixels(chosen, seed, made_on) * chosen.cost
        return total

    def _training_pixels(self, chosen: PatchAttack, seed: int, made_on: int) -> float:
        """Count the pixels of one step of a universal attack, on average."""
        assert self._train is not None
        items, builder = self._train[1].items, self._training[made_on]
        places = [chosen.place(i.shape, seed=seed, image=i.index) for i in items]
        plan = batches(chosen, builder, items, places)
        pixels = [len(group) * builder.pixels(chosen, group[0], at[0]) for group, at in plan]
        return sum(pixels) / len(pixels)

    def advance(self, pixels: float, label: str) -> None:
        """Report that so many pixels more are done; ``label`` says what is worked on."""
        self._done += pixels / 1e6
        if self._progress is not None:
            self._progress(min(self._done, self._total), self._total, label)

    # Measuring

    def _measure(
        self,
        case: Case,
        victims: Sequence[Member],
        *,
        patch: PlacedPatch | None = None,
        image: Tensor | None = None,
        facts: Mapping[str, object] | None = None,
    ) -> None:
        """Count one image under one condition by all victims that have not yet."""
        for victim in victims:
            if not self.recorder.knows(case, victim):
                record = self.recorder.measure(case, victim, patch=patch, image=image, facts=facts)
                if case.condition == "clean":
                    cells = record["cells"][0], record["cells"][1]
                    self.clean.remember(victim.label, case.item.name, record["count"], cells)
                pixels = case.item.shape[0] * case.item.shape[1]
                self.advance(pixels * _FORWARD, f"counting {case.item.name}, {case.condition}")

    def _measure_clean(self, item: CheckedImage) -> None:
        self._measure(Case(item, "clean", None, seed=self.seeds[0]), self.victims)

    def _baseline_seeds(self, attack: int) -> tuple[int, ...]:
        """The seeds of baselines: the first, or all where the place of the patch depends on it."""
        fixed = self.attacks[attack].location in ("centre", "given")
        return self.seeds[:1] if fixed else self.seeds

    def _home(self, victim: Member) -> int:
        """The surrogates whose places a victim's baselines have: itself, or the first."""
        white_box = [n for n, s in enumerate(self.surrogates) if s.is_white_box(victim)]
        return white_box[0] if white_box else 0

    def _measure_baselines(self, item: CheckedImage) -> None:
        """The baselines, at the places of the white-box patches; and PGD."""
        for attack, chosen in enumerate(self.attacks):
            for seed in self._baseline_seeds(attack):
                for name in self._baselines:
                    case = self._case(item, attack, name, seed, None)
                    for victim in self.victims:
                        if self.recorder.knows(case, victim):
                            continue
                        place = self.place(item, attack, seed, self._home(victim))
                        patch = baselines[name](
                            place.side, seed=seed, item=item, items=self.items, samples=self.samples
                        )
                        if patch is not None:
                            placed = PlacedPatch(place, patch, chosen.patch_mask(place.side))
                            self._measure(case, [victim], patch=placed)
        if self.pgd is None or not self.attacks:
            return
        case = Case(item, "pgd", None, seed=self.seeds[0])
        for victim in self.victims:
            if not self.recorder.knows(case, victim):
                builder = ProblemBuilder([victim], self.samples, self.clean)
                with naming(item.name, item.shape):
                    image = self.pgd.attack(builder, item, self.attacks[0])
                self.advance(item.shape[0] * item.shape[1] * self.pgd.steps, f"PGD, {item.name}")
                self._measure(case, [victim], image=image)

    def _measure_attack(self, seed: int, made_on: int, attack: int) -> None:
        """Optimise patches in batches, or one for all images, and measure what they do."""
        chosen, builder = self.attacks[attack], self.builders[made_on]
        missing = {case.item.index for case in self._attack_cases(seed, made_on, attack)}
        if not missing:
            return
        if chosen.is_universal:
            if self._turn():  # one training for all images
                self._measure_universal(seed, made_on, attack)
            return
        for items, places in self._plan(seed, made_on, attack):
            if not self._turn() or not missing & {item.index for item in items}:
                continue
            pixels = float(len(items) * builder.pixels(chosen, items[0], places[0]))
            label = self.surrogates[made_on].label
            origin = "" if label is None else f" from {label}"
            text = f"{chosen.name} {chosen.patch_size}{origin}, "
            text += f"{_range(items)} of {len(self.items)}"
            with naming(", ".join(item.name for item in items), items[0].shape):
                problem = builder.problem(chosen, items, places)
                optimised = chosen.optimise(
                    problem, seed=seed, step_done=self._steps(chosen, pixels, text)
                )
            _check_history(chosen, optimised, len(items))
            rows = zip(items, places, problem.reach(), strict=True)
            for row, (item, place, reach) in enumerate(rows):
                self._measure_patch(optimised, row, item, place, seed, made_on, attack, reach)

    def _measure_universal(self, seed: int, made_on: int, attack: int) -> None:
        chosen = self.attacks[attack]
        trained = self._trained(chosen, seed, made_on)
        for item in self.items:
            place = self.place(item, attack, seed, made_on)
            (reach,) = self.builders[made_on].problem(chosen, [item], [place]).reach()
            self._measure_patch(trained, 0, item, place, seed, made_on, attack, reach)

    def _steps(self, chosen: PatchAttack, pixels: float, text: str) -> Callable[[int], None]:
        """The ``step_done`` of an optimisation, which reports the progress."""
        each = pixels * chosen.cost / max(chosen.rounds, 1)

        def step_done(step: int) -> None:
            self.advance(each, f"{text}, step {step} of {chosen.rounds}")

        return step_done

    def _measure_patch(
        self,
        optimised: OptimisedPatches,
        row: int,
        item: CheckedImage,
        place: Place,
        seed: int,
        made_on: int,
        attack: int,
        reach: float,
    ) -> None:
        chosen, counters = self.attacks[attack], self.surrogates[made_on]
        facts: Record = {"loss_history": list(optimised.loss_history[row]), "reach": reach}
        if optimised.zero_gradient:
            facts["zero_gradient"] = optimised.zero_gradient[row]
        placed = PlacedPatch(
            place, optimised.patches[row].cpu().float(), chosen.patch_mask(place.side)
        )
        case = self._case(item, attack, chosen.name, seed, made_on)
        for victim in counters.victims:
            unrounded = {}
            if optimised.unrounded is not None and counters.is_white_box(victim):
                unrounded = {"unrounded": float(optimised.unrounded[row])}
            self._measure(case, [victim], patch=placed, facts=facts | unrounded)

    def _trained(self, chosen: PatchAttack, seed: int, made_on: int) -> OptimisedPatches:
        """The universal patch of one set of surrogates, from the training images."""
        assert self._train is not None
        items, builder = self._train[1].items, self._training[made_on]
        places = [chosen.place(i.shape, seed=seed, image=i.index) for i in items]
        problems: list[Callable[[], Problem]] = [
            partial(builder.problem, chosen, part, at)
            for part, at in batches(chosen, builder, items, places)
        ]
        pixels = self._training_pixels(chosen, seed, made_on)
        text = f"{chosen.name} {chosen.patch_size} on {len(items)} images"
        trained = chosen.train(problems, seed=seed, step_done=self._steps(chosen, pixels, text))
        _check_history(chosen, trained, 1)
        return trained


def _check_history(attack: PatchAttack, optimised: OptimisedPatches, patches: int) -> None:
    """Raise ValueError unless an attack returned a history of the length that the checks expect."""
    expected = attack.restarts * (LOOKS + 1)
    lengths = [len(history) for history in optimised.loss_history]
    if lengths != [expected] * patches or len(optimised.patches) != patches:
        raise ValueError(
            f"{type(attack).__name__}: optimise must return {patches} patches, each with "
            f"{expected} losses (pycc.attack.look_at), got {len(optimised.patches)} with {lengths}"
        )


def _range(batch: Sequence[CheckedImage]) -> str:
    if len(batch) == 1:
        return f"image {batch[0].index + 1}"
    return f"images {batch[0].index + 1} to {batch[-1].index + 1}"
