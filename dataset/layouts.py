"""The layouts of a product's folder, read and written; the products in the folders of --data.

    product/image/<damage>/NNN.png   product/mask/<damage>/NNN_mask.png           Defect Spectrum
    product/image/NNN.jpg            product/mask/NNN_mask.png                    the same, flat
    product/test/<damage>/NNN.png    product/ground_truth/<damage>/NNN_mask.png   MVTec AD, with train/good/
    product/<damage>/NNN.png         product/mask/<damage>/NNN_mask.png           plain, if it is no other

In a flat folder the values in a mask are its classes. `good` needs no masks. `rgb_mask` and the misspelt
`rbg_mask` of Defect Spectrum are coloured copies and are not read.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from dataset.hub import find_folder
from dataset.image_files import holds_pictures, is_picture, visible
from dataset.mask_files import read_mask, region_of
from runtime.errors import UserError
from runtime.files import save_image
from runtime.suggestions import did_you_mean, same

GOOD = "good"
MASKS = ("mask", "ground_truth")  # folders of masks, in any layout
COPIES = ("rgb_mask", "rbg_mask")  # of masks, coloured, in Defect Spectrum
JOURNAL = "samples.jsonl"  # in a folder that sample.py wrote
FURTHER = "further"  # in a row of it: what is noted of each damage of an image after the first
REJECTED = "rejected"  # in it, where images go that are not in the dataset


class Layout(NamedTuple):
    """The folders of a product: those of its images, the first of which is written, and that of its masks."""

    images: tuple[str, ...]
    masks: str


LAYOUTS = {"ds": Layout(("image",), "mask"), "mvtec": Layout(("test", "train", "validation"), "ground_truth"),
           "coco": Layout(("image",), "mask")}
PLAIN = Layout((".",), "mask"), Layout((".",), "ground_truth")  # never written
# Folders that hold what others sort into image/ and mask/, and are no damage types.
CONTAINERS = ("images", "img", "imgs", "photo", "photos", "masks", "label", "labels", "annotations", "gt")


@dataclass(frozen=True)
class Photo:
    """One image seen as one damage type. Its region: mask pixels equal to `mask_value`; None: all but 0.

    mask: a file, or a folder of masks of this image, which are joined.
    """

    image: Path
    mask: Path | None
    mask_value: int | None
    product: str
    damage: str

    def region(self) -> np.ndarray | None:
        """Where the damage is, (H,W) uint8 in {0,1}; None without a mask. Raises UserError as read_mask."""
        return None if self.mask is None else region_of(read_mask(self.mask), self.mask_value)


class Product(NamedTuple):
    """A product's folder. `unread`: folders beside it that hold pictures in no known layout."""

    folder: Path
    source: str
    name: str
    layout: Layout
    unread: tuple[Path, ...] = ()


class Files(NamedTuple):
    """Where an image and its mask are written."""

    image: Path
    mask: Path

    def write(self, image: Image.Image, mask: np.ndarray | None = None, value: int = 255) -> None:
        """Write the mask (H,W) in {0,1}, if there is one, with `value` for 1; then the image. Each file is
        written whole or not at all, so an image that exists has its mask."""
        if mask is not None:
            save_image(self.mask, Image.fromarray(mask.astype(np.uint8) * np.uint8(value)))
        save_image(self.image, image)


def is_good(name: str) -> bool:
    """Whether a class, a damage type or product/damage, is that of undamaged images: good, or Good, .."""
    return name.split("/")[-1].casefold() == GOOD


def is_aside(folder: Path) -> bool:
    """Whether it holds the images that sample.py took out of the dataset around it."""
    return folder.name == REJECTED and (folder / JOURNAL).is_file()


def files_of(folder: Path, name: str, number: int, layout: str = "ds") -> Files:
    """The files of image `number` of class `name`; those of product/damage lie in folder/product."""
    *product, damage = name.split("/")
    root, (images, masks) = folder.joinpath(*product), LAYOUTS[layout]
    return Files(root / images[0] / damage / f"{number:03d}.png",
                 root / masks / damage / f"{number:03d}_mask.png")


def mask_values(classes: list[str], layout: str = "ds") -> dict[str, int]:
    """The value of each damage in masks: 255 in MVTec AD's layout, else 1, 2, .. within its product."""
    values: dict[str, int] = {}
    for name in classes:
        product = name.rpartition("/")[0]
        if not is_good(name):
            siblings = sum(other.rpartition("/")[0] == product for other in values)
            values[name] = 255 if layout == "mvtec" else siblings + 1
    return values


