"""What users register outside the package, in commands that start as processes of their own."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from support import third_party
from support.crowds import make_sample
from support.processes import messages, python
from support.third_party import small_dots, write_heads_in_text

from pycc import models, runs
from pycc.attack.methods.apam import APAM, transforms
from pycc.backdoor.defenses.base import defenses
from pycc.backdoor.poisoning.strategies import strategies
from pycc.backdoor.poisoning.triggers import triggers
from pycc.certify import certificates
from pycc.commands import Entry, backdoor, certify, main, plugins
from pycc.commands.backdoor_settings import EvaluateSettings, PoisonSettings, RunSettings
from pycc.commands.data import ConvertSettings
from pycc.data.export import targets
from pycc.models.base import MODELS
from pycc.registry import Registry
from pycc.settings import flags_of

PLUGIN = Path(third_party.__file__).with_name("plugin.py")
"""A file that registers the attack ``sign``, the model ``dots`` and the layout of the crowd."""


@pytest.fixture
def crowd(tmp_path: Path) -> list[str]:
    """Two images in the plugin's layout, and weights of its model, as flags."""
    samples = [make_sample(index, (48, 64), heads=5 + index) for index in range(2)]
    root = write_heads_in_text(tmp_path / "crowd", samples)
    with third_party.registered():
        models.save(small_dots(), tmp_path / "dots.npz", metadata={})
    return [str(root), "--model", "dots", "--weights", str(tmp_path / "dots.npz")]


@pytest.mark.long
def test_a_file_is_imported_and_again_by_a_resumed_run(tmp_path: Path, crowd: list[str]) -> None:
    run = tmp_path / "run"
    flags = ["--data", *crowd, "--split", "all", "--attack", "sign", "--patch-size", "8", "--steps",
             "4", "--objective", "over", "--pgd-steps", "0", "--no-checks", "--no-pictures",
             "--max-images", "1", "--out", run]  # fmt: skip
    refused = python("-m", "pycc", "attack", *flags)
    assert refused.returncode == 2
    assert "got 'sign'" in refused.stderr
    relative = Path(*[".."] * (len(Path.cwd().parts) - 1), *PLUGIN.parts[1:])
    done = python("-m", "pycc", "attack", "--import", relative, *flags)
    assert done.returncode == 0, done.stderr
    command = runs.read_manifest(run)["command"]
    assert command[-2] == "--import"
    assert Path(command[-1]).is_absolute()
    assert Path(command[-1]).resolve() == PLUGIN
    before = (run / "summary.json").read_bytes()
    assert {row["condition"] for row in json.loads(before)["rows"]} >= {"clean", "sign"}
    (run / "summary.json").unlink()
    again = python("-m", "pycc", "attack", "--resume", run, "--no-checks")
    assert again.returncode == 0, again.stderr
    note = f"note: --resume {run}: imports {command[-1]}, as that run did"
    assert note in messages(again.stderr)
    assert (run / "summary.json").read_bytes() == before


