"""Products -> photos with damage type and mask; everything found and not used is counted and named."""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass, field
from pathlib import Path

from dataset.image_files import depth_notes, header_of, holds_pictures, is_picture, visible
from dataset.layouts import COPIES, GOOD, MASKS, PLAIN, Photo, Product, is_aside
from dataset.mask_files import likeness, mask_parts, read_mask, values_in
from runtime.errors import UserError

FLAT_NAMES = {
    "DS-DAGM": {1: "scratch", 2: "texture", 3: "crush", 4: "color", 5: "dirty"},
    "DS-Cotton-Fabric": {1: "texture", 2: "bubble"},
}


@dataclass
class Scan:
    """The photos of some products, and lines about everything else: problems, with which no training starts;
    pictures that are not used; and notes."""

    photos: list[Photo] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    deep: list[Path] = field(default_factory=list)  # images of 16 bits
    several: list[Path] = field(default_factory=list)  # files with more images than the first
    turned: list[Path] = field(default_factory=list)  # images that EXIF turns otherwise than their masks
    notes: list[str] = field(default_factory=list)


def nfc(name: str) -> str:
    """A name in Unicode's composed form: macOS decomposes letters with accents, other systems do not."""
    return unicodedata.normalize("NFC", name)


def pair_name(path: Path) -> str:
    """What an image and its mask are both called."""
    return nfc(re.sub("_mask$", "", path.name if path.is_dir() else path.stem, flags=re.IGNORECASE))


def count_and_names(paths: list[Path], most: int = 3) -> str:
    """How many paths there are, and the names of the first."""
    names = ", ".join(path.name for path in paths[:most])
    return f"{len(paths)} ({names}{', ..' if len(paths) > most else ''})"


def pictures_in(folder: Path, scan: Scan, folders: bool = False) -> list[Path]:
    """The pictures in a folder, by name; `folders`: and its subfolders. The rest becomes lines in `scan`."""
    used: list[Path] = []
    unused: dict[str, list[Path]] = {}
    for entry in visible(folder):
        if is_picture(entry) or folders and entry.is_dir():
            used.append(entry)
        else:
            kind = ("broken links" if entry.is_symlink() and not entry.exists() else
                    "subfolders" if entry.is_dir() else "other files")
            unused.setdefault(kind, []).append(entry)
    for kind, entries in unused.items():
        lines = scan.notes if kind == "other files" else scan.lost
        lines.append(f"{folder}: {kind} are not used: {count_and_names(entries)}")
    return used


def photos_and_masks(folder: Path, scan: Scan) -> tuple[list[Path], list[Path]]:
    """The photos in an image folder, and the masks among them: x_mask.png, or a black and white x.png, of
    x.jpg. The rest becomes lines in `scan`."""
    pictures = pictures_in(folder, scan)
    groups: dict[str, list[Path]] = {}
    for picture in pictures:
        groups.setdefault(pair_name(picture), []).append(picture)
    masks: list[Path] = []
    for group in (group for group in groups.values() if len(group) > 1):
        found = [file for file in group if pair_name(file) != nfc(file.stem)]
        if not found:
            like = {file: likeness(file) for file in group}
            found = [file for file in group if 0 < like[file] == max(like.values())]
        masks += found if len(found) < len(group) else []
    if masks:
        scan.notes.append(f"{folder}: masks beside their photos are read as masks: {count_and_names(masks)}")
    for picture in pictures:
        name = re.fullmatch(r"(.+)[_. -][A-Za-z]+", nfc(picture.stem))  # 000_gt.png beside 000.png
        if name and name[1] in groups and picture not in masks and likeness(picture):
            scan.problems.append(f"{picture}: looks like a mask of {name[1]}; call it {name[1]}_mask"
                                 f"{picture.suffix}, or remove it")
    return [picture for picture in pictures if picture not in masks], masks


def _by_stem(masks: list[Path], scan: Scan) -> dict[str, Path]:
    """Masks by what their image is called."""
    found: dict[str, Path] = {}
    for path in masks:
        stem = pair_name(path)
        if stem in found:
            scan.problems.append(f"{path}: a second mask, beside {found[stem].name}; remove one of them, or "
                                 f"move both into a folder {stem}/, whose masks are joined")
        found.setdefault(stem, path)
    return found


