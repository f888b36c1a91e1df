"""Parts of benchmarks.gpu_check: does everything run on this device, and is it right?"""

from __future__ import annotations

import contextlib
import functools
import io
import signal
import subprocess
import sys
import time
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import lora
from benchmarks.gpu_place import Found, Place, compared, noise_batch, relative, unet_of
from benchmarks.timing import ROOT, steps_done, timed
from runtime.device import autocast
from runtime.files import read_rows
from sd.pretrained.weights import load_vae

T4_BYTES = 15 << 30
HEADS = (40, 80, 160, 512)  # head dimensions of the UNet and of the VAE


def card(place: Place) -> Found:
    """The card, the wheel's kernels for it, and the embedded base in two precisions."""
    found: Found = {"torch": torch.__version__, "threads": torch.get_num_threads()}
    if place.device == "cuda":
        said = subprocess.run(["nvidia-smi", "--query-gpu=name,driver_version,memory.total",
                               "--format=csv,noheader"], capture_output=True, text=True, check=False
                              ).stdout.strip()
        found |= {"card": said, "capability": torch.cuda.get_device_capability(),
                  "kernels": torch.cuda.get_arch_list(), "cuda": torch.version.cuda}
    tiny = ["--base", ROOT / "tiny", "--resolution", 64]
    for precision in ("fp32", place.low):
        out = place.new("tiny")
        run = place.command("train_class.py", out, "--max-steps", 5, *tiny, precision=precision)
        drawn = place.command("sample.py", place.new("drawn"), "--ckpt", out, *tiny[:2], "--per-class", 1,
                              "--classes", "good", "--steps", 4, precision=precision)
        losses = [row["loss"] for row in read_rows(out / "metrics.jsonl") if "loss" in row]
        found[precision] = {"losses": losses, "seconds": round(run.whole + drawn.whole, 1)}
    return found


@torch.no_grad()
def parity(place: Place) -> Found:
    """UNet and VAE here in fp32 against the CPU, and in half precision against fp32."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    z_t, t, context = noise_batch(place)
    photo = torch.rand(1, 3, place.resolution, place.resolution, generator=torch.Generator().manual_seed(0))
    outputs: dict[str, dict[str, Tensor]] = {"UNet": {}, "VAE's latents": {}, "VAE's image": {}}
    for name, device, dtype in place.ways:
        unet = unet_of(place, device, dtype)
        outputs["UNet"][name] = unet(z_t.to(device), t.to(device), context.to(device))
        del unet
        vae = load_vae(str(place.work / "base"), device=torch.device(device), dtype=torch.float32)
        with autocast(torch.device(device), dtype):
            outputs["VAE's latents"][name] = vae.posterior(photo.to(device))[0]
            outputs["VAE's image"][name] = vae.decode(z_t[:1].to(device))
    return {what: compared(place, found) for what, found in outputs.items()}


def gradients(place: Place) -> Found:
    """The LoRA's gradients here in fp32 against the CPU, and in half precision against fp32."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    found = {}
    for name, device, dtype in place.ways:
        unet = unet_of(place, device, dtype)
        weights = lora.inject(unet, rank=4, dropout=0.0)
        for B in weights[1::2]:
            B.data.fill_(0.01)
        z_t, t, context = (x.to(device) for x in noise_batch(place, images=1))
        # Not the mean, whose gradients are too small for fp16.
        unet.train()(z_t, t, context).float().square().sum().backward()
        found[name] = torch.cat([weight.grad.flatten() for weight in weights if weight.grad is not None])
    return compared(place, found)


