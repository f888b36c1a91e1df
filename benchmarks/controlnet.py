"""A whole ControlNet against low-rank updates, on the embedded base: `python benchmarks/controlnet.py`.

Each arm is trained by train_controlnet.py over one class checkpoint of the demo's flags, on the demo dataset,
and then draws into 50 unseen masks a class, with guidance over the mask and without. Measured are, for each
of these and for the UNet without control,

- IoU: of an image and the one drawn from the same noise as `good`, the pixels that differ most, as many as
  the mask has, against the mask. No threshold is chosen; a change anywhere gets about half the mask's share.
  `iou` looks at the VAE's resolution (differences blurred by half a latent cell), `iou_pixels` at every
  pixel, where damage of the bottle's own brightness counts as none. Beside them stands what the same measure
  finds for a perfect generator: the demo's bottles before and after the damage, both through the VAE.
- DCA: the share of images in which an independent classifier (tiny/judge.py) sees the class asked for.

Results go to benchmarks/controlnet.json with the commands, seconds and bytes.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from control import Steer  # noqa: E402
from data import DataConfig, load_dataset  # noqa: E402
from demo import draw_bottle  # noqa: E402
from features import resize  # noqa: E402
from folders import GOOD  # noqa: E402
from generation import Drawing, Generator, draw, load_generator  # noqa: E402
from judge import gaussian_blur  # noqa: E402
from metrics import wilson  # noqa: E402
from sd.vae import VAE  # noqa: E402
from sd.weights import load_vae  # noqa: E402
from tiny.judge import describe, judged, load_or_train  # noqa: E402

CLASS = "--base tiny --resolution 128 --epochs 120 --batch-size 8 --lr 2e-3 --lr-decay 75=0.5 105=0.1 " \
        "--embedding-lr 1e-2 --init-std 0.5 --tokens-per-class 4 --class-dropout 0.1 --ema 0.99 " \
        "--preview-every 0 --save-every 60"
TRAIN = "--epochs 160 --batch-size 8 --accumulate 1 --ema 0.99 --preview-every 80 --preview-steps 25 " \
        "--preview-guidance 2 --save-every 40"
# The literature's rates are for SD 1.5; the embedded base is narrow and takes larger ones.
ARMS = {"whole": "--control-rank 0 --lr 2e-4", "rank 16": "--control-rank 16 --lr 1e-3",
        "rank 4": "--control-rank 4 --lr 1e-3"}
DRAWING = Drawing(steps=25, eta=1.0)
STEERS = {"": Steer(), ", --mask-guidance 2": Steer(mask_guidance=2.0)}
AT_ONCE = 25
SEED = 1  # of the bottles whose masks no training saw
HALF_CELL = 4.0  # pixels


def command(script: str, arguments: str) -> float:
    """Run one of our commands; its seconds."""
    began = time.time()
    subprocess.run([sys.executable, str(ROOT / script), *arguments.split()], check=True, cwd=ROOT)
    return time.time() - began


def overlap(image: Tensor, good: Tensor, mask: Tensor, sigma: float) -> float:
    """Mean IoU of masks (B,1,R,R) with as many pixels as they have, those that differ most (B,3,R,R).

    sigma: of the Gaussian, in pixels, that the differences are blurred with; 0: they are not.
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
def drawn(frozen: Generator, steer: Steer, name: str, class_id: int, masks: Tensor) -> Tensor:
    """One image a mask (N,1,R,R), from noise that depends on `name` and the mask's number alone."""
    parts, resolution = [], frozen.header.resolution
    for first in range(0, len(masks), AT_ONCE):
        part = masks[first:first + AT_ONCE]
        parts.append(draw(frozen.unet, frozen.vae, frozen.context,
                          [(name, class_id, first + i) for i in range(len(part))], DRAWING, resolution,
                          frozen.steered.control(list(part[:, 0].numpy()), [name] * len(part), steer)))
    return torch.cat(parts)


