"""What each strategy is worth on photographs, and what sample.py --select changes.

Some photos of each damage type are trained on, and selection looks at no others. From the rest the
classifiers of evaluate.py learn; their masks, and the undamaged ones among them, are what damage is painted
by and into. What is in the work folder is used again, so a stopped command goes on; seconds are of folders
that were drawn in one go.
"""

from __future__ import annotations

import json
import shlex
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from benchmarks.downstream import downstream
from benchmarks.timing import command, record, whole
from data import DataConfig, load_dataset
from dataset.image_files import read_levels
from dataset.layouts import GOOD, files_of, mask_values
from evaluation.image_sets import ALL
from evaluation.numbers import BEFORE, GENERATED, HELD_OUT, PASTED, RENDERED
from runtime import errors
from runtime.cli import flag, parse
from runtime.errors import UserError
from runtime.files import read_rows, save_json
from sampling.selection import LEVELS, OFF

PREVIEWS = "--preview-every 0 --save-every 50"
STRATEGIES = {"class": f"train_class.py --epochs 100 --lr-decay 65=0.5 90=0.1 {PREVIEWS}",
              "inpaint": f"train_inpaint.py --epochs 60 --lr-decay 38=0.5 52=0.1 {PREVIEWS}",
              "control": f"train_controlnet.py --epochs 150 {PREVIEWS}"}
MORE = "off-as-many"
MEASURED = ("n", "dca", "sharp_dca", "copies", "fid_equal", "coverage", "mask_iou")


@dataclass
class Config:
    """The command line of benchmarks.photos."""

    data: str = flag(..., "one product with masks")
    base: str = flag("tiny", "base of the trainings, as for the train scripts")
    network: str = flag("efficientnet_lite0", "network of FID, of the classifiers and of --select")
    strategies: list[str] = flag(list(STRATEGIES), "which to measure; control is trained over class",
                                 choices=tuple(STRATEGIES))
    levels: list[str] = flag([OFF, *LEVELS], f"levels of --select to measure; {MORE}: without it, as many "
                             "as strict drew", choices=(OFF, *LEVELS, MORE))
    trained_on: int = flag(14, "photos of each type to train on", minimum=2)
    per_class: int = flag(20, "images of each type to draw", minimum=1)
    steps: int = flag(50, "sampling steps", minimum=1)
    downstream: bool = flag(False, "measure what the images add to training, too")
    seed: int = flag(42, "seed of training and drawing", minimum=0)
    work: str = flag("/tmp/photos", "folder for runs and images; what is there is used again")
    out: str = flag("benchmarks/photos.json", "where the result goes")


def set_aside(config: Config, folder: Path) -> None:
    """Write the photos that are not trained on, and their masks, as a dataset of their own."""
    every = load_dataset(DataConfig(data=[config.data], load_masks=True))
    some = load_dataset(DataConfig(data=[config.data], seed=config.seed, load_masks=True,
                                   max_samples_per_damage_type=config.trained_on))
    trained, values = {item.image for item in some.items}, mask_values(every.classes)
    for number, item in enumerate(item for item in every.items if item.image not in trained):
        name = every.classes[item.class_id]
        image = Image.fromarray(read_levels(item.image)[0])
        files_of(folder, name, number).write(image, item.region(), values.get(name, 0))


def train(config: Config, strategy: str) -> Path:
    """The strategy's run folder, trained unless it is there already."""
    work = Path(config.work)
    run = work / f"{strategy}-{config.seed}"
    if not (run / "adapter.safetensors").exists():
        script, *flags = shlex.split(STRATEGIES[strategy])
        below = ["--class-ckpt", work / f"class-{config.seed}"] if strategy == "control" else []
        command(script, "--data", config.data, "--base", config.base, "--out", run, "--seed", config.seed,
                "--max-samples-per-damage-type", config.trained_on, "--no-validate", *below, *flags)
    return run