def dropout(place: Place) -> Found:
    """Keyed dropout: the same for an image alone, in a batch, and again."""
    unet = unet_of(place, place.device, torch.float32)
    lora.inject(unet, rank=4)
    unet.train()
    with torch.no_grad():
        for _, layer in lora.adapters(unet):
            layer.lora_B.weight.fill_(0.01)
        z_t, t, context = (x.to(place.device) for x in noise_batch(place))

        def run(chosen: slice) -> Tensor:
            lora.seed_dropout(unet, [5, 6][chosen])
            return unet(z_t[chosen], t[chosen], context[chosen])

        both, again, alone = run(slice(0, 2)), run(slice(0, 2)), run(slice(1, 2))
    return {"again": "same bits" if torch.equal(both, again) else relative(again, both),
            "alone against in a batch": relative(alone, both[1:])}


def attention(place: Place) -> Found:
    """Which kernels compute attention, forward and backward. None may be "math"."""
    found: Found = {}
    dtype = torch.float16 if place.device == "cuda" else torch.float32
    for dim in HEADS:
        q, k, v = (torch.randn(1, 1 if dim == 512 else 8, 256, dim, device=place.device, dtype=dtype,
                               requires_grad=dim != 512) for _ in range(3))
        with torch.profiler.profile() as profile:
            y = F.scaled_dot_product_attention(q, k, v)
            if y.requires_grad:
                y.sum().backward()
        found[f"head dimension {dim}"] = sorted({event.key for event in profile.key_averages()
                                                 if "_scaled_dot_product" in event.key})
    slow = [dim for dim, kernels in found.items() if any("math" in kernel for kernel in kernels)]
    return {"by math, which is slow": slow or "none", **found}


def scaler(place: Place) -> Found:
    """fp16 from a scale of 2^24: it is halved until the gradients are finite, and kept by a stop."""
    amp: Any = torch.amp
    amp.GradScaler = functools.partial(torch.amp.GradScaler, init_scale=2.0**24)
    out = place.new("scaler")
    for steps in (8, 16):
        place.train_here(out, "--max-steps", steps, precision="fp16")
    rows = [row for row in read_rows(out / "metrics.jsonl") if "skipped" in row]
    return {"skipped": rows[-1]["skipped"], "skipped of the first 8": rows[7]["skipped"], "steps": len(rows),
            "finite at the end": rows[-1]["grad_norm"] is not None}


def halving(place: Place) -> Found:
    """A batch far too large for the 15 GiB of a T4: it is cut until it fits."""
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction(min(1.0, T4_BYTES / total))
    out, said = place.new("halving"), io.StringIO()
    with contextlib.redirect_stderr(said):
        place.train_here(out, "--batch-size", 64, "--max-steps", 3)
    rows = [row for row in read_rows(out / "metrics.jsonl") if "seconds" in row]
    return {"losses": [row["loss"] for row in rows], "seconds": [row["seconds"] for row in rows],
            "said": [line for line in said.getvalue().splitlines() if "out of memory" in line]}


def stopping(place: Place) -> Found:
    """SIGTERM, and the same command again: no step is lost or done twice."""
    out = place.new("stopped")
    words = place.words("train_class.py", out, "--max-steps", 8)
    process = subprocess.Popen([sys.executable, *words], cwd=ROOT, stderr=subprocess.DEVNULL)
    while steps_done(out) < 2 and process.poll() is None:
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    status, before = process.wait(), steps_done(out)
    timed(words, lambda: 0)
    steps = [row["step"] for row in read_rows(out / "metrics.jsonl") if "step" in row and "loss" in row]
    return {"status": status, "steps before": before, "steps": steps}


def several(place: Place) -> Found:
    """Two processes against one: the same losses."""
    if place.device == "cuda" and torch.cuda.device_count() < 2:
        return {"skipped": "there is one GPU"}
    losses = {}
    for count in (1, 2):
        out = place.new("several")
        start = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"][:5 * (count - 1)]
        words = place.words("train_class.py", out, "--batch-size", 2, "--max-steps", 3)
        subprocess.run([sys.executable, *start, *words], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
        losses[count] = [row["loss"] for row in read_rows(out / "metrics.jsonl") if "loss" in row]
    return {"one process": losses[1], "two": losses[2]}
