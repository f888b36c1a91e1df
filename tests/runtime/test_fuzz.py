"""Hostile inputs: one line and exit status 2, or a right result; no traceback, no half file.

How many were tried is printed at the end.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
import struct
import typing
import unicodedata
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from bases import Outcome, Place, command, rows
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import load_file
from trees import make_product, save, square_mask

import data
import evaluate
import sample
import train_class
import train_controlnet
import train_inpaint
from checkpoints.adapter import read_adapter
from checkpoints.lora_formats import read_lora
from data import DataConfig, load_dataset
from dataset import doctor
from runtime.errors import UserError
from sd.pretrained.weights import load_unet
from tiny import demo

TRIED: dict[str, int] = {}
MANY = settings(max_examples=120, deadline=None, derandomize=True, database=None,
                suppress_health_check=list(HealthCheck))


@pytest.fixture(scope="module", autouse=True)
def count(request: pytest.FixtureRequest) -> Iterator[None]:
    yield
    with request.config.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():
        print(f"\nhostile inputs tried: {sum(TRIED.values())} {TRIED}")


def survives(kind: str, main: Callable[[], object], *arguments: object) -> Outcome:
    """Run it: it must succeed, or fail in one line."""
    TRIED[kind] = TRIED.get(kind, 0) + 1
    outcome = command(main, *arguments)
    found = outcome.status == 1 and "problems found" in outcome.out  # by data.py doctor
    assert outcome.status == 0 or found or outcome.failed_with(""), outcome
    return outcome


def harmed(content: bytes, cut: float, flips: list[float], bit: int) -> bytes:
    """`content` cut to a share of its length, with single bits of it turned over."""
    changed = bytearray(content[:int(cut * len(content))] if cut < 1 else content)
    for where in flips if changed else []:
        changed[int(where * len(changed))] ^= 1 << bit
    return bytes(changed)


share = st.floats(0, 1, exclude_max=True)
HARM = {"cut": st.one_of(share, st.just(1.0)), "flips": st.lists(share, max_size=3), "bit": st.integers(0, 7)}


# --- pictures ---

@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_product(tmp_path_factory.mktemp("photos") / "part", count=2)


def read_all(folder: Path) -> None:
    dataset = load_dataset(DataConfig(data=[str(folder)], load_masks=True, resolution=64))
    for index in range(len(dataset)):
        dataset.example(index, 0)


@pytest.mark.parametrize("name", ["image/crack/001.png", "mask/crack/001_mask.png"])
@MANY
@given(**HARM)
def test_damaged_pictures(name: str, photos: Path, cut: float, flips: list[float], bit: int) -> None:
    file = photos / name
    whole = file.read_bytes()
    try:
        file.write_bytes(harmed(whole, cut, flips, bit))
        outcome = survives("pictures", lambda: read_all(photos))
        if file.read_bytes() == whole:
            assert outcome.status == 0
    finally:
        file.write_bytes(whole)


@pytest.mark.parametrize("size", [(1, 1), (1, 5000), (3, 2), (20_000, 20_000)])
@pytest.mark.parametrize("mode", ["1", "L", "P", "RGBA", "I;16"])
def test_odd_sizes(size: tuple[int, int], mode: str, tmp_path: Path) -> None:
    if max(size) > 5000 and mode != "1":
        pytest.skip("one of that size is enough")
    folder = make_product(tmp_path / "part", damages=("crack", "good"), count=1)
    image, mask = folder / "image/crack/000.png", folder / "mask/crack/000_mask.png"
    Image.new(mode, size).save(image)
    Image.new("L", size, 1).save(mask) if max(size) <= 5000 else shutil.copy(image, mask)
    outcome = survives("sizes", lambda: read_all(folder))
    assert (outcome.status == 0) == (max(size) <= 5000)
    survives("sizes", data.main, "doctor", folder, "--out", tmp_path / "doctor.png")


# --- names ---

@MANY
@given(names=st.lists(st.text(st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1,
                              max_size=40).filter(lambda name: name not in (".", "..")),
                      min_size=1, max_size=3, unique=True))
@example(names=[" ", "a b", "ä"]).via("spaces and unicode")
@example(names=["a\nb", "'", '"; rm']).via("what shells and terminals take to heart")
def test_odd_names(names: list[str], tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("names")
    for name in names:
        try:
            save(folder / "image" / name / f"{name}.png", square_mask(9))
        except (OSError, ValueError):  # not a name that this file system takes, or two it takes for one
            return
    found: list[str] = []

    def load() -> None:
        dataset = load_dataset(DataConfig(data=[str(folder)], resolution=64))
        dataset.example(0, 0)
        found.extend(dataset.classes)

    # One name in two Unicode forms is one class.
    composed = {unicodedata.normalize("NFC", name) for name in names}
    assert survives("names", load).status == 2 or set(found) == composed


def test_links_in_circles_and_empty_folders(tmp_path: Path) -> None:
    folder = make_product(tmp_path / "part", count=1)
    (folder / "image/crack/loop.png").symlink_to("loop.png")
    (folder / "image/round").symlink_to(folder / "image", target_is_directory=True)
    (tmp_path / "self").symlink_to(tmp_path / "self")
    for path in (folder, tmp_path / "self", tmp_path, folder / "image/round"):
        survives("names", lambda path=path: read_all(path))
        survives("names", data.main, "doctor", path, "--out", tmp_path / "doctor.png")
    for name in ("none", "none/image", "other/image/crack"):
        (tmp_path / name).mkdir(parents=True)
        assert survives("names", lambda name=name: read_all(tmp_path / name)).status == 2


# --- tensors ---

@pytest.fixture(scope="module")
def run(place: Place, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fuzzed") / "run"
    outcome = command(train_class.main, "--data", place.data, "--base", place.base, "--resolution", 64,
                      "--preview-every", 0, "--max-steps", 1, "--rank", 1, "--no-validate", "--out", folder,
                      "--latent-variants", 1)
    assert outcome.status == 0, outcome
    return folder


def header(value: object, length: int | None = None, body: bytes = bytes(16)) -> bytes:
    """A safetensors file with this header, which may lie about its length."""
    text = value if isinstance(value, bytes) else json.dumps(value).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + body


def tensor(**changes: object) -> dict[str, object]:
    return {"a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]} | changes}


LIES = {
    "longer than the file": header({}, 2**40), "longest": header({}, 2**64 - 1), "no header": b"",
    "half a length": b"\1\2\3", "not JSON": header(b"{" * 50), "deep": header(b"[" * 100_000),
    "a list": header([1]), "negative": header(tensor(shape=[-4])),
    "overflow": header(tensor(shape=[2**62, 4])),
    "outside": header(tensor(data_offsets=[0, 2**50])), "backwards": header(tensor(data_offsets=[16, 0])),
    "hole": header(tensor(data_offsets=[8, 16], shape=[2])), "no such type": header(tensor(dtype="F7")),
    "overlap": header(tensor() | {"b": tensor()["a"]}), "latin": header(b'{"\xff": 1}'),
    "settings no text": header({"__metadata__": {"adapter": 1}}), "settings no object":
        header({"__metadata__": {"adapter": "[1]"}} | tensor()), "settings of others":
        header({"__metadata__": {"adapter": "{}"}} | tensor()), "settings deep":
        header({"__metadata__": {"adapter": "[" * 100_000}} | tensor()), "upwards":
        header({"../../a": tensor()["a"]}), "a pickle": b"\x80\4cos\nsystem\n(S'touch pwned'\ntR.",
}
READERS: dict[str, Callable[[Path], object]] = {
    "checkpoint": read_adapter, "lora": read_lora,
    "base": lambda file: load_unet(str(file), device="cpu", dtype=torch.float32)}


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("lie", LIES)
def test_hostile_headers(lie: str, reader: str, tmp_path: Path) -> None:
    file = tmp_path / "file.safetensors"
    file.write_bytes(LIES[lie])
    outcome = survives("headers", lambda: READERS[reader](file))
    assert outcome.failed_with("file.safetensors") and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("reader", ["checkpoint", "lora"])
@MANY
@given(**HARM)
def test_damaged_checkpoints(reader: str, run: Path, cut: float, flips: list[float], bit: int) -> None:
    """Whatever bit is turned over: it is noticed."""
    whole = (run / "adapter.safetensors").read_bytes()
    file = run.parent / "harmed.safetensors"
    file.write_bytes(harmed(whole, cut, flips, bit))
    outcome = survives("checkpoints", lambda: READERS[reader](file))
    assert outcome.status == 0 if file.read_bytes() == whole else outcome.failed_with("harmed.safetensors")


@settings(MANY, max_examples=6)
@given(**HARM)
def test_a_damaged_run_goes_on_or_says_so(run: Path, place: Place, cut: float, flips: list[float],
                                          bit: int) -> None:
    """The state's damage is named; damaged latents and a damaged checkpoint for use are made again."""
    state = run / "resume.safetensors"
    latents, = (run.parent / "latents").rglob("*.safetensors")
    before = {file: file.read_bytes() for file in (state, latents, run / "adapter.safetensors")}
    again = ("--data", place.data, "--base", place.base, "--resolution", 64, "--preview-every", 0,
             "--max-steps", 1, "--rank", 1, "--no-validate", "--out", run, "--latent-variants", 1)
    for file in (state, run / "adapter.safetensors"):
        file.write_bytes(harmed(before[file], cut, flips, bit))
        changed = file.read_bytes() != before[file]
        outcome = survives("runs", train_class.main, *again)
        assert outcome.failed_with("resume.safetensors") if changed and file == state else outcome.status == 0
        if outcome.status:
            file.write_bytes(before[file])
    assert {file: file.read_bytes() for file in before} == before


