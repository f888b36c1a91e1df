"""data.py as its users meet it: every layout read, every mistake one line, every example reproducible."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from trees import make_flat, make_product, picture, save, square_mask

from data import DataConfig, DefectDataset, load_dataset
from dataset.image_files import read_image
from runtime.errors import UserError


def load(*data: Path, **options: object) -> DefectDataset:
    return load_dataset(DataConfig(data=[str(path) for path in data], **{"resolution": 64, **options}))


def names(dataset: DefectDataset) -> list[tuple[str, str]]:
    return [(dataset.classes[item.class_id], item.image.name) for item in dataset.items]


# ---- what is read

def test_published_tree(tmp_path: Path) -> None:
    dataset = load(make_product(tmp_path / "DS-MVTec" / "part"), load_masks=True, augment=False)
    assert dataset.classes == ["crack", "dent", "good"]
    assert len(dataset) == 9
    assert names(dataset)[:2] == [("crack", "000.png"), ("crack", "001.png")]
    example = dataset[(0, 3)]
    assert example["class_id"] == 1
    assert example["image"].shape == (3, 64, 64) and example["image"].dtype == torch.float32
    assert example["image"].min() >= -1 and example["image"].max() <= 1 and example["image"].min() < -0.3
    assert example["mask"].shape == (1, 64, 64) and set(example["mask"].unique().tolist()) == {0.0, 1.0}
    assert dataset.example(8, 0)["mask"].sum() == 0
    assert "mask" not in load(tmp_path / "DS-MVTec" / "part").example(0, 0)


def test_normalisation_flag(tmp_path: Path) -> None:
    make_product(tmp_path)
    signed = load(tmp_path, augment=False).example(0, 0)["image"]
    unsigned = load(tmp_path, augment=False, normalize_to_neg1_pos1=False).example(0, 0)["image"]
    torch.testing.assert_close(unsigned * 2 - 1, signed)
    assert unsigned.min() >= 0


def test_without_augmentation_the_picture_is_the_file(tmp_path: Path) -> None:
    save(tmp_path / "image" / "good" / "a.png", picture(0, (64, 64)))
    image = load(tmp_path, augment=False, normalize_to_neg1_pos1=False).example(0, 0)["image"]
    np.testing.assert_allclose(image.permute(1, 2, 0).numpy() * 255, picture(0, (64, 64)), atol=0.01)


def test_several_products_sources_and_filters(tmp_path: Path) -> None:
    make_product(tmp_path / "DS-MVTec" / "bottle", ("crack", "good"), seed=1)
    make_product(tmp_path / "DS-MVTec" / "cable", ("crack",), seed=2)
    make_flat(tmp_path / "DS-DAGM", [(1,)])
    both = ["bottle/crack", "bottle/good", "cable/crack"]
    assert load(tmp_path / "DS-MVTec").classes == both
    assert load(tmp_path / "DS-MVTec" / "cable", tmp_path / "DS-MVTec" / "bottle").classes == both
    assert load(tmp_path).classes == ["DS-DAGM/scratch", *both]
    assert load(tmp_path, dataset_sources=["DS-MVTec"]).classes == both
    assert load(tmp_path, product_classes=["cable"]).classes == ["crack"]


def test_flat_source_with_several_classes_in_one_image(tmp_path: Path) -> None:
    root = make_flat(tmp_path / "DS-DAGM", [(1, 3), (2,), (9,), ()])
    dataset = load(root, load_masks=True, augment=False, resolution=128)
    assert dataset.classes == ["crush", "defect_9", "good", "scratch", "texture"]
    assert [name for name, file in names(dataset) if file == "000.jpg"] == ["crush", "scratch"]
    regions = {name: dataset.example(i, 0)["mask"] for i, (name, file) in enumerate(names(dataset))
               if file == "000.jpg"}
    assert regions["scratch"].sum() > 0 and regions["crush"].sum() > 0
    assert (regions["scratch"] * regions["crush"]).sum() == 0
    assert load(make_flat(tmp_path / "DS-Cotton-Fabric", [(1, 2)])).classes == ["bubble", "texture"]
    assert load(make_flat(tmp_path / "DS-VISION" / "Ring", [(4,)])).classes == ["defect_4"]


@pytest.mark.parametrize("name, mode", [("a.PNG", "L"), ("b.png", "P"), ("c.png", "RGBA"),
                                        ("d.jpg", "L"), ("e.JPEG", "CMYK"), ("f.png", "1"), ("g.bmp", "RGB"),
                                        ("h.TIFF", "LA")])
def test_any_kind_of_file(tmp_path: Path, name: str, mode: str) -> None:
    path = tmp_path / "image" / "good" / name
    path.parent.mkdir(parents=True)
    flat = Image.new("RGB", (80, 70), (255, 255, 255))
    flat.convert(mode).save(path)
    assert load(tmp_path).example(0, 0)["image"].min() > 0.97


def test_16_bits_and_transparency(tmp_path: Path) -> None:
    folder = tmp_path / "image" / "good"
    save(folder / "deep.png", np.full((64, 64), 32896, np.uint16))
    save(folder / "veil.png", np.zeros((64, 64, 4), np.uint8))
    dataset = load(tmp_path, augment=False, normalize_to_neg1_pos1=False)
    assert dataset.example(0, 0)["image"].mean().item() == pytest.approx(128 / 255, abs=1e-4)
    assert dataset.example(1, 0)["image"].min() == 1


def test_jpeg_orientation_goes_with_the_mask(tmp_path: Path) -> None:
    """A phone's picture lies on its side in the file; its mask was drawn on what is seen."""
    path = tmp_path / "image" / "crack" / "0.jpg"
    path.parent.mkdir(parents=True)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(picture(0, (120, 80))).save(path, exif=exif)
    save(tmp_path / "mask" / "crack" / "0_mask.png", square_mask(1, (80, 120)))
    assert load(tmp_path, load_masks=True).example(0, 0)["mask"].sum() > 0
    assert read_image(path).shape == (120, 80, 3)


