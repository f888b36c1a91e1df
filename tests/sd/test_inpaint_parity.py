"""Inpainting against diffusers' StableDiffusionInpaintPipeline: random weights, the same noise, 10 steps."""

from __future__ import annotations

import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionInpaintPipeline
from parity import twin_unets, twin_vaes
from torch import Tensor

from checkpoints.class_embedding import ClassEmbedding
from checkpoints.prompts import contexts_for
from sampling import generation
from sampling.generation import SamplingConfig, inpaint_images, noise_for
from sd.unet import UNetConfig
from sd.vae import VAEConfig

SMALL = UNetConfig(in_channels=9, block_out_channels=(16, 32, 64, 64), cross_attention_dim=24,
                   attention_head_dim=4, norm_num_groups=8)
AUTOENCODER = VAEConfig(block_out_channels=(16, 32, 32, 32), norm_num_groups=8)
WANTED = [("crack", 0), ("dent", 1)]


def nearest(mask: Tensor) -> Tensor:
    """The latent mask as the pipeline makes it: one pixel of each cell."""
    return torch.nn.functional.interpolate(mask, scale_factor=1 / 8)


@pytest.mark.parametrize("guidance", [1.0, 3.0])
@pytest.mark.parametrize("strength", [1.0, 0.6])
@torch.no_grad()
def test_equals_the_pipeline(guidance: float, strength: float, monkeypatch: pytest.MonkeyPatch) -> None:
    unet, their_unet = twin_unets(SMALL)
    vae, their_vae = twin_vaes(AUTOENCODER)
    context = ClassEmbedding(2, 24, tokens=3, init_std=1.0)
    image = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    hole = torch.zeros(2, 1, 64, 64)
    hole[0, :, 8:45, 11:40] = 1
    hole[1, :, 30:33, 5:60] = 1  # thin: max-pooling, which is ours, would see more of it
    monkeypatch.setattr(generation, "latent_mask", nearest)
    drawing = SamplingConfig(seed=7, steps=10, guidance=guidance, strength=strength)
    contexts = contexts_for(context, [0, 1])
    ours = inpaint_images(unet, vae, contexts, WANTED, image, hole, drawing)

    def ready(key: str) -> Tensor:
        return noise_for(WANTED, 7, key, size=8)

    # The pipeline draws its noise by randn_tensor: of the photo (where it starts from one), then of z_T, then
    # of the masked photo. It is given ours, in that order.
    supply = ([ready("photo")[:1], ready("photo")[1:], ready("z_T")] if strength < 1 else [ready("z_T")])
    supply += [ready("masked")[:1], ready("masked")[1:]]
    module = "diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion_inpaint"
    for place in (module, "diffusers.models.autoencoders.vae"):
        monkeypatch.setattr(f"{place}.randn_tensor", lambda *a, **k: supply.pop(0))
    scheduler = DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear",
                              steps_offset=1, clip_sample=False, set_alpha_to_one=False)
    pipeline = StableDiffusionInpaintPipeline(
        vae=their_vae, text_encoder=None, tokenizer=None, unet=their_unet, scheduler=scheduler,
        safety_checker=None, feature_extractor=None, requires_safety_checker=False)
    pipeline.set_progress_bar_config(disable=True)
    theirs = pipeline(prompt_embeds=context(torch.tensor([0, 1])), image=(image + 1) / 2, mask_image=hole,
                      negative_prompt_embeds=context(torch.tensor([-1, -1])), height=64, width=64,
                      guidance_scale=guidance, strength=strength, num_inference_steps=10, output_type="pt",
                      generator=[torch.Generator(), torch.Generator()]).images
    assert not supply
    assert (ours - (theirs * 2 - 1)).abs().max() < 1e-4 and ours.std() > 0.05
