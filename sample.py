"""Draw labelled images from any checkpoint, in the dataset's own layout or another program's."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image
from tqdm import tqdm

import errors
import processes
from adapter import find_adapter, read_adapter
from config import flag, parse
from decode import read_image, read_mask
from errors import UserError
from files import save_image, sha256
from formats import find_lora
from generation import EVERYWHERE, SAMPLERS, Drawing, Generator, load_generator
from header import Header
from machine import DTYPES, PRECISIONS, choose_device, choose_precision
from painting import Painting, Seams, open_painting
from pictures import grid, outline, tensor_to_image
from processes import together
from sample_folder import LAYOUTS, Sample, SampleFolder, cut
from steering import Steering, open_steering, read_steer

SHOWN, SHOWN_SIDE = 8, 512  # images a class in grid.png, and their side at most
# Which flags only some kinds of checkpoint have.
STEERING = ("masks", "control_scale", "mask_guidance")
FLAGS = {"class": (), "control": STEERING,
         "inpaint": (*STEERING, "control", "images", "strength", "crop", "paste", "match_colour")}

EXAMPLE = """examples:
  python sample.py --ckpt runs/bottle-class --out generated/bottle --classes broken_small --per-class 100
  python sample.py --ckpt runs/bottle-class --out styled --lora style.safetensors=0.6
  python sample.py --ckpt runs/bottle-inpaint --images DS-MVTec/bottle/image/good --out painted --layout coco
  python sample.py --ckpt runs/bottle-control --masks my/masks --out steered --per-class 100
