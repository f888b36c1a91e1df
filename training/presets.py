"""--preset in training: which row of flags stands for the defaults, said before anything is trained."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from checkpoints.presets import PRESETS, as_flags, possible, preset_of
from runtime import distributed
from runtime.errors import UserError
from runtime.files import json_object
from training.config import RunConfig, run_folder


def preset_row(strategy: str) -> Callable[[dict[str, Any], dict[str, Any]], dict[str, Any]]:
    """For `parse`: the values of --config and of the command line -> these with the preset's, which they name
    or imply. A preset on the command line stands for its flags, so these win over the file's."""
    def training_of(name: Any) -> dict[str, Any]:
        return preset_of(name, strategy).training if name in PRESETS else {}

    def row(filed: dict[str, Any], typed: dict[str, Any]) -> dict[str, Any]:
        before, name = filed.get("preset"), typed.get("preset")
        if name is not None and name != before:
            replaced = {*training_of(name), *(flag for flag, value in training_of(before).items()
                                              if filed.get(flag) == value)}
            filed = {flag: value for flag, value in filed.items() if flag not in replaced}
        given = filed | typed
        name = given.get("preset") or _implied(given, strategy)
        training = training_of(name)
        used = {flag: value for flag, value in training.items() if flag not in given}
        if used and distributed.first():
            print(f"preset {name}: {as_flags(used)}", file=sys.stderr)
        return {**training, **given, "preset": name}
    return row


def _implied(given: dict[str, Any], strategy: str) -> str:
    """Without --preset: that of the run in the folder, so that the same command resumes it; else the base's.
    """
    begun = _settings(run_folder(given.get("out", ""), given["data"], strategy))
    if begun and not given.get("restart"):
        name = str(begun.get("preset"))
        return name if name in PRESETS else "recipe"
    below = Path(given.get("class_ckpt", ""))
    base = given.get("base") or _settings(below if below.is_dir() else below.parent).get("base")
    return "tiny" if base == "tiny" else "recipe"


def _settings(run: Path) -> dict[str, Any]:
    """What the config.json of a run folder holds; nothing where it cannot be read."""
    try:
        return json_object((run / "config.json").read_bytes(), "")
    except (OSError, UserError):
        return {}


def drawing_of(config: RunConfig, kind: str, *, null: bool, empty_mask: bool = False) -> dict[str, float]:
    """How a checkpoint of this run is best drawn, for its header: as its preset says, or its previews were.

    Empty for the plain recipe.
    """
    drawing = preset_of(config.preset, kind).drawing
    if not drawing and config.preview_guidance != 1:
        drawing = {"guidance": config.preview_guidance}
    return possible(drawing, null=null, empty_mask=empty_mask)


def announce_preset(config: RunConfig, strategy: str) -> None:
    """Of a run of the plain recipe, say on stderr what --preset better is."""
    better = preset_of("better", strategy)
    if config.preset == "recipe" and distributed.first():
        values = as_flags({**better.training, **better.drawing})
        print(f"preset recipe: the defaults. --preset better ({values}) on the embedded base: "
              f"{better.measured} (docs/recipe.md)", file=sys.stderr)
