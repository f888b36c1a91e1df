"""A process that dies inside a library's own writing, which has a temporary file beside the target.

It dies by SIGXFSZ, a file size limit, in the midst of safetensors' write. The same command then ends with the
same bytes as one that nothing disturbed, and no hidden file is left.
"""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
from bases import Place
from forked_commands import ForkedCommands
from runs import arguments_of, contents

FILES = {"train_class": ["adapter.safetensors", "resume.safetensors", "best.safetensors", "0000.safetensors"],
         "evaluate": ["*.safetensors"]}


def hidden(folder: Path) -> list[str]:
    return [str(path.relative_to(folder)) for path in folder.rglob(".*")]


def left_by(forked: ForkedCommands, folder: Path, script: str, arguments: list[object], **death: object
            ) -> dict[str, object]:
    """What is there after a command that died, in that moment, and the same again."""
    end = forked.wait(forked.start(script, folder, *arguments, **death))
    assert end.status == (-signal.SIGXFSZ if "die_in" in death else -signal.SIGKILL), end
    assert any(name.endswith(".tmp") for name in hidden(folder))  # it died in that moment
    assert "die_in" not in death or any(Path(name).name.startswith(".tmp") for name in hidden(folder))
    end = forked.wait(forked.start(script, folder, *arguments))
    assert end.status == 0 and hidden(folder) == [], end
    return contents(folder)


@pytest.mark.parametrize("file", FILES["train_class"])
def test_training(file: str, forked: ForkedCommands, place: Place, undisturbed: Path, tmp_path: Path) -> None:
    arguments = arguments_of("train_class", place, undisturbed)
    left = left_by(forked, tmp_path / "work", "train_class", arguments, die_in=file)
    assert left == contents(undisturbed)


def test_evaluation(forked: ForkedCommands, place: Place, undisturbed: Path, tmp_path: Path) -> None:
    arguments = arguments_of("evaluate", place, undisturbed)
    assert forked.wait(forked.start("evaluate", tmp_path / "once", *arguments)).status == 0
    left = left_by(forked, tmp_path / "work", "evaluate", arguments, die_in="*.safetensors")
    assert left == contents(tmp_path / "once")


def test_convert(forked: ForkedCommands, undisturbed: Path, tmp_path: Path) -> None:
    """Its folder is new or empty, so the same command has to know what it left itself."""
    arguments = ["convert", undisturbed / "run", "out", "--to", "diffusers"]
    assert forked.wait(forked.start("lora", tmp_path / "once", *arguments)).status == 0
    deaths = [{"die_in": "pytorch_lora_weights.safetensors"}, {"die_in": "damage_types.safetensors"},
              *({"die_at": count} for count in range(3, 10))]  # from the first file to the lock's removal
    for number, death in enumerate(deaths):
        left = left_by(forked, tmp_path / str(number), "lora", arguments, **death)
        assert left == contents(tmp_path / "once")


def test_export_of_a_controlnet(forked: ForkedCommands, place: Place, undisturbed: Path,
                                tmp_path: Path) -> None:
    run = arguments_of("train_controlnet", place, undisturbed)
    assert forked.wait(forked.start("train_controlnet", tmp_path, *run)).status == 0
    arguments = ["--ckpt", tmp_path / "run", "--base", place.base, "--out", "out"]
    script = "checkpoints.controlnet_export"
    assert forked.wait(forked.start(script, tmp_path / "once", *arguments)).status == 0
    left = left_by(forked, tmp_path / "work", script, arguments, die_in="diffusion_pytorch_model.safetensors")
    assert left == contents(tmp_path / "once")


def test_a_picture(forked: ForkedCommands, place: Place, tmp_path: Path) -> None:
    arguments = ["doctor", place.data, "--out", "sheet.png"]
    assert forked.wait(forked.start("data", tmp_path / "once", *arguments)).status == 0
    left = left_by(forked, tmp_path / "work", "data", arguments, die_at=2)
    assert left == contents(tmp_path / "once")
