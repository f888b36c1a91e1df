"""From counted operations to time on a GPU: a lower bound, and the range that is likely.

The roofline (Williams et al. 2009): an operation takes at least its FLOPs over the rate of the GPU's matrix
units and its bytes over the memory's rate, whichever is longer.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from training.kernel_counts import Operation

# Seconds over the roofline that public runs on a T4 took: inference of diffusers at batch 4 (0.56 s a step of
# 6.4 TFLOP), and its LoRA training with the VAE in the loop (1.44 s a step of 4 images).
SLOWER = (1.5, 2.2)
HOST = (18e-6, 40e-6)  # seconds of Python and PyTorch before each launch, assumed


class Gpu(NamedTuple):
    """TFLOP/s of the matrix units in half precision and GB/s of the memory, by the data sheet."""

    name: str
    tflops: float
    bandwidth: float
    why: str = "data sheet"


GPUS = [Gpu("T4", 22, 260, "what its 70 W leave of 65 and 320, as measured in public"),
        Gpu("L4", 121, 300), Gpu("A100", 312, 1555), Gpu("H100", 989, 3350)]


def floor(operations: Iterable[Operation], gpu: Gpu) -> float:
    """The least seconds for all operations, one after the other."""
    return sum(max(operation.flops / gpu.tflops / 1e12, operation.moved / gpu.bandwidth / 1e9)
               for operation in operations)


def likely(operations: tuple[Operation, ...], gpu: Gpu) -> tuple[float, float]:
    """The seconds between which a run probably takes: the GPU's time or its host's, whichever is longer."""
    least, launches = floor(operations, gpu), len(operations)
    fast, slow = (max(slower * least, host * launches) for slower, host in zip(SLOWER, HOST, strict=True))
    return fast, slow
