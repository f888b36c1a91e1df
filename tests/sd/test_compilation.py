"""--compile: the same numbers but for rounding, no graph too many, and a line where nothing can compile."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from bases import UNET, Outcome, Place, command, rows
from PIL import Image
from runs import train_control
from safetensors.torch import load_file
from torch import Tensor, nn
from torch._dynamo.utils import counters

import lora
import sample
import train_class
import train_controlnet
import train_inpaint
from sd import compilation
from sd.compilation import compile_blocks
from sd.controlnet import copy_encoder
from sd.exact_shortcuts import set_checkpointing, set_fast
from sd.guidance import Contexts, ControlCondition, guided
from sd.unet import UNet

SHORT = ("--resolution", 64, "--preview-every", 0, "--no-validate", "--batch-size", 2)


@pytest.fixture(autouse=True)
def quick(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The whole way but for the kernels: graphs, their gradients, the guards of recompilation."""
    torch._dynamo.reset()
    counters.clear()
    monkeypatch.setattr(compilation, "BACKEND", "aot_eager")
    monkeypatch.chdir(tmp_path)
    yield
    torch._dynamo.reset()


def graphs() -> int:
    """How many were compiled since the last reset."""
    return counters["stats"]["unique_graphs"]


def small_unet() -> UNet:
    torch.manual_seed(0)
    unet = UNet(UNET).requires_grad_(False).eval()
    set_fast(unet, True)
    return unet


def compiled_parts(net: nn.Module) -> set[str]:
    """The classes of the blocks that are compiled."""
    return {type(part).__name__ for part in net.modules() if "forward" in vars(part)}


# --- the blocks

def test_frozen_blocks_are_compiled() -> None:
    """Those of a transformer with adapters are not; nothing is in a ControlNet that is trained whole."""
    unet, adapted = small_unet(), small_unet()
    lora.inject(adapted)
    control = copy_encoder(small_unet(), 3, torch.Generator()).requires_grad_(True)
    for net in (unet, adapted, control):
        compile_blocks(net)
    assert compiled_parts(unet) == {"ResnetBlock", "SpatialTransformer"}
    assert compiled_parts(adapted) == {"ResnetBlock", "FeedForward"}
    assert compiled_parts(control) == set()


def test_drawing_is_the_same_and_soon_compiles_nothing_more() -> None:
    """Guided steps with a ControlNet, inside and outside the interval of guidance, in two sizes of batch."""
    unet = small_unet()
    control = copy_encoder(unet, 3, torch.Generator().manual_seed(0)).requires_grad_(False)
    nn.init.normal_(control.controlnet_mid_block.weight, std=0.1)
    set_fast(control, True)

    @torch.no_grad()
    def draw(images: int, start: int) -> Tensor:
        torch.manual_seed(start)
        z, tokens = torch.randn(images, 4, 8, 8), torch.randn(2, images, 2, UNET.cross_attention_dim)
        contexts = Contexts(*tokens)
        condition = ControlCondition(control, contexts, torch.rand(images, 3, 64, 64))
        eps = guided(unet, contexts, 3.0, condition, (0, 700))
        for t in (900 - start, 600 - start):
            z = z - eps(z, t)
        return z

    wanted = [(2, 0), (1, 0), (2, 7), (1, 8), (2, 0)]
    expected = [draw(*each) for each in wanted]
    for net in (unet, control):
        compile_blocks(net)
    found = [draw(*each) for each in wanted[:2]]
    before = graphs()
    found += [draw(*each) for each in wanted[2:]]
    assert graphs() == before > 30  # at torch's own limit, 8 of a class, blocks run as they are
    assert torch.equal(found[0], found[-1])  # whatever was drawn in between
    for one, right in zip(found, expected, strict=True):
        torch.testing.assert_close(one, right, rtol=1e-4, atol=1e-5)


def gradients(unet: UNet, step: int) -> Tensor:
    """Of the adapters and the context, at other timesteps with other dropout at each step."""
    torch.manual_seed(step)
    lora.seed_dropout(unet, [step, step + 1])
    lora.divide(unet)
    context = torch.randn(2, 1, UNET.cross_attention_dim, requires_grad=True)
    eps_hat = unet(torch.randn(2, 4, 8, 8), torch.tensor([3 + step, 900 - step]), context)
    weights = [weight for weight in unet.parameters() if weight.requires_grad]
    found = torch.autograd.grad(eps_hat.square().sum(), [context, *weights], allow_unused=True)
    return torch.cat([gradient.flatten() for gradient in found if gradient is not None])


@pytest.mark.parametrize("level", ["none", "lean", "full"])
def test_a_training_step_is_the_same_and_soon_compiles_nothing_more(level: str) -> None:
    plain, compiled = small_unet().train(), small_unet().train()
    for unet in (plain, compiled):
        for weight in lora.inject(unet, rank=4)[1::2]:
            nn.init.normal_(weight, std=0.1, generator=torch.Generator().manual_seed(0))
        set_fast(unet, True)
        set_checkpointing(unet, level)
    compile_blocks(compiled)
    counts = []
    for step in range(3):
        found, right = gradients(compiled.train(), step), gradients(plain, step)
        assert (found - right).norm() < 1e-4 * right.norm()
        with torch.no_grad():  # a preview
            compiled.eval()(torch.randn(2, 4, 8, 8), torch.tensor([step]), torch.randn(2, 1, 16))
        counts.append(graphs())
    assert counts[0] == counts[-1] > 0


