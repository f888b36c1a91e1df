"""The parts of benchmarks.gpu_check, in their order.

`python -m benchmarks.gpu_parts NAME WORK DEVICE RESOLUTION` runs one and prints what it found as JSON.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from benchmarks import gpu_compiled, gpu_fast, gpu_right
from benchmarks.gpu_place import Found, Place


class Part(NamedTuple):
    """minutes: that it may take; on_cpu: whether it has a meaning there."""

    run: Callable[[Place], Found]
    minutes: float
    on_cpu: bool = True

    @property
    def title(self) -> str:
        """What it looks at."""
        return " ".join(str(self.run.__doc__).split()).partition(":")[0].rstrip(".")


PARTS = {part.run.__name__: part for part in (
    Part(gpu_right.card, 2), Part(gpu_right.parity, 3), Part(gpu_right.gradients, 2),
    Part(gpu_right.dropout, 1), Part(gpu_right.attention, 1), Part(gpu_fast.profile, 3),
    Part(gpu_fast.memory, 5), Part(gpu_fast.switches, 3), Part(gpu_compiled.compiled, 4),
    Part(gpu_fast.rival, 4), Part(gpu_right.scaler, 2, on_cpu=False),
    Part(gpu_right.halving, 3, on_cpu=False), Part(gpu_right.stopping, 2), Part(gpu_fast.sampling, 3),
    Part(gpu_fast.strategies, 5), Part(gpu_right.several, 2))}


if __name__ == "__main__":
    name, work, device, resolution = sys.argv[1:]
    print(json.dumps(PARTS[name].run(Place(Path(work), device, int(resolution)))))
