"""What evaluate.py --downstream finds of a folder of images, with one short training of each kind."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from benchmarks.timing import command
from evaluation.networks import LITE

METRICS = ("accuracy", "accuracy_gain", "iou", "iou_gain")


def downstream(real: Path, fake: Path, classes: list[str], ckpt: Path | None = None, *, epochs: int = 12,
               folds: int = 3) -> dict[str, dict[str, Any]]:
    """Row (real only, generated, ..) -> accuracy of a classifier and IoU of a segmenter that learnt from it,
    and what they gain over real images only. Kept in a folder beside `fake`, and read from there.

    ckpt: what drew `fake`, so that tests are on photos that it was not trained on.
    """
    report = fake.with_name(f"{fake.name}-downstream")
    if not (report / "metrics.json").exists():
        drawn_by = ["--ckpt", ckpt] if ckpt else []
        command("evaluate.py", "--real", real, "--fake", fake, "--out", report, "--classes", *classes,
                *drawn_by, "--features", LITE, "--judge", LITE, "--downstream", "--downstream-seeds", 1,
                "--downstream-epochs", epochs, "--folds", folds, "--bootstrap", 20)
    rows = json.loads((report / "metrics.json").read_text())["numbers"]
    found = {name: {key: about["all"][key] for key in METRICS if key in about["all"]}
             for name, about in rows.items()}
    return {name: row for name, row in found.items() if row}