def layout_of(folder: Path) -> Layout | None:
    """The layout of a product's folder; None where it is not one."""
    if (folder / "image").is_dir():
        return LAYOUTS["ds"]
    tests = [entry for entry in visible(folder / "test") if entry.is_dir()]
    if any(is_picture(file) for test in tests if test.name != "image" for file in visible(test)):
        return LAYOUTS["mvtec"]
    return None


def product_folders(folder: Path, depth: int = 2) -> list[Path]:
    """`folder` if it is a product's, else those below that are: products of a source, or of several."""
    if layout_of(folder):
        return [folder]
    children = [entry for entry in visible(folder) if entry.is_dir()] if depth else []
    return [product for child in children for product in product_folders(child, depth - 1)]


def plain_folders(folder: Path, depth: int = 2) -> list[Path]:
    """As product_folders, of products that are nothing but class folders: good and others, or several."""
    inside = [entry for entry in visible(folder) if entry.is_dir() and entry.name not in (*MASKS, *COPIES)]
    classes = [entry.name for entry in inside if any(map(is_picture, visible(entry)))]
    if len(classes) > 1 or any(map(is_good, classes)):
        return [folder]
    return [product for child in inside if depth for product in plain_folders(child, depth - 1)]


def product_root(path: str) -> Path:
    """The folder that --data means: of .../bottle/image, bottle; of any other, itself."""
    folder = find_folder(path)
    parent = Path(os.path.abspath(folder)).parent
    layout = layout_of(parent)
    return parent if layout and Path(os.path.abspath(folder)).name in layout.images else folder


def _plain_layout(folder: Path) -> Layout:
    """The layout of a plain product. Raises UserError where its folders are no classes."""
    inside = [entry for entry in visible(folder) if entry.name.casefold() in CONTAINERS]
    names = (*MASKS, *COPIES, *(CONTAINERS if folder.name.casefold() in CONTAINERS else ()))
    beside = [entry for entry in visible(folder.parent) if entry != folder and entry.name.casefold() in names]
    for entry in inside + beside:
        if entry.is_dir() and holds_pictures(entry):
            name = entry.parent.name
            raise UserError(f"{entry.parent}: no image/ folder in it, but {entry.name}/, which by its name "
                            f"holds photos or masks of all damage types; call them {name}/image/<damage>/ "
                            f"and {name}/mask/<damage>/")
    return next((layout for layout in reversed(PLAIN) if (folder / layout.masks).is_dir()), PLAIN[0])


def _unread(root: Path, products: list[Path]) -> tuple[Path, ...]:
    """The folders in `root` that hold pictures, but no product."""
    return tuple(child for child in visible(root) if root not in products and child.is_dir()
                 and not any(product.is_relative_to(child) for product in products)
                 and not is_aside(child) and holds_pictures(child))


def find_products(names: list[str]) -> list[Product]:
    """Every product in the folders (or dataset names) given. Raises UserError for none or one twice."""
    products: list[Product] = []
    for name in names:
        root = product_root(name)
        folders = product_folders(root) or plain_folders(root)
        if not folders:
            if inside := next((place for place in root.resolve().parents if layout_of(place)), None):
                raise UserError(f"{name}: a folder inside of the product {inside}; give that")
            raise UserError(f"{name}: no image/ folder in it; expected {name}/image/<damage>/NNN.png, "
                            f"{name}/test/<damage>/NNN.png as in MVTec AD, or {name}/<damage>/NNN.png")
        unread = _unread(root, folders)
        for folder in map(Path, map(os.path.abspath, folders)):
            source = folder.name if folder.name.startswith("DS-") else folder.parent.name
            layout = layout_of(folder) or _plain_layout(folder)
            products.append(Product(folder, source, folder.name, layout, unread))
            unread = ()
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
            if same(value, there) is None:
                raise UserError(f"{flag} {value}: not in --data, which has {', '.join(sorted(there))}"
                                + did_you_mean(value, there))
    chosen = [p for p in products if (not sources or same(p.source, sources))
              and (not names or same(p.name, names))]
    if not chosen:
        raise UserError("--dataset-sources and --product-classes: no product in --data fits both")
    return chosen
