"""evaluate.py as a person runs it: known truths, what it leaves, how it fails."""

from __future__ import annotations

import dataclasses
import html
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
from checkpoints.adapter import save_adapter
from checkpoints.metadata import Header
from data import DataConfig
from dataset.layouts import files_of
from evaluation import networks, report, vae_reconstruction
from evaluation.networks import LITE
from runtime.files import sha256
from sd.pretrained.weights import load_vae
from tiny.bottles import CLASSES
from tiny.demo import write_demo

QUICK = ("--features", LITE, "--judge", LITE, "--downstream-epochs", 1, "--folds", 2, "--bootstrap", 10)


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

def test_the_report(bottles: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluate, "chart", report.chart)
    outcome = run(bottles / "real", bottles / "fake")
    assert outcome.status == 0, outcome
    found = json.loads(Path("out/metrics.json").read_text())
    assert set(found["numbers"]) == {"generated", "held-out real", "cut and paste", "copy of training"}
    assert all(list(groups) == ["all", *CLASSES] for groups in found["numbers"].values())
    assert not found["missing"] and found["fid"] == "FID-lite0"
    assert "trained on ImageNet" in found["networks"]["features"]
    drawn = numbers("generated")
    assert drawn["n"]["value"] == 16 and drawn["equal_n"]["value"] == 12
    assert drawn["places"]["value"] >= 1 and numbers("generated", "broken_small")["places"]["value"] == 1
    for name in ("dca", "fid", "fid_equal", "kid", "crop_fid", "crop_kid", "copies"):
        assert drawn[name]["low"] <= drawn[name]["value"] <= drawn[name]["high"], name
    assert sum(map(sum, found["confusions"]["generated"])) == pytest.approx(drawn["dca"]["n"]) == 16
    assert sum(map(sum, found["confusions"]["held-out real"])) == pytest.approx(24)
    pasted = numbers("cut and paste", "broken_large")
    assert pasted["change_inside"]["value"] > 10 * pasted["change_outside"]["value"]
    assert pasted["mask_iou"]["value"] > 0.4 and pasted["background_psnr"]["value"] > 25
    assert "crop_fid" not in numbers("generated", "good") and "mask_iou" not in drawn
    for text in ("FID-lite0 at N", "held-out real", "broken_small", "note: FID of 16 generated"):
        assert text in outcome.out
    text = Path("out/report.html").read_text()
    assert text.count("data:image/png;base64,") == 2 and text.count("data:image/jpeg;base64,") == 4 * 4 * 3
    verdict = [sentence["text"] for sentence in found["verdict"]]
    assert len(verdict) == 4 and "cut and paste" in verdict[-1] and "too few" in verdict[1]
    assert " ".join(outcome.out.split()).startswith(f"{found['verdict'][0]['grade']}: {verdict[0]} ")
    places = [text.index(html.escape(sentence)) for sentence in verdict] + [text.index("<table>")]
    assert places == sorted(places) and not re.search(r"(src|href)=.?(http|/)", text)
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

    monkeypatch.setattr("evaluation.features.FeatureStore._compute", fail)
    assert run(bottles / "real", bottles / "fake").status == 0
    assert Path("out/metrics.json").read_bytes() == first


def test_without_masks(bottles: Path, tmp_path: Path) -> None:
    for side in ("real", "fake"):
        shutil.copytree(bottles / side / "image", tmp_path / side / "image")
    outcome = run(tmp_path / "real", tmp_path / "fake", "--classes", "broken_small", "good")
    assert outcome.status == 0 and "not measured: cut and paste" in outcome.out
    found = json.loads(Path("out/metrics.json").read_text())
    assert "has a mask" in found["missing"]["cut and paste"]
    assert list(found["numbers"]["generated"]) == ["all", "broken_small", "good"]
    assert "crop_fid" not in numbers("generated", "broken_small") and numbers("generated")["n"]["value"] == 8


# --- known truths ---

