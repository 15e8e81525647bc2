"""Controls: a search without gradients beside the attack, and each counter beside itself."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import fields

import torch
from torch import Tensor, nn

from pycc import ops
from pycc.attack.base import PatchAttack
from pycc.attack.baseline import baselines
from pycc.attack.gates import Gate, Results, judged, no_less, not_applicable
from pycc.attack.patch import Place
from pycc.attack.probes import attacked, harm_of, quiet, smallest
from pycc.attack.query import Query
from pycc.attack.stage import Member
from pycc.attack.survey import Item
from pycc.attack.work import Work
from pycc.data import quantize
from pycc.runs import fingerprint

QUERIES = 3
"""Of random search for each step of the attack: as many forward passes as a step costs."""
MOST_QUERIES = 1000


def random_search(work: Work, results: Results) -> Gate:
    """12: random search on the count does no more harm than the gradient, at the same cost.

    On the smallest image, at the same place and for the same objective. A gradient that is worth
    less than random queries is masked (Athalye et al., arXiv 1802.00420). Random search heeds
    neither transform nor penalty: a patch of the run that it beats gets a second chance without
    them.
    """
    name = "white-box beats random search"
    if not work.sources[0].is_white_box(work.victims[0]):
        return not_applicable(name, "no white-box attack")
    seed, means, gains, names, queries = work.seeds[0], [], [], [], []
    for number, attack in enumerate(work.attacks):
        chosen = attack.follows_gradient and attack.per_image and attack.steps > 0
        pairs = attacked(work, results, attack, work.items)
        # A patch for all places is not made for the one where it is judged.
        if not chosen or attack.location == "moving" or not pairs:
            continue
        item = smallest([item for item, _ in pairs])
        place = work.place(item, number, seed)

        def gain(rival: PatchAttack, item: Item = item, place: Place = place) -> float:
            problem = work.stages[0].problem(rival, [item], [place])
            found = rival.optimise(problem, seed=seed, step_done=quiet)
            return harm_of(work, rival, item, found, problem)

        search = _search(attack)
        own, other = results.harm(dict(pairs)[item]), gain(search)
        figure = f"{own:,.1f} against {other:,.1f}"
        if own < other and attack.plain != attack:
            plain = gain(attack.plain)
            figure += f" ({plain:,.1f} without transform and penalty)"
            own = max(own, plain)
        means.append((own, other))
        gains.append(figure)
        queries.append(search.steps)
        names.append(item.name)
    if not means:
        return not_applicable(name, "no patch that a gradient made for one place of an image")
    asked = " and ".join(f"{count:,}" for count in dict.fromkeys(queries))
    where = ", ".join(dict.fromkeys(names))
    figure = f"{', '.join(gains)} people of {asked} queries, on {where}"
    return no_less(name, means, figure)


def _search(attack: PatchAttack) -> Query:
    """Random search for what an attack wants, at about the cost of its steps."""
    shared = {entry.name: getattr(attack, entry.name) for entry in fields(PatchAttack)}
    steps = min(MOST_QUERIES, QUERIES * attack.steps)
    return Query(**{**shared, "steps": steps, "location": "centre", "top_left": None})


def same_count(work: Work, results: Results) -> Gate:
    """13: a counter has one count for an image, to the bit, and no memory of what it counted.

    The smallest image and the same with noise in place of the patch, counted in turn, twice.
    """
    name = "the same image has the same count"
    item, seed = smallest(work.items), work.seeds[0]
    place = work.place(item, 0, seed)
    clean = quantize(work.samples[item.index].image)
    noise = baselines["noise"](place.side, seed=seed, item=item)
    assert noise is not None
    patched = ops.paste_patch(
        clean[None],
        noise,
        top_left=torch.tensor([place.top_left]),
        mask=work.attacks[0].mask(place.side),
    )[0]
    pairs = []
    changed = False
    for member in work.members:
        state = _state(member)
        first, second = ([_count(member, x, item.name) for x in (clean, patched)] for _ in range(2))
        pairs += list(zip(first, second, strict=True))
        changed = changed or _state(member) != state
    before, after = max(pairs, key=lambda pair: abs(pair[0] - pair[1]))
    off = f"{abs(before - after):.1e} off; must be 0"
    figure = f"{item.name}: {before:,.1f} people, then {after:,.1f}, "
    figure += "the same bits" if before == after else off
    figure += "; counting changes what the counter holds" if changed else ""
    return judged(name, before == after and not changed, figure)


def _count(member: Member, image: Tensor, name: str) -> float:
    return float(member.map(image, name).double().sum())


def _state(member: Member) -> str:
    """A fingerprint of what a counter that is a module holds."""
    module = member.counter
    return fingerprint(module.state_dict().items()) if isinstance(module, nn.Module) else ""


CONTROLS: Sequence[Callable[[Work, Results], Gate]] = (random_search, same_count)
