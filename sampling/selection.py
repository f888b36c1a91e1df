"""--select: what is worse than the real photos is thrown away as it is drawn, and drawn again.

The real photos are those that the checkpoint was trained on, and no others: held-out ones stay unseen, for
evaluate.py. They are scored as the base draws them, after a pass through its VAE, because no training
restores what that blurs. Images are drawn one by one, so image i does not depend on the images drawn with it,
not even in rounding: near a threshold, that would choose another drawing.
"""

from __future__ import annotations

import json
import math
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from tqdm import tqdm

from checkpoints.loading import CheckpointFile
from checkpoints.metadata import Header, trained_with
from data import DataConfig, DefectDataset, load_dataset
from dataset.image_files import as_rgb
from dataset.layouts import is_good
from dataset.padding import padded
from evaluation.networks import LITE, Network, load_network
from runtime import distributed
from runtime.errors import UserError
from runtime.files import read_rows, save_json
from runtime.trusted_paths import followed
from sampling.drawings import Sample
from sampling.generation import Wanted
from sampling.inputs import Inputs, content_digest
from sampling.rejected import MOST
from sampling.sample_folder import SampleFolder
from sd.vae import VAE

if TYPE_CHECKING:
    from sampling.scores import Picture, Scorer

LEVELS = {"light": 0.05, "strict": 0.2}  # share of the real photos that would not be recognised
OFF, TRIES = "off", 4
SETTINGS = {"select": OFF, "selector": ""}  # of folders without


def _own(thresholds: Path) -> bool:
    """Whether --select wrote the file. A run stopped before its first image leaves nothing else."""
    try:
        return "selector" in json.loads(thresholds.read_bytes())
    except (OSError, ValueError, TypeError):
        return False


@dataclass
class Selection:
    """level: a key of LEVELS; tries: drawings an image, at most; dataset: the real photos."""

    level: str
    tries: int
    header: Header
    dataset: DefectDataset
    network: Network
    sharp: bool  # around the damage the images are the photo's own pixels
    scorer: Scorer | None = None

    @property
    def settings(self) -> dict[str, Any]:
        """What all images of a sample folder have in common."""
        photos = content_digest([item.image for item in self.dataset.items])
        return {"select": self.level, "selector": f"{self.network.name} {self.network.digest} {photos}"}

    def calibrate(self, vae: VAE, folder: SampleFolder) -> None:
        """Score the real photos; note the thresholds in selection.json, and what has none on stderr.

        Raises UserError where that file is someone else's.
        """
        from sampling.scores import fit_scorer  # with networks, which are rarely needed

        thresholds = folder.folder / "selection.json"
        if thresholds.exists() and not _own(thresholds):
            raise UserError(f"{thresholds}: exists and is not of --select; give another --out")
        label = np.array([item.class_id for item in self.dataset.items])
        masks = self.header.strategy.takes_masks
        cropped = {name: masks and not is_good(name) for name in self.header.classes}
        self.scorer = fit_scorer(self.network, self._as_drawn(vae), label, self.header.classes, cropped,
                                 self.dataset.config.orientation, LEVELS[self.level])
        if self.header.strategy.inpaints:
            self.scorer.missing["change, fidelity, iou"] = "real photos do not show the part undamaged"
        if distributed.first():
            for key, why in self.scorer.missing.items():
                print(f"--select {self.level}: not by {key}: {why}", file=sys.stderr)
            save_json(thresholds, {
                **self.settings, "network": self.network.about, "photos": len(label),
                "share": LEVELS[self.level], "bounds": self.scorer.bounds, "missing": self.scorer.missing})

    def _as_drawn(self, vae: VAE) -> list[Picture]:
        """The real photos through the VAE; where damage is painted into photos, only their damage."""
        from evaluation.vae_reconstruction import redrawn
        from sampling.scores import Picture

        found = []
        bar = tqdm(range(len(self.dataset)), desc="real photos", leave=False,
                   disable=None if distributed.first() else True)
        for index in bar:
            example = self.dataset.example(index, 0)
            image, mask = np.array(redrawn(vae, example["image"])), None
            if "mask" in example:
                mask = example["mask"][0].numpy().astype(np.uint8)
                if self.sharp:
                    sharp = ((example["image"] + 1) * 127.5).round().byte().permute(1, 2, 0).numpy()
                    image = np.where(mask[..., None] > 0, image, sharp)
            found.append(Picture(image, mask))
        return found

    def wanted(self, folder: SampleFolder, missing: list[Wanted]) -> list[Wanted]:
        """Those of the missing images that have tries left."""
        return [pair for pair in missing if folder.failed(pair) < self.tries]

    def draw(self, draw_batch: Callable[[list[Wanted]], list[Sample]], folder: SampleFolder,
             pair: Wanted) -> list[Sample]:
        """One image's drawings, up to the first that is good or the last try."""
        damage, number = folder.drawn_as(pair)
        found: list[Sample] = []
        for turn in range(self.tries - folder.failed(pair)):
            sample, = draw_batch([(damage, number + MOST * turn)])
            found.append(self._scored(sample, damage))
            if "failed" not in found[-1].about:
                break
        return found

    def _scored(self, sample: Sample, damage: str) -> Sample:
        """The sample with its scores and, where it is bad, with the reasons."""
        from sampling.scores import Picture

        assert self.scorer is not None
        if sample.image is None:
            return sample
        image, mask = painted_square(sample)
        picture = Picture(padded(image), None if mask is None else padded(mask))  # --fit pad: not yet square
        scores = self.scorer(picture, damage)
        failed = self.scorer.failed(scores)
        return sample._replace(about={**sample.about, **scores, **({"failed": failed} if failed else {})})


