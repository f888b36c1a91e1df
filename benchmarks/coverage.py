"""How often the 95 % intervals of DCA hold the truth: repeated experiments whose true accuracy is known.

In each experiment real photos of four classes are drawn anew (as feature vectors from Gaussians). Judges
learn from them as in evaluate.py, and classify newly generated images of one class, which lie between their
class and the next. The truth is the mean accuracy of all experiments.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from tqdm import trange

from benchmarks.timing import record
from evaluation.judges import DIVISIONS, NEVER, fit_linear, right_share, stratified_folds
from evaluation.metrics import wilson
from evaluation.numbers import Number
from runtime import errors
from runtime.cli import flag, parse
from runtime.seeds import numpy_rng

CLASSES, FOLDS, APART = 4, 5, 3.0  # APART: the class means from the common one, in deviations


class Setting(NamedTuple):
    """Real photos a class, generated images, dimensions; how far these are on the way from their class to the
    next, and how varied they are, in deviations of the real ones."""

    photos: int
    images: int
    dim: int
    towards: float
    varied: float


SETTINGS = (Setting(20, 50, 20, 0.3, 1.0), Setting(20, 50, 100, 0.4, 0.5), Setting(20, 200, 100, 0.4, 0.2),
            Setting(20, 12, 100, 0.3, 1.0), Setting(7, 50, 100, 0.3, 0.5), Setting(20, 50, 100, 0.0, 1.0))


@dataclass
class Config:
    """The command line of benchmarks.coverage."""

    repeats: int = flag(200, "experiments of each setting", group="how", minimum=2)
    out: str = flag("benchmarks/coverage.json", "where the result goes", group="how")


def experiment(setting: Setting, *key: int) -> tuple[np.ndarray, np.ndarray]:
    """One experiment: the judges' answers (J, images) for generated images of class 0, and (J, photos) for
    the real ones of class 0, NEVER where a judge learnt from it."""
    rng, means = numpy_rng("coverage", *key), APART * np.eye(CLASSES, setting.dim)
    label = np.repeat(np.arange(CLASSES), setting.photos)
    real = means[label] + rng.normal(size=(len(label), setting.dim))
    centre = (1 - setting.towards) * means[0] + setting.towards * means[1]
    images = centre + setting.varied * rng.normal(size=(setting.images, setting.dim))
    x, z, target = (torch.from_numpy(values) for values in (real, images, label))
    answers, held_out = [], []
    for division in range(DIVISIONS):
        fold = stratified_folds(label, [""] * CLASSES, FOLDS, *key, division)
        for part in range(FOLDS):
            rest = torch.from_numpy(fold != part)
            weight, bias = fit_linear(x[rest].float(), (setting.dim,), target[rest], CLASSES)
            answers.append((z.float() @ weight.T + bias).argmax(1).numpy())
            found = (x.float() @ weight.T + bias).argmax(1).numpy()
            held_out.append(np.where(fold == part, found, NEVER)[label == 0])
    return np.stack(answers), np.stack(held_out)


def coverage(setting: Setting, repeats: int) -> dict[str, object]:
    """The truths, and the share of the experiments whose interval holds them: of generated images, of the
    same by Wilson's interval of the images alone, and of held-out real ones."""
    zeros = np.zeros(max(setting.images, setting.photos), int)
    shares, plain, real = list[Number](), [], list[Number]()
    for number in trange(repeats, desc=str(tuple(setting)), disable=None):
        answers, held_out = experiment(setting, number)
        shares.append(right_share(answers, zeros[:setting.images], FOLDS))
        plain.append(wilson(shares[-1]["value"] * setting.images, setting.images))
        real.append(right_share(held_out, zeros[:setting.photos], FOLDS))
    truth, real_truth = (float(np.mean([share["value"] for share in found])) for found in (shares, real))
    return {**setting._asdict(), "truth": round(truth, 3), "real_truth": round(real_truth, 3),
            "held": float(np.mean([share["low"] <= truth <= share["high"] for share in shares])),
            "held_by_images_alone": float(np.mean([low <= truth <= high for low, high in plain])),
            "held_real": float(np.mean([share["low"] <= real_truth <= share["high"] for share in real]))}


def main() -> None:
    """Measure each setting and write the result."""
    config = parse(Config, __doc__, "example:\n  python -m benchmarks.coverage\n",
                   program="-m benchmarks.coverage")
    found = [coverage(setting, config.repeats) for setting in SETTINGS]
    record(config.out, repeats=config.repeats, settings=found)
    for row in found:
        print(row)


if __name__ == "__main__":
    errors.run(main)
