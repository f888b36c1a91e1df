"""What the machine can do: device, precision, and whether activations fit into its memory."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

import processes
from errors import UserError

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
PRECISIONS = ("auto", *DTYPES)
# What a step of one 512 px image needs beside SD 1.5's weights in half precision, in GiB, by what is computed
# again (--checkpointing): as counted from shapes (footprint.py, test_memory.py). A third comes on top, for
# workspaces and the allocator's gaps.
STEP_GIB = {"fast": {"none": 0.57, "lean": 0.46}, "plain": {"none": 0.98},  # plain: --no-fast
            "control": {"none": 0.69, "lean": 0.63}}


def choose_device(name: str) -> torch.device:
    """--device: "auto" is the GPU where there is one, of several processes each its own.

    Raises UserError for a device that is not there.
    """
    if name == "auto":
        name = f"cuda:{processes.local_rank()}" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"--device {name}: not available here; use cpu, or install PyTorch for it") from error
    if device.type == "cuda":
        torch.cuda.set_device(device)
    return device


def choose_precision(name: str, device: torch.device) -> str:
    """--precision: "auto" is bf16 on GPUs that have it in hardware, fp16 on older ones, fp32 on a CPU.

    By compute capability: is_bf16_supported() says yes on a T4 too, where bf16 is emulated and slow.
    """
    if name == "fp16" and device.type == "cpu":
        raise UserError("--precision fp16: needs a GPU; use fp32 or bf16 on the CPU")
    if name != "auto":
        return name
    if device.type != "cuda":
        return "fp32"
    return "bf16" if torch.cuda.get_device_capability(device) >= (8, 0) else "fp16"


def autocast(device: torch.device, dtype: torch.dtype) -> torch.autocast:
    """Mixed precision in `dtype`; nothing at all for fp32."""
    return torch.autocast(device.type, dtype, enabled=dtype != torch.float32)


def in_precision(compute: Callable[[], Tensor], device: torch.device, dtype: torch.dtype) -> Tensor:
    """What compute() gives in mixed precision, as fp32; where that is not finite, what it gives in fp32.

    In fp16 some VAEs overflow now and then.
    """
    with autocast(device, dtype):
        result = compute().float()
    if result.isfinite().all():
        return result
    with autocast(device, torch.float32):
        return compute()


def choose_checkpointing(name: str, step: str, device: torch.device, precision: str, batch_size: int,
                         resolution: int, width: int, trained: int, packed: int) -> str:
    """--checkpointing: auto is none, lean or full, the first with which a step fits into the free memory.

    step: a key of STEP_GIB. width: the UNet's block_out_channels[0], with which, and with the pixels, a
    step's activations grow. trained: the number of trained parameters, whose gradients and AdamW's two
    moments are fp32. packed: bytes that "none" spends on weights, to be faster.
    """
    if name != "auto":
        return name
    scale = 4 / 3 * 2**30 * (2 if precision == "fp32" else 1) * batch_size
    scale *= (resolution / 512) ** 2 * width / 320
    free = free_memory(device) - 12 * trained
    fitting = [level for level, gib in STEP_GIB[step].items()
               if gib * scale + packed * (level == "none") <= free]
    return fitting[0] if fitting else "full"


def peak_memory(device: torch.device) -> int:
    """Most bytes so far: torch's on a GPU, else the whole process's; 0 where the system does not say."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        import resource
    except ImportError:  # on Windows
        return 0
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def free_memory(device: torch.device) -> float:
    """Bytes; infinite where the system does not say."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        rows = dict(row.split(":") for row in Path("/proc/meminfo").read_text().splitlines())
        return int(rows["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        return float("inf")
