from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from pycc import attack, metrics, ops
from pycc.attack import APAM, PGD
from pycc.attack.evaluation.cells import cell_density
from pycc.attack.evaluation.checked import counted_points
from pycc.data import load_image, quantize
from pycc.grid import cell_weight
from pycc.runs import RESULTS, SUMMARY, Run
from pycc.types import Sample

pytestmark = pytest.mark.command

ATTACKS = [APAM(patch_size=6, steps=2), APAM(patch_size=0.2, steps=2, shape="disc")]
BASELINES = ("grey", "black", "noise", "crowd")


def run(*arguments: Any, **options: Any) -> attack.AttackRun:
    """``attack.run`` without what is tested elsewhere."""
    return attack.run(*arguments, **{"checks": False, "pgd": PGD(steps=1), **options})


@pytest.fixture
def samples(sample) -> list[Sample]:
    """Two of one shape, whose windows batch together, and one of another with a region."""
    return [sample(0), sample(1), sample(2, shape=(61, 83), region=True)]


def test_every_condition_of_every_image_is_measured(samples, tiny) -> None:
    done = run(tiny(), samples, ATTACKS)
    measured = [(r["index"], r["condition"], r["patch_size"]) for r in done.run.records]
    wanted = [(i, c, None) for i in range(3) for c in ("clean", "pgd")]
    wanted += [(i, c, s) for i in range(3) for c in (*BASELINES, "apam") for s in (6, 0.2)]
    assert sorted(measured, key=str) == sorted(wanted, key=str)
    assert [row.condition for row in done.summary.rows] == [
        "clean", "pgd", *BASELINES, "apam", *BASELINES, "apam",
    ]  # fmt: skip
    assert done.summary.images == 3


def test_counts_are_those_of_the_stored_images(tmp_path: Path, samples, tiny) -> None:
    counter = tiny()
    done = run(counter, samples, ATTACKS, out=tmp_path / "run")
    counter.eval()
    checked = 0
    for record in done.run.records:
        if record["condition"] not in ("clean", "apam"):
            continue
        image = load_image(tmp_path / "run" / "images" / f"{record['file']}.png")
        with torch.no_grad():
            density = counter(image[None]).double()
        weight = cell_weight(samples[record["index"]].roi, record["cells"], 4)
        assert record["count"] == float((density * weight).sum())
        checked += 1
    assert checked == 9


def test_an_attacked_image_differs_from_the_clean_one_inside_the_patch_only(
    tmp_path: Path, samples, tiny
) -> None:
    done = run(tiny(), samples, ATTACKS, out=tmp_path / "run")
    for record in done.run.records:
        if record["condition"] != "apam":
            continue
        clean = samples[record["index"]].image
        image = load_image(tmp_path / "run" / "images" / f"{record['file']}.png")
        with Image.open(tmp_path / "run" / "patches" / f"{record['file']}.png") as opened:
            picture = np.asarray(opened.convert("RGBA")) / 255
        y, x = record["top_left"]
        side = record["side"]
        mask = torch.from_numpy(picture[..., 3]) > 0
        inside = torch.zeros(clean.shape[1:], dtype=torch.bool)
        inside[y : y + side, x : x + side] = mask
        assert torch.equal(image[:, ~inside], quantize(clean)[:, ~inside])
        pasted = image[:, y : y + side, x : x + side]
        expected = torch.from_numpy(picture[..., :3]).permute(2, 0, 1).float()
        assert torch.allclose(pasted[:, mask], expected[:, mask], atol=1e-6)
        assert record["area"] == pytest.approx(float(inside.float().mean()))


@pytest.mark.long
def test_rounding_in_memory_gives_the_same_numbers(tmp_path: Path, samples, tiny) -> None:
    runs = [
        run(tiny(), samples, ATTACKS, out=tmp_path / "files"),
        run(tiny(), samples, ATTACKS, out=tmp_path / "bare", save_images=False),
        run(tiny(), samples, ATTACKS),
    ]
    assert runs[0].run.records == runs[1].run.records == runs[2].run.records
    assert not (tmp_path / "bare" / "images").exists()


def test_the_summary_is_what_the_measures_say(samples, tiny) -> None:
    done = run(tiny(), samples, ATTACKS)
    clean = [r["count"] for r in done.run.records if r["condition"] == "clean"]
    for row in done.summary.rows:
        group = sorted(
            (
                r
                for r in done.run.records
                if (r["condition"], r["patch_size"]) == (row.condition, row.patch_size)
            ),
            key=lambda r: r["index"],
        )
        counts, truth = [r["count"] for r in group], [r["truth"] for r in group]
        assert row.mae == metrics.mae(truth, counts)
        assert row.rmse == metrics.rmse(truth, counts)
        assert row.bias == metrics.bias(truth, counts)
        assert row.error_rate == metrics.error_rate(clean, counts).percent
        if row.condition == "noise":
            assert row.gain_over_noise == 0


