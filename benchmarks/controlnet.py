"""A whole ControlNet against low-rank updates, on the embedded base.

train_controlnet.py trains each arm over one class checkpoint of the demo. Each arm then samples images for 50
unseen masks a class, with and without mask guidance. Measured, also for the UNet without control:

- IoU of the mask and the pixels that differ most between the image and the `good` image sampled from the same
  noise; as many pixels as the mask has, so no threshold is chosen. A change anywhere gets about half the
  mask's share. `iou` blurs the differences by half a latent cell, `iou_pixels` does not: it misses damage
  of the bottle's own brightness. `ceiling` is the same measure of a perfect generator: demo bottles before
  and after the damage, through the VAE.
- DCA: the share of images in which an independent classifier (tiny/judge.py) sees the class asked for.

Results go to benchmarks/controlnet.json.
"""

from __future__ import annotations

import shlex
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.timing import command, record
from checkpoints.controlnet import ControlSettings
from checkpoints.loading import LoadedCheckpoint, load_checkpoint, read_checkpoint
from checkpoints.prompts import contexts_for
from data import DataConfig, load_dataset
from dataset.layouts import GOOD
from evaluation.classifier import gaussian_blur
from evaluation.features import resize
from evaluation.metrics import wilson
from runtime import errors
from runtime.cli import flag, parse
from sampling.generation import SamplingConfig, sample_images
from sd.pretrained.weights import load_vae
from sd.vae import VAE
from tiny.bottles import draw_bottle
from tiny.judge import classified, describe, load_or_train

CLASS = "--base tiny --resolution 128 --epochs 120 --batch-size 8 --lr 2e-3 --lr-decay 75=0.5 105=0.1 " \
        "--embedding-lr 1e-2 --init-std 0.5 --tokens-per-class 4 --class-dropout 0.1 --ema 0.99 " \
        "--preview-every 0 --save-every 60"
TRAIN = "--epochs 160 --batch-size 8 --accumulate 1 --ema 0.99 --preview-every 80 --preview-steps 25 " \
        "--preview-guidance 2 --save-every 40"
# Published learning rates are for SD 1.5; the narrow embedded base takes larger ones.
ARMS = {"whole": "--control-rank 0 --lr 2e-4", "rank 16": "--control-rank 16 --lr 1e-3",
        "rank 4": "--control-rank 4 --lr 1e-3"}
SAMPLING = SamplingConfig(steps=25, eta=1.0)
SETTINGS = {"": ControlSettings(), ", --mask-guidance 2": ControlSettings(mask_guidance=2.0)}
AT_ONCE = 25
SEED = 1  # of the bottles whose masks are not trained on
HALF_CELL = 4.0  # pixels


@dataclass
class Config:
    """The command line of benchmarks.controlnet."""

    seed: int = flag(42, "seed of the trainings")
    work: str = flag("/tmp/controlnet_benchmark", "folder for data, runs and images; existing ones are used")
    per_class: int = flag(50, "masks a class", minimum=1)


def overlap(image: Tensor, good: Tensor, mask: Tensor, sigma: float) -> float:
    """Mean IoU of each mask (B,1,R,R) and as many pixels as it has, those where the images differ most.

    image, good: (B,3,R,R); sigma: of the Gaussian blur of the differences, in pixels; 0: no blur.
    """
    difference = (image - good).abs().mean(dim=1, keepdim=True)
    difference = gaussian_blur(difference, sigma) if sigma else difference
    shares = []
    for changed, wanted in zip(difference.flatten(1), mask.flatten(1), strict=True):
        area = int(wanted.sum())
        both = wanted[changed.topk(area).indices].sum()
        shares.append(both / (2 * area - both))
    return torch.stack(shares).mean().item()


def overlaps(image: Tensor, good: Tensor, mask: Tensor) -> dict[str, float]:
    """IoU at the VAE's resolution and at every pixel."""
    return {"iou": overlap(image, good, mask, HALF_CELL), "iou_pixels": overlap(image, good, mask, 0)}


@torch.no_grad()
def sampled(frozen: LoadedCheckpoint, settings: ControlSettings, name: str, class_id: int,
            masks: Tensor) -> Tensor:
    """One image for each mask (N,1,R,R), from noise that depends on `name` and the mask's number alone."""
    assert frozen.controlnet
    parts, resolution = [], frozen.header.resolution
    for first in range(0, len(masks), AT_ONCE):
        part = masks[first:first + AT_ONCE]
        contexts = contexts_for(frozen.context, [class_id] * len(part))
        condition = frozen.controlnet.control(list(part[:, 0].numpy()), [name] * len(part), settings)
        parts.append(sample_images(frozen.unet, frozen.vae, contexts, [(name, first + i) for i in
                                   range(len(part))], SAMPLING, resolution, condition))
    return torch.cat(parts)


