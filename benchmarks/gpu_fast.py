"""Parts of benchmarks.gpu_check: how fast is everything on this device, and how much memory does it take?"""

from __future__ import annotations

import json
import re
import statistics
import subprocess
import sys
import time
from collections import Counter
from typing import Any
from unittest import mock

import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.optim.optimizer import register_optimizer_step_post_hook

from benchmarks.gpu_place import Found, Place
from benchmarks.timing import ROOT, timed
from runtime.files import read_rows
from sd.exact_shortcuts import set_fast
from training import setup

LEVELS = ("none", "lean", "full")
KINDS = {"attention": "attention|flash|fmha", "convolution": "conv|cudnn|wgrad|dgrad|implicit",
         "matrix product": "gemm|mm|cutlass|linear", "copy": "memcpy|memset|copy|cat",
         "norm": "norm", "random": "random|philox|distribution"}


def kind_of(name: str) -> str:
    """What a kernel, or an operator, does."""
    return next((kind for kind, names in KINDS.items() if re.search(names, name, re.IGNORECASE)), "other")


def profile(place: Place) -> Found:
    """Three steps of the recipe: milliseconds a step by kind of kernel, and of the step as a whole."""
    plan = torch.profiler.schedule(wait=2, warmup=1, active=3, repeat=1)
    found: Found = {}

    def ready(profiler: torch.profiler.profile) -> None:
        on_gpu = place.device == "cuda"
        kinds, launches, total = Counter[str](), 0, 0.0
        for event in profiler.key_averages():
            own = (event.self_device_time_total if on_gpu else event.self_cpu_time_total) / 3000
            if not own or event.key.startswith("ProfilerStep"):
                continue
            kinds[kind_of(event.key)] += own
            launches, total = launches + event.count, total + own
        found.update({kind: f"{ms:.1f} ms" for kind, ms in kinds.most_common()})
        found.update({"busy, ms a step": round(total, 1), "calls a step": launches // 3})

    began: list[float] = []
    with torch.profiler.profile(schedule=plan, on_trace_ready=ready) as profiler:
        def next_step(*_: Any) -> None:
            began.append(time.perf_counter())
            profiler.step()

        register_optimizer_step_post_hook(next_step)
        place.train_here(place.new("profile"), "--max-steps", 7)
    each = [1000 * (after - before) for before, after in zip(began[2:5], began[3:6], strict=True)]
    step = statistics.median(each)
    return {**found, "ms a step under the profiler": round(step, 1),
            "of these idle": round(max(0.0, step - found["busy, ms a step"]), 1)}


def switches(place: Place) -> Found:
    """Seconds a step as it is, with cuDNN's search for the fastest kernels, and without channels last."""
    def seconds() -> float:
        out = place.new("switches")
        place.train_here(out, "--max-steps", 12)
        rows = [row["seconds"] for row in read_rows(out / "metrics.jsonl") if "seconds" in row]
        return statistics.median(rows[4:])

    def plain_layout(model: nn.Module, fast: bool) -> None:
        set_fast(model, fast)
        for weight in model.parameters():
            weight.data = weight.data.contiguous()

    found = {"as it is": seconds()}
    if place.device == "cuda":
        torch.backends.cudnn.benchmark = True
        found["with cuDNN's search"] = seconds()
        torch.backends.cudnn.benchmark = False
    with mock.patch.object(setup, "set_fast", plain_layout):
        found["without channels last"] = seconds()
    return found


def memory(place: Place) -> Found:
    """Each level of activation checkpointing: seconds a step and memory."""
    return {f"{level}, batch {batch}": place.steps("--checkpointing", level, "--batch-size", batch)
            for level in LEVELS for batch in (1, 4)}


def rival(place: Place) -> Found:
    """A step of one image beside diffusers + peft, and what --plan says of the recipe's."""
    out = place.new("bench").with_suffix(".json")
    subprocess.run([sys.executable, "-m", "benchmarks.bench", "--device", place.device, "--base",
                    str(place.work / "base"), "--resolution", str(max(128, place.resolution)), "--rounds",
                    "1", "--only", f"training step, {place.low}", "--out", str(out)], cwd=ROOT, check=True,
                   stdout=subprocess.DEVNULL)
    row = json.loads(out.read_text())["rows"][0]
    planned = timed(place.words("train_class.py", place.new("planned"), "--plan"), lambda: 0).said
    return {"ours": row["contenders"]["ours"], "failures": row["failures"],
            "plan": planned.strip().splitlines()[-4:]}


def sampling(place: Place) -> Found:
    """An image in each precision: seconds, and levels of 255 by which it differs from fp32."""
    run, images, found = place.run_folder(), dict[str, np.ndarray](), Found()
    for precision in dict.fromkeys(("fp32", "bf16", place.low)):
        out = place.new("drawn")
        drawn = place.command("sample.py", out, "--ckpt", run, "--classes", "good", "--per-class", 1,
                              "--steps", 20, "--guidance", 2, precision=precision)
        with Image.open(out / "image/good/000.png") as image:
            images[precision] = np.asarray(image).astype(int)
        difference = np.abs(images[precision] - images["fp32"])
        found[precision] = {"seconds": round(drawn.whole, 1), "most levels": int(difference.max()),
                            "mean levels": round(float(difference.mean()), 3),
                            "card_gib": round(drawn.memory, 2)}
    return found


def strategies(place: Place) -> Found:
    """Inpainting, and both kinds of ControlNet, three steps each with a preview."""
    preview = ["--preview-every", 1, "--preview-steps", 4, "--no-validate", "--batch-size", 1]
    control = ["--class-ckpt", place.run_folder(), "--accumulate", 1, *preview]
    return {"inpainting": place.steps(*preview, script="train_inpaint.py", count=3),
            **{f"ControlNet, rank {rank}": place.steps(*control, "--control-rank", rank, count=3,
                                                       script="train_controlnet.py") for rank in (16, 0)}}
