"""checkpoints.controlnet_export, and diffusers' own ControlNet pipeline on what it wrote."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from bases import Place, command
from diffusers import ControlNetModel, StableDiffusionControlNetPipeline
from pipelines import DRAWING, SIZE, our_checkpoint, our_noise, pipeline
from runs import convert, trained_control

from checkpoints import controlnet_export
from checkpoints.prompts import contexts_for
from sampling.generation import sample_images
from sd.guidance import ControlCondition
from sd.pretrained.weights import load_controlnet


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("rank", [0, 2])
def test_diffusers_draws_the_same_picture(place: Place, stage_a: Path, rank: int) -> None:
    trained_control(place, stage_a, "--control-rank", rank, "--max-steps", 6, "--lr", 0.01)
    assert command(controlnet_export.main, "--ckpt", "run", "--out", "net").status == 0
    ours = our_checkpoint(Path("run"))
    base = pipeline(place.base)
    base.unet.load_state_dict(ours.unet.state_dict())  # with the class LoRA
    pipe = StableDiffusionControlNetPipeline(
        base.vae, None, None, base.unet, ControlNetModel.from_pretrained("net"), base.scheduler, None, None,
        requires_safety_checker=False)
    pipe.set_progress_bar_config(disable=True)
    mask = torch.zeros(1, 3, SIZE, SIZE)
    mask[..., 20:44, 10:30] = 1
    contexts = contexts_for(ours.context, [0])

    @torch.no_grad()
    def theirs(scale: float) -> torch.Tensor:
        return pipe(prompt_embeds=contexts.damage, negative_prompt_embeds=contexts.null, image=mask,
                    output_type="pt", num_inference_steps=DRAWING.steps, guidance_scale=DRAWING.guidance,
                    height=SIZE, width=SIZE, latents=our_noise("broken_large", 0),
                    controlnet_conditioning_scale=scale).images * 2 - 1

    def drawn(scale: float) -> torch.Tensor:
        return sample_images(ours.unet, ours.vae, contexts, [("broken_large", 0)], DRAWING, SIZE,
                             ControlCondition(ours.controlnet.net, contexts, mask, scale))

    for scale in (1.0, 0.5):
        torch.testing.assert_close(drawn(scale), theirs(scale), rtol=0, atol=1e-4)
    assert (drawn(1.0) - drawn(0.0)).abs().max() > 1e-2


def test_it_is_a_published_controlnet_like_any_other(place: Place, stage_a: Path) -> None:
    trained_control(place, stage_a, "--max-steps", 1, "--class-channels")
    assert command(controlnet_export.main, "--ckpt", "run", "--out", "net").status == 0
    ours = our_checkpoint(Path("run"))
    again = load_controlnet("net", ours.unet.config, condition_channels=4, device="cpu", dtype=torch.float32)
    state = again.state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in ours.controlnet.net.state_dict().items())


def test_refusals(place: Place, stage_a: Path) -> None:
    outcome = command(controlnet_export.main, "--ckpt", stage_a, "--out", "net")
    assert outcome.failed_with("adapter.safetensors: holds no ControlNet")
    Path("full").mkdir()
    Path("full/mine").write_text("x")
    assert command(controlnet_export.main, "--ckpt", stage_a, "--out", "full").failed_with("full: exists")
    assert not Path("net").exists() and Path("full/mine").read_text() == "x"


def test_a_lora_of_its_checkpoint_says_that_the_controlnet_is_left_out(place: Place, stage_a: Path) -> None:
    trained_control(place, stage_a, "--max-steps", 1, "--control-rank", 2)
    outcome = convert("run", "lora", "--to", "kohya")
    assert outcome.status == 0 and Path("lora/lora.safetensors").is_file()
    assert "run: a LoRA file cannot hold its ControlNet" in outcome.err
    call = outcome.err.partition("python -m checkpoints.controlnet_export ")[2].splitlines()[0]
    assert command(controlnet_export.main, *call.split()).status == 0 and Path("NET/config.json").is_file()
