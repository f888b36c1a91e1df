"""sample.py with a checkpoint of train_inpaint.py: damage painted into photos, all else left as it was."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from bases import Place, command, rows, write_base
from PIL import Image
from runs import DAMAGES, paint
from scipy.ndimage import distance_transform_edt
from trees import make_product, picture, save

import sample
import train_class
import train_inpaint
from data import DataConfig, load_dataset
from dataset.masks import MARGIN
from dataset.paste import DoesNotFit
from sampling.generation import SamplingConfig
from sampling.mask_bank import MaskBank, Placed
from sd.samplers import SAMPLERS, Diffusion
from tiny.bottles import draw_bottle
from tiny.demo import write_demo


def opened(path: str | Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image)


def files(out: str) -> dict[str, bytes]:
    return {str(path.relative_to(out)): path.read_bytes() for path in sorted(Path(out).rglob("*.*"))}


def test_what_it_leaves(inpaint_run: Path, photos: Path) -> None:
    outcome = paint(inpaint_run, photos, "--guidance", 2)
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
        assert row["placement"] == "surroundings" and row["mask_jitter"] > 0 and 0.6 <= row["score"] <= 1
    for damage in DAMAGES:  # each photo before any comes again, but for those where a mask finds no place
        assert len({row["photo"] for row in noted if row["class"] == damage}) >= 2
    with Image.open("generated/grid.png") as grid:
        assert grid.height > 7 * 96  # a second row of outlined masks for each damage
    back = load_dataset(DataConfig(["generated"], resolution=64, load_masks=True, augment=False))
    assert back.classes == [*DAMAGES, "good"] and len(back) == 12
    assert all(back.example(i, 0)["mask"].any() == (i < 9) for i in range(12))


def test_images_depend_on_seed_class_and_number_alone(inpaint_run: Path, photos: Path) -> None:
    assert paint(inpaint_run, photos, "--batch-size", 1).status == 0
    two = ("--classes", "good", "contamination")
    assert paint(inpaint_run, photos, "--batch-size", 3, "--out", "other", *two).status == 0
    for name, content in files("other").items():
        if "mask/" in name:
            assert content == files("generated")[name]
        elif "image/" in name:
            difference = opened(f"other/{name}").astype(int) - opened(f"generated/{name}")
            assert abs(difference).max() <= 1
    assert paint(inpaint_run, photos, "--seed", 1, "--out", "seeds", "--classes", "good").status == 0
    one, other = (rows(Path(out, "samples.jsonl"))[0] for out in ("seeds", "other"))
    assert one["transform"] != other["transform"]


def test_it_goes_on_where_it_stopped(inpaint_run: Path, photos: Path) -> None:
    assert paint(inpaint_run, photos, "--batch-size", 1, "--classes", "good", "broken_small").status == 0
    before = files("generated")
    for name in ("image/good/001.png", "image/broken_small/002.png", "mask/broken_small/002_mask.png"):
        Path("generated", name).unlink()
    outcome = paint(inpaint_run, photos, "--batch-size", 1, "--classes", "good", "broken_small")
    assert "2 images to draw, 4 there already" in outcome.err and files("generated") == before
    save(photos / "d.png", draw_bottle("good", 53, 64)[0])
    assert paint(inpaint_run, photos, "--classes", "good").failed_with("the content of --images was")


def test_the_layout_of_mvtec_ad(inpaint_run: Path, photos: Path) -> None:
    assert paint(inpaint_run, photos, "--layout", "mvtec").status == 0
    assert len(list(Path("generated/test").glob("*/00?.png"))) == 12
    masks = sorted(Path("generated/ground_truth").glob("*/*.png"))
    assert {path.parent.name for path in masks} == set(DAMAGES) and len(masks) == 9
    assert all(set(np.unique(opened(path))) == {0, 255} for path in masks)
    assert paint(inpaint_run, photos).failed_with("layout was mvtec")


WAYS = {"close": ("--view", "close"), "pasted without a seam": ("--no-paste",),
        "other colours": ("--match-colour",),
        "from the photo": ("--strength", 0.7), "by DPM-Solver": ("--strength", 0.7, "--sampler", "dpm++"),
        "ancestral": ("--sampler", "ddpm", "--strength", 0.7)}


@pytest.mark.parametrize("name", WAYS)
def test_ways_to_paint(name: str, inpaint_run: Path, photos: Path) -> None:
    plain = paint(inpaint_run, photos, "--classes", "broken_small", "--per-class", 1, "--out", "plain")
    other = paint(inpaint_run, photos, "--classes", "broken_small", "--per-class", 1, *WAYS[name])
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
    start, row, abar = SamplingConfig(steps=20, strength=strength).start, SAMPLERS[sampler], Diffusion().abar

    def exact(z_t: torch.Tensor, t: int) -> torch.Tensor:
        return (z_t - abar[t].sqrt() * z_0) / (1 - abar[t]).sqrt()

    first = row.abar(20)[start]
    z = first**0.5 * z_0 + (1 - first) ** 0.5 * noise if start else noise
    given = {"eta": 0.0, "noise": lambda i: noise}
    states = list(row.run(exact, z, steps=20, start=start, **{name: given[name] for name in row.takes}))
    assert len(states) == 20 * strength and (states[-1] - z_0).abs().mean() < 0.05


def test_given_masks_are_used_as_they_are(inpaint_run: Path, photos: Path) -> None:
    mask = np.zeros((128, 128), np.uint8)
    mask[60:64, 20:90] = 255
    save(Path("masks/a_mask.png"), mask)
    outcome = paint(inpaint_run, photos, "--masks", "masks", "--classes", "broken_large", "good",
                    "--per-class", 2)
    assert outcome.status == 0, outcome
    for row in rows(Path("generated/samples.jsonl")):
        assert row["photo"].endswith("a.png") and row["mask"] == "masks/a_mask.png"
        assert row["transform"] is None
    assert ((opened("generated/mask/broken_large/000_mask.png") > 0) == (mask > 0)).all()


def test_a_mask_of_few_cells_is_named(inpaint_run: Path, photos: Path) -> None:
    mask = np.zeros((128, 128), np.uint8)
    mask[60, 60] = 1
    save(Path("masks/a.png"), mask)
    outcome = paint(inpaint_run, photos, "--masks", "masks", "--classes", "contamination")
    assert outcome.status == 0 and outcome.err.count("masks/a.png: covers 1 of") == 1
    assert "--view close looks closer" in outcome.err
    assert opened("generated/mask/contamination/000_mask.png").sum() == 3


def test_photos_and_masks_of_mixed_sizes(inpaint_run: Path, photos: Path) -> None:
    """A mask goes on a photo of its size; one that fits none is named at the end and another is taken."""
    for name, size in {"one": 128, "two": 96, "odd": 50}.items():
        mask = np.zeros((size, size), np.uint8)
        mask[size // 2:size // 2 + 9, 20:40] = 255
        save(Path(f"masks/{name}.png"), mask)
    flags = ("--masks", "masks", "--classes", "broken_large", "good", "--per-class", 6)
    outcome = paint(inpaint_run, photos, *flags)
    assert outcome.status == 0, outcome
    assert "4 times a mask did not fit and another was tried: masks/odd.png: 50x50" in outcome.err
    noted = rows(Path("generated/samples.jsonl"))
    pairs = {(Path(row["mask"]).name, Path(row["photo"]).name) for row in noted}
    assert pairs == {("one.png", "a.png"), ("two.png", "c.png")}
    before = files("generated")
    outcome = paint(inpaint_run, photos, *flags)
    assert "0 images to draw" in outcome.err and "did not fit" not in outcome.err
    assert files("generated") == before
    save(Path("masks/odd/odd.png"), mask)
    assert paint(inpaint_run, photos, "--masks", "masks/odd", "--out", "x").failed_with("odd.png: 50x50")
    assert not Path("x/samples.jsonl").exists()


def test_an_image_without_a_place_for_its_mask_is_left_out(inpaint_run: Path, photos: Path,
                                                           monkeypatch: pytest.MonkeyPatch) -> None:
    """The others are drawn, the count is said, and the same command tries it again."""
    place = MaskBank.place

    def fails(self: MaskBank, damage: str, number: int, photo: np.ndarray, attempt: int) -> Placed:
        if number == 1:
            raise DoesNotFit("x.png: cannot be placed")
        return place(self, damage, number, photo, attempt)

    with monkeypatch.context() as patch:
        patch.setattr(MaskBank, "place", fails)
        outcome = paint(inpaint_run, photos, "--classes", "broken_small")
        assert outcome.status == 0 and " times a mask did not fit" in outcome.err, outcome
        assert "1 images left out, as no mask fitted: broken_small 1" in outcome.err
        made = [file.name for file in sorted(Path("generated/image/broken_small").iterdir())]
        assert made == ["000.png", "002.png"]
    outcome = paint(inpaint_run, photos, "--classes", "broken_small")
    assert outcome.status == 0 and "1 images to draw, 2 there already" in outcome.err


def test_see_before_you_paint(inpaint_run: Path, photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The masks of --placement-only are those that are painted; no model is loaded, --out is left alone."""
    with monkeypatch.context() as patch:
        patch.setattr(sample, "load_checkpoint", None)
        outcome = paint(inpaint_run, photos, "--placement-only", "--json", "--classes", "broken_small",
                        "good")
    assert outcome.status == 0 and not Path("generated").exists(), outcome
    found = json.loads(outcome.out)
    assert set(found["score"]) == {"broken_small", "good"} and found["left_out"] == 0
    with Image.open("generated-placement.png") as sheet:
        assert Path(found["sheet"]).samefile("generated-placement.png") and sheet.height > 2 * 96
    assert paint(inpaint_run, photos, "--classes", "broken_small").status == 0
    scores = [row["score"] for row in rows(Path("generated/samples.jsonl"))]
    assert float(np.median(scores)) == pytest.approx(found["score"]["broken_small"], abs=1e-3)
    outcome = paint(inpaint_run, photos, "--classes", "broken_small", "--mask-jitter", 0.2)
    assert outcome.failed_with("mask_jitter was 0.05, is 0.2")
    other = [save(Path(f"cloth/{i}.png"), picture(i)) for i in range(2)]
    outcome = paint(inpaint_run, other[0].parent, "--placement-only", "--classes", "broken_small")
    assert outcome.failed_with("no mask finds a place")
    outcome = paint(inpaint_run, photos, "--placement-only", "--out", photos / "sheet")
    assert outcome.failed_with("sheet-placement.png: lies in", str(photos))
    assert paint(inpaint_run, photos, "--placement-only").status == 0  # its own sheet is replaced
    shutil.copy(next(photos.glob("*.png")), "generated-placement.png")
    outcome = paint(inpaint_run, photos, "--placement-only")
    assert outcome.failed_with("generated-placement.png: exists", "another --out")


