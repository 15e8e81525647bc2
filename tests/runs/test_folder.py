from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch

from pycc import runs
from pycc.runs import Run


def record(index: int, condition: str = "clean", patch_size: float | None = None, **more) -> dict:
    return {"index": index, "condition": condition, "patch_size": patch_size, **more}


def started(path: Path, count: int = 3) -> Run:
    run = Run.create(path, {"seed": 1})
    for index in range(count):
        run.append(record(index, count=index / 3))
    return run


def test_a_record_is_on_the_disk_when_append_returns(tmp_path: Path) -> None:
    run = Run.create(tmp_path / "a" / "b", {"seed": 1, "sizes": (1, 2)})
    for index in range(3):
        run.append(record(index, count=1 / 3))
        lines = (tmp_path / "a" / "b" / runs.RESULTS).read_text().splitlines()
        assert [json.loads(line) for line in lines] == run.records
        assert len(lines) == index + 1
    assert runs.read_manifest(tmp_path / "a" / "b") == {"schema": 1, "seed": 1, "sizes": [1, 2]}
    run.close()


def test_a_known_result_is_not_written_twice(tmp_path: Path) -> None:
    run = started(tmp_path / "run")
    run.append(record(1, count=5.0))
    run.append(record(1, "apam", 0.02))
    assert [r["index"] for r in run.records] == [0, 1, 2, 1]
    assert run.has(index=1, condition="apam", patch_size=0.02)
    assert not run.has(index=1, condition="apam", patch_size=0.04)
    assert run.has(index=2, condition="clean")
    run.close()


def test_a_run_in_memory_gives_what_a_folder_gives(tmp_path: Path) -> None:
    here, there = Run.create(None, {}), Run.create(tmp_path / "run", {})
    for run in (here, there):
        run.append(record(0, top_left=(1, 2), count=0.1))
        run.finish({"rows": []})
    assert here.records == there.records == runs.read_records(tmp_path / "run")
    assert here.file("x.png") is None
    there.close()


def test_every_torn_line_is_cut_off(tmp_path: Path) -> None:
    started(tmp_path / "run").close()
    file = tmp_path / "run" / runs.RESULTS
    whole = file.read_bytes()
    for length in range(len(whole) + 1):
        file.write_bytes(whole[:length])
        kept = whole[:length].count(b"\n")
        assert len(runs.read_records(tmp_path / "run")) == kept
        with_rest = Run.resume(tmp_path / "run")
        assert len(with_rest.records) == kept
        for index in range(3):
            with_rest.append(record(index, count=index / 3))
        with_rest.close()
        assert file.read_bytes() == whole


def test_a_damaged_line_is_named(tmp_path: Path) -> None:
    started(tmp_path / "run").close()
    file = tmp_path / "run" / runs.RESULTS
    file.write_text("{}\nnonsense\n{}\n")
    with pytest.raises(ValueError, match=r"results\.jsonl: expected a JSON object in line 2"):
        Run.resume(tmp_path / "run")


def test_two_writers_are_refused(tmp_path: Path) -> None:
    run = started(tmp_path / "run")
    with pytest.raises(ValueError, match="one in use"):
        Run.resume(tmp_path / "run")
    run.close()
    Run.resume(tmp_path / "run").close()
    with pytest.raises(ValueError, match="closed"):
        run.append(record(9))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_closed_run_is_free_although_a_child_process_lives(tmp_path: Path) -> None:
    """As workers that load data may do, for a moment after their training has ended."""
    run = started(tmp_path / "run")
    ready, stop = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(stop)
        os.read(ready, 1)  # until the parent closes its end
        os._exit(0)
    run.close()
    Run.resume(tmp_path / "run").close()
    os.close(stop)
    os.waitpid(child, 0)
    os.close(ready)


def test_a_folder_with_files_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="new or empty folder"):
        Run.create(tmp_path, {})
    assert [p.name for p in tmp_path.iterdir()] == ["notes.txt"]


def test_places_that_cannot_be_a_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "below" / "it"):
        with pytest.raises(NotADirectoryError, match="no folder"):
            runs.check_new(path)
    runs.check_new(tmp_path / "new" / "deep")
    assert not (tmp_path / "new").exists()


