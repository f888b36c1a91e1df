"""The pictures of the report: real, generated, and the training photo nearest to the generated one."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from PIL import Image

from dataset.layouts import Photo
from evaluation.features import read_square
from evaluation.image_sets import EvaluationSets
from runtime.pictures import tensor_to_image

SHOWN, SIDE = 4, 224  # examples a class, and the pixels of a picture


class Example(NamedTuple):
    """A generated picture beside a real one of its class and its nearest training photo.

    ratio: the distance to that over the usual one; NaN where there is none.
    """

    real: Image.Image
    generated: Image.Image
    nearest: Image.Image
    ratio: float


def examples(sets: EvaluationSets,
             nearness: dict[str, tuple[np.ndarray, np.ndarray]]) -> dict[str, list[Example]]:
    """Of each evaluated class the generated image that is nearest to a training image, then the first others.

    nearness: by space, ratios and indices of the nearest training image (N,), as measure_memorisation returns
    them; an image's nearest is that of the space where the ratio is less.
    """
    ratio, index = (np.stack(column) for column in zip(*nearness.values(), strict=True))
    best = np.where(np.isnan(ratio), np.inf, ratio).argmin(0)
    ratio, index = (values[best, np.arange(len(best))] for values in (ratio, index))
    found = {}
    for class_id in sets.chosen:
        members, real = np.flatnonzero(sets.fake.label == class_id), sets.reference.of([class_id]).photos
        closest = members[np.nan_to_num(ratio[members], nan=np.inf).argmin()]
        chosen = [closest, *members[members != closest][:SHOWN - 1]]
        found[sets.classes[class_id]] = [
            Example(_picture(real[k % len(real)]), _picture(sets.fake.photos[i]),
                    _picture(sets.reference.photos[index[i]]), float(ratio[i])) for k, i in enumerate(chosen)]
    return found


def _picture(photo: Photo) -> Image.Image:
    return tensor_to_image(read_square(photo, SIDE))