def _pairs(image_folders: list[Path], mask_folders: list[Path], scan: Scan) -> list[tuple[Path, Path | None]]:
    """Images with their masks. Unreadable files, lone masks and masks of another size become problems."""
    images, masks = [], []
    for folder in image_folders:
        photos, beside = photos_and_masks(folder, scan)
        images += photos
        masks += beside
    for folder in mask_folders:
        masks += pictures_in(folder, scan, folders=True)
    if not images:
        scan.problems.append(f"{image_folders[0]}: an empty folder; add images (image/<damage>/NNN.png) or "
                             "remove it")
    mask_of, pairs = _by_stem(masks, scan), []
    owner: dict[str, Path] = {}
    for image in images:
        stem = nfc(image.stem)
        mask = mask_of.get(stem)
        if mask is not None and stem in owner:
            scan.problems.append(f"{image}: shares its mask with {owner[stem].name}; rename one")
        owner[stem] = image
        try:
            _check(image, mask, scan)
            pairs.append((image, mask))
        except UserError as error:
            scan.problems.append(str(error))
    scan.problems += [f"{mask}: a mask without an image; remove it or add the image"
                      for stem, mask in mask_of.items() if stem not in owner]
    return pairs


def _check(image: Path, mask: Path | None, scan: Scan) -> None:
    """Note what the headers say. Raises UserError for an unreadable file and a mask of another size."""
    headers = {file: header_of(file) for file in [image, *(mask_parts(mask) if mask else [])]}
    size = headers[image].size
    for part, (other, *_) in headers.items():
        if other != size:
            raise UserError(f"{part}: {other[0]}x{other[1]}, but its image {image} is {size[0]}x{size[1]}; "
                            "make the sizes equal")
    scan.deep += [image] if headers[image].deep else []
    scan.several += [file for file, header in headers.items() if header.images > 1]
    scan.turned += [image] if len({header.orientation for header in headers.values()}) > 1 else []


def by_folder(files: list[Path], said: str) -> list[str]:
    """What is said of some files, one line a folder."""
    return [f"{folder}: {said}: " + count_and_names([file for file in files if file.parent == folder])
            for folder in dict.fromkeys(file.parent for file in files)]


def several_images(files: list[Path]) -> list[str]:
    """What is said of files with several images."""
    return by_folder(files, "of files with several images only the first is read")


def _subfolders(folder: Path) -> dict[str, list[Path]]:
    """Folders by name. One name in two Unicode forms is one name."""
    found: dict[str, list[Path]] = {}
    for entry in visible(folder):
        if entry.is_dir():
            found.setdefault(nfc(entry.name), []).append(entry)
    return found


def _scan_tree(product: Product, scan: Scan) -> None:
    """<images>/<damage>/: the folder is the class, and any mask value but 0 marks the damage."""
    mask_root = product.folder / product.layout.masks
    damages: dict[str, list[Path]] = {}
    for root in (product.folder / name for name in product.layout.images):
        for name, folders in _subfolders(root).items():
            if root != product.folder or name not in (*MASKS, *COPIES):
                damages.setdefault(name, []).extend(folders)
        scan.problems += [f"{picture}: an image beside the damage folders; move it into one"
                          for picture in pictures_in(root, scan, folders=True) if not picture.is_dir()]
    masks = _subfolders(mask_root)
    for name, folders in damages.items():
        scan.photos += [Photo(image, mask, None, product.name, name)
                        for image, mask in _pairs(folders, masks.get(name, []), scan)]
    for entry in pictures_in(mask_root, scan, folders=True):
        if not entry.is_dir() or nfc(entry.name) not in damages:
            scan.problems.append(f"{entry}: a mask without an image: there is no image folder {entry.name}; "
                                 "remove it")


def _scan_flat(product: Product, scan: Scan) -> None:
    """image/NNN.png: every value in the mask is a class of its own, and an empty mask means good."""
    names = FLAT_NAMES.get(product.source, {})
    for image, mask in _pairs([product.folder / "image"], [product.folder / "mask"], scan):
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
        scan.lost += [f"{folder}: not used: neither image/ nor test/ in it" for folder in product.unread]
        known = {*product.layout.images, product.layout.masks, *COPIES}
        if others := [entry for entry in visible(product.folder) if product.layout not in PLAIN
                      and entry.is_dir() and entry.name not in known and not is_aside(entry)
                      and holds_pictures(entry)]:
            scan.notes.append(f"{product.folder}: folders that its layout does not name are not used: "
                              f"{count_and_names(others)}")
        flat = not any(_subfolders(product.folder / name) for name in product.layout.images)
        (_scan_flat if flat else _scan_tree)(product, scan)
    scan.lost += several_images(scan.several)
    scan.notes += by_folder(scan.turned, "EXIF turns photos and their masks differently; both are taken as "
                                         "they are displayed")
    try:
        scan.notes += depth_notes(scan.deep)
    except UserError as error:
        scan.problems.append(str(error))
    return scan
