"""What a command of sample.py opens: its photos, masks and ControlNet, and the folder that it writes to."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from checkpoints.controlnet import ControlSettings
from checkpoints.loading import CheckpointFile
from checkpoints.metadata import Header
from dataset.hub import nearest_folder
from dataset.image_files import depth_notes, header_of
from dataset.layouts import is_good
from dataset.placement import JITTER
from dataset.scan import Scan, photos_and_masks, several_images
from runtime import distributed
from runtime.errors import UserError
from runtime.files import refuse_inside, sha256
from runtime.trusted_paths import is_trusted
from sampling.generation import SamplingConfig
from sampling.inputs import Inputs, Seams
from sampling.mask_bank import open_masks
from sampling.sample_folder import SampleFolder
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


def open_inputs(header: Header, classes: list[str], seed: int, *, images: str | None, masks: str | None,
                seams: Seams, control: ControlSettings | None, jitter: float = JITTER,
                view: str | None = None, damages: Sequence[int] = (1, 1)) -> Inputs:
    """--images and --masks of a checkpoint, and --view, by default as it was trained; where that is mixed,
    close. Further `damages` of an image are of any class of the checkpoint. Raises UserError for what is
    missing."""
    if not header.strategy.takes_masks:
        return Inputs(header.resolution, shape=header.shape)
    photos = find_photos(images) if header.strategy.inpaints else None
    masked = [name for name in (header.classes if max(damages) > 1 else classes)
              if photos or not is_good(name)]
    products = {name.rpartition("/")[0] for name in classes}
    if photos and len(products) > 1 and distributed.first():
        print(f"--images {images}: damage of {', '.join(sorted(products))} is painted into these photos; "
              "--classes chooses the damage of their product", file=sys.stderr)
    view = view or ("whole" if header.config.get("view", "whole") == "whole" else "close")
    return Inputs(header.resolution, open_masks(masks, header, masked, seed, jitter), photos, seams, control,
                  view, damages, header.shape)


def find_photos(folder: str | None) -> list[Path]:
    """The photos in a folder, by name. Raises UserError where there are none."""
    if folder is None:
        raise UserError("--images: this checkpoint paints into photos; give a folder of undamaged ones, such "
                        "as DS-MVTec/bottle/image/good")
    if not Path(folder).is_dir():
        close = nearest_folder(Path(folder), 0.6)
        raise UserError(f"--images {folder}: no such folder; " + (
            f"did you mean {close}?" if close else "give one with photos of undamaged parts"))
    scan = Scan()
    photos, _ = photos_and_masks(Path(folder), scan)
    several = several_images([photo for photo in photos if header_of(photo).images > 1])
    for line in scan.lost + several + scan.notes + depth_notes(photos) if distributed.first() else []:
        print(line, file=sys.stderr)
    if not photos:
        inside = f", such as {folder}/image/good" if (Path(folder) / "image" / "good").is_dir() else ""
        raise UserError(f"--images {folder}: no photos in it; give the folder that holds them{inside}")
    return photos


def control_settings(header: Header, control: CheckpointFile | None, scale: float, mask_guidance: float,
                     guidance: float) -> ControlSettings | None:
    """How the ControlNet counts: --control's, or else the checkpoint's own; None without one.

    Raises UserError where a flag does not fit the checkpoints.
    """
    settings, about = ControlSettings(scale, mask_guidance), header.control
    if control:
        settings, about = settings._replace(control=sha256(control.path)), control.header.control
        if (about is None or control.header.classes != header.classes
                or (control.header.resolution, control.header.shape) != (header.resolution, header.shape)):
            raise UserError(f"--control {control.path}: give a checkpoint of train_controlnet.py for what "
                            f"--ckpt draws: {', '.join(header.classes)} at {header.resolution} px, "
                            "with --fit crop")
        if guidance != 1 and not control.header.has_null:
            raise UserError(f"--guidance {guidance:g}: {control.path} was trained without --class-dropout; "
                            "use 1")
    if about is None:
        if settings != ControlSettings():
            raise UserError("--control-scale, --mask-guidance: there is no ControlNet; add --control")
        return None
    if mask_guidance != 1 and about.mask_dropout == 0:
        raise UserError(f"--mask-guidance {mask_guidance:g}: the ControlNet was trained without "
                        "--mask-dropout, so an empty mask means no damage; use 1, or train it with 0.1")
    if scale == 0 and not control and distributed.first():
        print("--control-scale 0: the damage lies anywhere, and the masks say nothing of it", file=sys.stderr)
    return settings


def folders_read(header: Header, *given: str | None) -> list[str]:
    """The folders of photos and masks: those of the command line, and the checkpoint's data."""
    return [name for name in [*given, *filter(is_trusted, header.config["data"])] if name]


def open_folder(out: Path, file: CheckpointFile, inputs: Inputs, sampling: SamplingConfig,
                selection: Selection | None, *, lora_scale: float, precision: str,
                loras: list[tuple[Path, float]], layout: str, read: list[str]) -> SampleFolder:
    """The folder to write to. read: see folders_read. Raises UserError where `out` lies in one of them, or is
    the root of a disk."""
    header = file.header
    refuse_inside(out, read)
    if not out.resolve().name:
        raise UserError(f"--out {out}: the root of a disk; give a folder")
    if layout in MASKLESS and not header.strategy.takes_masks and distributed.first():
        print(f"--layout {layout}: this checkpoint draws no masks, so {MASKLESS[layout]}", file=sys.stderr)
    trained = header.config.get("view", "whole")
    settings: dict[str, Any] = {
        **vars(sampling), "lora_scale": lora_scale, "precision": precision,
        "checkpoint": sha256(file.path), "base": header.base, "resolution": header.resolution,
        "loras": [[sha256(path), strength] for path, strength in loras], "layout": layout,
        **({} if trained == "whole" else {"view": trained}), **inputs.settings,
        **(selection.settings if selection else {})}
    return SampleFolder(out, header.classes, settings, DEFAULTS, inputs.digests())
