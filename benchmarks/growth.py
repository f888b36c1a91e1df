"""How time, memory and disk grow with the number of images: `python benchmarks/growth.py`.

On a base of random weights that is as small as a base can be, so that what grows is the commands' own work:
images drawn a second from 10 to 10,000, evaluate.py on 100 to 10,000 of them, and the cache of latents of 20
to 2,000 photos. Results go to benchmarks/growth.json.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import bases  # noqa: E402

from benchmarks.timing import timed  # noqa: E402
from demo import write_demo  # noqa: E402

CLASSES = 4
SMALL = ("--resolution", 64, "--preview-every", 0, "--no-validate", "--batch-size", 8, "--max-steps", 1)


def measure(what: str, images: int, *command: object) -> dict[str, Any]:
    """Run one of our commands on so many images: seconds, images a second and peak memory."""
    run = timed([*map(str, command)], lambda: 0)
    row = {"what": what, "images": images, "seconds": round(run.whole, 2),
           "images_per_second": round(images / run.whole, 2), "peak_gib": round(run.memory, 3)}
    print(row, flush=True)
    return row


def cache(folder: Path, photos: int) -> dict[str, Any]:
    """Encode so many photos once; the run is left in run<photos>/run."""
    data, run = folder / str(photos), folder / f"run{photos}" / "run"
    write_demo(data, photos // CLASSES, 0, size=64)
    row = measure("cache", photos, "train_class.py", "--data", data, "--base", folder / "base", *SMALL,
                  "--latent-variants", 1, "--out", run)
    files = (run.parent / "latents").rglob("*.safetensors")
    return row | {"cache_bytes": sum(file.stat().st_size for file in files)}


def draw(folder: Path, images: int) -> dict[str, Any]:
    """Draw so many images of one class into drawn<images>."""
    return measure("draw", images, "sample.py", "--ckpt", folder / "run20" / "run", "--base", folder / "base",
                   "--classes", "good", "--per-class", images, "--steps", 2, "--batch-size", 8, "--out",
                   folder / f"drawn{images}")


def evaluate(folder: Path, images: int) -> dict[str, Any]:
    """Hold them against the 20 photos."""
    return measure("evaluate", images, "evaluate.py", "--real", folder / "20", "--fake",
                   folder / f"drawn{images}", "--classes", "good", "--features", "tiny",
                   "--judge", "tiny", "--out", folder / f"report{images}")


def main() -> None:
    """The command: draw, evaluate and encode ever more images, and write what each took."""
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--most", type=int, default=10_000, help="images at most (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "growth.json")
    flags = parser.parse_args()
    work = [(cache, n) for n in (20, 200, 2_000)] + [(draw, n) for n in (10, 100, 1_000, 10_000)]
    work += [(evaluate, n) for n in (100, 1_000, 10_000)]
    with tempfile.TemporaryDirectory() as name:
        bases.write_base(Path(name) / "base")
        rows = [what(Path(name), images) for what, images in work if images <= flags.most]
    result = {"date": datetime.date.today().isoformat(), "machine": platform.machine(),
              "cores": os.cpu_count(), "threads": torch.get_num_threads(), "load": os.getloadavg()[0],
              "torch": torch.__version__, "rows": rows}
    flags.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
