"""Defaults on the built-in scenes: which flags they set, and what help says of them."""

from __future__ import annotations

import pytest
from support.backdoor import command_of

from pycc.commands.certify import Certify
from pycc.commands.scenes import BACKDOOR, CERTIFY, TRAIN, OnScenes
from pycc.commands.train import Train
from pycc.settings import values_of


@pytest.mark.parametrize(("command", "table"), [(Train(), TRAIN), (Certify(), CERTIFY)])
def test_the_table_holds_on_the_scenes_alone(command: OnScenes[object], table: object) -> None:
    on_scenes = values_of(command.parsed(["--no-pictures"], "")[0])
    assert on_scenes.items() >= vars(table).items()
    own = values_of(command.parsed(["--no-pictures", "--data", "folder"], "")[0])
    assert own["max_images"] is None
    given = values_of(command.parsed(["--no-pictures", "--max-images", "3"], "")[0])
    assert given == {**on_scenes, "max_images": 3}


def test_help_states_them() -> None:
    assert "the defaults are --max-images 6, --calibration-max-images 12." in Certify().epilog
    defend = command_of(["defend", "fine-tuning"])[0].epilog
    assert "--trigger" not in defend, "a defense has no such flag"
    assert f"--epochs {BACKDOOR.defense_epochs}," in defend
    assert "--lr is 0.0004 if the counter is MCNN with input=gray_unit." in defend
    run = command_of(["run"])[0].epilog
    assert "--trigger-option amplitude=0.1 and period=4.0" in run
    assert "--strategy multiply," in run
