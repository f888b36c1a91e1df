"""The folder --out: not that of other photos, and with nothing of anyone else where the evaluation writes."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterable
from pathlib import Path

from dataset.image_files import visible
from evaluation.image_sets import ImageSet
from runtime.errors import UserError
from runtime.files import refuse_inside, save_text, sha256

REPORTS = ("report.html", "report.png")  # written after metrics.json
MADE = ("cut_and_paste", "through_vae", "views")  # folders of pictures, made anew by each evaluation
MARK = "made_by_evaluate.txt"  # in each of them


def refuse_mixing(out: Path, folders: Iterable[str]) -> None:
    """Raises UserError where `out` lies in a folder of images, or one of these where `out` is made anew."""
    folders = list(folders)
    refuse_inside(out, folders)
    for folder in folders:
        place = Path(folder).expanduser().resolve()
        if inside := [name for name in MADE if place.is_relative_to((out / name).resolve())]:
            raise UserError(f"--out {out}: {folder} lies in its {inside[0]}/, which is made anew; give "
                            "another --out")


def claim(out: Path, real: ImageSet, names: list[str]) -> str:
    """A digest of the real photos' content, for metrics.json; removes the pictures of an earlier evaluation.

    names: their folders. Raises UserError where `out` holds the evaluation of other real photos, or something
    that no evaluation made.
    """
    hashes = sorted(sha256(photo.image) for photo in real.photos)
    digest = hashlib.sha256("".join(hashes).encode()).hexdigest()
    file = out / "metrics.json"
    foreign = [out / name for name in MADE if _foreign(out / name)]
    try:
        before = json.loads(file.read_text("utf-8"))
        known, earlier = before.get("real", digest), " ".join(before["config"]["real"])
    except FileNotFoundError:
        known, earlier = digest, ""
        foreign += [out / name for name in REPORTS if (out / name).exists()]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{file}: not of an evaluation ({error!r}); give another --out") from error
    if known != digest:
        raise UserError(f"{file}: the evaluation of other real photos ({earlier}) than --real "
                        f"{' '.join(names)}; give another --out, or delete that folder")
    if foreign:
        raise UserError(f"{foreign[0]}: exists, and nothing tells that evaluate.py made it; give another "
                        "--out, or delete it")
    for folder in (out / name for name in MADE):
        for child in sorted(folder.glob("*"), key=lambda child: child.name == MARK):  # it last: kills happen
            shutil.rmtree(child, ignore_errors=True)
            if child.is_file():
                child.unlink()
        shutil.rmtree(folder, ignore_errors=True)
    return digest


def _foreign(folder: Path) -> bool:
    """Whether someone else made it. An evaluation that was killed may leave an empty one without a mark."""
    made = (folder / MARK).exists() or folder.is_dir() and not visible(folder)
    return folder.exists() and not made


def mark(folder: Path) -> None:
    """Note in a folder of pictures, before the first is written, whose it is."""
    save_text(folder / MARK, "evaluate.py deletes this folder and makes it anew\n")