def test_a_folder_of_the_earlier_rule_is_not_mixed(inpaint_run: Path, photos: Path) -> None:
    flags = ("--classes", "broken_small", "--per-class", 1)
    assert paint(inpaint_run, photos, *flags).status == 0
    journal = Path("generated/samples.jsonl")
    [row] = rows(journal)
    del row["placement"], row["mask_jitter"]
    journal.write_text(json.dumps(row) + "\n")
    assert paint(inpaint_run, photos, *flags).failed_with("placement was object, is surroundings")


def test_other_contents_under_the_same_names_are_noticed(inpaint_run: Path, photos: Path,
                                                         place: Place) -> None:
    """Of photos and masks alike. A folder with an earlier version's digest, of names and sizes, goes on."""
    assert paint(inpaint_run, photos, "--classes", "good").status == 0
    content = (photos / "c.png").read_bytes()
    (photos / "c.png").write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    for damage in ("good", "broken_small"):  # a class that is not there yet as well
        outcome = paint(inpaint_run, photos, "--classes", damage)
        assert outcome.failed_with("the content of --images was", "another --out")
    (photos / "c.png").write_bytes(content)
    journal, before = Path("generated/samples.jsonl"), files("generated")
    named = [*sorted(photos.iterdir()), *sorted(place.data.glob("mask/*/*.png"))]
    names = "".join(f"{file.name} {file.stat().st_size}\n" for file in named)
    earlier = hashlib.blake2b(names.encode(), digest_size=8).hexdigest()
    now = rows(journal)[0]["inputs"]
    journal.write_text(journal.read_text().replace(now, earlier))
    assert paint(inpaint_run, photos, "--classes", "good", "--per-class", 4).status == 0
    assert [row["inputs"] for row in rows(journal)] == [earlier] * 3 + [now]
    assert all(files("generated")[name] == content for name, content in before.items() if "image/" in name)
    # Its own masks are as before.
    assert paint(inpaint_run, photos, "--classes", "broken_small", "--per-class", 1).status == 0
    (photos / "c.png").write_bytes(content + b"x")
    assert paint(inpaint_run, photos, "--classes", "good").failed_with(f"--images or --masks was {earlier}")


