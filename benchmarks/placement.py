"""Where the mask bank puts masks: on drawn bolts, whose parts are known, on bottles, on cloth; and how fast.

It uses no more of the bank than `place` and `photo_for`, so it can be run with an earlier rule's, in a
checkout of that time; --earlier keeps that result beside the new one.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image
from scipy.ndimage import binary_fill_holes
from tqdm import tqdm

from benchmarks.timing import record
from data import Item
from dataset.image_files import read_image
from dataset.layouts import find_products, is_good
from dataset.paste import DoesNotFit
from dataset.scan import scan_products
from runtime import errors
from runtime.cli import flag, parse
from runtime.files import save_image
from sampling.mask_bank import TRIES, MaskBank
from tiny import bolts, bottles
from tiny.families import Brush, colour
from tiny.grid import make_grid, to_uint8
from tiny.textures import fabric

SIDE, OTHER_SIZE, CLOTH = 256, 1.25, 96  # pixels; a ratio of sizes; pixels
LIP, INSIDE = (0.45, 1.0), (0.0, 0.47)  # where breaks and contamination lie, in radii of the bottle


@dataclass
class Config:
    """The command line of benchmarks.placement."""

    masks: int = flag(60, "masks a class placed on bolts and bottles", group="how", minimum=1)
    cloth_masks: int = flag(1500, "masks placed on cloth", group="how", minimum=1)
    photos: str | None = flag(None, "real photos of bottles, as for training (default: none)", group="what")
    earlier: str | None = flag(None, "result of an earlier rule, to keep beside this one", group="what")
    out: str = flag("benchmarks/placement.json", "where the result goes", group="how")


class Dealt(NamedTuple):
    """A mask as it was dealt. mask: None where no pair of mask and photo fits."""

    damage: str
    mask: np.ndarray | None
    source: Item | None
    photo: Path
    first: bool  # whether the first pair fitted


def dealt(bank: MaskBank, photos: list[Path], count: int, title: str) -> Iterator[Dealt]:
    """`count` masks of each class, as sample.py deals them."""
    masks = {(item.mask, name): item for name, items in bank.items.items() for item in items}
    pixels = {photo: read_image(photo) for photo in photos}
    todo = [(damage, number) for damage in bank.classes for number in range(count)]
    for damage, number in tqdm(todo, desc=title, unit="mask", disable=None):
        for attempt in range(TRIES):
            photo = bank.photo_for(damage, number, photos, attempt)
            try:
                placed = bank.place(damage, number, pixels[photo], attempt)
            except DoesNotFit:
                continue
            source = masks[Path(placed.about["mask"]), damage]
            yield Dealt(damage, placed.mask, source, photo, attempt == 0)
            break
        else:
            yield Dealt(damage, None, None, photo, False)


def drawn(folder: Path, draw: Callable[..., tuple[np.ndarray, np.ndarray]], damages: tuple[str, ...],
          side: int, masks: int = 10, photos: int = 24) -> tuple[MaskBank, list[Path]]:
    """A bank of drawn masks, and undamaged photos; item i of a class is seed i, photo i is seed 1000 + i."""
    items: dict[str, list[Item]] = {}
    for damage in damages:
        for i in range(masks):
            file, region = folder / damage / f"{i}.png", folder / damage / f"{i}_mask.png"
            image, mask = draw(damage, i, side)
            save_image(file, Image.fromarray(image))
            save_image(region, Image.fromarray(mask))
            items.setdefault(damage, []).append(Item(file, region, None, "", damage, 0))
    good = [folder / "good" / f"{1000 + i}.png" for i in range(photos)]
    for file in good:
        save_image(file, Image.fromarray(draw("good", int(file.stem), side)[0]))
    return MaskBank(items, 0, "any"), good


def region_of(item: Item) -> np.ndarray:
    """The damage of a masked photo."""
    region = item.region()
    assert region is not None
    return region


def share(values: list[Any]) -> dict[str, Any]:
    """How many of how many are true."""
    return {"right": int(np.sum(values)), "of": len(values),
            "share": round(float(np.mean(values)), 4) if values else None}


def on_bolts(folder: Path, count: int) -> dict[str, Any]:
    """Damage on the bolt, and on the part that it belongs to, in all photos and in those that are harder."""
    bank, photos = drawn(folder, bolts.draw_bolt, bolts.CLASSES[:-1], SIDE)
    parts = {photo: bolts.bolt_parts("good", int(photo.stem), SIDE) for photo in photos}
    on, part, placed, first = [], list[tuple[bool, bool, bool]](), 0, 0
    for each in dealt(bank, photos, count, "bolts"):
        if each.mask is None or each.source is None:
            continue
        placed, first = placed + 1, first + each.first
        own_parts = bolts.bolt_parts(each.damage, int(each.source.image.stem), SIDE)
        own, there = own_parts[region_of(each.source) > 0], parts[each.photo][each.mask > 0]
        if (own > 0).mean() >= 0.8:
            on.append((there > 0).mean() >= 0.8)
        if each.damage in bolts.PART_OF:
            expected = 1 + bolts.PARTS.index(bolts.PART_OF[each.damage])
            hit = there.any() and np.bincount(there[there > 0], minlength=5).argmax() == expected
            ratio = length(parts[each.photo]) / length(own_parts)
            part.append((bool(hit), cut(parts[each.photo]) or cut(own_parts),
                         not 1 / OTHER_SIZE < ratio < OTHER_SIZE))
    whole = [hit for hit, outside, _ in part if not outside]
    return {"on the bolt": share(on), "on its part": share([hit for hit, _, _ in part]),
            "on its part, both bolts whole": share(whole),
            "on its part, a bolt partly outside": share([hit for hit, outside, _ in part if outside]),
            "on its part, another size": share([hit for hit, _, other in part if other]),
            "placed": placed, "placed at once": first, "of": count * len(bank.classes)}


def length(parts: np.ndarray) -> float:
    """The length of a bolt in pixels, from how far it spreads."""
    return float(np.sqrt(np.linalg.eigvalsh(np.cov(np.argwhere(parts).T))[-1] * 12))


def cut(parts: np.ndarray) -> bool:
    """Whether a bolt lies partly outside the picture."""
    return bool(parts[[0, -1]].any() or parts[:, [0, -1]].any())


def circle(photo: np.ndarray) -> tuple[np.ndarray, float]:
    """Middle (x, y) and radius of a dark bottle on a bright table."""
    grey = photo.astype(float).mean(axis=2)
    region = binary_fill_holes(grey < 0.5 * (np.percentile(grey, 1) + np.percentile(grey, 99)) + 40)
    return np.argwhere(region).mean(axis=0)[::-1] + 0.5, float(np.sqrt(region.sum() / np.pi))


def away(photo: np.ndarray, mask: np.ndarray) -> tuple[float, float]:
    """How far the middle of a mask is from the bottle's, in its radii, and in which direction (radians)."""
    middle, radius = circle(photo)
    x, y = np.argwhere(mask).mean(axis=0)[::-1] + 0.5 - middle
    return float(np.hypot(x, y)) / radius, float(np.arctan2(y, x))