@pytest.mark.skipif(os.geteuid() == 0, reason="everything is writable for root")
def test_a_folder_that_is_not_writable(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(PermissionError, match="not writable"):
        runs.check_new(tmp_path / "run")


def test_resume_of_what_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="expected a run folder"):
        Run.resume(tmp_path)
    (tmp_path / runs.MANIFEST).write_text("{ not JSON")
    with pytest.raises(ValueError, match="expected JSON"):
        Run.resume(tmp_path)
    (tmp_path / runs.MANIFEST).write_text("[1]")
    with pytest.raises(ValueError, match="expected a JSON object, got list"):
        Run.resume(tmp_path)


def test_values_that_are_not_json_are_refused_before_the_file_is_touched(tmp_path: Path) -> None:
    run = started(tmp_path / "run")
    with pytest.raises(ValueError, match="JSON"):
        run.append(record(5, count=float("nan")))
    assert len(runs.read_records(tmp_path / "run")) == 3
    run.close()


def test_summary_bytes_depend_on_its_content_alone(tmp_path: Path) -> None:
    for name, summary in (("a", {"x": 1, "y": [0.1]}), ("b", {"y": [0.1], "x": 1})):
        run = Run.create(tmp_path / name, {})
        run.finish(summary)
        run.close()
    first, second = ((tmp_path / n / runs.SUMMARY).read_bytes() for n in ("a", "b"))
    assert first == second


def test_an_atomic_write_that_fails_leaves_the_old_file(tmp_path: Path, monkeypatch) -> None:
    file = tmp_path / "a.json"
    runs.write_atomic(file, b"old")

    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(OSError, match="No space"):
        runs.write_atomic(file, b"new")
    assert file.read_bytes() == b"old"


def test_fingerprint_sees_names_types_shapes_and_values() -> None:
    x = torch.arange(6.0)
    prints = {
        runs.fingerprint(items)
        for items in (
            [("x", x)],
            [("y", x)],
            [("x", x.double())],
            [("x", x.reshape(2, 3))],
            [("x", x + 1e-6)],
            [("x", x), ("x", x)],
            [("x", "text")],
            [("x", x[:0])],
        )
    }
    assert len(prints) == 8
    strided = torch.stack([x, x], 1)[:, 0]
    assert runs.fingerprint([("x", strided)]) == runs.fingerprint([("x", x)])


def test_differences_name_what_differs() -> None:
    before = {"a": 1, "b": {"c": [1, 2]}, "d": None}
    now = {"a": 1, "b": {"c": [1, 3]}, "e": 2}
    assert runs.differences(before, now) == ["b.c.1 was 2, is 3", "e was None, is 2"]
    assert runs.differences(before, before) == []


def test_differences_of_fingerprints_name_what_they_are_of() -> None:
    one, other = "0" * 64, "1" * 64
    before = {"data": {"images": 3, "points": one, "pixels": one}, "weights": one}
    now = {"data": {"images": 3, "points": other, "pixels": one}, "weights": other}
    assert runs.differences(before, now) == [
        "the head annotations changed (data.points)",
        "weights changed",
    ]
    more = {"data": {"images": 4, "points": other, "pixels": other}, "weights": one}
    assert runs.differences(before, more) == ["data.images was 3, is 4"]
    top = {"images": 3, "points": one}
    assert runs.differences(top, {"images": 4, "points": other}) == ["images was 3, is 4"]


def test_environment_says_what_numbers_may_depend_on() -> None:
    facts = runs.environment()
    assert facts["threads"] == torch.get_num_threads()
    assert torch.__version__.startswith(facts["torch"])
    json.dumps(facts)


MADE = {
    "kind": "certify",
    "settings": {"flags": {"seed": 1, "threads": 2}, "patch": (8, 16), "workers": 0},
    "fingerprints": {"data": "a", "weights": "b"},
    "key": ("image",),
    "machine": ("threads", "workers"),
}