def measure(run: Path, masks: dict[str, Tensor], judge: torch.nn.Module, steer: Steer) -> dict[str, object]:
    """IoU by class and the judge's confusion matrix of one arm, steered in one way."""
    frozen = load_generator(run, base=None, strength=1.0, device=torch.device("cpu"), dtype=torch.float32)
    classes, images, labels, shares = frozen.header.classes, [], [], {}
    for class_id, name in enumerate(classes):
        wanted = masks[name]
        images.append(drawn(frozen, steer, name, class_id, wanted))
        labels += [class_id] * len(wanted)
        if name != GOOD:
            plain = steer._replace(mask_guidance=1.0)  # from the empty mask to itself guides nothing
            good = drawn(frozen, plain, name, classes.index(GOOD), torch.zeros_like(wanted))
            shares[name] = overlaps(images[-1], good, wanted)
    table = judged(judge, torch.cat(images), torch.tensor(labels))
    describe(f"{run}, {steer}, IoU {shares}", table)
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
    """What overlaps() finds for the bottles themselves, before and after the damage, through the VAE."""
    def through(name: str, count: int, before: bool) -> Tensor:
        drawn = [resize(draw_bottle(name, SEED * 1_000_000 + i, before=before)[0], 128) for i in range(count)]
        return torch.cat([vae.decode(vae.posterior(one[None])[0]) for one in drawn])

    return by_measure({name: overlaps(through(name, len(of), False), through(name, len(of), True), of)
                       for name, of in masks.items() if name != GOOD})


def unseen_masks(folder: Path, per_class: int) -> dict[str, Tensor]:
    """(N,1,128,128) masks of each class, of demo images that no training saw; `good` has empty ones."""
    if not folder.exists():
        command("data.py", f"demo {folder} --per-class {per_class} --seed {SEED}")
    dataset = load_dataset(DataConfig([str(folder)], resolution=128, load_masks=True, augment=False))
    masks: dict[str, list[Tensor]] = {name: [] for name in dataset.classes}
    for index, item in enumerate(dataset.items):
        masks[dataset.classes[item.class_id]].append(dataset.example(index, epoch=0)["mask"])
    return {name: torch.stack(found) for name, found in masks.items()}


def main() -> None:
    """The command: train and measure each arm, writing the rows as they come."""
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--work", type=Path, default=Path("/tmp/controlnet_benchmark"))
    parser.add_argument("--per-class", type=int, default=50, help="masks a class (default: 50)")
    arguments = parser.parse_args()
    work, rows = arguments.work, []
    if not (work / "bottle").exists():
        command("data.py", f"demo {work / 'bottle'} --per-class 20 --seed 0")
    masks = unseen_masks(work / "unseen" / "bottle", arguments.per_class)
    stage_a = f"--data {work / 'bottle'} --out {work / 'class'} --seed {arguments.seed} {CLASS}"
    command("train_class.py", stage_a)
    judge = load_or_train(500, work / "judge.safetensors")
    best = ceiling(load_vae("tiny", device="cpu", dtype=torch.float32), masks)
    for arm, flags in ARMS.items():
        run = work / arm.replace(" ", "_")
        given = f"--data {work / 'bottle'} --class-ckpt {work / 'class'} --out {run} " \
                f"--seed {arguments.seed} {TRAIN} {flags}"
        begun = run.exists()  # by an earlier call, so that its seconds say nothing
        seconds = command("train_controlnet.py", given)
        ways = {arm + how: steer for how, steer in STEERS.items()}
        if not rows:  # the class checkpoint's UNet, which is the same in all arms
            ways["without control"] = Steer(0.0)
        for name, steer in ways.items():
            rows.append({"arm": name, **measure(run, masks, judge, steer), "train": given,
                         "train_seconds": None if begun else round(seconds),
                         "checkpoint_bytes": (run / "adapter.safetensors").stat().st_size})
        result = {"date": datetime.date.today().isoformat(), "machine": platform.machine(),
                  "cores": os.cpu_count(), "torch": torch.__version__, "masks_a_class": arguments.per_class,
                  "class_checkpoint": stage_a, "drawing": vars(DRAWING), "ceiling": best, "rows": rows}
        (ROOT / "benchmarks" / "controlnet.json").write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