def on_bottles(bank: MaskBank, photos: list[Path], count: int) -> dict[str, Any]:
    """How far damage is moved towards or away from the centre, and how evenly it is spread around it."""
    moved, angles, zone, placed = [], [], [], 0
    for each in dealt(bank, photos, count, "bottles"):
        if each.mask is None or each.source is None:
            continue
        placed += 1
        there, angle = away(read_image(each.photo), each.mask)
        own = away(read_image(each.source.image), region_of(each.source))[0]
        moved.append(abs(there - own))
        low, high = INSIDE if each.damage == "contamination" else LIP
        if low <= own <= high:
            zone.append(low <= there <= high)
        if each.damage != "contamination":
            angles.append(angle)
    return {"within 0.1 radii of its distance from the centre": share([each < 0.1 for each in moved]),
            "breaks on the lip, contamination inside, as on its own photo": share(zone),
            "mean change of the distance": round(float(np.mean(moved)), 4),
            "mean direction (0 is even)": round(float(abs(np.exp(1j * np.array(angles)).mean())), 3),
            "placed": placed, "of": count * len(bank.classes)}


def draw_cloth(damage: str, seed: int, side: int) -> tuple[np.ndarray, np.ndarray]:
    """A piece of cloth; `damage` is a spot at a random place, in the mask alone."""
    rng = np.random.default_rng([seed, 7])
    image = np.zeros((3, side, side), np.float32)
    fabric(Brush(rng, image, make_grid(side), colour(rng, "brown", "mid"), 0.3))
    mask = np.zeros((side, side), np.uint8)
    y, x = rng.integers(0, side - side // 10, 2) if damage != "good" else (0, 0)
    mask[y:y + side // 10, x:x + side // 10] = 1
    return to_uint8(np.clip(image, 0, 1)), mask


def on_cloth(folder: Path, count: int) -> dict[str, Any]:
    """The share of all damage that each tenth of the picture receives, 1 if it is even."""
    bank, photos = drawn(folder, draw_cloth, ("spot",), CLOTH)
    total, placed = np.zeros((CLOTH, CLOTH)), 0
    for each in dealt(bank, photos, count, "cloth"):
        if each.mask is not None:
            total, placed = total + each.mask, placed + 1
    tenths = [part.sum() for rows in np.array_split(total, 2) for part in np.array_split(rows, 5, axis=1)]
    return {"tenths": (10 * np.array(tenths) / total.sum()).round(3).tolist(), "placed": placed, "of": count}


def speed(folder: Path, count: int) -> dict[str, Any]:
    """Seconds for 1,000 placements on photos of 512 px that are already decoded, on one core."""
    bank, photos = drawn(folder, bolts.draw_bolt, ("torn_thread",), 512, 4, 6)
    list(dealt(bank, photos, 4, "warm-up"))
    start = time.process_time()
    list(dealt(bank, photos, count, "512 px"))
    return {"seconds": round(1000 * (time.process_time() - start) / count, 1), "measured": count}


def real(photos: str) -> tuple[MaskBank, list[Path]]:
    """The masks and the undamaged photos of a dataset."""
    found = scan_products(find_products([photos])).photos
    items: dict[str, list[Item]] = {}
    for photo in found:
        if not is_good(photo.damage):
            items.setdefault(photo.damage, []).append(Item(**vars(photo), class_id=0))
    return MaskBank(items, 0, "any"), [photo.image for photo in found if is_good(photo.damage)]


def main() -> None:
    """Measure each product and write the result."""
    config = parse(Config, __doc__, "example:\n  python -m benchmarks.placement --photos DS-MVTec/bottle\n",
                   program="-m benchmarks.placement")
    earlier = json.loads(Path(config.earlier).read_text()) if config.earlier else None
    with tempfile.TemporaryDirectory() as work:
        place = Path(work)
        found = {"bolts": on_bolts(place / "bolts", config.masks),
                 "drawn bottles": on_bottles(*drawn(place / "bottles", bottles.draw_bottle,
                                                    bottles.CLASSES[:-1], SIDE), config.masks)}
        if config.photos:
            found["photographed bottles"] = on_bottles(*real(config.photos), config.masks)
        found["cloth"] = on_cloth(place / "cloth", config.cloth_masks)
        found["1,000 placements at 512 px"] = speed(place / "speed", config.masks)
    record(config.out, **found, **({"earlier": earlier} if earlier else {}))
    for name, row in found.items():
        print(f"{name}: {json.dumps(row)}")


if __name__ == "__main__":
    errors.run(main)
