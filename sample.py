"""Draw labelled images from a checkpoint, in the dataset's own layout: image/<damage>/NNN.png."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image
from tqdm import tqdm

import errors
from adapter import Header, sha256
from config import flag, parse
from errors import UserError
from files import save_image
from generation import PRECISIONS, SAMPLERS, Drawing, choose_device, choose_precision, load_generator
from pictures import grid, tensor_to_image

EXAMPLE = """example:
  python sample.py --ckpt runs/bottle-class --out generated/bottle --classes broken_small --per-class 100
The same command goes on where it was interrupted.
"""


@dataclass
class Config:
    """The command line of sample.py."""

    ckpt: str = flag(..., "run folder, or its adapter.safetensors", group="what")
    out: str = flag("generated", "folder to write to", group="what")
    classes: list[str] = flag([], "damage types to draw (default: all of the checkpoint)", group="what")
    per_class: int = flag(8, "images a class", group="what", minimum=1)
    seed: int = flag(42, "image i of a class depends on the seed, the class and i alone", group="what", minimum=0)
    steps: int = flag(50, "sampling steps", group="how", minimum=1, maximum=1000)
    sampler: str = flag("ddim", "sampler; dpm++ is DPM-Solver++(2M) with Karras' steps", group="how",
                        choices=SAMPLERS)
    eta: float = flag(0.0, "noise that DDIM adds: 0 none, 1 as much as DDPM", group="how", minimum=0, maximum=1)
    guidance: float = flag(1.0, "classifier-free guidance scale; above 1 needs a checkpoint trained with "
                           "--class-dropout", group="how", minimum=0)
    lora_scale: float = flag(1.0, "strength of the LoRA: 0 is the base alone", group="how", minimum=0)
    base: str | None = flag(None, "where the base lies now (default: what the checkpoint was trained on)",
                            group="how")
    batch_size: int = flag(4, "images drawn at once", group="machine", minimum=1)
    precision: str = flag("auto", "auto: bf16 on GPUs that have it, fp16 on older ones, fp32 on a CPU",
                          group="machine", choices=PRECISIONS)
    device: str = flag("auto", "auto, cpu, cuda, cuda:1, ..", group="machine")


class SampleFolder:
    """Where the images go, and samples.jsonl, one row an image, written after the image itself."""

    def __init__(self, folder: Path, settings: dict[str, Any]) -> None:
        self.folder, self.settings, self.journal = folder, settings, folder / "samples.jsonl"
        self.done: set[str] = set()
        for row in self._rows():
            changed = [f"{k} was {row.get(k)}, is {v}" for k, v in settings.items() if row.get(k) != v]
            if changed:
                raise UserError(f"{self.journal}: these images were drawn with other settings "
                                f"({'; '.join(changed)}); give those, or another --out")
            if (folder / row["file"]).exists():
                self.done.add(row["file"])

    def _rows(self) -> list[dict[str, Any]]:
        if not self.journal.exists():
            return []
        lines = self.journal.read_text().splitlines()
        rows = []
        for number, line in enumerate(lines, 1):
            try:
                rows.append(json.loads(line))
            except ValueError:
                if number < len(lines):  # only the last row can have been cut short by a kill
                    raise UserError(f"{self.journal}: line {number} is damaged; delete it") from None
        return rows

    @staticmethod
    def name(damage: str, number: int) -> str:
        """The image's place in the dataset's layout; product/damage becomes <product>/image/<damage>."""
        *product, damage = damage.split("/")
        return "/".join([*product, "image", damage, f"{number:03d}.png"])

    def missing(self, classes: list[str], per_class: int) -> list[tuple[str, int]]:
        """The (class, number) pairs still to draw. Raises UserError where a foreign file is in the way."""
        wanted = [(c, i) for c in classes for i in range(per_class) if self.name(c, i) not in self.done]
        for pair in wanted:
            file = self.folder / self.name(*pair)
            if file.exists() and self.journal.exists() is False:
                raise UserError(f"{file}: exists and was not made by this command; give another --out")
        return wanted

    def add(self, image: Image.Image, damage: str, number: int) -> None:
        """Write one image, then its row."""
        file = self.name(damage, number)
        save_image(self.folder / file, image)
        with open(self.journal, "a") as journal:
            journal.write(json.dumps({"file": file, "class": damage, "number": number, **self.settings}) + "\n")
        self.done.add(file)


def chosen_classes(config: Config, header: Header) -> list[str]:
    """--classes, or all. Raises UserError for a class that the checkpoint does not know."""
    for name in config.classes:
        if name not in header.classes:
            raise UserError(f"--classes {name}: the checkpoint knows {', '.join(header.classes)}")
    if config.guidance != 1 and header.class_dropout == 0:
        raise UserError(f"--guidance {config.guidance}: this checkpoint was trained without --class-dropout, so "
                        "it has no null class to guide from; use --guidance 1 or train with --class-dropout 0.1")
    return list(dict.fromkeys(config.classes)) or header.classes


def main() -> None:
    config = parse(Config, __doc__, EXAMPLE)
    device = choose_device(config.device)
    generator = load_generator(Path(config.ckpt), base=config.base, strength=config.lora_scale, device=device,
                               dtype=choose_precision(config.precision, device))
    header = generator.header
    classes = chosen_classes(config, header)
    drawing = Drawing(config.seed, config.steps, config.sampler, config.eta, config.guidance)
    settings = {**vars(drawing), "lora_scale": config.lora_scale, "precision": config.precision,
                "checkpoint": sha256(generator.path), "base": header.base, "resolution": header.resolution}
    folder = SampleFolder(Path(config.out), settings)
    wanted = folder.missing(classes, config.per_class)
    print(f"{config.out}: {len(wanted)} images to draw, {len(folder.done)} there already", file=sys.stderr)

    with tqdm(total=len(wanted), unit="image", disable=None) as bar:
        for i in range(0, len(wanted), config.batch_size):
            batch = wanted[i:i + config.batch_size]
            for image, (damage, number) in zip(generator.draw(batch, drawing), batch, strict=True):
                folder.add(tensor_to_image(image), damage, number)
            bar.update(len(batch))

    shown = range(min(config.per_class, 8))
    rows = [[Image.open(folder.folder / folder.name(c, i)) for i in shown] for c in classes]
    save_image(folder.folder / "grid.png", grid(rows, classes))
    print(f"{config.out}: {config.per_class} images each of {', '.join(classes)}; look at {config.out}/grid.png")


if __name__ == "__main__":
    errors.run(main)