# --- flags ---

CONFIGS = {train_class: train_class.Config, train_inpaint: train_inpaint.Config, evaluate: evaluate.Config,
           train_controlnet: train_controlnet.Config, sample: sample.Config}


WORST = ("0", "-1", "1e30", "99999999999999999999", "nan", "inf", "-inf", "1e-30", "x", "", "0x10", "1_0",
         "9" * 5000)


def numeric(cls: type, besides: type | None = None) -> Iterator[str]:
    """The flags of `cls` that take a number, without those that `besides` has too, declared once for both."""
    kinds, known = typing.get_type_hints(cls), dataclasses.fields(besides) if besides else ()
    shared = {field.name for field in known
              if field.metadata is cls.__dataclass_fields__.get(field.name, field).metadata}
    for name in [field.name for field in dataclasses.fields(cls) if field.name not in shared]:
        if {kinds[name], *typing.get_args(kinds[name])} & {int, float}:
            yield "--" + name.replace("_", "-")


@pytest.mark.parametrize("script", CONFIGS, ids=lambda script: script.__name__)
def test_every_number_at_its_worst(script: typing.Any, run: Path, place: Place, tmp_path: Path,
                                   monkeypatch: pytest.MonkeyPatch) -> None:
    """Up to where the models would be loaded: refused in one line that names the flag, or let pass."""
    def reached(*_: object, **__: object) -> None:
        raise UserError("so far all is well")

    monkeypatch.chdir(tmp_path)
    for name in ("load_unet", "load_inpainting_unet", "load_checkpoint", "load_networks"):
        if hasattr(script, name):
            monkeypatch.setattr(script, name, reached)
    needed = {evaluate: ["--real", place.data, "--fake", place.data], sample: ["--ckpt", run],
              train_controlnet: ["--data", place.data, "--class-ckpt", run],
              }.get(script, ["--data", place.data, "--base", place.base, "--resolution", 64])
    for flag in numeric(CONFIGS[script], None if script == train_class else train_class.Config):
        for value in WORST:
            outcome = survives("flags", script.main, *needed, "--out", "out", f"{flag}={value}")
            assert outcome.failed_with("so far all is well") or flag in outcome.err, (flag, value, outcome)
    assert not list(tmp_path.rglob("*.*"))


