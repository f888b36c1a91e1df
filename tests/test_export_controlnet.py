"""export_controlnet.py, and diffusers' own ControlNet pipeline on what it wrote."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from bases import Place, command, place
from diffusers import ControlNetModel, StableDiffusionControlNetPipeline
from pipelines import DRAWING, SIZE, our_generator, our_noise, pipeline
from test_train_controlnet import stage_a, trained

import export_controlnet
from adapter import NULL
from generation import draw
from guidance import Control
from sd.weights import load_controlnet

__all__ = ["place", "stage_a"]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("rank", [0, 2])
def test_diffusers_draws_the_same_picture(place: Place, stage_a: Path, rank: int) -> None:
    trained(place, stage_a, "--control-rank", rank, "--max-steps", 6, "--lr", 0.01)
    assert command(export_controlnet.main, "--ckpt", "run", "--out", "net").status == 0
    ours = our_generator(Path("run"))
    base = pipeline(place.base)
    base.unet.load_state_dict(ours.unet.state_dict())  # with the class LoRA
    pipe = StableDiffusionControlNetPipeline(
        base.vae, None, None, base.unet, ControlNetModel.from_pretrained("net"), base.scheduler, None, None,
        requires_safety_checker=False)
    pipe.set_progress_bar_config(disable=True)
    mask = torch.zeros(1, 3, SIZE, SIZE)
    mask[..., 20:44, 10:30] = 1
    tokens = ours.context(torch.tensor([0, NULL])).detach()

    @torch.no_grad()
    def theirs(scale: float) -> torch.Tensor:
        return pipe(prompt_embeds=tokens[:1], negative_prompt_embeds=tokens[1:], image=mask, output_type="pt",
                    num_inference_steps=DRAWING.steps, guidance_scale=DRAWING.guidance, height=SIZE,
                    width=SIZE, latents=our_noise("broken_large", 0),
                    controlnet_conditioning_scale=scale).images * 2 - 1

    def drawn(scale: float) -> torch.Tensor:
        return draw(ours.unet, ours.vae, ours.context, [("broken_large", 0, 0)], DRAWING, SIZE,
                    Control(ours.steered.net, ours.context, mask, scale))

    for scale in (1.0, 0.5):
        torch.testing.assert_close(drawn(scale), theirs(scale), rtol=0, atol=1e-4)
    assert (drawn(1.0) - drawn(0.0)).abs().max() > 1e-2


def test_it_is_a_published_controlnet_like_any_other(place: Place, stage_a: Path) -> None:
    trained(place, stage_a, "--max-steps", 1, "--class-channels")
    assert command(export_controlnet.main, "--ckpt", "run", "--out", "net").status == 0
    ours = our_generator(Path("run"))
    again = load_controlnet("net", ours.unet.config, condition_channels=4, device="cpu", dtype=torch.float32)
    state = again.state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in ours.steered.net.state_dict().items())


def test_refusals(place: Place, stage_a: Path) -> None:
    outcome = command(export_controlnet.main, "--ckpt", stage_a, "--out", "net")
    assert outcome.failed_with("adapter.safetensors: holds no ControlNet")
    Path("full").mkdir()
    Path("full/mine").write_text("x")
    assert command(export_controlnet.main, "--ckpt", stage_a, "--out", "full").failed_with("--out full")
    assert not Path("net").exists() and Path("full/mine").read_text() == "x"
