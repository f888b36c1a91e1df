"""What a reader must know before the numbers."""

from __future__ import annotations

from pathlib import Path

from dataset.layouts import FURTHER, JOURNAL
from evaluation.image_sets import EvaluationSets
from evaluation.networks import Network
from evaluation.selected import about_selection
from runtime.files import read_rows


def caveats(sets: EvaluationSets, fake: Path, networks: dict[str, Network], ckpt: str | None) -> list[str]:
    """Why some numbers mean less than they seem to. fake: the generated images' folder. networks: by use."""
    found, n, m = [], len(sets.fake), len(sets.reference)
    dimensions = networks["features"].dim if "features" in networks else None
    if dimensions is not None and min(n, m) <= dimensions:
        found.append(f"FID of {n} generated against {m} real images in {dimensions} dimensions is mostly the "
                     "noise of small numbers. Do not compare it with published values, nor with other "
                     "numbers of images; compare rows at equal N.")
    found += about_selection(sets, fake, networks.values())
    rows = read_rows(fake / JOURNAL)
    if ckpt is None and any(row.get("view", "whole") != "whole" and "photo" not in row for row in rows):
        found.append("The generated images are close views, and the real ones whole photos. Give --ckpt, and "
                     "they are seen as the checkpoint saw them.")
    several = sum(any(more["class"] != row["class"] for more in row.get(FURTHER, [])) for row in rows)
    if several:
        found.append(f"{several} of {len(rows)} generated images hold damage of several types (sample.py "
                     "--damages-per-image). Each counts under its first one, and all of its mask is read as "
                     "that type's.")
    if sets.held_out is None:
        found.append("The generator may have been trained on all of these real images, and the classifiers "
                     "learn from them too: DCA then rewards copies. Train on a part of them "
                     "(--max-samples-per-damage-type) and give --ckpt, so that the classifiers learn from "
                     "images that the generator was not trained on.")
    real, drawn = ({photo.image.suffix.lower() in (".jpg", ".jpeg") for photo in part.photos}
                  for part in (sets.reference, sets.fake))
    if real != drawn:
        found.append("JPEG on one side and not on the other moves FID and KID by itself.")
    return found