@pytest.mark.parametrize("words", [("doctor", doctor.Doctor), ("demo", demo.Demo)],
                         ids=lambda words: words[0])
def test_numbers_of_data(words: tuple[str, type], place: Place, tmp_path: Path,
                         monkeypatch: pytest.MonkeyPatch) -> None:
    """doctor may look at all of it; demo would draw."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(demo, "write_demo", lambda *_, **__: None)
    for flag in numeric(words[1]):
        for value in WORST:
            outcome = survives("flags", data.main, words[0], place.data if words[0] == "doctor" else "out",
                               f"{flag}={value}")
            assert outcome.status == 0 or flag in outcome.err, (flag, value, outcome)


@pytest.mark.parametrize(("flag", "values"), {
    "--lr": ["1e30", "1e-30"], "--alpha": ["1e30", "1e-30"], "--init-std": ["1e30", "1e-30"],
    "--weight-decay": ["1e30"], "--clip": ["1e30", "1e-30"], "--embedding-lr": ["1e30"],
    "--tokens-per-class": ["77"], "--batch-size": ["1000"], "--accumulate": ["1000"], "--rank": ["1024"],
}.items())
def test_numbers_that_are_taken(flag: str, values: list[str], place: Place, tmp_path: Path,
                                monkeypatch: pytest.MonkeyPatch) -> None:
    """Trained with: two steps end well, or say why not; what is left is whole."""
    for value in values:
        run = tmp_path / f"run{value}"
        outcome = survives("trainings", train_class.main, "--data", place.data, "--base", place.base,
                           "--resolution", 64, "--preview-every", 0, "--max-steps", 2, "--no-validate",
                           "--latent-variants", 0, "--out", run, flag, value)
        if outcome.status == 0:
            assert all(tensor.isfinite().all() for tensor in load_file(run / "adapter.safetensors").values())
        assert len(rows(run / "metrics.jsonl")) == 3 and not list(run.glob(".*"))
