"""From counted operations to time on a GPU: the least that is possible, and the most that is expected.

The roofline (Williams et al. 2009): an operation takes at least its FLOPs over the rate of the GPU's matrix
units and its bytes over the memory's rate, whichever is longer.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from training.kernel_counts import Operation

# The longest that a public run took for its roofline, and for each launch where the host was the slower one:
# diffusers' inference (PyTorch 2.0, not compiled) took 1.55 of it on a T4, 2.35 on a V100 and 2.66 on an A100
# in batches of 4; for single images 52 us a launch on an A100, 21 on an H100. Its LoRA example took 1.44 s
# for four single images on a T4, where the roofline of one is 201 ms.
SLOWER, HOST = 2.7, 52e-6
BECAUSE = "as public runs on a V100, an A100 and an H100 took at most"


class Gpu(NamedTuple):
    """TFLOP/s of matrix products in half precision with fp32 sums, and GB/s of the memory.

    why: where these are from. A run takes at most `slower` times the roofline, for the reason `because`.
    """

    name: str
    tflops: float
    bandwidth: float
    why: str = "data sheet"
    slower: float = SLOWER
    because: str = BECAUSE


GPUS = [Gpu("T4", 22, 260, "what its 70 W leave of 65 and 320, as measured in public", 2.2,
            "as public training took 1.8 times it, with room for attention, which has no flash kernel there"),
        Gpu("L4", 121, 300), Gpu("A100", 312, 1555), Gpu("H100", 989, 3350)]


def floor(operations: Iterable[Operation], gpu: Gpu) -> float:
    """The least seconds for all operations, one after the other."""
    return sum(max(operation.flops / gpu.tflops / 1e12, operation.moved / gpu.bandwidth / 1e9)
               for operation in operations)


def bracket(operations: tuple[Operation, ...], gpu: Gpu) -> tuple[float, float]:
    """The least seconds, and the most that are expected: the GPU's or its host's, whichever is longer."""
    least = floor(operations, gpu)
    return least, max(gpu.slower * least, HOST * len(operations))