def test_another_mask_under_the_same_name_is_noticed(inpaint_run: Path, photos: Path) -> None:
    mask = np.zeros((128, 128), np.uint8)
    mask[60:70, 20:90] = 255
    save(Path("masks/a.png"), mask)
    flags = ("--masks", "masks", "--classes", "broken_large", "--per-class", 1)
    assert paint(inpaint_run, photos, *flags).status == 0
    before = Path("masks/a.png").stat().st_size
    save(Path("masks/a.png"), mask.T.copy())
    padding = before - Path("masks/a.png").stat().st_size
    if padding > 0:
        with open("masks/a.png", "ab") as file:
            file.write(bytes(padding))  # as large as before
    assert paint(inpaint_run, photos, *flags).failed_with("--images or --masks was", "another --out")


def test_litter_is_ignored_and_other_files_are_counted(inpaint_run: Path, photos: Path) -> None:
    mask = np.zeros((128, 128), np.uint8)
    mask[60:70, 20:90] = 255
    save(Path("masks/a.png"), mask)
    for folder in (photos, Path("masks")):
        for name in ("._a.png", "Thumbs.db", ".DS_Store", "desktop.ini", "notes.txt"):
            (folder / name).write_bytes(b"x")
        (folder / "gone.png").symlink_to("nowhere.png")
    outcome = paint(inpaint_run, photos, "--masks", "masks", "--classes", "broken_large")
    assert outcome.status == 0, outcome
    for folder in (photos, "masks"):
        assert f"{folder}: broken links are not used: 1 (gone.png)" in outcome.err
        assert f"{folder}: other files are not used: 1 (notes.txt)" in outcome.err