def measure(run: Path, masks: dict[str, Tensor], classifier: torch.nn.Module,
            settings: ControlSettings) -> dict[str, Any]:
    """IoU by class and the classifier's confusion matrix of one arm with one kind of control."""
    frozen = load_checkpoint(read_checkpoint(run), device=torch.device("cpu"), dtype=torch.float32)
    classes, images, labels, shares = frozen.header.classes, [], [], {}
    for class_id, name in enumerate(classes):
        wanted = masks[name]
        images.append(sampled(frozen, settings, name, class_id, wanted))
        labels += [class_id] * len(wanted)
        if name != GOOD:
            plain = settings._replace(mask_guidance=1.0)  # guidance from the empty mask to itself is none
            good = sampled(frozen, plain, name, classes.index(GOOD), torch.zeros_like(wanted))
            shares[name] = overlaps(images[-1], good, wanted)
    table = classified(classifier, torch.cat(images), torch.tensor(labels))
    describe(f"{run}, {settings}, IoU {shares}", table)
    correct, total = int(table.trace()), int(table.sum())
    return {**by_measure(shares), "correct": correct, "total": total,
            "interval": wilson(correct, total), "confusion": table.tolist()}


def by_measure(shares: dict[str, dict[str, float]]) -> dict[str, dict[str, float]]:
    """IoUs of each class -> for each measure, of all classes and their mean."""
    return {measure: {**{name: found[measure] for name, found in shares.items()},
                      "mean": statistics.mean(found[measure] for found in shares.values())}
            for measure in ("iou", "iou_pixels")}


@torch.no_grad()
def ceiling(vae: VAE, masks: dict[str, Tensor]) -> dict[str, dict[str, float]]:
    """overlaps() of the demo's bottles before and after the damage, through the VAE."""
    def through(name: str, count: int, before: bool) -> Tensor:
        images = [resize(draw_bottle(name, SEED * 1_000_000 + i, before=before)[0], 128)
                  for i in range(count)]
        return torch.cat([vae.decode(vae.posterior(one[None])[0]) for one in images])

    return by_measure({name: overlaps(through(name, len(of), False), through(name, len(of), True), of)
                       for name, of in masks.items() if name != GOOD})


def unseen_masks(folder: Path, per_class: int) -> dict[str, Tensor]:
    """(N,1,128,128) masks of each class, from demo images not trained on; those of `good` are empty."""
    if not folder.exists():
        command("data.py", "demo", folder, "--per-class", per_class, "--seed", SEED)
    dataset = load_dataset(DataConfig([str(folder)], resolution=128, load_masks=True, augment=False))
    masks: dict[str, list[Tensor]] = {name: [] for name in dataset.classes}
    for index, item in enumerate(dataset.items):
        masks[dataset.classes[item.class_id]].append(dataset.example(index, epoch=0)["mask"])
    return {name: torch.stack(found) for name, found in masks.items()}


def main() -> None:
    """Train and measure each arm and record the rows as they come."""
    config = parse(Config, __doc__, "", program="-m benchmarks.controlnet")
    work = Path(config.work)
    rows: list[dict[str, Any]] = []
    if not (work / "bottle").exists():
        command("data.py", "demo", work / "bottle", "--per-class", 20, "--seed", 0)
    masks = unseen_masks(work / "unseen" / "bottle", config.per_class)
    stage_a = ["--data", str(work / "bottle"), "--out", str(work / "class"), "--seed", str(config.seed),
               *CLASS.split()]
    command("train_class.py", *stage_a)
    classifier = load_or_train(500, work / "judge.safetensors")
    best = ceiling(load_vae("tiny", device="cpu", dtype=torch.float32), masks)
    for arm, flags in ARMS.items():
        run = work / arm.replace(" ", "_")
        given = ["--data", str(work / "bottle"), "--class-ckpt", str(work / "class"), "--out", str(run),
                 "--seed", str(config.seed), *TRAIN.split(), *flags.split()]
        begun = run.exists()  # an earlier call trained it, so these seconds say nothing
        seconds = command("train_controlnet.py", *given)
        ways = {arm + how: settings for how, settings in SETTINGS.items()}
        if not rows:  # the class checkpoint's UNet, which is the same in all arms
            ways["without control"] = ControlSettings(0.0)
        for name, settings in ways.items():
            rows.append({"arm": name, **measure(run, masks, classifier, settings), "train": shlex.join(given),
                         "train_seconds": None if begun else round(seconds),
                         "checkpoint_bytes": (run / "adapter.safetensors").stat().st_size})
        record("benchmarks/controlnet.json", masks_a_class=config.per_class, ceiling=best, rows=rows,
               class_checkpoint=shlex.join(stage_a), drawing=vars(SAMPLING))


if __name__ == "__main__":
    errors.run(main)