@pytest.mark.command
def test_an_installed_package_names_its_module(
    tmp_path: Path, crowd: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    about = tmp_path / "site" / "crowd_plugin-2.0.dist-info"
    about.mkdir(parents=True)
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: crowd-plugin\nVersion: 2.0\n")
    (about / "entry_points.txt").write_text(
        "[pycc.plugins]\nbroken = no_such_module\ncrowds = support.plugin\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "site"), prepend=":")
    done = python("-m", "pycc", "count", *crowd, "--json")
    assert done.returncode == 0, done.stderr
    assert [row["truth"] for row in json.loads(done.stdout)["rows"]] == [5, 6]
    assert messages(done.stderr) == [
        "warning: plugin broken of crowd-plugin 2.0 is left out: no_such_module: "
        "ModuleNotFoundError: No module named 'no_such_module'"
    ]


def test_a_module_by_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every command takes the flag, anywhere and several times, and a group passes it on."""
    for name in ("mine_a", "mine_b"):
        (tmp_path / f"{name}.py").write_text(
            "from pycc.models.base import MODELS\nfrom pycc.models.mcnn import MCNN\n"
            f"MODELS.register({name!r})(MCNN)\n"
        )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    with MODELS.restored():
        code = main("models", ["--import", "mine_a", "show", "--import=mine_b.py", "mine_b"])
        assert {"mine_a", "mine_b"} <= {*MODELS.names()}
        assert (code, capsys.readouterr().err) == (0, "")
        assert str(tmp_path / "mine_b.py") in sys.modules
    for name in ("mine_a", str(tmp_path / "mine_b.py")):
        del sys.modules[name]
    (tmp_path / "beside").mkdir()
    (tmp_path / "beside/mine_net.py").write_text("NAME = 'mine_c'\n")
    (tmp_path / "beside/mine_c.py").write_text(
        "from mine_net import NAME\nfrom pycc.models.base import MODELS\n"
        "from pycc.models.mcnn import MCNN\nMODELS.register(NAME)(MCNN)\n"
    )
    with MODELS.restored():
        assert main("models", ["--import", "beside/mine_c.py", "show", "mine_c"]) == 0
    del sys.modules["mine_net"]
    capsys.readouterr()
    assert main("count", ["--help-all", "--import", "os"]) == 0
    assert "--import MODULE_OR_FILE" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("content", "name", "message"),
    [
        (None, "mine.py", "--import {}/mine.py: No such file or directory"),
        ("1 / 0", "mine.py", "--import {}/mine.py: ZeroDivisionError: division by zero"),
        ("x = (", "mine.py", "--import {}/mine.py: SyntaxError: "),
        ("import no_such", "./mine.py", "ModuleNotFoundError: No module named 'no_such'"),
        ("", "mine", "--import mine: ModuleNotFoundError: No module named 'mine'; a file needs "
         "its suffix: mine.py"),
        ("", "./", "expected the name of a module or a Python file"),
        ("", "--json", "--import: expected a module or a Python file, got '--json'"),
    ],
)  # fmt: skip
def test_what_cannot_be_imported_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    content: str | None, name: str, message: str,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    if content is not None:
        (tmp_path / "mine.py").write_text(content)
    before = {*sys.modules}
    assert main("count", ["crowd", "--import", name]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert message.format(tmp_path) in err
    assert str(tmp_path / "mine.py") not in {*sys.modules} - before


def test_a_damaged_manifest_names_no_import(tmp_path: Path) -> None:
    """The command itself refuses such a run."""
    for content in ('{"schema": 1, "command": 3}', '{"schema": 1, "command": [3]}', "[]", ""):
        (tmp_path / "manifest.json").write_text(content)
        assert plugins.with_imports(["--resume", str(tmp_path)]) == ["--resume", str(tmp_path)]


def test_code_in_a_run_folder_is_not_run_unless_named(tmp_path: Path) -> None:
    """A run of a stranger brings none along."""
    code = tmp_path / "run" / "mine.py"
    code.parent.mkdir()
    code.write_text(f"import pathlib\npathlib.Path({str(tmp_path / 'ran')!r}).touch()\n")
    manifest = {"schema": 1, "command": ["--import", str(code)]}
    (code.parent / "manifest.json").write_text(json.dumps(manifest))
    (tmp_path / "link").symlink_to(code.parent)
    for flag, folder in (("--resume", code.parent), ("--like", tmp_path / "link")):
        with pytest.raises(ValueError, match=r"mine\.py, a file in its own folder; to run"):
            plugins.with_imports([flag, str(folder)])
        assert not (tmp_path / "ran").exists()
    plugins.with_imports(["--like", str(code.parent), "--import", str(code)])
    assert (tmp_path / "ran").exists()
    del sys.modules[str(code)]


def _choices(settings: type[Any], name: str) -> Sequence[str]:
    (flag,) = (flag for flag in flags_of(settings) if flag.name == name)
    assert flag.choices is not None
    return flag.choices


@pytest.mark.parametrize(
    ("registry", "like", "shown"),
    [
        (certificates, "masked", lambda: _choices(certify.CertifySettings, "method")),
        (triggers, "blend", lambda: _choices(RunSettings, "trigger")),
        (strategies, "add", lambda: _choices(RunSettings, "strategy")),
        (strategies, "add", lambda: _choices(EvaluateSettings, "strategy")),
        (defenses, "nad", lambda: _choices(RunSettings, "defense")),
        (targets, "folder", lambda: _choices(PoisonSettings, "layout")),
        (targets, "folder", lambda: _choices(ConvertSettings, "layout")),
        (transforms, "none", lambda: _choices(APAM, "transform")),
    ],
)
def test_choices_are_those_registered_when_the_command_runs(
    registry: Registry[Any], like: str, shown: Callable[[], Sequence[str]]
) -> None:
    assert "mine" not in shown()
    with registry.registered("mine", registry[like]):
        assert "mine" in shown()


def test_what_is_registered_later_is_a_command_and_a_group_of_flags() -> None:
    def entries_of(name: str) -> list[str]:
        group: Entry = next(entry for entry in backdoor.command.entries if entry.name == name)
        assert isinstance(group, backdoor.DefendGroup)
        return [entry.name for entry in group.entries]

    with (
        defenses.registered("mine", defenses["nad"]),
        certificates.registered("my-own", certificates["masked"]),
    ):
        assert "mine" in entries_of("defend")
        settings = certify.command.parsed(["--method", "my-own"], "pycc certify")[0]
        assert settings.certificates == (certificates["masked"](),)
    assert "mine" not in entries_of("defend")
