"""sample.py with a checkpoint of train_inpaint.py: damage painted into photos, all else left as it was."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from bases import Outcome, Place, command, place, rows, write_base
from PIL import Image
from scipy.ndimage import distance_transform_edt
from trees import make_product, save

import sample
import train_class
import train_inpaint
from data import DataConfig, load_dataset
from demo import draw_bottle, write_demo
from generation import SAMPLERS, Drawing, noised, run_sampler
from masks import MARGIN
from sd.diffusion import Diffusion

__all__ = ["place"]
DAMAGES = ["broken_large", "broken_small", "contamination"]


@pytest.fixture(scope="module")
def run(place: Place, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder of the inpainting strategy, on a base with an inpainting UNet, with a null class."""
    root = tmp_path_factory.mktemp("inpaint")
    outcome = command(train_inpaint.main, "--data", place.data, "--base",
                      write_base(root / "base", inpainting=True), "--resolution", 64, "--preview-every", 0,
                      "--max-steps", 3, "--lr", 0.02, "--class-dropout", 0.2, "--tokens-per-class", 2,
                      "--latent-variants", 1, "--out", root / "run")
    assert outcome.status == 0, outcome
    return root / "run"


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Undamaged photos: a square one, one that is not and not of multiples of 8, and a grey one."""
    monkeypatch.chdir(tmp_path)
    save(tmp_path / "photos/a.png", draw_bottle("good", 50, 128)[0])
    tall = np.pad(draw_bottle("good", 51, 101)[0], ((7, 20), (0, 0), (0, 0)), "edge")
    save(tmp_path / "photos/b.jpg", tall)
    save(tmp_path / "photos/c.png", draw_bottle("good", 52, 96)[0][..., 1])
    return tmp_path / "photos"


def paint(run: Path, photos: Path, *arguments: object) -> Outcome:
    return command(sample.main, "--ckpt", run, "--images", photos, "--steps", 3, "--per-class", 3, *arguments)


def opened(path: str | Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image)


def files(out: str) -> dict[str, bytes]:
    return {str(path.relative_to(out)): path.read_bytes() for path in sorted(Path(out).rglob("*.*"))}


def test_what_it_leaves(run: Path, photos: Path) -> None:
    outcome = paint(run, photos, "--guidance", 2)
    assert outcome.status == 0, outcome
    noted = rows(Path("generated/samples.jsonl"))
    assert len(noted) == 12 and {row["class"] for row in noted} == {*DAMAGES, "good"}
    for row in noted:
        image, photo = opened(Path("generated", row["file"])), opened(row["photo"])
        mask_file = Path(f"generated/mask/{row['class']}/{row['number']:03d}_mask.png")
        assert image.shape == photo.shape  # at the photo's own size, grey ones grey
        assert 0 <= row["fidelity"] <= 1 and row["change"] > 0 and row["cells"] >= 1
        assert Path(row["mask"]).exists() and np.shape(row["transform"]["matrix"]) == (2, 3)
        if row["class"] == "good":
            assert not mask_file.exists() and (image != photo).any()
            continue
        mask = opened(mask_file)
        assert set(np.unique(mask)) == {0, DAMAGES.index(row["class"]) + 1}
        assert Path(row["mask"]).parent.name == row["class"]
        beyond = distance_transform_edt(mask == 0) >= max(1, MARGIN * row["box"][2])
        assert (image[beyond] == photo[beyond]).all() and (image[mask > 0] != photo[mask > 0]).mean() > 0.3
    for damage in DAMAGES:  # each photo before any comes again
        assert len({row["photo"] for row in noted if row["class"] == damage}) == 3
    with Image.open("generated/grid.png") as grid:
        assert grid.height > 7 * 96  # a second row of outlined masks for each damage
    back = load_dataset(DataConfig(["generated"], resolution=64, load_masks=True, augment=False))
    assert back.classes == [*DAMAGES, "good"] and len(back) == 12
    assert all(back.example(i, 0)["mask"].any() == (i < 9) for i in range(12))


def test_images_depend_on_seed_class_and_number_alone(run: Path, photos: Path) -> None:
    assert paint(run, photos, "--batch-size", 1).status == 0
    two = ("--classes", "good", "contamination")
    assert paint(run, photos, "--batch-size", 3, "--out", "other", *two).status == 0
    for name, content in files("other").items():
        if "mask/" in name:
            assert content == files("generated")[name]
        elif "image/" in name:
            difference = opened(f"other/{name}").astype(int) - opened(f"generated/{name}")
            assert abs(difference).max() <= 1
    assert paint(run, photos, "--seed", 1, "--out", "seeds", "--classes", "good").status == 0
    one, other = (rows(Path(out, "samples.jsonl"))[0] for out in ("seeds", "other"))
    assert one["transform"] != other["transform"]


def test_it_goes_on_where_it_stopped(run: Path, photos: Path) -> None:
    assert paint(run, photos, "--batch-size", 1, "--classes", "good", "broken_small").status == 0
    before = files("generated")
    for name in ("image/good/001.png", "image/broken_small/002.png", "mask/broken_small/002_mask.png"):
        Path("generated", name).unlink()
    outcome = paint(run, photos, "--batch-size", 1, "--classes", "good", "broken_small")
    assert "2 images to draw, 4 there already" in outcome.err and files("generated") == before
    save(photos / "d.png", draw_bottle("good", 53, 64)[0])
    assert paint(run, photos, "--classes", "good").failed_with("inputs was")


def test_the_layout_of_mvtec_ad(run: Path, photos: Path) -> None:
    assert paint(run, photos, "--layout", "mvtec").status == 0
    assert len(list(Path("generated/test").glob("*/00?.png"))) == 12
    masks = sorted(Path("generated/ground_truth").glob("*/*.png"))
    assert {path.parent.name for path in masks} == set(DAMAGES) and len(masks) == 9
    assert all(set(np.unique(opened(path))) == {0, 255} for path in masks)
    assert paint(run, photos).failed_with("layout was mvtec")


WAYS = {"close": ("--crop",), "pasted without a seam": ("--no-paste",), "other colours": ("--match-colour",),
        "from the photo": ("--strength", 0.7), "by DPM-Solver": ("--strength", 0.7, "--sampler", "dpm++"),
        "ancestral": ("--sampler", "ddpm", "--strength", 0.7)}


@pytest.mark.parametrize("name", WAYS)
def test_ways_to_paint(name: str, run: Path, photos: Path) -> None:
    plain = paint(run, photos, "--classes", "broken_small", "--per-class", 1, "--out", "plain")
    other = paint(run, photos, "--classes", "broken_small", "--per-class", 1, *WAYS[name])
    assert plain.status == other.status == 0, other
    image = "image/broken_small/000.png"
    assert (opened(f"plain/{image}") != opened(f"generated/{image}")).any()
    [there], [row] = rows(Path("plain/samples.jsonl")), rows(Path("generated/samples.jsonl"))
    assert there["photo"] == row["photo"] and there["transform"] == row["transform"]
    assert (row["box"] != there["box"]) == (name == "close")


@pytest.mark.parametrize("strength", [1.0, 0.5, 0.1])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_the_start_has_the_noise_that_its_first_step_expects(sampler: str, strength: float) -> None:
    """Where eps is exact, any start leads back to the picture, but for the last step's noise."""
    z_0, noise = torch.randn(2, 1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    drawing, abar = Drawing(steps=20, sampler=sampler, strength=strength), Diffusion().abar

    def exact(z_t: torch.Tensor, t: int) -> torch.Tensor:
        return (z_t - abar[t].sqrt() * z_0) / (1 - abar[t]).sqrt()

    z = noised(drawing, z_0, noise) if drawing.start else noise
    states = list(run_sampler(drawing, exact, z, lambda i: noise))
    assert len(states) == 20 * strength and (states[-1] - z_0).abs().mean() < 0.05


def test_given_masks_are_used_as_they_are(run: Path, photos: Path) -> None:
    mask = np.zeros((128, 128), np.uint8)
    mask[60:64, 20:90] = 255
    save(Path("masks/a_mask.png"), mask)
    outcome = paint(run, photos, "--masks", "masks", "--classes", "broken_large", "good", "--per-class", 2)
    assert outcome.status == 0, outcome
    for row in rows(Path("generated/samples.jsonl")):
        assert row["photo"].endswith("a.png") and row["mask"] == "masks/a_mask.png"
        assert row["transform"] is None
    assert ((opened("generated/mask/broken_large/000_mask.png") > 0) == (mask > 0)).all()


def test_a_mask_of_few_cells_is_named(run: Path, photos: Path) -> None:
    mask = np.zeros((128, 128), np.uint8)
    mask[60, 60] = 1
    save(Path("masks/a.png"), mask)
    outcome = paint(run, photos, "--masks", "masks", "--classes", "contamination")
    assert outcome.status == 0 and outcome.err.count("masks/a.png: covers 1 of") == 1
    assert "--crop" in outcome.err
    assert opened("generated/mask/contamination/000_mask.png").sum() == 3


def test_mistakes(run: Path, photos: Path, place: Place, tmp_path: Path) -> None:
    assert command(sample.main, "--ckpt", run).failed_with("--images", "image/good")
    assert paint(run, tmp_path / "nowhere").failed_with("--images", "nowhere")
    assert paint(run, place.data).failed_with("no photos in it", "image/good")
    save(tmp_path / "small/a.png", np.ones((16, 16), np.uint8))
    assert paint(run, photos, "--masks", tmp_path / "small").failed_with("small/a.png: 16x16", "128x128")
    save(tmp_path / "blank/a.png", np.zeros((128, 128), np.uint8))
    assert paint(run, photos, "--masks", tmp_path / "blank").failed_with("blank/a.png", "empty")
    assert paint(run, photos, "--masks", tmp_path / "gone").failed_with("gone")
    crack = make_product(tmp_path / "crack", ("crack",))
    assert paint(run, photos, "--masks", crack).failed_with("has no masks of broken_large")
    assert paint(run, photos, "--strength", 0.2).failed_with("--strength 0.2", "--steps 3")
    assert paint(run, photos, "--strength", 0).failed_with("--strength")
    (photos / "z.png").write_text("no photo")
    (photos / "a.png").unlink()
    assert paint(run, photos, "--classes", "good").failed_with("z.png", "cannot be read")


def test_other_kinds_have_no_use_for_photos(place: Place, tmp_path: Path,
                                            monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    outcome = command(train_class.main, "--data", place.data, "--base", place.base, "--resolution", 64,
                      "--preview-every", 0, "--max-steps", 1, "--latent-variants", 0, "--out", "run")
    assert outcome.status == 0, outcome
    for flags in (("--images", "x"), ("--masks", "x"), ("--crop",), ("--no-paste",), ("--strength", 0.5)):
        outcome = command(sample.main, "--ckpt", "run", *flags)
        assert outcome.failed_with(flags[0].replace("no-", ""), "kind 'class'")
    few = ("--per-class", 1, "--steps", 2)
    assert command(sample.main, "--ckpt", "run", *few, "--layout", "mvtec").status == 0
    assert Path("generated/test/good/000.png").exists()


def test_a_widened_base_is_met_again(place: Place, photos: Path, tmp_path: Path) -> None:
    """Also after the base has been given an inpainting UNet."""
    base = write_base(tmp_path / "base")
    data = tmp_path / "data"
    write_demo(data, 2, 0, size=64)
    outcome = command(train_inpaint.main, "--data", data, "--base", base, "--resolution", 64, "--out", "run",
                      "--preview-every", 0, "--max-steps", 1, "--latent-variants", 0)
    assert outcome.status == 0, outcome
    write_base(tmp_path / "other", inpainting=True)
    (tmp_path / "other/unet_inpaint").rename(base / "unet_inpaint")
    assert paint(Path("run"), photos, "--classes", "good", "--per-class", 1).status == 0