def test_an_optimised_patch_beats_noise(samples, tiny) -> None:
    strong = APAM(patch_size=24, steps=15, step_size=16 / 255, objective="over", smoothness=0.0)
    rows = run(tiny(), samples, strong).summary.rows
    count = {row.condition: row.mean_count for row in rows}
    assert count["apam"] > 1.1 * max(count[name] for name in (*BASELINES, "clean"))


def test_no_attack_counts_only(samples, tiny) -> None:
    done = run(tiny(), samples, ())
    assert [row.condition for row in done.summary.rows] == ["clean"]
    assert len(done.run.records) == 3


def test_cells_outside_the_region_do_not_count(sample, tiny) -> None:
    whole, part = sample(0), sample(0, region=True)
    counted = run(tiny(), [part], ()).run.records[0]
    counter = tiny().eval()
    with torch.no_grad():
        density = counter(whole.image[None])[0, 0].double()
    # The region is rows 5…63 and columns 30…79; a cell of 4 pixels counts by its share.
    rows = torch.tensor([0.0, 0.75] + [1.0] * 14, dtype=torch.float64)
    columns = torch.tensor([0.0] * 7 + [0.5] + [1.0] * 12, dtype=torch.float64)
    expected = float((density * rows[:, None] * columns[None]).sum())
    assert counted["count"] == pytest.approx(expected, rel=1e-6)
    x, y = whole.points.unbind(1)
    assert counted["truth"] == int(((x >= 30) & (y >= 5)).sum())
    assert 0 < counted["truth"] < whole.count


def test_a_patch_outside_the_region_changes_no_loss(sample, tiny, problem) -> None:
    attack_ = APAM(
        patch_size=6, location="given", top_left=(0, 0), transform="none", smoothness=0.0
    )
    made = problem(attack_, tiny(), [sample(0, region=True)])
    optimised = attack_.optimise(made, seed=0, step_done=lambda _: None)
    assert torch.equal(optimised.patches, quantize(attack_.start(made.index, 6, 0)))
    assert optimised.zero_gradient == (1.0,)


def test_cell_weight_of_an_incomplete_last_cell() -> None:
    mask = torch.ones(10, 9, dtype=torch.bool)
    scene = Sample("a", torch.zeros(3, 10, 9), torch.zeros(0, 2), mask)
    assert torch.equal(cell_weight(scene.roi, (3, 3), 4), torch.ones(3, 3))
    assert torch.equal(cell_weight(scene.roi, (2, 2), 4), torch.ones(2, 2))


@pytest.mark.parametrize("cells", [(15, 20), (16, 21), (15, 21), (16, 20)])
def test_density_keeps_every_head_whatever_the_map_keeps(cells, sample) -> None:
    scene = sample(2, shape=(61, 83), heads=7)
    density = cell_density(scene, cells, 4)
    assert tuple(density.shape) == cells
    assert float(density.min()) >= 0
    if cells == (16, 21):
        assert float(density.sum()) == pytest.approx(7, rel=1e-5)
    else:
        assert 6 < float(density.sum()) <= 7 + 1e-5


def test_an_image_without_heads(tiny, sample) -> None:
    done = run(tiny(), [sample(heads=0)], APAM(patch_size=6, steps=2))
    assert {r["truth"] for r in done.run.records} == {0}


def test_points_outside_are_dropped_with_a_warning(tiny, sample) -> None:
    scene = sample()
    points = torch.cat([scene.points, torch.tensor([[80.0, 3.0], [-0.1, 3.0]])])
    with pytest.warns(UserWarning, match="2 points outside"):
        assert len(counted_points(Sample("x", scene.image, points))) == 9


def test_the_counter_is_left_as_it_was(samples, tiny) -> None:
    counter = tiny()
    counter.train()
    counter.net[0].eval()
    counter.net[3].weight.requires_grad_(False)
    before = {name: value.clone() for name, value in counter.state_dict().items()}
    run(counter, samples, ATTACKS[0])
    assert counter.training
    assert counter.net[6].training
    assert not counter.net[0].training
    assert not counter.net[3].weight.requires_grad
    assert counter.net[0].weight.requires_grad
    assert all(parameter.grad is None for parameter in counter.parameters())
    assert all(torch.equal(value, before[name]) for name, value in counter.state_dict().items())