def test_a_copied_training_set_has_the_best_fid_and_is_called_a_copy(bottles: Path) -> None:
    shutil.copytree(bottles / "real", "copied")
    for path in Path("copied/image").rglob("*.png"):
        Image.open(path).rotate(90).save(path)  # as augmentation would show it
    shutil.copytree(bottles / "real", "same")
    assert run(bottles / "real", Path("same")).status == 0
    same = numbers("generated")
    assert same["copies"]["value"] == 1 and abs(same["fid"]["value"]) < 1e-6
    assert same["fid"]["value"] < numbers("cut and paste")["fid"]["value"]
    assert same == numbers("copy of training")
    assert same["nearest_feature"]["value"] == 0 and numbers("held-out real")["copies"]["value"] < 1
    assert run(bottles / "real", Path("copied")).status == 0
    assert numbers("generated")["copies"]["value"] == 1
    assert numbers("generated")["nearest_pixel"]["value"] < 0.1


def make_tones(root: Path, seed: int, swap: bool = False) -> Path:
    """Two classes that no classifier can mix up; with `swap` half of each lies in the other's folder."""
    for i in range(8):
        for name, level in (("dark", 40), ("light", 215)):
            other = {"dark": "light", "light": "dark"}[name]
            image = np.clip(picture(seed + i, (64, 64)).astype(int) // 8 + level, 0, 255).astype(np.uint8)
            save(root / "image" / (other if swap and i % 2 else name) / f"{name}{i}.png", image)
    return root


def test_shuffled_labels_put_dca_at_chance(tmp_path: Path) -> None:
    real, fake = make_tones(tmp_path / "real", 0), make_tones(tmp_path / "fake", 100)
    swapped = make_tones(tmp_path / "swapped", 100, swap=True)
    assert run(real, fake).status == 0
    assert numbers("generated")["dca"]["value"] == numbers("held-out real")["dca"]["value"] == 1
    assert numbers("generated")["dca_ratio"]["value"] == 1
    assert run(real, swapped).status == 0
    assert numbers("generated")["dca"]["value"] == 0.5 and numbers("held-out real")["dca"]["value"] == 1


# --- what the generator has seen ---

def checkpoint(path: Path, data: Path, most: int | None, base: str = "tiny", view: str = "whole") -> Path:
    config = dataclasses.asdict(DataConfig(data=[str(data)], max_samples_per_damage_type=most, view=view))
    save_adapter(path, {"class_embedding.weight": torch.zeros(len(CLASSES), 1)}, Header(
        kind="class", classes=list(CLASSES), base=base, fingerprint="", resolution=64, tokens_per_class=1,
        class_dropout=0, rank=1, alpha=1, step=1, config=config))
    return path


def test_close_views_are_compared_with_close_views(tmp_path: Path) -> None:
    """The views themselves, as if generated: those of training photos are copies of what training saw."""
    write_demo(tmp_path / "large", 4, 0, size=256)
    ckpt = {view: checkpoint(tmp_path / f"{view}.safetensors", tmp_path / "large", 3, view=view)
            for view in ("whole", "close")}
    outcome = run(tmp_path / "large", tmp_path / "large", "--ckpt", ckpt["close"])
    assert outcome.status == 0 and "as training saw them (--view close)" in outcome.err, outcome
    views = tmp_path / "out/views"
    with Image.open(views / "image/good/012.png") as image:
        assert image.size == (64, 64)
    fake = Path(shutil.copytree(views, tmp_path / "fake"))
    (fake / "samples.jsonl").write_text(json.dumps({"file": "image/good/012.png", "view": "close"}) + "\n")
    assert "Give --ckpt" in run(tmp_path / "large", fake).out
    (fake / "samples.jsonl").unlink()
    copies = {}
    for view in ("close", "whole"):
        assert run(tmp_path / "large", fake, "--ckpt", ckpt[view]).status == 0
        assert numbers("held-out real")["n"]["value"] == 4
        copies[view] = numbers("generated")["copies"]["count"]
    assert copies["whole"] < 12 <= copies["close"] and not views.exists()


def test_a_checkpoint_tells_what_was_held_out(bottles: Path, tmp_path: Path) -> None:
    """Its training images are the reference, the classifier learns from the others."""
    ckpt = checkpoint(tmp_path / "adapter.safetensors", bottles / "real", 4)
    outcome = run(bottles / "real", bottles / "fake", "--ckpt", ckpt)
    assert outcome.status == 0 and "16 training images, 8 real ones held out" in outcome.err
    assert "may have been trained on all" not in outcome.out
    assert numbers("held-out real")["n"]["value"] == 8 and numbers("copy of training")["n"]["value"] == 16
    # Of the reference, which no classifier saw: as the base that the checkpoint names draws it, and sharp.
    assert numbers("through the VAE")["dca"]["n"] == numbers("held-out real")["sharp_dca"]["n"] == 16
    gone = checkpoint(tmp_path / "gone" / "adapter.safetensors", bottles / "real", 4, "no/such/base")
    outcome = run(bottles / "real", bottles / "fake", "--ckpt", gone)
    assert outcome.status == 0 and "not measured: through the VAE: the base of --ckpt" in outcome.out, outcome
    assert numbers("held-out real")["dca"]["n"] == 16 and "sharp_dca" not in numbers("generated")
    every = checkpoint(tmp_path / "every.safetensors", bottles / "real", None)
    assert run(bottles / "real", bottles / "fake", "--ckpt", every).status == 0
    assert numbers("copy of training")["n"]["value"] == 24


def test_through_the_vae(tmp_path: Path) -> None:
    """The training images after a pass through the base's VAE are a row, and classifiers learn from such."""
    real, fake = tmp_path / "real", tmp_path / "fake"
    write_demo(real, 6, 0, size=128)  # the size that tiny's VAE is for
    write_demo(fake, 4, 1, size=128)
    assert run(real, fake, "--base", "tiny").status == 0
    drawn, pasted = numbers("through the VAE"), numbers("cut and paste")
    assert drawn["n"]["value"] == drawn["dca"]["n"] == 24 and "dca_ratio" not in drawn
    assert numbers("generated")["dca"]["n"] == 16 and "dca" not in pasted
    assert pasted["sharp_dca"]["n"] == pasted["n"]["value"]
    assert 0 < drawn["nearest_pixel"]["value"] < 1  # nearer to its photo than photos are to each other
    assert numbers("through the VAE", "broken_large")["crop_fid"]["value"] > 0
    pictures = sorted(Path("out/through_vae/image").rglob("*.png"))
    assert len(pictures) == 24 and len(list(Path("out/through_vae/mask").rglob("*_mask.png"))) == 18
    photo = torch.from_numpy(np.array(Image.open(real / "image/good/000.png"))).permute(2, 0, 1)
    vae = load_vae("tiny", device="cpu", dtype=torch.float32)
    expected = np.asarray(vae_reconstruction.redrawn(vae, photo / 127.5 - 1), int)
    assert min(np.abs(np.asarray(Image.open(path), int) - expected).max() for path in pictures) <= 1

    ckpt = checkpoint(tmp_path / "adapter.safetensors", real, 4)
    assert run(real, fake, "--ckpt", ckpt, "--base", "tiny", "--classes", "good",
               "broken_small").status == 0
    drawn = numbers("through the VAE")
    assert drawn["n"]["value"] == drawn["dca"]["n"] == 8
    assert run(real, fake, "--base", "x").failed_with("--base x", "no such file")


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


def test_classifiers_of_reconstructions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a VAE that makes negatives, classifiers of photos mix up what classifiers of negatives know."""
    class Negative(nn.Module):
        quant_conv = nn.Conv2d(1, 1, 1)

        def posterior(self, image: Tensor) -> tuple[Tensor, None]:
            return -image, None

        def decode(self, z_0: Tensor) -> Tensor:
            return z_0

    monkeypatch.setattr(vae_reconstruction, "load_vae", lambda base, **how: Negative())
    real, fake = make_tones(tmp_path / "real", 0), make_tones(tmp_path / "fake", 100)
    for path in fake.rglob("*.png"):
        Image.fromarray(255 - np.asarray(Image.open(path))).save(path)
    assert run(real, fake, "--base", "tiny").status == 0
    found = numbers("generated")
    assert found["sharp_dca"]["value"] == 0 and found["dca"]["value"] == 1


def test_a_checkpoint_that_did_not_draw_these(bottles: Path, tmp_path: Path) -> None:
    ckpt = checkpoint(tmp_path / "adapter.safetensors", bottles / "real", 4)
    fake = Path(shutil.copytree(bottles / "fake", "fake"))
    (fake / "samples.jsonl").write_text(json.dumps({"file": "x", "checkpoint": "0" * 64}) + "\n")
    for folder in (fake, fake / "image"):
        assert run(bottles / "real", folder, "--ckpt", ckpt).failed_with("--ckpt", "another checkpoint")
    (fake / "samples.jsonl").write_text(json.dumps({"file": "x", "checkpoint": sha256(ckpt)}) + "\n")
    assert run(bottles / "real", fake, "--ckpt", ckpt, "--classes", "good").status == 0


# --- numbers that could not be wrong ---

def test_one_damage_type(tmp_path: Path) -> None:
    """Of noise, too, every answer of a classifier would be right."""
    real, fake = tmp_path / "real", tmp_path / "fake"
    rng = np.random.default_rng(0)
    for i in range(6):
        save(real / "image" / "crack" / f"{i}.png", picture(i, (48, 48)))
        save(fake / "image" / "crack" / f"{i}.png", rng.integers(0, 255, (48, 48, 3)).astype(np.uint8))
    outcome = run(real, fake, "--downstream", "--downstream-seeds", 1)
    assert outcome.status == 0, outcome
    for row in ("generated", "held-out real"):
        for name in ("dca", "dca_ratio"):
            assert numbers(row)[name]["value"] is None and "one damage type" in numbers(row)[name]["why"]
    assert "- (DCA %, DCA / ceiling): there is one damage type" in outcome.out
    assert numbers("generated")["accuracy"]["value"] is None
    assert "there is one damage type" in Path("out/report.html").read_text()
    assert json.loads(Path("out/metrics.json").read_text())["confusions"] == {}


def test_a_class_of_one_photo_is_learnt_from_and_has_no_ceiling(bottles: Path, tmp_path: Path) -> None:
    real = Path(shutil.copytree(bottles / "real", tmp_path / "real"))
    for path in (real / "image" / "broken_small").iterdir():
        if path.name != "000.png":
            path.unlink()
            (real / "mask" / "broken_small" / f"{path.stem}_mask.png").unlink()
    assert run(real, bottles / "fake").status == 0
    one = numbers("generated", "broken_small")
    assert one["dca"]["n"] == 4 and one["dca_ratio"]["value"] is None
    assert "held out" in one["dca_ratio"]["why"]
    assert "dca" not in numbers("held-out real", "broken_small")
    assert one["fid"]["value"] is None and "fewer than 3" in one["fid"]["why"]
    assert numbers("held-out real")["dca"]["n"] == 18
    make_product(tmp_path / "lone", ("crack", "good"), count=1)
    make_product(tmp_path / "drawn", ("crack", "good"), count=1)
    outcome = run(tmp_path / "lone", tmp_path / "drawn", "--out", "lone_out")
    assert outcome.status == 0 and "a classifier needs two real images of a type" in outcome.out, outcome


def test_photos_that_are_all_alike(tmp_path: Path) -> None:
    """There is no usual distance between them, nor a spread to compare with."""
    for side in ("real", "fake"):
        for name in ("crack", "good"):
            for i in range(6):
                image = picture(7, (48, 48)) if side == "real" else picture(i, (48, 48))
                save(tmp_path / side / "image" / name / f"{i}.png", image)
    outcome = run(tmp_path / "real", tmp_path / "fake")
    assert outcome.status == 0, outcome
    found = numbers("generated")
    for name in ("copies", "nearest_feature", "nearest_pixel", "fid", "kid", "fid_equal", "precision",
                 "diversity"):
        assert found[name]["value"] is None and found[name]["why"], name
    assert "no usual distance between real images" in outcome.out and "all alike" in outcome.out
    assert "near copies" not in outcome.out


def test_what_is_never_wrong_has_no_bracket_of_zero_width(tmp_path: Path) -> None:
    """All right on both sides, of 16 images each: the ratio is not known to be 1.00."""
    real, fake = make_tones(tmp_path / "real", 0), make_tones(tmp_path / "fake", 100)
    assert run(real, fake, "--downstream-epochs", 25, "--downstream", "--downstream-seeds", 1).status == 0
    found, ratio = numbers("generated"), numbers("generated")["dca_ratio"]
    assert ratio["value"] == 1 and ratio["low"] < 0.9 < 1.1 < ratio["high"]
    assert "dca_ratio" not in numbers("held-out real")  # of itself
    assert found["accuracy_gain"]["low"] < -0.1 < 0 == found["accuracy_gain"]["value"]


def test_frechet_distances_are_never_negative(bottles: Path) -> None:
    shutil.copytree(bottles / "real", "same")
    assert run(bottles / "real", Path("same")).status == 0
    for group in ("all", *CLASSES):
        for name in ("fid", "crop_fid"):
            found = numbers("generated", group).get(name, {"low": 0, "value": 0})
            assert found["low"] == 0 and 0 <= found["value"] < 1e-6
    assert "more cannot be expected" not in Path("out/report.html").read_text()


def test_a_class_without_masks_is_left_out_alone(bottles: Path, tmp_path: Path) -> None:
    """Of cut and paste, of crops and of the segmenter; and that is said."""
    real = Path(shutil.copytree(bottles / "real", tmp_path / "real"))
    shutil.rmtree(real / "mask" / "broken_small")
    outcome = run(real, bottles / "fake", "--downstream", "--downstream-seeds", 1)
    assert outcome.status == 0, outcome
    missing = json.loads(Path("out/metrics.json").read_text())["missing"]
    assert "has a mask" in missing["cut and paste of broken_small"]
    assert "no mask" in missing["IoU of broken_small"]
    assert numbers("cut and paste")["n"]["value"] == 12
    assert numbers("cut and paste", "broken_large")["fid"]["value"] > 0
    assert "of broken_small" in numbers("cut and paste")["fid"]["why"]
    assert "with masks of broken_small" in numbers("generated")["crop_fid"]["why"]
    assert numbers("generated", "broken_large")["crop_fid"]["value"] > 0
    assert numbers("generated", "broken_large")["iou"]["value"] >= 0
    assert "iou" not in numbers("generated", "broken_small")


def test_an_empty_mask_is_no_damage(bottles: Path, tmp_path: Path) -> None:
    """It is neither cropped nor pasted, and stops nothing."""
    for side in ("real", "fake"):
        shutil.copytree(bottles / side, tmp_path / side)
        for number in ("000", "001"):
            mask = tmp_path / side / "mask" / "contamination" / f"{number}_mask.png"
            save(mask, np.zeros((64, 64), np.uint8))
    outcome = run(tmp_path / "real", tmp_path / "fake")
    assert outcome.status == 0, outcome
    assert "fewer than 3" in numbers("generated", "contamination")["crop_fid"]["why"]
    assert numbers("generated", "broken_large")["crop_fid"]["value"] > 0
    assert len(list(Path("out/cut_and_paste/mask/contamination").iterdir())) == 4


def test_damage_is_pasted_onto_its_own_product(bottles: Path, tmp_path: Path) -> None:
    """Here one product is dark: no pasted picture of it is light."""
    for side in ("real", "fake"):
        for name in ("ale", "stout"):
            shutil.copytree(bottles / side, tmp_path / side / name)
        for path in (tmp_path / side / "stout" / "image").rglob("*.png"):
            Image.fromarray(np.asarray(Image.open(path)) // 8).save(path)
    assert run(tmp_path / "real", tmp_path / "fake").status == 0
    for name in ("ale", "stout"):
        pictures = list((Path("out/cut_and_paste") / name / "image").rglob("*.png"))
        levels = [np.asarray(Image.open(path)).mean() for path in pictures]
        assert len(pictures) == 16 and (max(levels) < 32 if name == "stout" else min(levels) > 32), name
    shutil.rmtree(tmp_path / "real" / "stout" / "image" / "good")
    shutil.rmtree(tmp_path / "fake" / "stout" / "image" / "good")
    assert run(tmp_path / "real", tmp_path / "fake", "--out", "out2").status == 0
    missing = json.loads(Path("out2/metrics.json").read_text())["missing"]
    assert any("cut and paste of stout/" in name and "no good images" in why for name, why in missing.items())


def test_types_that_classifiers_mix_up_cannot_be_judged(tmp_path: Path) -> None:
    """Two of three damage types have the same photos: the share of right answers there means nothing."""
    real, fake = make_tones(tmp_path / "real", 0), make_tones(tmp_path / "fake", 100)
    for side in (real, fake):
        shutil.copytree(side / "image" / "light", side / "image" / "pale")
    outcome = run(real, fake)
    assert outcome.status == 0, outcome
    found = {name: numbers("generated", name)["dca"] for name in ("dark", "light", "pale")}
    assert "why" not in found["dark"] and found["dark"]["value"] == 1
    unsure = [name for name in ("light", "pale") if "why" in found[name]]
    assert unsure and all(f"{name} cannot be judged: the classifiers recognise" in found[name]["why"]
                          for name in unsure)
    assert "why" not in numbers("held-out real", unsure[0])["dca"]
    for text in (outcome.out, Path("out/report.html").read_text()):
        assert f"{unsure[0]} cannot be judged" in text and "of 8 images in row held-out real, fewer" in text


# --- where it writes ---

def test_the_evaluation_of_other_photos_is_not_overwritten(bottles: Path, tmp_path: Path) -> None:
    """Their content decides, not their names; and what one evaluation drew is not left to the next."""
    assert run(bottles / "real", bottles / "fake", "--classes", "good", "contamination").status == 0
    before = Path("out/metrics.json").read_bytes()
    other = tmp_path / "other" / "real"
    write_demo(other, 6, 3, size=64)
    outcome = run(other, bottles / "fake")
    assert outcome.failed_with("metrics.json", str(bottles / "real"), str(other), "another --out"), outcome
    assert Path("out/metrics.json").read_bytes() == before
    moved = Path(shutil.copytree(bottles / "real", tmp_path / "moved"))
    (moved / "image" / "good" / "000.png").rename(moved / "image" / "good" / "zzz.png")
    stale = save(Path("out/cut_and_paste/image/gone/000.png"), picture(0))
    assert run(moved, bottles / "fake").status == 0 and not stale.exists()
    old = json.loads(before)
    del old["real"]  # an earlier version's
    Path("out/metrics.json").write_text(json.dumps(old))
    assert run(bottles / "real", bottles / "fake").status == 0


def test_a_file_that_is_no_evaluation_is_left_alone(bottles: Path) -> None:
    Path("out").mkdir()
    Path("out/metrics.json").write_text("[1, 2]")
    assert run(bottles / "real", bottles / "fake").failed_with("metrics.json", "another --out")
    assert Path("out/metrics.json").read_text() == "[1, 2]" and len(list(Path("out").iterdir())) == 1


def test_a_folder_that_no_evaluation_made_is_left_alone(bottles: Path) -> None:
    for turn in range(2):  # the second time beside an evaluation
        own = save(Path("out/views/mine.png"), picture(0))
        assert run(bottles / "real", bottles / "fake").failed_with("out/views", "another --out")
        own.unlink()
        own.parent.rmdir()
        if turn == 0:
            assert run(bottles / "real", bottles / "fake").status == 0
    Path("out/metrics.json").unlink()
    assert run(bottles / "real", bottles / "fake").failed_with("out/report.html", "another --out")
    Path("out/report.html").unlink()
    Path("out/report.png").unlink()  # now as an evaluation that was stopped leaves it
    stale = save(Path("out/cut_and_paste/image/gone/000.png"), picture(0))
    assert run(bottles / "real", bottles / "fake").status == 0 and not stale.exists()


def test_images_where_the_evaluation_writes(bottles: Path) -> None:
    assert run(bottles / "real", bottles / "fake").status == 0
    before = sorted(Path("out").rglob("*"))
    assert run(bottles / "real", "out/cut_and_paste").failed_with("out/cut_and_paste", "another --out")
    assert sorted(Path("out").rglob("*")) == before


def test_images_compared_with_themselves_are_counted(bottles: Path) -> None:
    outcome = run(bottles / "real", bottles / "real", "--classes", "good")
    assert outcome.status == 0 and "images are images of --real too" in outcome.err
    assert "images of --real" not in run(bottles / "real", bottles / "fake", "--classes", "good").err


def test_the_current_folder_as_images(bottles: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(bottles / "fake")
    assert command(evaluate.main, "--real", bottles / "real", "--fake", ".", "--out", tmp_path / "out",
                   "--features", LITE, "--judge", LITE, "--folds", 2, "--bootstrap", 10).status == 0


@pytest.mark.parametrize("inside", ["real", "real/report", "fake/image/good", "link/report"])
def test_a_report_among_the_images(bottles: Path, tmp_path: Path, inside: str) -> None:
    for side in ("real", "fake"):
        shutil.copytree(bottles / side, tmp_path / side)
    (tmp_path / "link").symlink_to(tmp_path / "fake")
    files = sorted(tmp_path.rglob("*"))
    outcome = run(tmp_path / "real", tmp_path / "fake", "--out", inside)
    assert outcome.failed_with(f"--out {inside}", "among the images") and sorted(tmp_path.rglob("*")) == files


@pytest.mark.parametrize("layout", ["mvtec", "coco"])
def test_the_layouts_that_sample_writes(bottles: Path, layout: str) -> None:
    """Masks included; as in the dataset's own layout."""
    for name in CLASSES:
        for i in range(4):
            image = Image.open(bottles / "fake" / "image" / name / f"{i:03d}.png")
            mask = bottles / "fake" / "mask" / name / f"{i:03d}_mask.png"
            files_of(Path("fake"), name, i, layout).write(
                image, np.asarray(Image.open(mask)) > 0 if mask.exists() else None)
    found = []
    for fake in (Path("fake"), bottles / "fake"):
        assert run(bottles / "real", fake).status == 0
        rows = json.loads(Path("out/metrics.json").read_text())["numbers"]["generated"]
        found.append({f"{group} {metric}": number["value"] for group, row in rows.items()
                      for metric, number in row.items() if number["value"] is not None})
    assert found[0] == pytest.approx(found[1], rel=1e-4)  # batches differ, and so does rounding
    assert found[0]["broken_large crop_fid"] > 0


def test_several_products(bottles: Path, tmp_path: Path) -> None:
    """Classes are product/damage as the real ones say, whichever of the products are drawn."""
    for side in ("real", "fake"):
        for name in ("ale", "beer"):
            shutil.copytree(bottles / side, tmp_path / side / name)
    real = tmp_path / "real"
    assert run(real, tmp_path / "fake", "--classes", "ale/good", "beer/good").status == 0
    assert list(json.loads(Path("out/metrics.json").read_text())["numbers"]["generated"]) == [
        "all", "ale/good", "beer/good"]
    shutil.rmtree(tmp_path / "fake" / "beer")
    assert run(real, tmp_path / "fake").failed_with("no images of beer/", "--classes ale/broken_large")
    for fake in (tmp_path / "fake", tmp_path / "fake" / "ale"):
        assert run(real, fake, "--classes", "ale/good", "ale/contamination").status == 0
    assert run(real / "beer", tmp_path / "fake", "--out", "beer").status == 0  # the only one on both sides
    shutil.copytree(bottles / "fake", tmp_path / "fake" / "wine")
    for flags in ((), ("--classes", "good")):
        outcome = run(real / "ale", tmp_path / "fake", *flags, "--out", "x")
        assert outcome.failed_with("wine is not among the products of --real (ale)"), outcome


# --- failures ---

def test_a_class_on_one_side_only(bottles: Path, tmp_path: Path) -> None:
    fake = Path(shutil.copytree(bottles / "fake", "fake"))
    shutil.rmtree(fake / "image" / "good")
    assert run(bottles / "real", fake, "--classes", "GOOD").failed_with("no images of good")
    outcome = run(bottles / "real", fake)
    assert outcome.failed_with("good", "--tries", "--classes broken_large broken_small contamination")
    save(fake / "image" / "dent" / "0.png", picture(0))
    assert run(bottles / "real", fake).failed_with("dent", "no such class in --real")
    assert run(bottles / "real", fake, "--classes", "god").failed_with("god", "did you mean good?")


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
    assert outcome.status == 0 and outcome.out.count("note: not measured: ") == 3
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


def test_images_that_were_selected(bottles: Path, tmp_path: Path) -> None:
    """Without the first drawings' files, the row of them is missing; with them it holds as many as drawn."""
    fake = Path(shutil.copytree(bottles / "fake", "fake"))
    ckpt = checkpoint(tmp_path / "ckpt/adapter.safetensors", bottles / "real", 4, "no/such/base")
    digest = {"select": "strict", "selector": f"{LITE} 0123 4567", "checkpoint": sha256(ckpt)}
    lost = {"file": "image/good/001.png", "class": "good", "number": 1, "failed": ["probability"], **digest}
    again = {**lost, "redraw": 1}
    kept = [{"file": path.relative_to(fake).as_posix(), "class": path.parent.name, **digest}
            for path in sorted((fake / "image").rglob("*.png"))]
    for file, some in (("samples.jsonl", kept), ("rejected/samples.jsonl", [lost, again])):
        (fake / file).parent.mkdir(exist_ok=True)
        (fake / file).write_text("".join(json.dumps(row) + "\n" for row in some))
    outcome = run(bottles / "real", fake)
    assert outcome.status == 0 and "2 of 18 drawn images were thrown away" in outcome.out, outcome
    assert f"{LITE} selected these images" in outcome.out and "the same photos" in outcome.out
    found = json.loads(Path("out/metrics.json").read_text())
    assert "before selection" not in found["numbers"] and "001-0.png" in found["missing"]["before selection"]
    (fake / "rejected/good").mkdir()
    shutil.copy(bottles / "real/image/contamination/000.png", fake / "rejected/good/001-0.png")
    outcome = run(bottles / "real", fake, "--ckpt", ckpt)
    assert outcome.status == 0 and "photos that selection did not see" in outcome.out, outcome
    before, after = numbers("before selection", "good"), numbers("generated", "good")
    assert before["n"]["value"] == after["n"]["value"] == 4
    assert "not used" not in outcome.out + outcome.err
    confused = json.loads(Path("out/metrics.json").read_text())["confusions"]
    assert confused["before selection"] != confused["generated"]
    assert {"dca", "copies", "fid", "coverage"} <= before.keys()
    outcome = run(bottles / "real", fake, "--classes", "contamination", "good")
    assert outcome.status == 0 and "2 of 10 drawn images were thrown away" in outcome.out, outcome


# --- does it help? ---

def test_downstream(bottles: Path) -> None:
    outcome = run(bottles / "real", bottles / "fake", "--downstream", "--downstream-seeds", 1)
    assert outcome.status == 0 and "Do they help?" in outcome.out
    for row in ("generated", "cut and paste"):
        found = numbers(row)
        for name in ("accuracy", "accuracy_gain"):
            assert found[name]["low"] <= found[name]["value"] <= found[name]["high"], name
        assert found["iou_gain"]["value"] == pytest.approx(found["iou"]["value"]
                                                           - numbers("real only")["iou"]["value"])
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
    assert run(real, swapped, "--downstream", "--downstream-seeds", 1, "--downstream-epochs", 25).status == 0
    assert numbers("real only")["accuracy"]["value"] == 1
    assert numbers("generated")["accuracy_gain"]["high"] < 0


def test_segmenter_learns_to_mark(tmp_path: Path) -> None:
    from evaluation.segmenter import fit_segmenter, intersection_over_union

    rng = np.random.default_rng(0)
    image, mask = torch.full((16, 3, 64, 64), 0.2), torch.zeros(16, 1, 64, 64)
    for i, (y, x) in enumerate(rng.integers(4, 44, (15, 2))):
        image[i, :, y:y + 14, x:x + 14], mask[i, :, y:y + 14, x:x + 14] = -0.8, 1
    model = fit_segmenter(image, mask, 30, (0,), "any", torch.device("cpu"), (16,))
    iou = intersection_over_union(model, image, mask)
    assert np.isnan(iou[15]) and iou[:15].min() > 0.7
