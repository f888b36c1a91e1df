"""What looks wrong about masks and photos that can be read: one line each, for doctor and trainers."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import combinations

import numpy as np

from dataset.image_files import size_of
from dataset.layouts import GOOD, Photo, is_good
from dataset.mask_files import inspect_mask, region_of, values_in
from dataset.masks import SMALL_CELLS
from dataset.padding import padded
from dataset.windows import cells_of
from runtime.errors import UserError

# What is reported: of a damaged photo without a mask, a smaller share of the photo within one view; a larger
# share of damage in most photos of a class; in half the photos of a class, a smaller share.
SEEN, MOST, SMALL = 0.75, 0.5, 0.01
UNPORTABLE = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?|.*[<>:\"|?*\\].*|.*[. ]", re.IGNORECASE)
# What others call undamaged.
UNDAMAGED = ("ok", "okay", "normal", "undamaged", "intact", "clean", "pass", "fine", "no_defect", "gut", "io")


@dataclass
class MaskLook:
    """What a photo's mask shows: its values; the damage in pixels, as a share of the photo, and in the latent
    cells of a whole and of a close view, and with --fit pad. seen: the share of the photo that a whole view
    shows."""

    photo: Photo
    values: list[int]
    soft: bool
    pixels: int
    share: float
    seen: float = 1.0
    cells: dict[str, int] = field(default_factory=dict)


def lacking(photos: list[Photo]) -> list[str]:
    """Damage types of one image, products without undamaged ones, and products without masks."""
    counts = Counter((photo.product, photo.damage) for photo in photos)
    lines = [f"{product}/{damage}: a single image; the model will repeat it, and none can be held out: add "
             "more (20 are usual)" for (product, damage), count in sorted(counts.items()) if count == 1]
    for product in sorted({photo.product for photo in photos}):
        own = [photo for photo in photos if photo.product == product]
        if not any(is_good(photo.damage) for photo in own):
            called = sorted({photo.damage for photo in own if photo.damage.casefold() in UNDAMAGED})
            lines.append(f"{product}: no {GOOD} images; train_inpaint.py paints into undamaged photos, and "
                         "evaluate.py compares with them: "
                         + (f"if {called[0]} holds them, call it {GOOD}" if called else "add some"))
        if all(photo.mask is None for photo in own):
            lines.append(f"{product}: no masks; train_class.py needs none, train_inpaint.py and "
                         "train_controlnet.py do")
    return lines


def unportable(photos: list[Photo]) -> list[str]:
    """Damage types whose folders Windows, macOS or a command line cannot hold, or cannot tell apart."""
    lines = []
    for product in sorted({photo.product for photo in photos}):
        names = sorted({photo.damage for photo in photos if photo.product == product})
        lines += [f"{product}/{name}: Windows has no folders of this name; rename it to draw images there"
                  for name in names if UNPORTABLE.fullmatch(name)]
        lines += [f"{product}/{name}: begins with a dash, as flags do, so --classes cannot list it with "
                  "others; rename it" for name in names if name.startswith("-")]
        lines += [f"{product}: {first} and {second} differ in upper and lower case alone, which Windows and "
                  "macOS do not tell apart; join them, or rename one"
                  for first, second in combinations(names, 2) if first.casefold() == second.casefold()]
    return lines


def missing_masks(photos: list[Photo], view: str = "") -> list[str]:
    """One line for each damaged photo without a mask, or for all where none has one.

    view: the --view that needs masks; "" where the training itself does.
    """
    damaged = [photo for photo in photos if not is_good(photo.damage)]
    missing = [photo for photo in damaged if photo.mask is None]
    need, without = ((f"--view {view}", "use --view whole") if view else
                     ("masks", "train with train_class.py, which needs none"))
    if len(missing) == len(damaged) > 1:
        return [f"{need}: none of the {len(damaged)} damaged photos has a mask, as {missing[0].image}; add "
                f"them where docs/data.md shows, or {without}"]
    if view:
        return [f"{need}: {photo.image} has no mask to tell where its damage is; add one, or {without}"
                for photo in missing]
    return [f"{photo.image}: no mask, and only {GOOD} may have none; add it or remove the image"
            for photo in missing]


def look_at(photo: Photo, resolution: int) -> MaskLook:
    """Read the mask of one photo. Raises UserError where that fails."""
    if photo.mask is None:
        width, height = size_of(photo.image)
        return MaskLook(photo, [], False, 0, 0.0, min(width, height) / max(width, height))
    values, soft = inspect_mask(photo.mask)
    region = region_of(values, photo.mask_value)
    pixels = int(region.sum())
    return MaskLook(photo, values_in(values), soft, pixels, pixels / region.size,
                    cells={"whole": cells_of(region, "whole", resolution),
                           "close": cells_of(region, "close", resolution),
                           "pad": cells_of(padded(region), "whole", resolution)})


def view_advice(looks: Iterable[MaskLook], resolution: int, view: str = "whole") -> list[str]:
    """For each product with damage that is small in a whole view, or with --fit pad (`view` "pad"), what
    another --view would give."""
    products: dict[str, dict[str, list[MaskLook]]] = {}
    for look in (look for look in looks if look.pixels):
        products.setdefault(look.photo.product, {}).setdefault(look.photo.damage, []).append(look)
    lines = []
    for product, classes in products.items():
        cells = {name: {kind: float(np.median([look.cells[kind] for look in group]))
                        for kind in (view, "close")} for name, group in classes.items()}
        shares = {name: float(np.median([look.share for look in group])) for name, group in classes.items()}
        small = [name for name, of in cells.items()
                 if of[view] < min(SMALL_CELLS, of["close"]) and shares[name] < SMALL]
        if small:
            name = min(small, key=lambda name: cells[name][view])
            lines.append(f"{product}: damage of {name} is {100 * shares[name]:.2g} % of the photo (median), "
                         f"{cells[name][view]:.0f} latent cells at {resolution} px"
                         f"{' with --fit pad' if view == 'pad' else ''}; in close views it is "
                         f"{cells[name]['close']:.0f}: use --view "
                         f"{'close' if len(small) == len(classes) else 'mixed'}")
    return lines


def mask_findings(looks: Iterable[MaskLook], view: str = "whole") -> list[str]:
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
        lines += [line for look in group if (line := _finding(look, inverted, view))]
    return lines


def _finding(look: MaskLook, inverted: bool, view: str) -> str | None:
    """What is wrong about one photo. inverted: its class has been said to be."""
    photo = look.photo
    if photo.mask is None:
        if not is_good(photo.damage) and look.seen < SEEN and view != "pad":
            return (f"{photo.image}: no mask tells where its damage is, and a view, which is square, shows "
                    f"{look.seen:.0%} of the photo, so perhaps none of it; add a mask, or use "
                    "--fit pad")
    elif is_good(photo.damage) and look.pixels:
        return f"{photo.mask}: marks damage on a {GOOD} image; empty it or move the image"
    elif not is_good(photo.damage) and not look.pixels:
        return f"{photo.mask}: empty, but its image is not {GOOD}; draw it or move the image"
    elif look.share > 0.9 and not inverted:
        return f"{photo.mask}: covers {look.share:.0%} of the image; is it inverted?"
    return None


def soft_note(looks: Iterable[MaskLook]) -> list[str]:
    """One line for all masks with soft edges, if there are any."""
    soft = [look.photo.mask for look in looks if look.soft]
    more = f" and {len(soft) - 1} more masks" if soft[1:] else ""
    return [f"{soft[0]}{more}: values between black and white (JPEG, antialiasing or blur); what is nearer "
            "to white is damage"] if soft else []


def findings(photos: Iterable[Photo], resolution: int, view: str, most: int = 5) -> list[str]:
    """All of these lines about some photos; of those about single photos the first `most` and a count.

    view: that of --view, or pad.
    """
    looks, lines = [], []
    for photo in dict.fromkeys(photos):
        try:
            looks.append(look_at(photo, resolution))
        except UserError as error:
            lines.append(str(error))
    lines += mask_findings(looks, view)
    more = [f"and {len(lines) - most} more lines: see python data.py doctor"] if len(lines) > most else []
    advice = view_advice(looks, resolution, view) if view in ("whole", "pad") else []
    return [*soft_note(looks), *lines[:most], *more, *advice]