def test_a_counter_need_not_be_a_module(samples, tiny) -> None:
    class Plain:
        stride, receptive_field = 4, 20

        def __init__(self) -> None:
            self.inner = tiny().eval()

        def __call__(self, images: Tensor) -> Tensor:
            return self.inner(images)

    plain, module = (run(made, samples, ATTACKS).run.records for made in (Plain(), tiny()))
    for one, other in zip(plain, module, strict=True):
        # The sums of a window and of its changed part are rounded differently.
        assert one["count"] == pytest.approx(other["count"], rel=1e-3)


def test_a_defended_counter_is_attacked_like_any_other(samples, tiny) -> None:
    """Randomized ablation around a counter: what one draw keeps depends on the whole image."""

    class Ablated(torch.nn.Module):
        stride, receptive_field = 4, None

        def __init__(self) -> None:
            super().__init__()
            self.inner = tiny()

        def forward(self, images: Tensor) -> Tensor:
            ablated = ops.ablate(images, 2000, seed=0, fill=0.5, draws=4)
            cells: Tensor = self.inner(ablated)
            return cells.unflatten(0, (len(images), 4)).mean(1)

    strong = APAM(patch_size=24, steps=15, step_size=0.1, objective="over", smoothness=0.0)
    rows = run(Ablated(), samples[:2], strong).summary.rows
    count = {row.condition: row.mean_count for row in rows}
    assert count["apam"] > 1.01 * max(count[name] for name in (*BASELINES, "clean"))


def test_threads_and_order_of_sizes_do_not_change_patches(samples, tiny) -> None:
    # One objective for all, so that PGD has the same; the first attack is what it stands beside.
    forth = run(tiny(), samples, ATTACKS).run.records
    back = run(tiny(), samples, ATTACKS[::-1]).run.records
    assert sorted(map(str, forth)) == sorted(map(str, back))


class Killed(BaseException):
    """Not caught by anything on the way."""


@pytest.mark.long
def test_a_run_stopped_at_every_result_ends_with_the_same_bytes(
    tmp_path: Path, samples, tiny, monkeypatch
) -> None:
    """Resumed after each stop, and stopped again at the next result."""
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    run(tiny(), samples, ATTACKS, out=whole)
    lines = (whole / RESULTS).read_bytes().splitlines(keepends=True)
    append = Run.append
    for last in range(len(lines)):

        def stop(run: Run, record, last: int = last) -> None:
            if len(run.records) == last:
                raise Killed
            append(run, record)

        with monkeypatch.context() as patched:
            patched.setattr(Run, "append", stop)
            with pytest.raises(Killed):
                run(tiny(), samples, ATTACKS, out=stopped, resume=last > 0)
        assert (stopped / RESULTS).read_bytes() == b"".join(lines[:last])
        assert not (stopped / SUMMARY).exists()
        with (stopped / RESULTS).open("ab") as file:
            file.write(b'{"condition": "apam", "cou')
    run(tiny(), samples, ATTACKS, out=stopped, resume=True)
    for name in (RESULTS, SUMMARY):
        assert (stopped / name).read_bytes() == (whole / name).read_bytes()
    for file in sorted((whole / "images").iterdir()):
        assert (stopped / "images" / file.name).read_bytes() == file.read_bytes()


def test_a_finished_run_resumes_without_work(tmp_path: Path, samples, tiny) -> None:
    first = run(tiny(), samples, ATTACKS, out=tmp_path / "run")
    totals: list[float] = []
    again = run(
        tiny(), samples, ATTACKS, out=tmp_path / "run", resume=True,
        progress=lambda done, total, label: totals.append(total),
    )  # fmt: skip
    assert totals == []
    assert again.summary == first.summary


@pytest.mark.parametrize("change", ["data", "weights", "seed", "attacks.0.steps", "save_images"])
def test_a_resumed_run_refuses_other_settings_data_and_weights(
    change: str, tmp_path: Path, samples, tiny
) -> None:
    run(tiny(), samples, ATTACKS[0], out=tmp_path / "run")
    before = (tmp_path / "run" / RESULTS).read_bytes()
    chosen, counter, options = ATTACKS[0], tiny(), {}
    if change == "data":
        samples = [*samples[:2], Sample("scene 2", samples[2].image * 0.5, samples[2].points)]
    if change == "weights":
        counter.net[0].bias.data += 1e-3
    if change == "seed":
        options = {"seed": 1}
    if change == "save_images":
        options = {"save_images": False}
    if change == "attacks.0.steps":
        chosen = APAM(patch_size=6, steps=3)
    with pytest.raises(
        ValueError,
        match=rf"keeps its settings, data and weights; .*(settings|fingerprints)\.{change}",
    ):
        run(counter, samples, chosen, out=tmp_path / "run", resume=True, **options)
    assert (tmp_path / "run" / RESULTS).read_bytes() == before


