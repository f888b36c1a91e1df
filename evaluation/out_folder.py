"""The folder --out: not that of other photos."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

from evaluation.image_sets import ImageSet
from runtime.errors import UserError
from runtime.files import save_text, sha256

MADE = ("cut_and_paste", "through_vae", "views")  # folders of pictures, made anew by each evaluation
MARK = ".evaluation"  # a file that says so


def claim(out: Path, real: ImageSet, names: list[str]) -> str:
    """A digest of the real photos' content, for metrics.json; removes the pictures of an earlier evaluation.

    names: their folders. Raises UserError where `out` holds the evaluation of other real photos, or a folder
    of someone else where the pictures go.
    """
    hashes = sorted(sha256(photo.image) for photo in real.photos)
    digest = hashlib.sha256("".join(hashes).encode()).hexdigest()
    file = out / "metrics.json"
    try:
        before = json.loads(file.read_text("utf-8"))
        known, earlier = before.get("real", digest), " ".join(before["config"]["real"])
    except FileNotFoundError:
        known, earlier = digest, ""
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{file}: not of an evaluation ({error!r}); give another --out") from error
    if known != digest:
        raise UserError(f"{file}: the evaluation of other real photos ({earlier}) than --real "
                        f"{' '.join(names)}; give another --out, or delete that folder")
    places = [out / name for name in MADE if (out / name).exists()]
    if places and not earlier and not (out / MARK).exists():
        raise UserError(f"{places[0]}: exists and was not made by evaluate.py; give another --out")
    save_text(out / MARK, f"evaluate.py deletes and makes anew: {', '.join(MADE)}\n")
    for place in places:
        shutil.rmtree(place, ignore_errors=True)
    return digest