def images_a_class(config: Config, rows: list[dict[str, Any]], strategy: str, level: str) -> int:
    """How many images of each type to draw: --per-class, or for MORE as many in all as strict drew.

    Raises UserError where strict is to come.
    """
    if level != MORE:
        return config.per_class
    for row in rows:
        if (row["strategy"], row["level"], row["seed"]) == (strategy, "strict", config.seed):
            return round(config.per_class * row["drawn"] / row["asked"])
    raise UserError(f"--levels {MORE}: needs strict before it, to draw as many")


def measure(config: Config, held_out: Path, strategy: str, level: str, per_class: int) -> dict[str, Any]:
    """Draw at one level, and evaluate."""
    run = train(config, strategy)
    out = Path(config.work) / f"{strategy}-{config.seed}-{level}"
    given = {"class": [], "control": ["--masks", held_out],
             "inpaint": ["--masks", held_out, "--images", held_out / "image" / GOOD]}[strategy]
    selected = ["--select", level, "--select-network", config.network] if level in LEVELS else []
    new = not out.exists()
    seconds = command("sample.py", "--ckpt", run, "--out", out, "--seed", config.seed, "--per-class",
                      per_class, "--steps", config.steps, "--batch-size", 1, *selected, *given)
    report = out.with_name(f"{out.name}-report")
    kept, thrown = read_rows(out / "samples.jsonl"), read_rows(out / "rejected/samples.jsonl")
    by_class = Counter(row["class"] for row in kept)
    command("evaluate.py", "--real", config.data, "--fake", out, "--ckpt", run, "--out", report,
            "--features", config.network, "--judge", config.network, "--classes", *sorted(by_class))
    numbers = json.loads((report / "metrics.json").read_text())["numbers"]
    added = downstream(Path(config.data), out, sorted(by_class), run) if config.downstream else None
    return {**({"downstream": added} if added else {}),
            "strategy": strategy, "level": level, "seed": config.seed, "kept": len(kept),
            "asked": per_class * len({row["class"] for row in kept + thrown}),
            "drawn": len(kept) + len(thrown), "kept_by_class": by_class,
            "thrown_away": Counter(key for row in thrown for key in row["failed"]),
            "seconds_a_kept_image": round(seconds / len(kept), 2) if new else None,
            "numbers": {row: {group: {key: about[key] for key in MEASURED if key in about}
                              for group, about in numbers[row].items() if row == GENERATED or group == ALL}
                        for row in (GENERATED, BEFORE, RENDERED, PASTED, HELD_OUT) if row in numbers}}


def main() -> None:
    """Measure each strategy and level; rows of the work folder's list are kept.

    Raises UserError where the work folder is that of other flags.
    """
    config = parse(Config, __doc__, "example:\n  python -m benchmarks.photos --data DS-MVTec/bottle\n",
                   program="-m benchmarks.photos")
    work = Path(config.work)
    held_out, log = work / f"held-out-{config.seed}", work / "rows.json"
    settings = {name: getattr(config, name) for name in ("data", "base", "network", "trained_on", "per_class",
                                                         "steps")}
    noted: dict[str, Any] = (json.loads(log.read_text()) if log.exists()
                             else {"settings": settings, "rows": []})
    if noted["settings"] != settings:
        raise UserError(f"--work {work}: holds runs of other flags ({noted['settings']}); give another "
                        "folder")
    save_json(log, noted)
    rows = noted["rows"]
    if not held_out.exists():
        with whole(held_out) as folder:
            set_aside(config, folder)
    if "control" in config.strategies:
        train(config, "class")
    for strategy in config.strategies:
        for level in config.levels:
            if not any((row["strategy"], row["level"], row["seed"]) == (strategy, level, config.seed)
                       for row in rows):
                per_class = images_a_class(config, rows, strategy, level)
                rows.append(measure(config, held_out, strategy, level, per_class))
                save_json(log, noted)
            record(config.out, trained_on=config.trained_on, per_class=config.per_class,
                   trainings=STRATEGIES, rows=rows)


if __name__ == "__main__":
    errors.run(main)
