"""The published dataset: a product that is no local folder is fetched from the hub once."""

from __future__ import annotations

import re
import sys
from pathlib import Path

from dataset.image_files import visible
from runtime import hub
from runtime.errors import UserError
from runtime.suggestions import nearest

HUB_DATASET = "DefectSpectrum/Defect_Spectrum"


def find_folder(name: str) -> Path:
    """The local folder `name`, or the part of the published dataset of that name, fetched if necessary.

    Raises UserError where there is neither.
    """
    folder = Path(name).expanduser()
    if folder.is_dir():
        return folder
    if folder.exists():
        raise UserError(f"{name}: a file; give the folder that holds image/")
    published = re.fullmatch(r"DS-[\w-]+(/[\w-]+)?/?", name)
    close = nearest_folder(folder, 0.8 if published else 0.6)
    if published and not close:
        return _fetch(name.rstrip("/"))
    raise UserError(f"{name}: no such folder; " + (f"did you mean {close}?" if close else
                    "give a product's folder, or a name in the published dataset such as DS-MVTec/bottle"))


def nearest_folder(folder: Path, similarity: float) -> Path | None:
    """The folder beside `folder` that is named most like it (see runtime.suggestions); None if none is."""
    beside = [entry.name for entry in visible(folder.parent) if entry.is_dir()]
    close = nearest(folder.name, beside, similarity)
    return folder.parent / close if close else None


def _fetch(name: str) -> Path:
    """Download one product (or one source) of the published dataset into the hub's cache."""
    from huggingface_hub import logging, snapshot_download  # slow to import, rarely needed
    logging.set_verbosity_error()  # the error line below says what to do; its warnings would only repeat it
    print(f"{name} is no folder here: fetching it from the hub dataset {HUB_DATASET} (if it was a folder of "
          "yours that moved, stop and give its new place)", file=sys.stderr, flush=True)
    patterns = [f"{name}/{part}{kind}/*" for part in ("", "*/") for kind in ("image", "mask")]
    try:
        folder = Path(snapshot_download(HUB_DATASET, repo_type="dataset", allow_patterns=patterns)) / name
    except Exception as error:  # huggingface-hub's, its HTTP client's and the system's
        reason = hub.reason(error, f"datasets/{HUB_DATASET}")
        raise UserError(f"{name}: no such folder here, and fetching it from the hub failed ({reason}); check "
                        "network and disk space, or download it yourself and give its folder") from error
    if not folder.is_dir():
        raise UserError(f"{name}: the hub dataset {HUB_DATASET} has nothing of this name; check capitals too")
    return folder