The same command goes on where it was interrupted; a larger --per-class or other --classes add to what is
there. Image i of a class depends on the seed, the class and i alone. Drawn in batches of another size its
pixels may be rounded otherwise: in fp32 by one level of 255 at most.
"""


@dataclass
class Config:
    """The command line of sample.py."""

    ckpt: str = flag(..., "run folder, or its adapter.safetensors", group="what")
    out: str = flag("generated", "folder to write to", group="what")
    classes: list[str] = flag([], "damage types to draw (default: all of the checkpoint)", group="what")
    per_class: int = flag(8, "images a class", group="what", minimum=1, maximum=10**6)
    seed: int = flag(42, "another seed draws other images", group="what", minimum=0)
    steps: int = flag(50, "sampling steps; for ddim and ddpm best a divisor of 1000", group="how",
                      minimum=1, maximum=1000)
    sampler: str = flag("ddim", "sampler; dpm++ is DPM-Solver++(2M) with Karras' noise levels, dpm++linspace "
                        "with evenly spaced timesteps", group="how",
                        choices=SAMPLERS)
    eta: float = flag(0.0, "noise that DDIM adds: 0 none, 1 as much as DDPM", group="how", minimum=0,
                      maximum=1)
    guidance: float = flag(1.0, "classifier-free guidance scale; not 1 needs a checkpoint trained with "
                           "--class-dropout or --context prompt", group="how", minimum=0)
    guidance_interval: list[int] = flag(
        list(EVERYWHERE), "first and last timestep (999 is pure noise) at which guidance counts; a step "
        "outside costs half, and the images are others", group="how", minimum=0, maximum=999)
    lora_scale: float = flag(1.0, "strength of the LoRA: 0 is the base alone", group="how", minimum=0)
    lora: list[str] = flag([], "LoRA files of others to add, each as FILE or FILE=STRENGTH; layouts of "
                           "diffusers, peft and kohya", group="how")
    images: str | None = flag(None, "folder of undamaged photos to paint damage into; needed by "
                              "checkpoints of train_inpaint.py, and of no use to others", group="where")
    masks: str | None = flag(None, "a dataset, whose masks are re-placed on the object (default: the one "
                             "trained on), or a folder of mask files, used as they are", group="where")
    control: str | None = flag(None, "checkpoint of train_controlnet.py that steers one of train_inpaint.py",
                               group="where")
    control_scale: float = flag(1.0, "strength of the ControlNet; 0 is none", group="where", minimum=0)
    mask_guidance: float = flag(1.0, "guidance scale over the mask; not 1 needs a checkpoint trained with "
                                "--mask-dropout", group="where", minimum=0)
    crop: bool = flag(False, "paint a close view of the damage: for masks that are small", group="where")
    paste: bool = flag(True, "leave all pixels outside the mask and its seam as they are in the photo",
                       group="where")
    match_colour: bool = flag(False, "shift what is painted to the photo's colours around the mask",
                              group="where")
    strength: float = flag(1.0, "share of the sampling steps that are done; below 1 the first are left out "
                           "and the photo's own texture shimmers through", group="where", above=0, maximum=1)
    layout: str = flag("ds", "ds: image/<damage>/NNN.png, mask/<damage>/NNN_mask.png of class indices; "
                       "mvtec: test/ and ground_truth/ of 255; coco: as ds, and annotations.json",
                       group="what", choices=tuple(LAYOUTS))
    json: bool = flag(False, "say at the end what is there as one JSON object", group="what")
    base: str | None = flag(None, "where the base lies now (default: what the checkpoint was trained on, "
                            "unless that is a path out of this folder)", group="how")
    batch_size: int = flag(4, "images drawn at once", group="machine", minimum=1, maximum=10**4)
    precision: str = flag("auto", "auto: bf16 on GPUs that have it, fp16 on older ones, fp32 on a CPU",
                          group="machine", choices=PRECISIONS)
    device: str = flag("auto", "auto, cpu, cuda, cuda:1, ..", group="machine")
    fast: bool = flag(True, "exact shortcuts; without them every layer is computed as it is written: to "
                            "compare with", group="machine")


def check(config: Config, header: Header) -> None:
    """Raises UserError for what the checkpoint cannot draw."""
    for name in config.classes:
        if name not in header.classes:
            raise UserError(f"--classes {name}: the checkpoint knows {', '.join(header.classes)}")
    if config.guidance != 1 and not header.has_null:
        raise UserError(f"--guidance {config.guidance:g}: this checkpoint was trained without "
                        "--class-dropout, so it has no null class to guide from; use 1, or train with "
                        "--class-dropout 0.1")
    if len(config.guidance_interval) != 2 or config.guidance_interval[0] > config.guidance_interval[1]:
        raise UserError(f"--guidance-interval {' '.join(map(str, config.guidance_interval))}: give the first "
                        "and the last timestep, such as 200 800")
    if config.eta and config.sampler != "ddim":
        raise UserError(f"--eta {config.eta:g}: only --sampler ddim has it")
    if config.steps == 1000 and config.sampler == "dpm++linspace":
        raise UserError("--steps 1000: dpm++linspace has at most 999; 20 are usually enough")
    if int(config.steps * config.strength) < 1:
        raise UserError(f"--strength {config.strength:g}: of --steps {config.steps} none would be left; give "
                        "more of either")
    own, default = FLAGS[header.kind], Config("")
    for name in sorted({name for names in FLAGS.values() for name in names} - set(own)):
        if getattr(config, name) != getattr(default, name):
            raise UserError(f"--{name.replace('_', '-')}: a checkpoint of kind {header.kind!r} has no use "
                            "for it; leave it out, or give one of another train script")


class Pictures:
    """What a checkpoint of train_class.py draws: whole pictures, without masks."""

    settings: dict[str, Any] = {}

    def __init__(self, layout: str) -> None:
        if layout == "mvtec" and processes.first():
            print("--layout mvtec: this checkpoint draws no masks, so there is no ground_truth/, without "
                  "which anomalib's MVTecAD reads nothing; its Folder does", file=sys.stderr)

    def check(self, wanted: list[tuple[str, int]]) -> None:
        """Nothing can be wrong."""

    def draw(self, generator: Generator, wanted: list[tuple[str, int]], drawing: Drawing) -> list[Sample]:
        """Draw the images called for by (class name, number)."""
        return [Sample(tensor_to_image(image)) for image in generator.draw(wanted, drawing)]


def open_source(config: Config, header: Header, classes: list[str]) -> Pictures | Painting | Steering:
    """What draws for this kind of checkpoint."""
    steer = read_steer(config.control, header, config.control_scale, config.mask_guidance, config.guidance)
    if header.kind == "control":
        return open_steering(config.masks, header, classes, steer, config.seed)
    if header.kind == "inpaint":
        seams = Seams(config.crop, config.paste, config.match_colour)
        return open_painting(config.images, config.masks, header, classes, seams, config.seed,
                             steer if config.control else None)
    return Pictures(config.layout)


def contact_sheet(folder: SampleFolder, classes: list[str], shown: int) -> Image.Image:
    """The first images of each class, and below them, where they have masks, the same with these outlined."""
    rows, labels = [], []
    for damage in classes:
        images = [Image.fromarray(read_image(folder.file(damage, number))) for number in range(shown)]
        outlined = [outline(image, read_mask(folder.mask_file(damage, number)))
                    for number, image in enumerate(images) if folder.mask_file(damage, number).exists()]
        for row, label in ((images, damage), (outlined, "its masks")):
            for image in row:
                image.thumbnail((SHOWN_SIDE, SHOWN_SIDE))
            if row:
                rows.append(row)
                labels.append(label)
    return grid(rows, labels)


def stacked(texts: list[str]) -> list[tuple[Path, float]]:
    """--lora: "style.safetensors=0.6" -> its file and strength; without "=" the strength is 1."""
    pairs = []
    for text in texts:
        name, _, strength = text.rpartition("=")
        try:
            pairs.append((Path(name), float(strength)) if name else (Path(text), 1.0))
            if not math.isfinite(pairs[-1][1]):
                raise ValueError
        except ValueError:
            raise UserError(f"--lora {text}: expected FILE=STRENGTH, such as style.safetensors=0.6") from None
    return pairs


def draw_all(batches: list[list], draw: Callable[[list], list[Sample]], folder: SampleFolder,
             wanted: set[tuple[str, int]]) -> None:
    """Each process draws every count-th batch; the first writes them all, in order."""
    with tqdm(total=len(wanted), unit="image", disable=None if processes.first() else True) as bar:
        for start in range(0, len(batches), processes.count()):
            turn = batches[start:start + processes.count()]
            own = turn[processes.rank()] if processes.rank() < len(turn) else []
            for batch, samples in zip(turn, processes.gather(draw(own) if own else []), strict=False):
                for pair, sample in zip(batch, samples, strict=True):
                    if pair in wanted:
                        folder.add(sample, *pair)
                        bar.update()


@together
def main() -> None:
    """The command: draw what is missing in the folder, then its grid.png."""
    config = parse(Config, __doc__, EXAMPLE)
    device = choose_device(config.device)
    precision = choose_precision(config.precision, device)
    path = find_adapter(Path(config.ckpt))
    _, header = read_adapter(path)
    check(config, header)
    classes = list(dict.fromkeys(config.classes)) or header.classes
    loras = stacked(config.lora)
    drawing = Drawing(config.seed, config.steps, config.sampler, config.eta, config.guidance, config.strength,
                      config.guidance_interval)
    source = open_source(config, header, classes)
    folder = SampleFolder(Path(config.out), header.classes, {
        **vars(drawing), "lora_scale": config.lora_scale, "precision": precision, "checkpoint": sha256(path),
        "base": header.base, "resolution": header.resolution,
        "loras": [[sha256(find_lora(file)), strength] for file, strength in loras],
        "layout": config.layout, **source.settings})
    with folder.opened():
        wanted = folder.missing(classes, config.per_class)
        source.check(wanted)
        if processes.first():
            there = config.per_class * len(classes) - len(wanted)
            print(f"{config.out}: {len(wanted)} images to draw, {there} there already", file=sys.stderr)
        if wanted:
            generator = load_generator(path, base=config.base, strength=config.lora_scale, device=device,
                                       dtype=DTYPES[precision], loras=loras, control=config.control,
                                       fast=config.fast)
            if config.fast:
                generator.pack()
            batches = cut(classes, config.per_class, config.batch_size, wanted)
            draw_all(batches, lambda batch: source.draw(generator, batch, drawing), folder, set(wanted))
        if processes.first():
            folder.annotate()
            sheet = contact_sheet(folder, classes, min(config.per_class, SHOWN))
            save_image(folder.grid, sheet)
    if config.json:
        print(json.dumps({"out": config.out, "classes": classes, "per_class": config.per_class,
                          "drawn": len(wanted), "journal": str(folder.journal), "grid": str(folder.grid)}))
    else:
        print(f"{config.out}: {config.per_class} images each of {', '.join(classes)}; see {folder.grid}")


if __name__ == "__main__":
    errors.run(main)
