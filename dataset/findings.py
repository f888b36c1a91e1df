"""What looks wrong about masks and photos that can be read: one line each, for doctor and trainers."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

from dataset.augmentation import square_box
from dataset.image_files import size_of
from dataset.layouts import GOOD, Photo, is_good
from dataset.mask_files import inspect_mask, region_of, values_in
from runtime.errors import UserError

# What is reported: a smaller share of the damage within the square that is trained on; of a damaged photo
# without a mask, a smaller share of the photo; a larger share of damage in most photos of a class.
KEPT, SEEN, MOST = 0.98, 0.75, 0.5


@dataclass
class MaskLook:
    """What a photo's mask shows: its values, the damage in pixels and as a share of the photo, and the share
    of it (without a mask, of the photo) that lies in the square that is trained on."""

    photo: Photo
    values: list[int]
    soft: bool
    pixels: int
    share: float
    kept: float


def few(photos: list[Photo]) -> list[str]:
    """Damage types of one image, and products without undamaged ones."""
    counts = Counter((photo.product, photo.damage) for photo in photos)
    lines = [f"{product}/{damage}: a single image; the model will repeat it, and none can be held out: add "
             "more (20 are usual)" for (product, damage), count in sorted(counts.items()) if count == 1]
    for product in sorted({photo.product for photo in photos}):
        if not any(is_good(photo.damage) for photo in photos if photo.product == product):
            lines.append(f"{product}: no {GOOD} images; train_inpaint.py paints into undamaged photos, and "
                         "evaluate.py compares with them: add some")
    return lines


def look_at(photo: Photo) -> MaskLook:
    """Read the mask of one photo. Raises UserError where that fails."""
    if photo.mask is None:
        width, height = size_of(photo.image)
        return MaskLook(photo, [], False, 0, 0.0, min(width, height) / max(width, height))
    values, soft = inspect_mask(photo.mask)
    region = region_of(values, photo.mask_value)
    top, left, side = square_box(region.shape, region)
    pixels, inside = int(region.sum()), int(region[top:top + side, left:left + side].sum())
    return MaskLook(photo, values_in(values), soft, pixels, pixels / region.size,
                    inside / pixels if pixels else 1.0)


def mask_findings(looks: Iterable[MaskLook]) -> list[str]:
    """Masks that cannot be right, and damage that training does not see."""
    lines, by_class = [], defaultdict(list)
    for look in looks:
        by_class[look.photo.product, look.photo.damage].append(look)
    for (product, damage), group in by_class.items():
        masked = [look for look in group if look.photo.mask is not None]
        large = [look for look in masked if look.share > MOST]
        inverted = not is_good(damage) and 2 * len(large) > len(masked) > 1
        if inverted:
            lines.append(f"{product}/{damage}: in {len(large)} of {len(masked)} masks most of the photo is "
                         f"damage, such as {large[0].photo.mask}; are they inverted?")
        lines += [line for look in group if (line := _finding(look, inverted))]
    return lines


def _finding(look: MaskLook, inverted: bool) -> str | None:
    """What is wrong about one photo. inverted: its class has been said to be."""
    photo = look.photo
    if photo.mask is None:
        if not is_good(photo.damage) and look.kept < SEEN:
            return (f"{photo.image}: no mask tells where its damage is, and {1 - look.kept:.0%} of the photo "
                    "lies outside the square that is trained on; add a mask, or cut the photo nearer to a "
                    "square")
    elif is_good(photo.damage) and look.pixels:
        return f"{photo.mask}: marks damage on a {GOOD} image; empty it or move the image"
    elif not is_good(photo.damage) and not look.pixels:
        return f"{photo.mask}: empty, but its image is not {GOOD}; draw it or move the image"
    elif look.share > 0.9 and not inverted:
        return f"{photo.mask}: covers {look.share:.0%} of the image; is it inverted?"
    elif look.kept < KEPT:
        return (f"{photo.image}: {1 - look.kept:.0%} of its damage lies outside the square that is trained "
                "on; cut the photo nearer to a square")
    return None


def soft_note(looks: Iterable[MaskLook]) -> list[str]:
    """One line for all masks with soft edges, if there are any."""
    soft = [look.photo.mask for look in looks if look.soft]
    more = f" and {len(soft) - 1} more masks" if soft[1:] else ""
    return [f"{soft[0]}{more}: values between black and white (JPEG, antialiasing or blur); what is nearer "
            "to white is damage"] if soft else []


def findings(photos: Iterable[Photo], most: int = 5) -> list[str]:
    """All of these lines about some photos; of those about single photos the first `most` and a count."""
    looks, lines = [], []
    for photo in dict.fromkeys(photos):
        try:
            looks.append(look_at(photo))
        except UserError as error:
            lines.append(str(error))
    lines += mask_findings(looks)
    more = [f"and {len(lines) - most} more lines: see python data.py doctor"] if len(lines) > most else []
    return [*soft_note(looks), *lines[:most], *more]
