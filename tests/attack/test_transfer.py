"""Patches made on some counters and tried on others."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from pycc import attack
from pycc.attack import APAM
from pycc.attack.evaluation.checks import Results
from pycc.report import SummaryRow, table
from pycc.runs import RESULTS, SUMMARY

pytestmark = pytest.mark.command

CHOSEN = [
    APAM(
        patch_size=16, steps=20, step_size=0.25, decay="cosine", objective="over", transform="none",
        smoothness=0.0,
    )
]  # fmt: skip


@pytest.fixture
def counters(tiny):
    """Three counters that differ."""
    made = {}
    for number, name in enumerate(("a", "b", "c")):
        counter = tiny()
        generator = torch.Generator().manual_seed(number)
        for parameter in counter.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.data.add_(0.5 * float(parameter.data.std(correction=0)) * noise)
        made[name] = counter
    return made


@pytest.fixture
def samples(sample):
    return [sample(0), sample(1, shape=(72, 64))]


def rows(done: attack.AttackRun) -> dict[tuple[str | None, str | None, str], SummaryRow]:
    return {(r.victim, r.surrogates, r.condition): r for r in done.summary.rows}


def test_the_matrix_has_all_surrogates_on_every_victim(counters, samples, tmp_path: Path) -> None:
    done = attack.transfer(counters, samples, CHOSEN, out=tmp_path / "run", checks=False)
    pairs = {(v, s) for v, s, condition in rows(done) if condition == "apam"}
    singles = {(v, s) for v in "abc" for s in "abc"}
    assert pairs == singles | {("a", "b+c"), ("b", "a+c"), ("c", "a+b")}
    for victim in "abc":
        conditions = {c for v, s, c in rows(done) if v == victim and s is None}
        assert conditions == {"clean", "grey", "black", "noise", "crowd"}
    text = table(done.summary)
    assert text.splitlines()[0].split()[:5] == ["patch", "patch", "size", "victim", "surrogates"]
    images = {file.name for file in (tmp_path / "run" / "images").iterdir()}
    assert "0000-scene_0.apam-16-from-b_c.png" in images
    assert len(images) == 2 * (1 + 6)


def test_counts_are_those_of_each_victim(counters, samples) -> None:
    done = attack.transfer(counters, samples, CHOSEN, checks=False)
    alone = attack.run(counters["b"], samples, CHOSEN, checks=False, pgd=None)
    expected = [r["count"] for r in alone.run.records if r["condition"] == "apam"]
    counts = [
        r["count"]
        for r in done.run.records
        if (r["condition"], r["victim"], r["surrogates"]) == ("apam", "b", "b")
    ]
    assert counts == expected
    clean = {r["victim"]: r["count"] for r in done.run.records if r["condition"] == "clean"}
    assert len(set(clean.values())) == 3


@pytest.mark.long
def test_white_box_is_strongest_and_the_check_says_so(counters, samples) -> None:
    done = attack.transfer(counters, samples, CHOSEN)
    verdicts = {check.name: check.verdict for check in done.checks}
    assert verdicts["white-box beats transfer"] == "pass"
    results = Results(done.run.records, CHOSEN)
    for victim in "abc":
        white_box = results.of(CHOSEN[0], victim, victim)
        for made_on in set(results.surrogates) - {victim}:
            theirs = results.of(CHOSEN[0], victim, made_on)
            assert all(theirs[index] < white_box[index] for index in theirs)


def test_two_counters_have_no_ensembles(counters, samples) -> None:
    two = {name: counters[name] for name in "ab"}
    done = attack.transfer(two, samples, CHOSEN, checks=False)
    assert {s for _, s, c in rows(done) if c == "apam"} == {"a", "b"}


@pytest.mark.long
def test_surrogates_stand_beside_the_white_box(counters, samples) -> None:
    others = {name: counters[name] for name in "bc"}
    done = attack.run(
        counters["a"], samples, CHOSEN, surrogates=others, combine="worst", pgd=None, checks=False
    )
    assert {(v, s) for v, s, c in rows(done) if c == "apam"} == {(None, None), (None, "b+c")}
    matrix = attack.transfer(counters, samples, CHOSEN, combine="worst", checks=False)
    assert rows(done)[None, "b+c", "apam"].mae == rows(matrix)["a", "b+c", "apam"].mae
    assert rows(done)[None, None, "apam"].mae == rows(matrix)["a", "a", "apam"].mae


def test_a_victim_inside_its_own_ensemble_is_refused(counters, samples, tiny, tmp_path) -> None:
    twin = tiny()
    twin.load_state_dict(counters["a"].state_dict())
    for others in ({"b": counters["b"], "me": counters["a"]}, {"me": twin}):
        with pytest.raises(ValueError, match="victim itself, got it as 'me'"):
            attack.run(counters["a"], samples, CHOSEN, surrogates=others, out=tmp_path / "run")
    with pytest.raises(ValueError, match="same weights as 'a' and 'z'"):
        attack.transfer({**counters, "z": twin}, samples, CHOSEN, out=tmp_path / "run")
    for name in ("a+b", "victim"):
        with pytest.raises(ValueError, match=r"must hold no \+ and not be 'victim'"):
            attack.transfer({**counters, name: tiny()}, samples, CHOSEN, out=tmp_path / "run")
    with pytest.raises(ValueError, match="two counters or more"):
        attack.transfer({"a": twin}, samples, CHOSEN, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.long
def test_a_stopped_matrix_resumes_to_the_same_bytes(
    counters, samples, tmp_path: Path, monkeypatch
) -> None:
    from pycc.runs import Run

    whole = tmp_path / "whole"
    attack.transfer(counters, samples, CHOSEN, out=whole)
    lines = len((whole / RESULTS).read_bytes().splitlines())
    append = Run.append
    for last in (3, 7, 15, lines - 1):
        folder = tmp_path / f"stopped-{last}"

        def stop(run: Run, record, last: int = last) -> None:
            if len(run.records) == last:
                raise KeyboardInterrupt
            append(run, record)

        with monkeypatch.context() as patched:
            patched.setattr(Run, "append", stop)
            with pytest.raises(KeyboardInterrupt):
                attack.transfer(counters, samples, CHOSEN, out=folder)
        attack.transfer(counters, samples, CHOSEN, out=folder, resume=True)
        assert (folder / SUMMARY).read_bytes() == (whole / SUMMARY).read_bytes()


@pytest.mark.long
def test_several_seeds(counters, samples) -> None:
    done = attack.run(counters["a"], samples, CHOSEN, seeds=3, seed=5, pgd=None)
    (row,) = [r for r in done.summary.rows if r.condition == "apam"]
    assert row.seeds == 3
    assert len(set(row.mae_by_seed)) == 3
    assert row.mae == pytest.approx(sum(row.mae_by_seed) / 3)
    for seed, mae in zip((5, 6, 7), row.mae_by_seed, strict=True):
        alone = attack.run(counters["a"], samples, CHOSEN, seed=seed, pgd=None, checks=False)
        (one,) = [r for r in alone.summary.rows if r.condition == "apam"]
        assert one.mae == mae
    outcome = {check.name: check.verdict for check in done.checks}
    assert outcome["three seeds or more"] == "pass"
