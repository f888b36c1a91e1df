"""The embedded base: its files, what opens them, and the scripts that made them."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import bases
import pytest
import torch

from sd.layers import Attention, GroupNorm, Upsample
from sd.pretrained.inpainting import load_inpainting_unet
from sd.pretrained.weights import TINY, load_text_encoder, load_unet, load_vae
from sd.unet import UNet
from tiny.common import prepare
from tiny.muon import Muon, orthogonal
from tiny.procedural import VOCABULARY, draw_pair
from tiny.products import TEXTURES
from tiny.train_inpaint import draw_holes

MB = 1_000_000


def test_the_weights_are_small_enough_for_a_repository() -> None:
    parts = ("unet", "vae", "text_encoder", "unet_inpaint")
    sizes = [next((TINY / part).glob("*.safetensors")).stat().st_size for part in parts]
    assert max(sizes) < 16 * MB and sum(sizes[:3]) <= 20 * MB and sum(sizes) <= 32 * MB


def test_diffusers_opens_it_and_agrees() -> None:
    """As any model in diffusers layout: by its parts or whole, and without a variant."""
    from diffusers import StableDiffusionPipeline, UNet2DConditionModel

    pipe = StableDiffusionPipeline.from_pretrained(TINY)
    theirs = UNet2DConditionModel.from_pretrained(str(TINY), subfolder="unet")
    ours = load_unet("tiny", device="cpu", dtype=torch.float32)
    text = pipe.text_encoder
    assert {text.dtype, theirs.dtype, pipe.unet.dtype, pipe.vae.dtype} == {torch.float32}
    assert text.config.vocab_size == len(VOCABULARY)
    prompt = "a dark ring with a large crack"
    ids = load_text_encoder("tiny", dim=128, device="cpu").prompt_ids(prompt)
    assert pipe.tokenizer(prompt, padding="max_length").input_ids == ids.tolist()
    assert pipe(prompt, num_inference_steps=2, output_type="pt").images.shape == (1, 3, 128, 128)
    with torch.no_grad():
        context = text(input_ids=torch.tensor([[0, 2, 30, 1]])).last_hidden_state
        z, t = torch.randn(1, 4, 16, 16), torch.tensor([500])
        torch.testing.assert_close(ours(z, t, context), theirs(z, t, context).sample)
        their_nine = UNet2DConditionModel.from_pretrained(TINY, subfolder="unet_inpaint")
        nine, widened = load_inpainting_unet("tiny", device="cpu", dtype=torch.float32)
        z_9 = torch.randn(1, 9, 16, 16)
        torch.testing.assert_close(nine(z_9, t, context), their_nine(z_9, t, context).sample)
        assert not widened and not torch.equal(nine.conv_in.weight[:, 4:], torch.zeros(96, 5, 3, 3))
        vae = load_vae("tiny", device="cpu", dtype=torch.float32)
        their_vae = pipe.vae
        assert their_vae.config.scaling_factor == vae.config.scaling_factor
        torch.testing.assert_close(vae.decode(z * vae.config.scaling_factor), their_vae.decode(z).sample,
                                   rtol=1e-4, atol=1e-4)


def test_its_words(tmp_path: Path) -> None:
    """The tokenizer is the one that training writes; words that were not trained are passed over."""
    from tiny.words import write_tokenizer
    write_tokenizer(tmp_path, 12)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (TINY / "tokenizer" / name).read_text() == (tmp_path / name).read_text()
    text = load_text_encoder("tiny", dim=128, device="cpu")
    assert (text.clip.config.bos_token_id, text.clip.config.eos_token_id) == (56, 57)  # else a warning
    words = ["dark", "ring", "large", "crack", "on-white"]
    expected = [0, *map(VOCABULARY.index, words), 1, 1, 1, 1, 1, 1]
    assert text.prompt_ids("a photo of a Dark ring with a large crack, on-white").tolist() == expected
    assert text.prompt_ids("").tolist() == [0] + [1] * 11
    assert text.prompt_ids("a ring, <dent>", "<dent>", range(2)).tolist()[:5] == [
        0, VOCABULARY.index("ring"), 58, 59, 1]


@pytest.mark.parametrize("shape", [(24, 8), (8, 24), (16, 16)])
def test_orthogonal_updates_have_even_singular_values(shape: tuple[int, int]) -> None:
    stack = torch.randn(3, *shape, generator=torch.Generator().manual_seed(0))
    for dtype in (torch.float32, torch.bfloat16):
        for G, found in zip(stack, orthogonal(stack, dtype).float(), strict=True):
            values, wanted = torch.linalg.svdvals(found), torch.linalg.svd(G)
            assert values.min() > 0.6 and values.max() < 1.3
            nearest = wanted.U[:, :values.numel()] @ wanted.Vh[:values.numel()]
            assert torch.nn.functional.cosine_similarity(found.flatten(), nearest.flatten(), dim=0) > 0.95


def test_muon_learns_matrices_and_vectors() -> None:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Conv2d(2, 6, 3, padding=1), torch.nn.GroupNorm(2, 6),
                                torch.nn.Conv2d(6, 1, 1))
    x, teacher = torch.randn(8, 2, 6, 6), torch.nn.Conv2d(2, 1, 3, padding=1).requires_grad_(False)
    optimizer, losses = Muon(model, lr=0.02), []
    before = {name: p.clone() for name, p in model.named_parameters()}
    for _ in range(60):
        loss = (model(x) - teacher(x)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.3 * losses[0]
    assert all(not torch.equal(p, before[name]) for name, p in model.named_parameters())


def test_holes_are_filled_by_words_for_what_is_in_them() -> None:
    image, words, hole = draw_holes(range(40), 32)
    assert image.shape == (40, 3, 32, 32) and hole.shape == (40, 1, 32, 32) and hole.amax(dim=(1, 2, 3)).all()
    whole, good = 0, 0
    for seed, (picture, said, where) in enumerate(zip(image, words, hole, strict=True)):
        clean, sample = draw_pair(seed, 32)
        untouched = torch.equal(picture, torch.from_numpy(clean).permute(2, 0, 1).float() / 127.5 - 1)
        backdrop = () if sample.words[3] in TEXTURES else sample.words[-1:]
        assert said == sample.words or said == (*sample.words[:4], "good", *backdrop)
        assert untouched == ("good" in said)
        assert untouched or (where[0].numpy() >= sample.mask).all()
        whole, good = whole + bool(where.all()), good + untouched
    assert 0 < whole < 20 and 10 < good < 40
    again = draw_holes(range(39, 40), 32)
    assert torch.equal(again[0][0], image[39]) and torch.equal(again[2][0], hole[39])


def run(module: str, *arguments: str) -> None:
    few = ("--held-out", "16", "--batch-size", "4")
    subprocess.run([sys.executable, "-m", module, *few, *arguments], cwd=bases.ROOT, check=True,
                   capture_output=True)


@pytest.mark.slow
def test_the_training_scripts_train_and_go_on(tmp_path: Path) -> None:
    """One after the other, on the latents of a VAE that was trained on; test_vae_training.py has the rest."""
    run("tiny.train_vae", "--steps", "1", "--no-photos", "--pictures", "8", "--out", str(tmp_path))
    run("tiny.train_vae", "--steps", "2", "--no-photos", "--pictures", "8", "--out", str(tmp_path))
    steps = [json.loads(line)["step"] for line in (tmp_path / "vae.jsonl").read_text().splitlines()]
    assert steps == [1, 2]
    run("tiny.train_unet", "--first", "32", "--steps", "1", "--out", str(tmp_path))
    run("tiny.train_unet", "--first", "32", "--steps", "2", "--out", str(tmp_path))
    steps = [json.loads(line)["step"] for line in (tmp_path / "unet.jsonl").read_text().splitlines()]
    assert steps == [1, 2]
    assert (tmp_path / "samples.png").stat().st_size > 10_000
    load_unet(str(tmp_path), device="cpu", dtype=torch.float32)
    shutil.copytree(tmp_path / "vae", tmp_path / "frozen" / "vae")
    run("tiny.train_unet", "--first", "32", "--steps", "1", "--start", "tiny", "--frozen-text", "--out",
        str(tmp_path / "frozen"))
    text, unet = "text_encoder/model.safetensors", "unet/diffusion_pytorch_model.safetensors"
    assert (tmp_path / "frozen" / text).read_bytes() == (TINY / text).read_bytes()
    assert (tmp_path / "frozen" / unet).read_bytes() != (TINY / unet).read_bytes()
    run("tiny.train_inpaint", "--first", "32", "--steps", "1", "--out", str(tmp_path))
    run("tiny.train_inpaint", "--first", "32", "--steps", "2", "--out", str(tmp_path))
    (tmp_path / "unet_inpaint.state.safetensors").unlink()
    run("tiny.train_inpaint", "--first", "32", "--steps", "1", "--start", "tiny", "--out", str(tmp_path))
    unet, widened = load_inpainting_unet(str(tmp_path), device="cpu", dtype=torch.float32)
    assert not widened and unet.config.in_channels == 9
    assert (tmp_path / "samples_inpaint.png").stat().st_size > 10_000


def test_quicker_layers_compute_the_same() -> None:
    unet, inputs = UNet(bases.UNET), (torch.randn(2, 4, 8, 8), torch.tensor([3, 900]), torch.randn(2, 2, 16))
    expected = unet(*inputs)
    prepare(unet, "cpu", "fp32")
    assert not any(type(module) is Upsample for module in unet.modules())
    torch.testing.assert_close(unet(*inputs), expected, rtol=1e-4, atol=1e-5)


def test_quicker_layers_for_bf16_compute_the_same() -> None:
    unet, inputs = UNet(bases.UNET), (torch.randn(2, 4, 8, 8), torch.tensor([3, 900]), torch.randn(2, 2, 16))
    expected = unet(*inputs)
    prepare(unet, "cpu", "bf16")
    assert not any(type(module) in (GroupNorm, Attention) for module in unet.modules())
    torch.testing.assert_close(unet(*inputs), expected, rtol=1e-4, atol=1e-5)
    assert unet.conv_norm_out.silu(torch.randn(1, 16, 8, 8)).is_contiguous(memory_format=torch.channels_last)