def test_a_run_is_opened_and_resumed_by_one_function(tmp_path: Path) -> None:
    out = tmp_path / "run"
    run = runs.open_or_resume(out, command=["--seed", "1"], **MADE)
    run.append({"image": "x", "count": 1.0})
    run.close()
    manifest = runs.read_manifest(out)
    assert manifest.keys() == {
        "schema", "kind", "command", "settings", "fingerprints", "environment",
    }  # fmt: skip
    assert (manifest["schema"], manifest["command"]) == (runs.SCHEMA, ["--seed", "1"])
    assert manifest["settings"]["patch"] == [8, 16]
    other = {"flags": {"seed": 1, "threads": 1}, "patch": [8, 16], "workers": 3}
    for settings in (MADE["settings"], other):  # a machine's settings may change
        again = runs.open_or_resume(out, **{**MADE, "settings": settings})
        assert again.records == [{"image": "x", "count": 1.0}]
        again.close()
    with pytest.raises(ValueError, match="expected a new or empty folder"):
        runs.open_or_resume(out, **MADE, resume=False)
    with pytest.raises(ValueError, match="expected a run folder, got none"):
        runs.open_or_resume(tmp_path / "none", **MADE, resume=True)
    assert runs.open_or_resume(None, **MADE).path is None
    with pytest.raises(ValueError, match="certify: resume needs the run folder"):
        runs.open_or_resume(None, **MADE, resume=True)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"fingerprints": {"data": "c", "weights": "b"}}, "fingerprints.data was 'a', is 'c'"),
        ({"fingerprints": {"weights": "b"}}, "fingerprints.data was 'a', is None"),
        ({"settings": {**MADE["settings"], "patch": [8]}}, "settings.patch.1 was 16, is None"),
        ({"settings": {**MADE["settings"], "flags": {"seed": 2}}}, "settings.flags.seed was 1, is"),
        ({"kind": "attack"}, "expected a run of kind 'attack', got 'certify'"),
    ],
)
def test_a_run_of_something_else_is_not_resumed(
    changed: dict[str, object], message: str, tmp_path: Path
) -> None:
    runs.open_or_resume(tmp_path / "run", **MADE).close()
    with pytest.raises(ValueError, match=message) as refused:
        runs.open_or_resume(tmp_path / "run", **{**MADE, **changed})
    assert "\n" not in str(refused.value)
    runs.open_or_resume(tmp_path / "run", **MADE).close()  # the refusal holds no lock


@pytest.mark.parametrize("schema", [None, 0, 2])
def test_a_run_of_another_schema_is_refused_by_its_number(
    schema: int | None, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    runs.open_or_resume(out, **MADE).close()
    manifest = json.loads((out / runs.MANIFEST).read_text())
    del manifest["schema"]
    kept = manifest if schema is None else {**manifest, "schema": schema}
    (out / runs.MANIFEST).write_text(json.dumps(kept))
    found = "without a schema" if schema is None else f"of schema {schema}"
    with pytest.raises(ValueError, match=f"expected a run of schema 1, got one {found}"):
        runs.open_or_resume(out, **MADE)


def test_another_environment_is_a_warning(tmp_path: Path) -> None:
    out = tmp_path / "run"
    runs.open_or_resume(out, **MADE).close()
    manifest = json.loads((out / runs.MANIFEST).read_text())
    manifest["environment"]["torch"] = "1.0"
    (out / runs.MANIFEST).write_text(json.dumps(manifest))
    with pytest.warns(UserWarning, match=r"torch was '1\.0', is .*; last digits may differ"):
        runs.open_or_resume(out, **MADE).close()


def test_the_flags_of_a_command_are_read_again(tmp_path: Path) -> None:
    runs.open_or_resume(tmp_path / "run", **MADE).close()
    assert runs.read_flags(tmp_path / "run", "certify") == {"seed": 1, "threads": 2}
    with pytest.raises(ValueError, match="expected a run of this command, got one of 'certify'"):
        runs.read_flags(tmp_path / "run", "attack")
    plain = {**MADE, "settings": {"patch": 8}}
    runs.open_or_resume(tmp_path / "python", **plain).close()
    with pytest.raises(ValueError, match="got one from Python, of kind 'certify'"):
        runs.read_flags(tmp_path / "python", "certify")
