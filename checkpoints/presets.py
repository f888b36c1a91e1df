"""Presets: named rows of flag values, and how the checkpoints that they train are best drawn.

The numbers beside them are of benchmarks/*.json and docs/recipe.md; a test compares them.
"""

from __future__ import annotations

from typing import Any, NamedTuple

DRAWING = {"guidance": 1.0, "eta": 0.0, "mask_guidance": 1.0}  # flags of sample.py, and their plain values
MOST_GUIDANCE = 100.0  # in a file that may be anyone's


class Preset(NamedTuple):
    """A preset for one strategy: flags of its train script, flags of sample.py, and what they measured."""

    training: dict[str, Any] = {}
    drawing: dict[str, float] = {}
    measured: str = ""


_TOKENS = {"tokens_per_class": 4, "class_dropout": 0.1}
_NARROW = {"resolution": 128, "batch_size": 8, "lr": 2e-3, "embedding_lr": 1e-2, "init_std": 0.5, **_TOKENS,
           "ema": 0.99, "preview_steps": 25, "preview_guidance": 2.0}
_CONTROL = {"eta": 1.0, "mask_guidance": 2.0}

# name -> kind of the checkpoint -> its row; a kind that is not named has no row
PRESETS: dict[str, dict[str, Preset]] = {
    "recipe": {},
    "better": {
        "class": Preset(_TOKENS, {"guidance": 2.0, "eta": 1.0},
                        "86.3 % of the images show the damage asked for, with the recipe 48.0 %"),
        "inpaint": Preset(_TOKENS, {"guidance": 2.0},
                          "97 of 100 images show the damage asked for; the recipe was not measured"),
        "control": Preset({}, _CONTROL,
                          "the damage overlaps its mask by 0.73 (IoU), without mask guidance by 0.64")},
    "tiny": {  # learning rates for SD 1.5 are too low for so narrow a base
        "class": Preset({**_NARROW, "epochs": 120, "lr_decay": ["75=0.5", "105=0.1"], "preview_every": 60},
                        {"guidance": 3.0, "eta": 1.0}),
        "inpaint": Preset({**_NARROW, "epochs": 40, "lr_decay": ["25=0.5", "35=0.1"], "preview_every": 20},
                          {"guidance": 2.0}),
        "control": Preset({"epochs": 160, "batch_size": 8, "accumulate": 1, "lr": 1e-3, "ema": 0.99,
                           "preview_every": 80, "preview_steps": 25, "preview_guidance": 2.0}, _CONTROL)}}


def preset_of(name: str, kind: str) -> Preset:
    """The row of a preset for checkpoints of one kind; an empty one where it has none."""
    return PRESETS[name].get(kind, Preset())


def as_flags(values: dict[str, Any]) -> str:
    """Values as they stand on a command line."""
    texts = {name: " ".join(map(str, value)) if isinstance(value, list) else f"{value:g}"
             for name, value in values.items()}
    return " ".join(f"--{name.replace('_', '-')} {text}" for name, text in texts.items())


def possible(drawing: dict[str, float], *, null: bool, empty_mask: bool) -> dict[str, float]:
    """Those of the flags that a checkpoint can be drawn with.

    null, empty_mask: whether it learnt these, from which guidance and mask guidance start.
    """
    needs = {"guidance": null, "mask_guidance": empty_mask}
    return {name: value for name, value in drawing.items() if needs.get(name, True)}
