"""Photos by class: names, ids, and how many of each are used."""

from __future__ import annotations

from dataset.layouts import Photo
from runtime.errors import UserError
from runtime.seeds import numpy_rng
from runtime.suggestions import did_you_mean, same


def group_by_class(photos: list[Photo], several: bool | None = None) -> dict[str, list[Photo]]:
    """Photos by damage type, or by product/damage where there are `several` products (None: count them)."""
    if several is None:
        several = len({photo.product for photo in photos}) > 1
    by_class: dict[str, list[Photo]] = {}
    for photo in photos:
        by_class.setdefault(f"{photo.product}/{photo.damage}" if several else photo.damage, []).append(photo)
    return by_class


def class_order(names: set[str], given: list[str]) -> list[str]:
    """Class names by id: the alphabet, or `given` as name=id. Raises UserError where that is incomplete."""
    if not given:
        return sorted(names)
    ids: dict[str, int] = {}
    for text in given:
        name, _, number = text.rpartition("=")
        if not number.isdecimal() or not name:
            raise UserError(f"--damage-type-to-class-id {text}: expected name=id, such as good=3")
        known = same(name, names)
        if known is None:
            raise UserError(f"--damage-type-to-class-id {text}: no such class in {', '.join(sorted(names))}"
                            + did_you_mean(name, names))
        if known in ids:
            raise UserError(f"--damage-type-to-class-id {text}: {known} is given twice")
        ids[known] = int(number)
    if missing := sorted(names - set(ids)):
        raise UserError(f"--damage-type-to-class-id: no id for {', '.join(missing)}")
    if sorted(ids.values()) != list(range(len(ids))):
        raise UserError(f"--damage-type-to-class-id: ids must be 0 to {len(ids) - 1}, each once")
    return sorted(ids, key=ids.__getitem__)


def subset(photos: list[Photo], name: str, most: int | None, seed: int) -> list[Photo]:
    """At most `most` photos of class `name`, drawn by `seed`; a smaller subset is part of a larger one."""
    if most is None:
        return photos
    order = numpy_rng(seed, "subset", name).permutation(len(photos))
    return [photos[i] for i in sorted(order[:most])]