# --- the commands

def train(place: Place, *arguments: object) -> Outcome:
    return command(train_class.main, "--data", place.data, "--base", place.base, *SHORT, *arguments)


def draw(out: str, *arguments: object, run: str | Path = "run") -> dict[str, np.ndarray]:
    """The images, by name, of a drawing that must succeed."""
    outcome = command(sample.main, "--ckpt", run, "--classes", "good", "--steps", 2, "--out", out, *arguments)
    assert outcome.status == 0, outcome
    return {file.name: np.asarray(Image.open(file)).astype(int)
            for file in sorted(Path(out, "image/good").iterdir())}


def most_levels(some: dict[str, np.ndarray], others: dict[str, np.ndarray]) -> int:
    """Of 255."""
    assert some.keys() == others.keys()
    return max(np.abs(some[name] - others[name]).max() for name in some)


def test_training_goes_on_with_and_without(place: Place) -> None:
    runs = {"plain": ("--no-compile", "--no-compile"), "run": ("--compile", "--no-compile"),
            "late": ("--no-compile", "--compile"), "stopped": ("--compile", "--compile")}
    for out, flags in runs.items():
        for steps, flag in enumerate(flags, 1):
            outcome = train(place, "--out", out, "--max-steps", steps, flag)
            assert outcome.status == 0, outcome
    assert graphs() > 0 and train(place, "--out", "once", "--max-steps", 2, "--compile").status == 0
    plain, *others = (load_file(f"{out}/adapter.safetensors") for out in (*runs, "once"))
    assert all(torch.equal(others[-1][name], tensor) for name, tensor in others[-2].items())
    for tensors in others:
        for name, tensor in plain.items():  # AdamW's first steps are of size lr, whatever the gradient's
            torch.testing.assert_close(tensors[name], tensor, rtol=0, atol=4e-4)
        far = sum((tensors[name] - tensor).norm() ** 2 for name, tensor in plain.items())
        assert far < 1e-3 * sum(tensor.norm() ** 2 for tensor in plain.values())


def test_images_are_a_function_of_seed_and_number(stage_a: Path) -> None:
    flags = ("--guidance", 3)
    plain = draw("plain", "--per-class", 3, *flags, run=stage_a)
    at_once = draw("at once", "--per-class", 3, *flags, "--compile", run=stage_a)
    assert graphs() > 0 and most_levels(plain, at_once) <= 1
    draw("later", "--per-class", 1, *flags, "--compile", run=stage_a)  # the next two are a batch of their own
    assert most_levels(plain, draw("later", "--per-class", 3, *flags, "--compile", run=stage_a)) <= 1
    torch._dynamo.reset()
    again = draw("again", "--per-class", 3, *flags, "--compile", run=stage_a)
    assert most_levels(at_once, again) == 0


def test_the_other_strategies(place: Place, stage_a: Path, inpaint_run: Path) -> None:
    inpainting = "--data", place.data, "--base", inpaint_run.parent / "base", *SHORT
    losses = []
    for out, flags in (("plain", ()), ("compiled", ("--compile",))):
        for rank in (0, 4):
            outcome = train_control(place, stage_a, "--max-steps", 1, "--batch-size", 2, "--control-rank",
                                    rank, "--out", f"{out}-{rank}", *flags)
            assert outcome.status == 0, outcome
        outcome = command(train_inpaint.main, *inpainting, "--max-steps", 1, "--out", f"{out}-i", *flags)
        assert outcome.status == 0, outcome
        losses.append([rows(Path(f"{out}-{name}/metrics.jsonl"))[1]["loss"] for name in ("0", "4", "i")])
    assert graphs() > 0 and losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_without_a_compiler_nothing_begins(place: Place, stage_a: Path,
                                           monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compilation, "BACKEND", "inductor")
    monkeypatch.setattr(torch._inductor.config.cpp, "cxx", (None, "/no/compiler"))
    data = ("--data", place.data, "--out", "run", "--compile")
    base = "--base", place.base
    for main, flags in ((train_class.main, base), (train_inpaint.main, base),
                        (train_controlnet.main, ("--class-ckpt", stage_a))):
        outcome = command(main, *data, *flags)
        assert outcome.failed_with("--compile", "C++ compiler", "omit the flag"), outcome
    outcome = command(sample.main, "--ckpt", stage_a, "--out", "run", "--compile")
    assert outcome.failed_with("--compile", "C++ compiler", "omit the flag"), outcome
    assert train(place, "--compile", "--no-fast", "--out", "run").failed_with("--compile", "--no-fast")
    outcome = command(sample.main, "--ckpt", stage_a, "--out", "run", "--compile", "--no-fast")
    assert outcome.failed_with("--compile", "--no-fast") and not Path("run").exists()


@pytest.mark.slow
def test_with_kernels(stage_a: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = draw("plain", "--per-class", 1, run=stage_a)
    monkeypatch.setattr(compilation, "BACKEND", "inductor")
    assert most_levels(plain, draw("compiled", "--per-class", 1, "--compile", run=stage_a)) <= 1
