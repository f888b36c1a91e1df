"""Device, precision, and how many activations fit into the memory."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from runtime import distributed
from runtime.errors import UserError

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
PRECISIONS = ("auto", *DTYPES)
# GiB that a step of one 512 px image needs beside SD 1.5's weights, in half precision, by --checkpointing, on
# a GPU, whose autocast normalises in fp32: with a context of one token, and of several, for which
# cross-attention keeps its queries. Counted from shapes (training/footprint.py, test_memory.py). A third is
# added for workspaces and fragmentation.
STEP_GIB = {"fast": {"none": (0.56, 0.66), "lean": (0.45, 0.54)},
            "plain": {"none": (1.52, 1.52)},  # --no-fast
            "control": {"none": (0.77, 0.84), "lean": (0.66, 0.74)}}


def choose_device(name: str) -> torch.device:
    """--device: "auto" is a GPU if there is one; each process under torchrun has its own, as with "cuda".

    Raises UserError for a device that is not available, or for which this PyTorch has no kernels.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
        if name == "cpu" and cards() and os.environ.get("CUDA_VISIBLE_DEVICES") not in ("", "-1"):
            raise UserError(f"--device auto: {cards()[0]} is an NVIDIA card, but PyTorch {torch.__version__} "
                            "does not reach it (see what nvidia-smi says of the driver, and "
                            "https://pytorch.org/get-started for a PyTorch with CUDA); --device cpu, or "
                            "CUDA_VISIBLE_DEVICES= in front of the command, goes without it")
    if name == "cuda":
        name = f"cuda:{distributed.local_rank()}"
    try:
        device = torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"--device {name}: not available here; use cpu, or install PyTorch for it") from error
    if device.type == "cuda":
        check_kernels(device)
        torch.cuda.set_device(device)
        # Sums of thousands of products are kept in fp32, and fp32 is fp32, also on Ampere and later.
        torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction = False
        torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    return device


def cards() -> list[str]:
    """The device files of NVIDIA cards, on Linux."""
    return sorted(map(str, Path("/dev").glob("nvidia[0-9]*")))


def check_kernels(device: torch.device) -> None:
    """Raises UserError where this PyTorch has no kernels for the GPU: the first operation would fail.

    A kernel for sm_XY runs on capabilities X.Y and X.(Y + 1) .., one for compute_XY on all later ones too.
    """
    there = [(kind, divmod(int(number.rstrip("af")), 10)) for kind, _, number in
             (name.partition("_") for name in torch.cuda.get_arch_list()) if kind in ("sm", "compute")]
    major, minor = torch.cuda.get_device_capability(device)
    if not there or any((x, y) <= (major, minor) and (x == major or kind == "compute")
                        for kind, (x, y) in there):
        return
    version = torch.__version__.partition("+")[0]
    older = (major, minor) < min(of for _, of in there)
    wheel = (f"pip install torch=={version} --index-url https://download.pytorch.org/whl/cu126 has them"
             if older else "install a newer PyTorch")
    raise UserError(f"--device {device}: {torch.cuda.get_device_name(device)} has compute capability "
                    f"{major}.{minor}, for which PyTorch {torch.__version__} has no kernels; {wheel}, or use "
                    "--device cpu")


def choose_precision(name: str, device: torch.device, *, drawing: bool = False) -> str:
    """--precision: "auto" is bf16 on GPUs that have it in hardware, fp16 on older ones, fp32 on a CPU.

    For drawing it is fp16 on every GPU: against fp32 a level of 255 is off by 0.02 on average, and in bf16 by
    0.44. It asks for the compute capability, because is_bf16_supported() is also True on a T4, where bf16 is
    emulated and slow. Raises UserError for fp16 on a CPU.
    """
    if name == "fp16" and device.type == "cpu":
        raise UserError("--precision fp16: needs a GPU; use fp32 or bf16 on the CPU")
    if name != "auto":
        return name
    if device.type != "cuda":
        return "fp32"
    return "bf16" if not drawing and torch.cuda.get_device_capability(device) >= (8, 0) else "fp16"


def autocast(device: torch.device, dtype: torch.dtype) -> torch.autocast:
    """torch.autocast in `dtype`, disabled for fp32."""
    return torch.autocast(device.type, dtype, enabled=dtype != torch.float32)


def in_precision(compute: Callable[[], Tensor], device: torch.device, dtype: torch.dtype) -> Tensor:
    """compute() under autocast, as fp32; where the result is not finite, computed again in fp32.

    Some VAEs overflow in fp16.
    """
    with autocast(device, dtype):
        result = compute().float()
    if result.isfinite().all():
        return result
    with autocast(device, torch.float32):
        return compute()


def choose_checkpointing(name: str, step: str, device: torch.device, precision: str, batch_size: int,
                         resolution: int, width: int, trained: int, packed: int, *, one_token: bool) -> str:
    """--checkpointing: auto is the first of none, lean and full with which a step fits into the free memory.

    step: a key of STEP_GIB. width: the UNet's block_out_channels[0]; activations grow with it and with the
    number of pixels. trained: the number of trained parameters; their gradients and AdamW's two moments are
    fp32. packed: bytes of the second copy of the weights that "none" keeps for speed. one_token: whether that
    is the context.
    """
    if name != "auto":
        return name
    scale = 4 / 3 * 2**30 * (2 if precision == "fp32" else 1) * batch_size
    scale *= (resolution / 512) ** 2 * width / 320
    free = free_memory(device) - 12 * trained
    fitting = [level for level, (one, several) in STEP_GIB[step].items()
               if (one if one_token else several) * scale + packed * (level == "none") <= free]
    return fitting[0] if fitting else "full"


def peak_memory(device: torch.device) -> int:
    """Peak bytes: allocated by torch on a GPU, else resident of the process; 0 if unknown."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        import resource
    except ImportError:  # on Windows
        return 0
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def free_memory(device: torch.device) -> float:
    """Free bytes on the device; infinite if unknown."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        rows = dict(row.split(":") for row in Path("/proc/meminfo").read_text().splitlines())
        return int(rows["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        return float("inf")
