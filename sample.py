"""Draw labelled images from a checkpoint, in the dataset's own layout: image/<damage>/NNN.png."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image
from tqdm import tqdm

import errors
from adapter import Header, find_adapter, read_adapter, sha256
from config import flag, parse
from errors import UserError
from files import append_row, read_rows, save_image
from formats import find_lora
from generation import SAMPLERS, Drawing, load_generator
from machine import DTYPES, PRECISIONS, choose_device, choose_precision
from pictures import grid, tensor_to_image

SHOWN = 8  # images a class in grid.png

EXAMPLE = """example:
  python sample.py --ckpt runs/bottle-class --out generated/bottle --classes broken_small --per-class 100
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
    per_class: int = flag(8, "images a class", group="what", minimum=1)
    seed: int = flag(42, "another seed draws other images", group="what", minimum=0)
    steps: int = flag(50, "sampling steps; for ddim and ddpm best a divisor of 1000", group="how",
                      minimum=1, maximum=1000)
    sampler: str = flag("ddim", "sampler; dpm++ is DPM-Solver++(2M) with Karras' noise levels, dpm++linspace "
                        "with evenly spaced timesteps", group="how",
                        choices=SAMPLERS)
    eta: float = flag(0.0, "noise that DDIM adds: 0 none, 1 as much as DDPM", group="how", minimum=0,
                      maximum=1)
    guidance: float = flag(1.0, "classifier-free guidance scale; not 1 needs a checkpoint trained with "
                           "--class-dropout", group="how", minimum=0)
    lora_scale: float = flag(1.0, "strength of the LoRA: 0 is the base alone", group="how", minimum=0)
    lora: list[str] = flag([], "LoRA files of others to add, each as FILE or FILE=STRENGTH; layouts of "
                           "diffusers, peft and kohya", group="how")
    base: str | None = flag(None, "where the base lies now (default: what the checkpoint was trained on)",
                            group="how")
    batch_size: int = flag(4, "images drawn at once", group="machine", minimum=1)
    precision: str = flag("auto", "auto: bf16 on GPUs that have it, fp16 on older ones, fp32 on a CPU",
                          group="machine", choices=PRECISIONS)
    device: str = flag("auto", "auto, cpu, cuda, cuda:1, ..", group="machine")


class SampleFolder:
    """Where the images go, and samples.jsonl, one row an image.

    The row is written first, then the image, whole or not at all. So an image with a row is done, a row
    without an image is still to draw, and an image without a row was made by someone else.
    """

    def __init__(self, folder: Path, settings: dict[str, Any]) -> None:
        self.folder, self.settings, self.journal = folder, settings, folder / "samples.jsonl"
        rows = read_rows(self.journal)
        for row in rows:
            changed = [f"{key} was {row.get(key)}, is {value}" for key, value in settings.items()
                       if row.get(key) != value]
            if changed:
                raise UserError(f"{self.journal}: these images were drawn with other settings "
                                f"({'; '.join(changed)}); give those, or another --out")
        self.noted = {row.get("file") for row in rows}

    def file(self, damage: str, number: int) -> Path:
        """The image's place in the dataset's layout; product/damage becomes <product>/image/<damage>."""
        *product, damage = damage.split("/")
        return self.folder.joinpath(*product, "image", damage, f"{number:03d}.png")

    def missing(self, classes: list[str], per_class: int) -> list[tuple[str, int]]:
        """The (class, number) pairs still to draw. Raises UserError where a foreign file is in the way."""
        grid = [self.folder / "grid.png"] if not self.journal.exists() else []
        pairs = [(damage, number) for damage in classes for number in range(per_class)]
        for file in [*grid, *(self.file(*pair) for pair in pairs)]:
            if file.exists() and self._name(file) not in self.noted:
                raise UserError(f"{file}: exists and was not drawn by this command; give another --out")
        return [pair for pair in pairs if not self.file(*pair).exists()]

    def add(self, image: Image.Image, damage: str, number: int) -> None:
        """Write one image's row, then the image."""
        file = self.file(damage, number)
        if self._name(file) not in self.noted:
            append_row(self.journal, {"file": self._name(file), "class": damage, "number": number,
                                      **self.settings})
            self.noted.add(self._name(file))
        save_image(file, image)

    def _name(self, file: Path) -> str:
        return file.relative_to(self.folder).as_posix()


def check(config: Config, header: Header) -> None:
    """Raises UserError for what the checkpoint cannot draw."""
    for name in config.classes:
        if name not in header.classes:
            raise UserError(f"--classes {name}: the checkpoint knows {', '.join(header.classes)}")
    if config.guidance != 1 and header.class_dropout == 0:
        raise UserError(f"--guidance {config.guidance:g}: this checkpoint was trained without "
                        "--class-dropout, so it has no null class to guide from; use 1, or train with "
                        "--class-dropout 0.1")
    if config.eta and config.sampler != "ddim":
        raise UserError(f"--eta {config.eta:g}: only --sampler ddim has it")
    if config.steps == 1000 and config.sampler == "dpm++linspace":
        raise UserError("--steps 1000: dpm++linspace has at most 999; 20 are usually enough")


def stacked(texts: list[str]) -> list[tuple[Path, float]]:
    """--lora: "style.safetensors=0.6" -> its file and strength; without "=" the strength is 1."""
    pairs = []
    for text in texts:
        name, _, strength = text.rpartition("=")
        try:
            pairs.append((Path(name), float(strength)) if name else (Path(text), 1.0))
        except ValueError:
            raise UserError(f"--lora {text}: expected FILE=STRENGTH, such as style.safetensors=0.6") from None
    return pairs


def main() -> None:
    config = parse(Config, __doc__, EXAMPLE)
    device = choose_device(config.device)
    precision = choose_precision(config.precision, device)
    path = find_adapter(Path(config.ckpt))
    _, header = read_adapter(path)
    check(config, header)
    classes = list(dict.fromkeys(config.classes)) or header.classes
    loras = stacked(config.lora)
    drawing = Drawing(config.seed, config.steps, config.sampler, config.eta, config.guidance)
    folder = SampleFolder(Path(config.out), {
        **vars(drawing), "lora_scale": config.lora_scale, "precision": precision, "checkpoint": sha256(path),
        "base": header.base, "resolution": header.resolution,
        "loras": [[sha256(find_lora(file)), strength] for file, strength in loras]})
    wanted = folder.missing(classes, config.per_class)
    there = config.per_class * len(classes) - len(wanted)
    print(f"{config.out}: {len(wanted)} images to draw, {there} there already", file=sys.stderr)

    if wanted:
        generator = load_generator(path, base=config.base, strength=config.lora_scale, device=device,
                                   dtype=DTYPES[precision], loras=loras)
    with tqdm(total=len(wanted), unit="image", disable=None) as bar:
        for start in range(0, len(wanted), config.batch_size):
            batch = wanted[start:start + config.batch_size]
            for image, (damage, number) in zip(generator.draw(batch, drawing), batch, strict=True):
                folder.add(tensor_to_image(image), damage, number)
            bar.update(len(batch))

    shown = range(min(config.per_class, SHOWN))
    rows = [[Image.open(folder.file(damage, number)) for number in shown] for damage in classes]
    save_image(folder.folder / "grid.png", grid(rows, classes))
    print(f"{config.out}: {config.per_class} images each of {', '.join(classes)}; see {config.out}/grid.png")


if __name__ == "__main__":
    errors.run(main)
