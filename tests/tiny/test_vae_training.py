"""The VAE's training: pictures, loss, resuming, a frozen encoder; and the command that measures it."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from evaluation.networks import LITE, load_network
from runtime.errors import UserError
from sd.pretrained.weights import load_vae
from sd.vae import VAE, VAEConfig
from tiny import measure_vae, photos, train_vae
from tiny.grid import make_grid
from tiny.surface import STRUCTURES
from tiny.vae_loss import STAGES, Critic, StageFeatures, balance


@pytest.fixture(scope="module")
def features() -> StageFeatures:
    return StageFeatures()


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a file of sixteen pictures."""
    folder = tmp_path_factory.mktemp("drawn")
    np.save(folder / "pictures-16-no-photos.npy", photos._pictures(range(16), False))
    return folder


def train(monkeypatch: pytest.MonkeyPatch, out: Path, *flags: str) -> None:
    """Four steps in tiny widths, with the critic from the second on, saved after each two."""
    monkeypatch.setattr(sys, "argv", [
        "train_vae", "--start", "scratch", "--widths", "8", "8", "8", "8", "--no-photos", "--pictures", "16",
        "--batch-size", "2", "--steps", "4", "--save-every", "2", "--critic-from", "1", "--held-out", "16",
        "--out", str(out), *flags])
    train_vae.main()