def open_selection(level: str, tries: int, network: str, file: CheckpointFile, inputs: Inputs,
                   device: torch.device) -> Selection | None:
    """--select; None for off. Raises UserError where the training photos are not there, or too few, and for
    flags that off has no use for."""
    if level == OFF:
        for name, value, default in (("tries", tries, TRIES), ("select-network", network, LITE)):
            if value != default:
                raise UserError(f"--{name}: without --select nothing is drawn twice; give --select too, or "
                                "omit it")
        return None
    if inputs.damages[1] > 1:
        raise UserError(f"--select {level}: judges images with one damage; leave out --damages-per-image, or "
                        f"use --select {OFF}")
    header = file.header
    masks = {"load_masks": True} if header.strategy.takes_masks else {}
    config = trained_with(header, DataConfig, augment=False, normalize_to_neg1_pos1=True, **masks)
    for name in config.data:
        followed(name, file.path, f"run this in a folder above it, or use --select {OFF}")
    dataset = load_dataset(config, header.resolution)
    if dataset.classes != header.classes:
        raise UserError(f"--select {level}: {' '.join(config.data)} has the classes "
                        f"{', '.join(dataset.classes)}, but the checkpoint was trained on "
                        f"{', '.join(header.classes)}; use --select {OFF}")
    fewest = math.ceil(1 / LEVELS[level]) - 1
    if len(dataset) < fewest:
        raise UserError(f"--select {level}: the checkpoint was trained on {len(dataset)} photos, but "
                        f"the worst {LEVELS[level]:.0%} take {fewest} to tell; use --select {OFF}")
    sharp = inputs.photos is not None and inputs.seams.paste
    return Selection(level, tries, header, dataset, load_network(network, None, device), sharp)


def painted_square(sample: Sample) -> tuple[np.ndarray, np.ndarray | None]:
    """The image (H, W, 3) uint8 and its mask (H, W); where a square of a photo was painted, that square."""
    levels, mask = np.asarray(sample.image), sample.mask
    if "box" in sample.about:
        top, left, side = sample.about["box"]
        levels = levels[top:top + side, left:left + side]
        mask = None if mask is None else mask[top:top + side, left:left + side]
    return as_rgb(levels, Path(sample.about.get("photo", ""))), mask


def yields(folder: SampleFolder, classes: list[str], per_class: int) -> dict[str, dict[str, Any]]:
    """By class: images that are there, of how many asked for, how many drawings --select judged, and how many
    of these it threw away for each reason; a drawing may have several."""
    found = {name: {"kept": 0, "asked": per_class, "drawn": 0, "thrown_away": Counter[str]()}
             for name in classes}
    for kept, rows in ((1, list(folder.rows.values())), (0, read_rows(folder.taken_out.journal))):
        for row in rows:
            if row.get("class") in found and row.get("number", per_class) < per_class:
                about: dict[str, Any] = found[row["class"]]
                about["drawn"] += 1
                about["kept"] += kept
                about["thrown_away"].update(row.get("failed", ()))
    return found


def told(found: dict[str, dict[str, Any]]) -> str:
    """The same as one line."""
    from sampling.scores import REASONS

    parts = []
    for name, about in found.items():
        reasons = ", ".join(f"{count} {REASONS[key]}" for key, count in about["thrown_away"].items())
        parts.append(f"{name} {about['kept']} of {about['asked']} from {about['drawn']} drawn"
                     + (f" ({reasons})" if reasons else ""))
    return "; ".join(parts)
