"""Folders in the layout of Defect Spectrum -> a list of photos, each with its damage type and mask.

    product/image/<damage>/NNN.png   product/mask/<damage>/NNN_mask.png   (DS-MVTec; `good` needs no masks)
    product/image/NNN.jpg            product/mask/NNN_mask.png            (flat: its values are the classes)

`rgb_mask` and the misspelt `rbg_mask` are coloured copies for the eye and are never read.
"""

from __future__ import annotations

import os
import re
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from decode import IMAGE_SUFFIXES, MASK_SUFFIXES, read_mask, size_of, values_in
from errors import UserError

HUB_DATASET = "DefectSpectrum/Defect_Spectrum"
GOOD = "good"
LITTER = ("thumbs.db", "desktop.ini")
FLAT_NAMES = {
    "DS-DAGM": {1: "scratch", 2: "texture", 3: "crush", 4: "color", 5: "dirty"},
    "DS-Cotton-Fabric": {1: "texture", 2: "bubble"},
}


class Photo(NamedTuple):
    """One image seen as one damage type. Its region: mask pixels equal to `mask_value`, or all not 0."""

    image: Path
    mask: Path | None
    mask_value: int | None
    product: str
    damage: str


class Product(NamedTuple):
    """A folder that holds image/. A flat source (DS-DAGM) is its own and only product."""

    folder: Path
    source: str
    name: str


def is_good(name: str) -> bool:
    """Whether a class, a damage type or product/damage, is that of undamaged pictures."""
    return name.split("/")[-1] == GOOD


@dataclass
class Scan:
    """What lies in the folders: the usable photos, one line for each problem, one for each remark."""

    photos: list[Photo] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def _fetch(name: str) -> Path:
    """Download one product (or one source) of the published dataset into the hub's cache."""
    from huggingface_hub import logging, snapshot_download  # slow to import, rarely needed
    logging.set_verbosity_error()  # its warnings would stand beside the one line that says what to do
    print(f"{name} is no folder here: fetching it from the hub dataset {HUB_DATASET}", file=sys.stderr,
          flush=True)
    patterns = [f"{name}/{part}{kind}/*" for part in ("", "*/") for kind in ("image", "mask")]
    try:
        folder = Path(snapshot_download(HUB_DATASET, repo_type="dataset", allow_patterns=patterns)) / name
    except Exception as error:  # the client raises its own errors, httpx's and the system's
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(f"{name}: no such folder here, and fetching it from the hub failed ({reason}); check "
                        "network and disk space, or download it yourself and give its folder") from error
    if not folder.is_dir():
        raise UserError(f"{name}: the hub dataset {HUB_DATASET} has nothing of this name; check capitals too")
    return folder


def find_folder(name: str) -> Path:
    """The local folder `name`, or else the part of the published dataset called so, fetched if need be.

    Raises UserError where there is neither.
    """
    folder = Path(name).expanduser()
    if folder.is_dir():
        return folder
    if folder.exists():
        raise UserError(f"{name}: a file; give the folder that holds image/")
    if re.fullmatch(r"DS-[\w-]+(/[\w-]+)?/?", name):
        return _fetch(name.rstrip("/"))
    raise UserError(f"{name}: no such folder; give a product's folder, or a name in the published dataset "
                    "such as DS-MVTec/bottle")


def _visible(folder: Path) -> list[Path]:
    """Entries by name, without what systems leave behind: .DS_Store, ._000.png, __MACOSX, Thumbs.db."""
    if not folder.is_dir():
        return []
    return sorted(entry for entry in folder.iterdir()
                  if not entry.name.startswith((".", "__")) and entry.name.lower() not in LITTER)


def _product_folders(folder: Path, depth: int = 2) -> list[Path]:
    """`folder` if it holds image/, else those below that do: products of a source, or of several."""
    if (folder / "image").is_dir():
        return [folder]
    children = [p for p in _visible(folder) if p.is_dir()] if depth else []
    return [product for child in children for product in _product_folders(child, depth - 1)]


def find_products(names: list[str]) -> list[Product]:
    """Every product in the folders (or dataset names) given. Raises UserError for none or one twice."""
    products: list[Product] = []
    for name in names:
        root = find_folder(name)
        folders = _product_folders(root)
        if not folders:
            hint = ("this looks like MVTec AD: rename test to image and ground_truth to mask"
                    if (root / "test").is_dir() else f"expected {name}/image/<damage>/NNN.png")
            raise UserError(f"{name}: no image/ folder in it; {hint}")
        for folder in map(Path, map(os.path.abspath, folders)):
            source = folder.name if folder.name.startswith("DS-") else folder.parent.name
            products.append(Product(folder, source, folder.name))
    for product in products:
        if sum(product.folder == other.folder for other in products) > 1:
            raise UserError(f"{product.folder}: given twice")
    return products