@pytest.mark.parametrize("mask", [square_mask(255), np.stack([square_mask(200)] * 3, 2), square_mask(1) > 0,
                                  np.stack([square_mask(255), square_mask(0), square_mask(0)], 2)])
def test_masks_of_ones_own(tmp_path: Path, mask: np.ndarray) -> None:
    save(tmp_path / "image" / "crack" / "0.png", picture(0))
    save(tmp_path / "mask" / "crack" / "0.png", mask)
    region = load(tmp_path, load_masks=True, augment=False, resolution=192).example(0, 0)["mask"]
    assert region.sum().item() == 32 ** 2


@pytest.mark.parametrize("size", [(200, 80), (80, 200)])
@pytest.mark.parametrize("load_masks", [False, True])
def test_long_pictures_are_cut_at_the_damage(tmp_path: Path, size: tuple[int, int], load_masks: bool) -> None:
    image, mask = np.full((*size[::-1], 3), 255, np.uint8), np.zeros(size[::-1], np.uint8)
    mask[-10:, -10:] = 1
    image[-10:, -10:] = 0
    save(tmp_path / "image" / "crack" / "0.png", image)
    save(tmp_path / "mask" / "crack" / "0_mask.png", mask)
    example = load(tmp_path, load_masks=load_masks, augment=False).example(0, 0)
    assert example["image"].shape == (3, 64, 64) and (example["image"] < -0.9).sum() >= 3 * 49
    if load_masks:
        assert 64 <= example["mask"].sum() <= 81


def test_litter_is_ignored(tmp_path: Path) -> None:
    make_product(tmp_path, ("crack",))
    for name in (".DS_Store", "._000.png", "Thumbs.db", "desktop.ini", "notes.txt"):
        (tmp_path / "image" / "crack" / name).write_text("x")
    (tmp_path / "image" / ".ipynb_checkpoints").mkdir()
    (tmp_path / "__MACOSX" / "image").mkdir(parents=True)
    assert len(load(tmp_path)) == 3


def test_class_ids_from_the_command_line(tmp_path: Path) -> None:
    make_product(tmp_path)
    dataset = load(tmp_path, damage_type_to_class_id=["good=0", "crack=2", "dent=1"])
    assert dataset.classes == ["good", "dent", "crack"]
    assert dataset.items[0].class_id == 0 and dataset.items[0].image.parent.name == "good"


def test_fewer_samples_are_a_subset_and_depend_on_the_seed(tmp_path: Path) -> None:
    make_product(tmp_path, count=6)
    some = {n: set(names(load(tmp_path, max_samples_per_damage_type=n))) for n in (2, 4, 9)}
    assert some[2] < some[4] < some[9] and len(some[2]) == 6 and len(some[9]) == 18
    assert any(set(names(load(tmp_path, max_samples_per_damage_type=2, seed=s))) != some[2] for s in range(3))


def test_images_without_masks_are_enough_for_classes(tmp_path: Path) -> None:
    make_product(tmp_path)
    shutil.rmtree(tmp_path / "mask")
    assert len(load(tmp_path)) == 9


# ---- reproducible and cached

def test_examples_depend_on_seed_epoch_and_index_alone(tmp_path: Path) -> None:
    make_product(tmp_path)
    first, second = load(tmp_path, load_masks=True), load(tmp_path, load_masks=True)
    second.preload()
    keys = [(epoch, index) for epoch in (0, 1) for index in range(9)]
    forward = {key: first[key]["image"] for key in keys}
    for key in reversed(keys):
        assert torch.equal(second[key]["image"], forward[key])
    assert not torch.equal(forward[0, 0], forward[1, 0])
    assert not torch.equal(load(tmp_path, seed=1).example(0, 0)["image"], forward[0, 0])


def test_workers_see_the_same_examples(tmp_path: Path) -> None:
    dataset = load(make_product(tmp_path), load_masks=True)
    keys = [(5, index) for index in (3, 1, 4, 0)]
    loader = torch.utils.data.DataLoader(dataset, batch_size=2, sampler=keys, num_workers=1)
    images = torch.cat([batch["image"] for batch in loader])
    assert torch.equal(images, torch.stack([dataset[key]["image"] for key in keys]))


def test_nothing_is_decoded_twice_within_the_budget(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_product(tmp_path)
    monkeypatch.setattr("dataset.decoded.CACHE_BYTES", 4 * 96 * 96 * 3)
    dataset = load(tmp_path)
    dataset.preload()
    for path in sorted((tmp_path / "image").rglob("*.png"))[:4]:
        path.unlink()
    assert dataset.example(3, 1)["image"].shape == (3, 64, 64)
    shutil.rmtree(tmp_path / "image")
    with pytest.raises(UserError):
        dataset.example(4, 1)