def test_mistakes(inpaint_run: Path, photos: Path, place: Place, tmp_path: Path) -> None:
    assert command(sample.main, "--ckpt", inpaint_run).failed_with("--images", "image/good")
    assert paint(inpaint_run, tmp_path / "nowhere").failed_with("--images", "nowhere")
    assert paint(inpaint_run, photos.with_name(f"{photos.name}s")).failed_with(f"did you mean {photos}?")
    assert paint(inpaint_run, place.data).failed_with("no photos in it", "image/good")
    save(tmp_path / "small/a.png", np.ones((16, 16), np.uint8))
    outcome = paint(inpaint_run, photos, "--masks", tmp_path / "small")
    assert outcome.failed_with("small/a.png: 16x16", "128x128")
    save(tmp_path / "blank/a.png", np.zeros((128, 128), np.uint8))
    assert paint(inpaint_run, photos, "--masks", tmp_path / "blank").failed_with("blank/a.png", "empty")
    assert paint(inpaint_run, photos, "--masks", tmp_path / "gone").failed_with("gone")
    crack = make_product(tmp_path / "crack", ("crack",))
    assert paint(inpaint_run, photos, "--masks", crack).failed_with("has no masks of broken_large")
    assert paint(inpaint_run, photos, "--strength", 0.2).failed_with("--strength 0.2", "--steps 3")
    assert paint(inpaint_run, photos, "--strength", 0).failed_with("--strength")
    (photos / "z.png").write_text("no photo")
    (photos / "a.png").unlink()
    assert paint(inpaint_run, photos, "--classes", "good").failed_with("z.png", "cannot be read")


def test_other_kinds_have_no_use_for_photos(place: Place, tmp_path: Path,
                                            monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    outcome = command(train_class.main, "--data", place.data, "--base", place.base, "--resolution", 64,
                      "--preview-every", 0, "--max-steps", 1, "--latent-variants", 0, "--out", "run")
    assert outcome.status == 0, outcome
    for flags in (("--images", "x"), ("--masks", "x"), ("--view", "close"), ("--no-paste",),
                  ("--strength", 0.5)):
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


def test_absolute_and_relative_paths_leave_the_same_rows(inpaint_run: Path, photos: Path) -> None:
    for out, folder in (("relative", Path("photos")), ("absolute", photos.resolve())):
        assert paint(inpaint_run, folder, "--out", out, "--classes", "contamination").status == 0
    left, right = rows(Path("relative/samples.jsonl")), rows(Path("absolute/samples.jsonl"))
    assert left == right and all(row["photo"].startswith("photos/") for row in left)