def select_products(products: list[Product], sources: list[str], names: list[str]) -> list[Product]:
    """The products of these sources and of these names; an empty list means all.

    Raises UserError for a source or name that is not there, and where nothing is left.
    """
    for flag, wanted, there in (("--dataset-sources", sources, {p.source for p in products}),
                                ("--product-classes", names, {p.name for p in products})):
        for value in wanted:
            if value not in there:
                raise UserError(f"{flag} {value}: not in --data, which has {', '.join(sorted(there))}")
    chosen = [p for p in products if (not sources or p.source in sources) and (not names or p.name in names)]
    if not chosen:
        raise UserError("--dataset-sources and --product-classes: no product in --data fits both")
    return chosen


def _images(folder: Path, scan: Scan) -> list[Path]:
    entries = _visible(folder)
    images = [p for p in entries if p.is_file() and p.suffix.lower() in IMAGE_SUFFIXES]
    ignored = [p.name for p in entries if p.is_dir() or p.suffix.lower() not in IMAGE_SUFFIXES]
    if ignored:
        scan.notes.append(f"{folder}: ignored, being no images: {len(ignored)} ({', '.join(ignored[:3])})")
    return images


def _masks(folder: Path, scan: Scan) -> dict[str, Path]:
    """The mask files of one folder by the stem of their image."""
    masks: dict[str, Path] = {}
    for path in _visible(folder):
        if path.suffix.lower() not in MASK_SUFFIXES:
            if path.suffix.lower() in IMAGE_SUFFIXES:
                scan.problems.append(f"{path}: a JPEG mask has lost its exact values; save it as PNG")
            continue
        stem = re.sub("_mask$", "", path.stem, flags=re.IGNORECASE)
        if stem in masks:
            scan.problems.append(f"{path}: a second mask, beside {masks[stem].name}; remove one of them")
        masks.setdefault(stem, path)
    return masks


def _pairs(images: list[Path], mask_folder: Path, scan: Scan) -> list[tuple[Path, Path | None]]:
    """Images with their masks. Unreadable files, lone masks and masks of another size become problems."""
    masks, pairs, owner = _masks(mask_folder, scan), [], {}
    for image in images:
        mask = masks.get(image.stem)
        if mask is not None and image.stem in owner:
            scan.problems.append(f"{image}: shares its mask with {owner[image.stem].name}; rename one")
        owner[image.stem] = image
        try:
            size = size_of(image)
            if mask is not None and (mask_size := size_of(mask)) != size:
                raise UserError(f"{mask}: {mask_size[0]}x{mask_size[1]}, but its image {image} is "
                                f"{size[0]}x{size[1]}; make the sizes equal")
            pairs.append((image, mask))
        except UserError as error:
            scan.problems.append(str(error))
    scan.problems += [f"{masks[stem]}: a mask without an image; remove it or add the image"
                      for stem in masks if stem not in owner]
    return pairs


def _scan_tree(product: Product, damages: list[Path], scan: Scan) -> None:
    """image/<damage>/: the folder is the class, and any mask value but 0 marks the damage."""
    mask_root = product.folder / "mask"
    for damage in damages:
        images = _images(damage, scan)
        if not images:
            scan.problems.append(f"{damage}: an empty damage folder; add images or remove it")
        scan.photos += [Photo(image, mask, None, product.name, damage.name)
                        for image, mask in _pairs(images, mask_root / damage.name, scan)]
    names = {damage.name for damage in damages}
    for entry in _visible(mask_root):
        if entry.name not in names:
            scan.problems.append(f"{entry}: a mask without an image: no image/{entry.name} exists; remove it")


def _scan_flat(product: Product, images: list[Path], scan: Scan) -> None:
    """image/NNN.png: every value in the mask is a class of its own, and an empty mask means good."""
    names = FLAT_NAMES.get(product.source, {})
    for image, mask in _pairs(images, product.folder / "mask", scan):
        if mask is None:
            scan.problems.append(f"{image}: no mask, and without damage folders the mask names the class; "
                                 "add it, or sort the images into image/<damage>/")
            continue
        try:
            values = values_in(read_mask(mask))
        except UserError as error:
            scan.problems.append(str(error))
            continue
        scan.photos += [Photo(image, mask, value, product.name, names.get(value, f"defect_{value}"))
                        for value in values] or [Photo(image, mask, None, product.name, GOOD)]


def scan_products(products: list[Product]) -> Scan:
    """List every photo of `products`, opening each file's header. Bad files do not raise: see `problems`."""
    scan = Scan()
    for product in products:
        root = product.folder / "image"
        damages = [p for p in _visible(root) if p.is_dir()]
        if not damages:
            images = _images(root, scan)
            if not images:
                scan.problems.append(f"{root}: an empty folder; expected image/<damage>/NNN.png")
            _scan_flat(product, images, scan)
            continue
        scan.problems += [f"{p}: an image beside the damage folders; move it into one"
                          for p in _visible(root) if p.suffix.lower() in IMAGE_SUFFIXES and p.is_file()]
        _scan_tree(product, damages, scan)
    return scan