@pytest.fixture(scope="module")
def trained(drawn: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a training without stops."""
    out = tmp_path_factory.mktemp("trained") / "run"
    shutil.copytree(drawn, out)
    with pytest.MonkeyPatch.context() as monkeypatch:
        train(monkeypatch, out)
    return out


def test_a_resumed_training_is_the_same(trained: Path, drawn: Path, tmp_path: Path,
                                        monkeypatch: pytest.MonkeyPatch) -> None:
    out, step = tmp_path / "run", train_vae.Step.__call__
    shutil.copytree(drawn, out)

    def stopped(self: train_vae.Step, run: object, number: int, image: Tensor) -> dict[str, float]:
        if number == 3:
            raise KeyboardInterrupt
        return step(self, run, number, image)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(train_vae.Step, "__call__", stopped)
        train(patch, out)
    train(monkeypatch, out)
    state, expected = (load_file(folder / "vae.state.safetensors") for folder in (out, trained))
    assert {key.partition(".")[0] for key in state} == {"model", "average", "critic", "optimizer",
                                                        "critic_optimizer"}
    assert state.keys() == expected.keys() and all(torch.equal(state[key], expected[key]) for key in state)
    rows = [json.loads(line) for line in (out / "vae.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [2, 4]
    assert rows[-1].keys() >= {"psnr_procedural", "perceptual_procedural", "psnr_demo", "critic_weight"}
    assert Image.open(out / "vae.png").size == (8 * 128, 2 * 128)


def test_a_frozen_encoder_keeps_the_latents(trained: Path, drawn: Path, tmp_path: Path,
                                            monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "run"
    shutil.copytree(drawn, out)
    train(monkeypatch, out, "--start", str(trained), "--freeze-encoder")
    before, after = (load_vae(str(folder), device="cpu", dtype=torch.float32) for folder in (trained, out))
    image = torch.rand(2, 3, 64, 64) * 2 - 1
    for old, new in zip(before.posterior(image), after.posterior(image), strict=True):
        assert torch.equal(old, new)
    assert not torch.equal(before.decode(torch.ones(1, 4, 8, 8)), after.decode(torch.ones(1, 4, 8, 8)))


def test_latents_are_written_with_variance_one(trained: Path) -> None:
    vae = load_vae(str(trained), device="cpu", dtype=torch.float32)
    image, *_ = train_vae.draw_images(range(train_vae.HELD_OUT + 1000, train_vae.HELD_OUT + 1016))
    std, mean = torch.std_mean(vae.posterior(image)[0], dim=(0, 2, 3))
    torch.testing.assert_close(std, torch.ones(4), rtol=0.02, atol=0)
    torch.testing.assert_close(mean, torch.zeros(4), rtol=0, atol=0.02)


def test_doubled_widths_compute_the_same_and_can_differ() -> None:
    torch.manual_seed(0)
    narrow, wide = (VAE(VAEConfig(block_out_channels=widths, layers_per_block=1, norm_num_groups=4))
                    for widths in ((4, 8, 12, 16), (8, 16, 12, 16)))
    train_vae.widened(narrow, wide)
    image = torch.rand(1, 3, 32, 32) * 2 - 1
    z = narrow.posterior(image)[0]
    torch.testing.assert_close(wide.posterior(image)[0], z, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(wide.decode(z), narrow.decode(z), rtol=1e-4, atol=1e-5)
    wide.decode(z).square().mean().backward()
    gradient = wide.decoder.up_blocks[3].resnets[0].conv1.weight.grad
    assert gradient is not None and not torch.allclose(gradient[0::2], gradient[1::2])


@pytest.mark.parametrize("widths", [(16, 32, 96, 256), (16, 48, 96, 128), (32, 32, 96, 128)])
def test_other_widths_need_a_new_start(widths: tuple[int, ...]) -> None:
    with pytest.raises(UserError, match="--start scratch"):
        train_vae.load_start("tiny", widths)


def test_stage_features_are_those_of_the_network(features: StageFeatures) -> None:
    net = load_network(LITE, None, torch.device("cpu")).trunk.net
    image = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    x = net._swish(net._bn0(net._conv_stem(image)))
    expected = [x]
    for index, block in enumerate(net._blocks):
        x = block(x)
        expected += [x] * (index in STAGES)
    for found, raw in zip(features(image), expected, strict=True):
        torch.testing.assert_close(found, torch.nn.functional.normalize(raw, dim=1), rtol=1e-3, atol=1e-4)


def test_perceptual_distance_grows_with_blur(features: StageFeatures) -> None:
    image = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    target = features(image)
    blurred = [features.distance(measure_vae.shrunk(image, size), target).item() for size in (64, 48, 32)]
    assert blurred[0] < 1e-6 < blurred[1] < blurred[2]


def test_the_critic_is_balanced_at_the_last_layer() -> None:
    last, image = torch.ones(3, requires_grad=True), torch.rand(2, 3)
    near, fooled = torch.rand(2, 3), torch.rand(2, 3)
    made = last * image
    ratio = (image * near).sum(0).norm() / (image * fooled).sum(0).norm()
    torch.testing.assert_close(balance(last, made, near, fooled), ratio, rtol=1e-3, atol=0)
    torch.testing.assert_close(balance(last, made, near, 10 * fooled), ratio / 10, rtol=1e-3, atol=0)
    assert balance(last, made, 1e9 * near, fooled) == 1e4
    assert Critic()(torch.zeros(1, 3, 128, 128)).shape == (1, 1, 30, 30)


def test_pictures_with_and_without_photos(monkeypatch: pytest.MonkeyPatch) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (200, 300, 3), np.uint8)
    monkeypatch.setattr(photos, "photos", lambda: [Image.fromarray(noise)])
    for with_photos in (True, False):
        made = photos._pictures(range(12), with_photos)
        assert made.shape == (12, 128, 128, 3) and made.dtype == np.uint8
        assert np.array_equal(made[5:7], photos._pictures(range(5, 7), with_photos))
        assert min(len(np.unique(one)) for one in made) > 8
    assert not np.array_equal(made, photos._pictures(range(12), True))


def test_missing_photos_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(photos, "SOURCES", {"no_such_package": ("data", "one.png")})
    with pytest.raises(UserError, match="no_such_package: not installed; pip install"):
        photos.photo_files()
    monkeypatch.setattr(photos, "SOURCES", {"numpy": ("data", "one.png")})
    with pytest.raises(UserError, match=r"one\.png: no such file"):
        photos.photo_files()


def test_the_picture_file_is_drawn_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = photos.PictureFile(tmp_path, 6, False)
    assert np.array_equal(first.pixels, photos._pictures(range(6), False))
    monkeypatch.setattr(photos.PictureFile, "_draw", None)
    batches = list(photos.PictureFile(tmp_path, 6, False).batches(4, 3, 5))
    assert len(batches) == 2 and batches[0].shape == (4, 3, 128, 128) and batches[0].abs().max() <= 1
    assert torch.equal(next(first.batches(4, 4, 5)), batches[1])


@pytest.mark.parametrize("name", STRUCTURES)
def test_fine_structure_is_fine(name: str) -> None:
    """It has contrast, and much of it between neighbouring pixels."""
    for size in (32, 128):
        grid = make_grid(size)
        light = np.stack([STRUCTURES[name](np.random.default_rng(seed), grid) for seed in range(8)])
        assert light.shape == (8, size, size) and np.isfinite(light).all()
        assert np.abs(light).max() < 30 and np.abs(np.diff(light)).max((1, 2)).mean() > 0.2


def test_a_vae_is_measured_on_photos(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
                                     monkeypatch: pytest.MonkeyPatch) -> None:
    for index in range(3):
        file = tmp_path / "bottle" / "image" / f"{index % 2}" / f"{index}.png"
        mask = tmp_path / "bottle" / "mask" / f"{index % 2}" / f"{index}_mask.png"
        white = np.full((128, 128), 255, np.uint8)
        for each, pixels in ((file, photos.picture(index, False)), (mask, white)):
            each.parent.mkdir(exist_ok=True, parents=True)
            Image.fromarray(pixels).save(each)
    sheet = tmp_path / "vae.png"
    bottle = str(tmp_path / "bottle")
    monkeypatch.setattr(sys, "argv", ["measure_vae", bottle, "--base", str(trained), "--count", "3",
                                      "--sheet", str(sheet)])
    measure_vae.main()
    title, *rows = capsys.readouterr().out.splitlines()
    found = {row["what"]: row for row in map(json.loads, rows)}
    assert "FID-lite0 at N = 12" in title and list(found) == ["photos", "vae", "96 px", "64 px"]
    assert found["photos"]["fid"] < found["96 px"]["fid"] < found["64 px"]["fid"]
    assert found["96 px"]["psnr"] > found["64 px"]["psnr"] > found["vae"]["psnr"]
    assert found["96 px"]["perceptual"] < found["64 px"]["perceptual"]
    assert Image.open(sheet).size == (2 * 512, 3 * 512)
    monkeypatch.setattr(sys, "argv", ["measure_vae", bottle, "--count", "4"])  # masks are no photos
    with pytest.raises(UserError, match="3 photos, and --count is 4"):
        measure_vae.main()