def test_resume_needs_a_folder(samples, tiny) -> None:
    with pytest.raises(ValueError, match="resume needs the run folder"):
        run(tiny(), samples, ATTACKS, resume=True)


def test_progress_reaches_its_total(samples, tiny) -> None:
    reports: list[tuple[float, float, str]] = []
    run(tiny(), samples, ATTACKS, progress=lambda *state: reports.append(state))
    done = [state[0] for state in reports]
    assert done == sorted(done)
    assert done[-1] == pytest.approx(reports[-1][1])
    assert any("step 2 of 2" in label for _, _, label in reports)


def test_progress_counts_checks(samples, tiny) -> None:
    labels: list[str] = []
    run(tiny(), samples[:1], ATTACKS[:1], checks=True, progress=lambda *s: labels.append(s[2]))
    assert [label for label in labels if "check" in label] == [
        f"check {number} of 8" for number in range(1, 9)
    ]


def test_bad_input_leaves_nothing_behind(tmp_path: Path, samples, sample, tiny) -> None:
    image, points = samples[0].image, samples[0].points
    bad = {
        "samples must be at least one": [],
        "unique, got 'scene 0' twice": [samples[0], samples[0]],
        "scene 7: APAM: patch_size 70 must give": [samples[0], sample(7)],
        r"x: image must be \[3,H,W\]": [Sample("x", image[:1], points)],
        "x: points must be": [Sample("x", image, points * float("nan"))],
        "x: roi must be": [Sample("x", image, points, torch.ones(3, 3, dtype=torch.bool))],
    }
    for says, broken in bad.items():
        chosen = APAM(patch_size=70) if "size 70" in says else ATTACKS[0]
        usable = [sample(0, shape=(80, 80)), *broken[1:]] if "size 70" in says else broken
        with pytest.raises(ValueError, match=says):
            run(tiny(), usable, chosen, out=tmp_path / "run")
        assert not (tmp_path / "run").exists()


def test_two_attacks_of_one_size_are_refused(samples, tiny) -> None:
    with pytest.raises(ValueError, match="must differ in name or patch_size"):
        run(tiny(), samples, [ATTACKS[0], APAM(patch_size=6, steps=9)])


def test_a_counter_that_contradicts_its_stride_is_told(samples, tiny) -> None:
    counter = tiny()
    counter.stride = 3
    with pytest.raises(ValueError, match=r"scene 0: an image of .* cells of stride 3, got "):
        run(counter, samples, ATTACKS[0])


def test_a_counter_of_nonsense_is_told(samples, tiny) -> None:
    counter = tiny()
    counter.net[7].bias.data.fill_(float("nan"))
    with pytest.raises(ValueError, match=r"scene 0: the counter's map must be finite"):
        run(counter, samples, ATTACKS[0])


def test_the_manifest_says_what_was_done(tmp_path: Path, samples, tiny) -> None:
    run(tiny(), samples, ATTACKS, seed=3, out=tmp_path / "run", command=["x"])
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    assert manifest["settings"]["seed"] == 3
    assert manifest["command"] == ["x"]
    assert [a["patch_size"] for a in manifest["settings"]["attacks"]] == [6, 0.2]
    assert set(manifest["fingerprints"]) == {"data", "weights"}
    assert manifest["environment"]["ops"]["running"] in ("compiled", "reference")


def test_no_warning_escapes(samples, tiny) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run(tiny(), samples, ATTACKS)


def test_baselines_stand_where_the_patches_do(samples, tiny) -> None:
    moved = APAM(patch_size=6, steps=1, location="random")
    done = run(tiny(), samples, moved, seeds=2)
    places: dict[tuple[int, int], set[tuple[int, ...]]] = {}
    for r in done.run.records:
        if "top_left" in r:
            places.setdefault((r["index"], r["seed"]), set()).add(tuple(r["top_left"]))
    assert all(len(found) == 1 for found in places.values())
    assert len({place for found in places.values() for place in found}) == 6


def test_counters_of_one_kind_and_weights_are_told_apart_by_what_they_say(tiny) -> None:
    from pycc.counters import identity
    from pycc.models import wrap

    net = tiny().net
    plain, hundred = (wrap(net, scale=s, stride=4, receptive_field=20) for s in (1.0, 100.0))
    assert identity(plain) != identity(hundred)
    assert identity(plain) == identity(wrap(net, stride=4, receptive_field=20))
