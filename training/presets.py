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
    or imply."""
    def row(filed: dict[str, Any], typed: dict[str, Any]) -> dict[str, Any]:
        """All values, the preset's for those not given, which are said on stderr."""
        given = _without_other_preset(filed, typed.get("preset"), strategy) | typed
        name = given.get("preset") or _implied(given, strategy)
        training = _training(name, strategy)
        used = {flag: value for flag, value in training.items() if flag not in given}
        if used and distributed.first():
            print(f"preset {name}: {as_flags(used)}", file=sys.stderr)
        return {**training, **given, "preset": name}
    return row


def _training(name: Any, strategy: str) -> dict[str, Any]:
    """The flags of a preset; none of a name that is no preset's."""
    return preset_of(name, strategy).training if name in PRESETS else {}


def _without_other_preset(filed: dict[str, Any], typed: Any, strategy: str) -> dict[str, Any]:
    """The values of a file, less those of its preset and of the one `typed`, where these differ: a preset on
    the command line stands for its flags."""
    if typed is None or typed == filed.get("preset"):
        return filed
    old, new = (_training(name, strategy) for name in (filed.get("preset"), typed))
    return {flag: value for flag, value in filed.items()
            if flag not in new and (flag not in old or value != old[flag])}


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
