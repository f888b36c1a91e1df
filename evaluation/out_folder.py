"""The folder --out: not that of other photos."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

from evaluation.image_sets import ImageSet
from runtime.errors import UserError
from runtime.files import sha256


def claim(out: Path, real: ImageSet, names: list[str]) -> str:
    """A digest of the real photos' content, for metrics.json; removes the pictures of an earlier evaluation.

    names: their folders. Raises UserError where `out` holds the evaluation of other real photos.
    """
    hashes = sorted(sha256(photo.image) for photo in real.photos)
    digest = hashlib.sha256("".join(hashes).encode()).hexdigest()
    file = out / "metrics.json"
    try:
        before = json.loads(file.read_text("utf-8"))
        known, earlier = before.get("real", digest), " ".join(before["config"]["real"])
    except FileNotFoundError:
        return digest
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{file}: not of an evaluation ({error!r}); give another --out") from error
    if known != digest:
        raise UserError(f"{file}: the evaluation of other real photos ({earlier}) than --real "
                        f"{' '.join(names)}; give another --out, or delete that folder")
    for made in ("cut_and_paste", "through_vae", "views"):
        shutil.rmtree(out / made, ignore_errors=True)
    return digest
