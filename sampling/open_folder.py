"""The sample folder of a command: its place, and the settings that all its images share."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from checkpoints.controlnet import ControlSettings
from checkpoints.loading import CheckpointFile
from runtime import distributed
from runtime.files import sha256
from runtime.trusted_paths import is_trusted
from sampling.generation import SamplingConfig
from sampling.inputs import Inputs, Seams
from sampling.sample_folder import SampleFolder, refuse_inside
from sampling.selection import SETTINGS, Selection

# What a row of samples.jsonl means by a setting that it lacks.
DEFAULTS = {**vars(SamplingConfig()), **asdict(Seams()), **ControlSettings()._asdict(), "lora_scale": 1.0,
            "loras": [], "layout": "ds", "placement": "object", "view": "whole", "crop": False,
            "damages_per_image": [1, 1], **SETTINGS}

# What a layout lacks where the checkpoint draws no masks.
MASKLESS = {"mvtec": "there is no ground_truth/, without which anomalib's MVTecAD reads nothing; its Folder "
                     "does",
            "coco": "annotations.json lists the images with no annotation; train_inpaint.py and "
                    "train_controlnet.py make checkpoints that draw masks"}


def open_folder(out: Path, file: CheckpointFile, inputs: Inputs, sampling: SamplingConfig,
                selection: Selection | None, *, lora_scale: float, precision: str,
                loras: list[tuple[Path, float]], layout: str, read: list[str | None]) -> SampleFolder:
    """The folder to write to. read: the folders of the command line, besides the checkpoint's data.

    Raises UserError where `out` lies in one of them.
    """
    header = file.header
    refuse_inside(out, [name for name in [*read, *filter(is_trusted, header.config["data"])] if name])
    if layout in MASKLESS and not header.strategy.takes_masks and distributed.first():
        print(f"--layout {layout}: this checkpoint draws no masks, so {MASKLESS[layout]}", file=sys.stderr)
    settings: dict[str, Any] = {
        **vars(sampling), "lora_scale": lora_scale, "precision": precision,
        "checkpoint": sha256(file.path), "base": header.base, "resolution": header.resolution,
        "loras": [[sha256(path), strength] for path, strength in loras], "layout": layout,
        **inputs.settings, **(selection.settings if selection else {})}
    return SampleFolder(out, header.classes, settings, DEFAULTS, inputs.digests())
