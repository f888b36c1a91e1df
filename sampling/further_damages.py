"""--damages-per-image: further damage painted into an image that has some, one after the other."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from PIL import Image

from dataset.image_files import as_rgb, read_image
from dataset.layouts import FURTHER, is_good
from dataset.paste import DoesNotFit, make_view, touches
from runtime.seeds import numpy_rng
from sampling.drawings import Sample
from sampling.generation import Wanted
from sampling.inputs import Input, Inputs

APART = 10**9  # from the numbers of images, so that no further damage has an image's own noise


def draw_damages(inputs: Inputs, wanted: list[Wanted],
                 draw: Callable[[list[Input]], list[Sample]]) -> list[Sample]:
    """One sample for each (class, number): its damage, and then, one by one, its further ones.

    draw: inputs -> samples. Image by image, all but the picture is a function of (seed, class, number).
    """
    given = [inputs.prepare(*pair) for pair in wanted]
    samples = draw(given)
    for turn in range(1, inputs.damages[1]):
        more = {i: found for i, sample in enumerate(samples)
                if (found := further(inputs, given[i], sample, turn)) is not None}
        for (i, each), sample in zip(more.items(), draw(list(more.values())) if more else [], strict=True):
            samples[i] = joined(samples[i], sample, each.damage)
    return samples


def further(inputs: Inputs, first: Input, sample: Sample, turn: int) -> Input | None:
    """Damage `turn` of an image, in the photo as it is painted so far; None where it gets none, or where none
    of the masks tried finds a place beside those that are there."""
    masks, file = inputs.masks, first.file
    if sample.image is None or sample.mask is None or masks is None or file is None:
        return None  # left out, or good
    rng = numpy_rng(masks.seed, "damages", first.damage, first.number)
    if turn >= rng.integers(inputs.damages[0], inputs.damages[1] + 1):
        return None
    rng = numpy_rng(masks.seed, "further", first.damage, first.number, turn)
    own = first.damage.rpartition("/")[0]
    damage = str(rng.choice([name for name in masks.classes
                             if not is_good(name) and name.rpartition("/")[0] == own]))
    number = APART + int(rng.integers(APART))
    photo = read_image(file)  # unpainted: what is there already does not decide where the next one goes
    for attempt in range(masks.attempts(damage)):
        try:
            placed = inputs.placed_on(file, photo, masks, damage, number, attempt)
        except DoesNotFit:
            continue
        if placed.view is not None and not touches(placed.view, sample.mask, seam=inputs.seams.paste):
            photo = as_rgb(np.asarray(sample.image), file)
            view = make_view(photo, placed.view.mask, placed.view.box, inputs.resolution, str(file))
            return placed._replace(view=view, painted=sample)
    return None


def placed_damages(inputs: Inputs, first: Input) -> tuple[Image.Image, np.ndarray | None]:
    """The photo of an image, unpainted, and where (H,W) its damages would be; None for good."""
    assert first.file is not None
    sample = Sample(Image.fromarray(read_image(first.file)), first.mask, first.about)
    for turn in range(1, inputs.damages[1]):
        if (more := further(inputs, first, sample, turn)) is not None:
            sample = joined(sample, Sample(sample.image, more.mask, more.about), more.damage)
    assert sample.image is not None
    return sample.image, sample.mask


def joined(before: Sample, sample: Sample, damage: str) -> Sample:
    """A sample with one more damage: the number of each in the mask, from 1, and what is noted of it."""
    assert before.mask is not None and sample.mask is not None
    earlier = before.about.get(FURTHER, [])
    about = {key: value for key, value in sample.about.items() if key != "photo"}
    mask = np.where(sample.mask > 0, np.uint8(len(earlier) + 2), before.mask)
    return Sample(sample.image, mask, {**before.about, FURTHER: [*earlier, {"class": damage, **about}]},
                  before.rejected)
