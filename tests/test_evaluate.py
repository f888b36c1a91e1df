"""evaluate.py as a person runs it: known truths, what it leaves, how it fails."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
import urllib.error
from pathlib import Path

import numpy as np
import pytest
import torch
from bases import Outcome, command, rows
from PIL import Image
from torch import Tensor, nn
from trees import make_product, picture, save, spoil

import evaluate
import networks
import rendering
from adapter import save_adapter
from data import DataConfig
from demo import CLASSES, write_demo
from files import sha256
from header import Header

QUICK = ("--features", "tiny", "--judge", "tiny", "--judge-epochs", 1, "--folds", 2, "--bootstrap", 10)


def run(real: Path, fake: Path, *arguments: object) -> Outcome:
    return command(evaluate.main, "--real", real, "--fake", fake, "--out", "out", *QUICK, *arguments)


def numbers(row: str, group: str = "all") -> dict[str, dict]:
    return json.loads(Path("out/metrics.json").read_text())["numbers"][row][group]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def bottles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """6 real and 4 other demo bottles a class, as if generated, with masks."""
    root = tmp_path_factory.mktemp("bottles")
    write_demo(root / "real", 6, 0, size=64)
    write_demo(root / "fake", 4, 1, size=64)
    return root


# --- what it leaves ---

def test_the_report(bottles: Path) -> None:
    outcome = run(bottles / "real", bottles / "fake")
    assert outcome.status == 0, outcome
    found = json.loads(Path("out/metrics.json").read_text())
    assert set(found["numbers"]) == {"generated", "held-out real", "cut and paste", "copy of training"}
    assert all(list(groups) == ["all", *CLASSES] for groups in found["numbers"].values())
    assert not found["missing"] and found["fid"] == "FID-tiny"
    assert "procedural" in found["networks"]["features"]
    drawn = numbers("generated")
    assert drawn["n"]["value"] == 16 and drawn["equal_n"]["value"] == 12
    for name in ("dca", "fid", "fid_equal", "kid", "crop_fid", "crop_kid", "copies"):
        assert drawn[name]["low"] <= drawn[name]["value"] <= drawn[name]["high"], name
    assert sum(map(sum, found["confusions"]["generated"])) == drawn["dca"]["n"] == 16
    assert sum(map(sum, found["confusions"]["held-out real"])) == 24
    pasted = numbers("cut and paste", "broken_large")
    assert pasted["change_inside"]["value"] > 10 * pasted["change_outside"]["value"]
    assert pasted["mask_iou"]["value"] > 0.4 and pasted["background_psnr"]["value"] > 25
    assert "crop_fid" not in numbers("generated", "good") and "mask_iou" not in drawn
    for text in ("FID-tiny at N", "held-out real", "broken_small", "note: FID of 16 generated"):
        assert text in outcome.out
    text = Path("out/report.html").read_text()
    assert text.count("data:image/png;base64,") == 3 and not re.search(r"(src|href)=.?(http|/)", text)
    with Image.open("out/report.png") as image:
        assert image.width > 1000 and image.height > 700


def test_in_json(bottles: Path) -> None:
    outcome = run(bottles / "real", bottles / "fake", "--json")
    assert outcome.status == 0
    assert json.loads(outcome.out) == json.loads(Path("out/metrics.json").read_text())


def test_again_is_the_same_and_computes_nothing_twice(bottles: Path,
                                                      monkeypatch: pytest.MonkeyPatch) -> None:
    assert run(bottles / "real", bottles / "fake").status == 0
    first = Path("out/metrics.json").read_bytes()

    def fail(self: object, keys: list[str], *rest: object) -> None:
        raise AssertionError(keys)

    monkeypatch.setattr("features.FeatureStore._compute", fail)
    assert run(bottles / "real", bottles / "fake").status == 0
    assert Path("out/metrics.json").read_bytes() == first


def test_without_masks(bottles: Path, tmp_path: Path) -> None:
    for side in ("real", "fake"):
        shutil.copytree(bottles / side / "image", tmp_path / side / "image")
    outcome = run(tmp_path / "real", tmp_path / "fake", "--classes", "broken_small", "good")
    assert outcome.status == 0 and "not measured: cut and paste" in outcome.out
    found = json.loads(Path("out/metrics.json").read_text())
    assert "has no mask" in found["missing"]["cut and paste"]
    assert list(found["numbers"]["generated"]) == ["all", "broken_small", "good"]
    assert "crop_fid" not in numbers("generated", "broken_small") and numbers("generated")["n"]["value"] == 8


# --- known truths ---

def test_a_copied_training_set_has_the_best_fid_and_is_called_a_copy(bottles: Path) -> None:
    shutil.copytree(bottles / "real", "copied")
    for path in Path("copied/image").rglob("*.png"):
        Image.open(path).rotate(90).save(path)  # as augmentation would show it
    shutil.copytree(bottles / "real", "same")
    assert run(bottles / "real", Path("same"), "--judge-epochs", 1).status == 0
    same = numbers("generated")
    assert same["copies"]["value"] == 1 and abs(same["fid"]["value"]) < 1e-6
    assert same["fid"]["value"] < numbers("cut and paste")["fid"]["value"]
    assert same == numbers("copy of training")
    assert same["nearest_feature"]["value"] == 0 and numbers("held-out real")["copies"]["value"] < 1
    assert run(bottles / "real", Path("copied")).status == 0
    assert numbers("generated")["copies"]["value"] == 1
    assert numbers("generated")["nearest_pixel"]["value"] < 0.1


def make_tones(root: Path, seed: int, swap: bool = False) -> Path:
    """Two classes that no judge can mix up; with `swap` half of each lies in the other's folder."""
    for i in range(8):
        for name, level in (("dark", 40), ("light", 215)):
            other = {"dark": "light", "light": "dark"}[name]
            image = np.clip(picture(seed + i, (64, 64)).astype(int) // 8 + level, 0, 255).astype(np.uint8)
            save(root / "image" / (other if swap and i % 2 else name) / f"{name}{i}.png", image)
    return root


def test_shuffled_labels_put_dca_at_chance(tmp_path: Path) -> None:
    real, fake = make_tones(tmp_path / "real", 0), make_tones(tmp_path / "fake", 100)
    swapped = make_tones(tmp_path / "swapped", 100, swap=True)
    assert run(real, fake, "--judge-epochs", 25).status == 0
    assert numbers("generated")["dca"]["value"] == numbers("held-out real")["dca"]["value"] == 1
    assert numbers("generated")["dca_ratio"]["value"] == 1
    assert run(real, swapped, "--judge-epochs", 25).status == 0
    assert numbers("generated")["dca"]["value"] == 0.5 and numbers("held-out real")["dca"]["value"] == 1


# --- what the generator has seen ---

def checkpoint(path: Path, data: Path, most: int | None) -> Path:
    config = dataclasses.asdict(DataConfig(data=[str(data)], max_samples_per_damage_type=most))
    save_adapter(path, {"class_embedding.weight": torch.zeros(len(CLASSES), 1)}, Header(
        kind="class", classes=list(CLASSES), base="tiny", fingerprint="", resolution=64, tokens_per_class=1,
        class_dropout=0, rank=1, alpha=1, step=1, config=config))
    return path


def test_a_checkpoint_tells_what_was_held_out(bottles: Path, tmp_path: Path) -> None:
    """Its training images are the reference, the judge learns from the others."""
    ckpt = checkpoint(tmp_path / "adapter.safetensors", bottles / "real", 4)
    outcome = run(bottles / "real", bottles / "fake", "--ckpt", ckpt)
    assert outcome.status == 0 and "16 training images, 8 real ones held out" in outcome.err
    assert "may have been trained on all" not in outcome.out
    assert numbers("held-out real")["n"]["value"] == 8 and numbers("copy of training")["n"]["value"] == 16
    assert numbers("held-out real")["dca"]["n"] == 16  # of the reference, which the judge never saw
    every = checkpoint(tmp_path / "every.safetensors", bottles / "real", None)
    assert run(bottles / "real", bottles / "fake", "--ckpt", every).status == 0
    assert numbers("copy of training")["n"]["value"] == 24


def test_through_the_vae(bottles: Path, tmp_path: Path) -> None:
    """What the base's VAE makes of the training images is a row, and judges learn from the like of it."""
    assert run(bottles / "real", bottles / "fake", "--base", "tiny").status == 0
    drawn, pasted = numbers("through the VAE"), numbers("cut and paste")
    assert drawn["n"]["value"] == drawn["vae_dca"]["n"] == 24 and drawn["vae_dca_ratio"]["value"] == 1
    assert numbers("generated")["vae_dca"]["n"] == 16 and "vae_dca" not in pasted
    assert 0 < drawn["nearest_pixel"]["value"] < pasted["nearest_pixel"]["value"]
    assert numbers("through the VAE", "broken_large")["crop_fid"]["value"] > 0
    pictures = sorted(Path("out/through_vae/image").rglob("*.png"))
    assert len(pictures) == 24 and len(list(Path("out/through_vae/mask").rglob("*_mask.png"))) == 18
    real = np.asarray(Image.open(bottles / "real/image/good/000.png"), float)
    assert min(np.abs(np.asarray(Image.open(path), float) - real).mean() for path in pictures) < 10

    ckpt = checkpoint(tmp_path / "adapter.safetensors", bottles / "real", 4)
    assert run(bottles / "real", bottles / "fake", "--ckpt", ckpt, "--base", "tiny", "--classes", "good",
               "broken_small").status == 0
    drawn = numbers("through the VAE")
    assert drawn["n"]["value"] == drawn["vae_dca"]["n"] == 8
    assert run(bottles / "real", bottles / "fake", "--base", "x").failed_with("--base x", "no such file")


def test_the_vae_draws_at_the_models_size(bottles: Path, tmp_path: Path) -> None:
    """Painted photos have their own, which need not be one that a VAE can draw: here 100 pixels."""
    fake = tmp_path / "fake"
    write_demo(fake, 1, 1, size=100)
    ckpt = checkpoint(tmp_path / "adapter.safetensors", bottles / "real", 4)
    for flags, size in (((), 96), (("--ckpt", ckpt), 64)):
        shutil.rmtree("out", ignore_errors=True)
        assert run(bottles / "real", fake, "--base", "tiny", *flags).status == 0
        pictures = list(Path("out/through_vae").rglob("*.png"))
        assert len(pictures) == 42 and {Image.open(path).size for path in pictures} == {(size, size)}


def test_judges_of_what_the_vae_draws(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a VAE that makes negatives, judges of photos mix up what such judges know."""
    class Negative(nn.Module):
        quant_conv = nn.Conv2d(1, 1, 1)

        def posterior(self, image: Tensor) -> tuple[Tensor, None]:
            return -image, None

        def decode(self, z_0: Tensor) -> Tensor:
            return z_0

    monkeypatch.setattr(rendering, "load_vae", lambda base, **how: Negative())
    real, fake = make_tones(tmp_path / "real", 0), make_tones(tmp_path / "fake", 100)
    for path in fake.rglob("*.png"):
        Image.fromarray(255 - np.asarray(Image.open(path))).save(path)
    assert run(real, fake, "--base", "tiny", "--judge-epochs", 25).status == 0
    found = numbers("generated")
    assert found["dca"]["value"] == 0 and found["vae_dca"]["value"] == 1


def test_a_checkpoint_that_did_not_draw_these(bottles: Path, tmp_path: Path) -> None:
    ckpt = checkpoint(tmp_path / "adapter.safetensors", bottles / "real", 4)
    fake = Path(shutil.copytree(bottles / "fake", "fake"))
    (fake / "samples.jsonl").write_text(json.dumps({"file": "x", "checkpoint": "0" * 64}) + "\n")
    assert run(bottles / "real", fake, "--ckpt", ckpt).failed_with("--ckpt", "another checkpoint")
    (fake / "samples.jsonl").write_text(json.dumps({"file": "x", "checkpoint": sha256(ckpt)}) + "\n")
    assert run(bottles / "real", fake, "--ckpt", ckpt, "--classes", "good").status == 0


# --- failures ---

def test_a_class_on_one_side_only(bottles: Path, tmp_path: Path) -> None:
    fake = Path(shutil.copytree(bottles / "fake", "fake"))
    shutil.rmtree(fake / "image" / "good")
    outcome = run(bottles / "real", fake)
    assert outcome.failed_with("good", "--classes broken_large broken_small contamination")
    save(fake / "image" / "dent" / "0.png", picture(0))
    assert run(bottles / "real", fake).failed_with("dent", "no such class in --real")
    assert run(bottles / "real", fake, "--classes", "god").failed_with("god", "broken_large")
    make_product(tmp_path / "lone", ("crack", "good"), count=1)
    assert run(tmp_path / "lone", tmp_path / "lone").failed_with("only 1 image of crack")


def test_a_corrupt_image_is_named_and_left_out_only_if_one_says_so(bottles: Path) -> None:
    fake = Path(shutil.copytree(bottles / "fake", "fake"))
    spoil(fake / "image" / "good" / "002.png", 0.5)
    Image.open(fake / "image" / "good" / "003.png").save(fake / "image" / "good" / "cut.jpg")
    spoil(fake / "image" / "good" / "cut.jpg", 0.5)
    assert run(bottles / "real", fake).failed_with("002.png", "--skip-unreadable", "and 1 more")
    outcome = run(bottles / "real", fake, "--skip-unreadable", "--classes", "good")
    assert outcome.status == 0 and "skipped" in outcome.err and "cut.jpg" in outcome.err
    assert numbers("generated", "good")["n"]["value"] == 3


def test_missing_weights_are_said_and_nothing_takes_their_place(bottles: Path,
                                                                monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object, **options: object) -> None:
        raise urllib.error.URLError("no network")

    monkeypatch.setenv("TORCH_HOME", "hub")
    monkeypatch.setattr(networks.torch.hub, "download_url_to_file", fail)
    outcome = command(evaluate.main, "--real", bottles / "real", "--fake", bottles / "fake", "--out", "out",
                      "--clip", "nothing/there")
    assert outcome.status == 0 and outcome.out.count("not measured: ") == 3
    assert "inception_v3_google-0cc3c7bd.pth elsewhere" in outcome.out
    assert {"copies", "nearest_pixel"} <= set(numbers("generated")) and "fid" not in numbers("generated")
    assert "dca" not in numbers("generated") and "Not measured" in Path("out/report.html").read_text()
    assert run(bottles / "real", bottles / "fake", "--features-weights", "none.pth").failed_with("none.pth")


def test_a_sample_folder_names_the_photos_it_was_painted_on(bottles: Path) -> None:
    """Mask fidelity of images that were painted on known ones: here on themselves, so nothing changed."""
    fake = Path(shutil.copytree(bottles / "fake", "fake"))
    files = sorted((fake / "image").rglob("*.png"))
    (fake / "samples.jsonl").write_text("".join(
        json.dumps({"file": str(path.relative_to(fake)), "photo": str(path)}) + "\n" for path in files))
    assert run(bottles / "real", fake).status == 0
    painted = numbers("generated", "contamination")
    assert painted["change_inside"]["value"] == 0 and painted["background_psnr"]["value"] == 99
    assert painted["seam_ratio"]["value"] == 1 and painted["mask_iou"]["value"] == 0
    assert len(rows(fake / "samples.jsonl")) == 16


# --- does it help? ---

def test_downstream(bottles: Path) -> None:
    outcome = run(bottles / "real", bottles / "fake", "--downstream", "--downstream-seeds", 1)
    assert outcome.status == 0 and "Do they help?" in outcome.out
    for row in ("generated", "cut and paste"):
        found = numbers(row)
        for name in ("accuracy", "accuracy_gain", "iou", "iou_gain"):
            assert found[name]["low"] <= found[name]["value"] <= found[name]["high"], name
        alone = numbers("real only")
        assert found["accuracy_gain"]["value"] == pytest.approx(found["accuracy"]["value"]
                                                                - alone["accuracy"]["value"])
    assert "iou" not in numbers("generated", "good") and "accuracy_gain" not in numbers("real only")


def test_images_that_teach_nothing_new_gain_nothing_and_good_ones_do(tmp_path: Path) -> None:
    """Mislabelled extra images must show as a loss; the classes themselves are easily told apart."""
    real = make_tones(tmp_path / "real", 0)
    swapped = tmp_path / "swapped"
    for name, other in (("dark", "light"), ("light", "dark")):
        shutil.copytree(real / "image" / name, swapped / "image" / other)
    assert run(real, swapped, "--downstream", "--downstream-seeds", 1, "--judge-epochs", 25).status == 0
    assert numbers("real only")["accuracy"]["value"] == 1
    assert numbers("generated")["accuracy_gain"]["high"] < 0


def test_segmenter_learns_to_mark(tmp_path: Path) -> None:
    from segmenter import fit_segmenter, intersection_over_union

    rng = np.random.default_rng(0)
    image, mask = torch.full((16, 3, 64, 64), 0.2), torch.zeros(16, 1, 64, 64)
    for i, (y, x) in enumerate(rng.integers(4, 44, (15, 2))):
        image[i, :, y:y + 14, x:x + 14], mask[i, :, y:y + 14, x:x + 14] = -0.8, 1
    model = fit_segmenter(image, mask, 30, (0,), "any", torch.device("cpu"), (16,))
    iou = intersection_over_union(model, image, mask)
    assert np.isnan(iou[15]) and iou[:15].min() > 0.7
