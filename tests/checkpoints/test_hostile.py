"""Files of strangers: what they name is not opened unasked, what they say is checked first."""

from __future__ import annotations

import dataclasses
import json
import math
import shlex
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from bases import Outcome, Place, command
from PIL import Image
from runs import train_control
from safetensors.torch import save_file
from trees import make_product

import evaluate
import lora
import sample
import train_class
import train_inpaint
from checkpoints.adapter import read_adapter
from checkpoints.metadata import Header
from data import DataConfig, load_dataset
from evaluation.image_sets import load_sets
from evaluation.networks import LITE
from runtime import trusted_paths
from runtime.errors import UserError, printable
from runtime.tensor_files import CHECKSUM, checksum
from sampling.mask_bank import open_masks
from sd.pretrained.weights import load_unet, load_vae

WORST: list[Any] = [None, True, -1, 10**400, math.nan, "\0", "../x", "\ud800", [], ["x"] * 4, [[]], {"x": 1}]
DATA_FLAGS = {field.name for field in dataclasses.fields(DataConfig)}


@pytest.fixture(autouse=True)
def elsewhere(place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a folder of its own, with the rule as users have it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(trusted_paths, "TRUSTED", (".",))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))  # of a user who has not trained anything


@pytest.fixture(scope="module")
def controlled(place: Place, stage_a: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of train_controlnet.py: its header holds all that a header can."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("controlled"))
        outcome = train_control(place, stage_a, "--out", "run", "--max-steps", 1, "--control-rank", 1)
        assert outcome.status == 0, outcome
        return Path("run").resolve() / "adapter.safetensors"


def rewriter(file: Path) -> Callable[..., Path]:
    """Writes the checkpoint with another header, and the checksum that belongs to it."""
    tensors, header = read_adapter(file)
    content = file.read_bytes()
    end = 8 + int.from_bytes(content[:8], "little")
    entries, body = json.loads(content[8:end]), content[end:]

    def write(**changes: Any) -> Path:
        about = dataclasses.asdict(header) | changes
        entries["__metadata__"] = {"adapter": json.dumps({**about, CHECKSUM: checksum(tensors, about)})}
        text = json.dumps(entries).encode()
        changed = Path("changed.safetensors")
        changed.write_bytes(len(text).to_bytes(8, "little") + text + body)
        return changed

    return write


def rewritten(file: Path, **changes: Any) -> Path:
    return rewriter(file)(**changes)


def ends_well(outcome: Outcome) -> bool:
    """With a right result, or in one line."""
    return outcome.status == 0 or outcome.failed_with("")


# --- what a header says ---

def hostile(header: Header) -> Iterator[dict[str, Any]]:
    """Each entry of a header at its worst, and each of those in it."""
    whole = dataclasses.asdict(header)
    for name, value in whole.items():
        yield from ({name: worst} for worst in WORST)
        if isinstance(value, dict):
            yield from ({name: value | {key: worst}} for key in value for worst in WORST
                        if name == "control" or key in DATA_FLAGS)
        yield {name: value, "another": 1}


def test_headers_at_their_worst(controlled: Path, place: Place, monkeypatch: pytest.MonkeyPatch,
                                capsys: pytest.CaptureFixture[str]) -> None:
    """Read to the end by those who need what is in them: refused in one line, or as good as any."""
    def reached(*_: object) -> None:
        raise UserError("so far all is well")

    monkeypatch.setattr(sample, "draw_all", reached)
    _, header = read_adapter(controlled)
    header_alone = [
        lambda file: command(sample.main, "--ckpt", file, "--base", place.base, "--per-class", 1),
        lambda file: command(lora.main, "convert", file, "converted", "--to", "kohya")]
    command_line = [
        lambda file: command(lambda: open_masks(None, read_adapter(file)[1], ["good"], 0)),
        lambda file: command(lambda: load_sets([str(place.data)], str(place.data), [], str(file), False))]
    write, tried = rewriter(controlled), 0
    for changes in hostile(header):
        file, tried = write(**changes), tried + 1
        for reader in command_line if "config" in changes else header_alone:
            outcome = reader(file)
            assert ends_well(outcome), (changes, outcome)
        shutil.rmtree("converted", ignore_errors=True)
        assert [path.name for path in Path().iterdir()] == ["changed.safetensors"], changes
    with capsys.disabled():
        print(f"\nhostile headers tried: {tried}")


def test_configs_of_bases_at_their_worst(place: Place) -> None:
    """Refused in one line before a tensor of that size is made."""
    shutil.copytree(place.base, "base")
    for part, loads in (("unet", load_unet), ("vae", load_vae)):
        load = partial(loads, "base", device="cpu", dtype=torch.float32)
        file = Path("base", part, "config.json")
        config = json.loads(file.read_text())
        for key in config:
            for worst in (*WORST, 10**12, [10**12] * 4, [0] * 4, [2**63] * 4, [1] * 1000):
                file.write_text(json.dumps(config | {key: worst}))
                outcome = command(load)
                assert ends_well(outcome), (part, key, worst, outcome)
        file.write_text("[" * 100_000)
        assert command(load).failed_with(str(file))


@pytest.mark.parametrize("name", ["adapter_config.json", "alpha"])
def test_loras_of_others_at_their_worst(name: str) -> None:
    """peft's patterns are regular expressions, which can take for ever; alpha may be no number."""
    module = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
    A, B = torch.ones(2, 320), torch.ones(320, 2)
    if name == "alpha":
        kohya = f"lora_unet_{module.replace('.', '_')}"
        for alpha in (torch.ones(3), torch.ones(0), torch.ones((), dtype=torch.bool)):
            save_file({f"{kohya}.lora_down.weight": A, f"{kohya}.lora_up.weight": B, f"{kohya}.alpha": alpha},
                      "lora.safetensors")
            assert ends_well(command(lora.main, "convert", "lora.safetensors", "out", "--from", "kohya",
                                     "--to", "diffusers"))
            shutil.rmtree("out", ignore_errors=True)
        return
    save_file({f"base_model.model.{module}.lora_A.weight": A, f"base_model.model.{module}.lora_B.weight": B},
              "adapter_model.safetensors")
    for pattern in (r"(([\w.]+)+)+x", ".*" * 30 + "x", "(", "a{99999}{99999}", "(?i)x"):
        Path(name).write_text(json.dumps({"lora_alpha": 4, "alpha_pattern": {pattern: 8}}))
        outcome = command(lora.main, "convert", ".", "out", "--from", "peft", "--to", "kohya")
        assert outcome.failed_with("adapter_config.json", "alpha"), pattern
    for settings in (*WORST, {"lora_alpha": "x"}, {"alpha_pattern": {"x)|(y": 8}}, {"alpha_pattern": [1]},
                     {"alpha_pattern": {"x": "y"}}):
        Path(name).write_text(json.dumps(settings))
        assert ends_well(command(lora.main, "convert", ".", "out", "--from", "peft", "--to", "kohya"))
        shutil.rmtree("out", ignore_errors=True)
    Path(name).write_text(json.dumps({"lora_alpha": 4, "alpha_pattern": {r"down_blocks\.0.*to_q": 8}}))
    assert command(lora.main, "convert", ".", "out", "--from", "peft", "--to", "kohya").status == 0


def test_a_picture_that_is_a_program(tmp_path: Path) -> None:
    """Pillow would hand PostScript, whatever it is called, to Ghostscript."""
    folder = make_product(tmp_path / "part", damages=("crack", "good"), count=1)
    Image.new("RGB", (96, 96)).save(tmp_path / "page.eps")
    shutil.copy(tmp_path / "page.eps", folder / "image/good/000.png")
    outcome = command(lambda: load_dataset(DataConfig(data=[str(folder)], resolution=64)))
    assert outcome.failed_with("good/000.png", "no image at all")


def test_names_do_not_control_the_terminal() -> None:
    assert printable("a\x1b]0;b\x07\n\u202ec d") == r"a\x1b]0;b\x07 \u202ec d"
    assert len(printable("x" * 10**6)) == 2000


# --- what a file names ---

@pytest.mark.parametrize(("path", "expected"), [
    ("tiny", True), ("owner/name@main", True), ("models/sd15", True), ("./a/../b", True),
    ("a/../../b", False), ("..", False), ("/", False), ("/net/host/x", False), ("//host/share", False),
    ("~/models", False), ("/given/deep", True), ("/given/../etc", False), ("/givenot", False)])
def test_which_paths_are_followed(path: str, expected: bool) -> None:
    assert trusted_paths.is_trusted(path, ["/given"]) is expected
    assert (trusted_paths.flag_if_untrusted("--base", path) == "") is trusted_paths.is_trusted(path)


def test_a_base_elsewhere_is_opened_when_it_is_asked_for(place: Place, controlled: Path) -> None:
    """It is there, and the right one; but a stranger's checkpoint could name any place."""
    def draw(file: Path, *arguments: object) -> Outcome:
        return command(sample.main, "--ckpt", file, "--masks", place.data, "--per-class", 1, "--steps", 1,
                       "--classes", "good", *arguments)

    assert draw(controlled).failed_with(str(place.base), "outside the current folder", f"--base {place.base}")
    assert not Path("generated").exists()
    assert draw(controlled, "--base", place.base).status == 0
    shutil.copytree(place.base, "models/base")
    assert draw(rewritten(controlled, base="models/base"), "--out", "below").status == 0
    for base, said in (("models/../../base", "outside the current"),
                       ("/net/a base", "add --base '/net/a base'")):
        assert draw(rewritten(controlled, base=base), "--out", "x").failed_with(said)


def test_training_says_all_that_sampling_needs(place: Place) -> None:
    outcome = command(train_class.main, "--data", place.data, "--base", place.base, "--resolution", 64,
                      "--preview-every", 0, "--max-steps", 1, "--out", "a run", "--latent-variants", 1)
    last = outcome.out.splitlines()[-1]
    assert last.endswith("python sample.py --ckpt 'a run' --out generated")
    flags = shlex.split(last.partition("sample.py ")[2])
    assert command(sample.main, *flags, "--per-class", 1, "--steps", 1).status == 0


def test_masks_and_a_published_start_elsewhere(place: Place, controlled: Path) -> None:
    flags = ("--ckpt", controlled, "--base", place.base, "--per-class", 1, "--steps", 1)
    outcome = command(sample.main, *flags)
    assert outcome.failed_with(str(place.data), "outside the current folder", f"--masks {place.data}")
    assert command(sample.main, *flags, "--masks", place.data).status == 0
    control = dataclasses.asdict(read_adapter(controlled)[1].control) | {"init": "/net/host/control"}
    outcome = command(sample.main, "--ckpt", rewritten(controlled, control=control), *flags[2:], "--masks",
                      place.data, "--out", "x")
    assert outcome.failed_with("/net/host/control", "outside the current folder")


def test_a_run_of_ones_own_needs_no_flag(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """Data and base at absolute paths elsewhere, as usual; also after another run. Not for another user."""
    train = ("--resolution", 64, "--preview-every", 0, "--max-steps", 1, "--latent-variants", 1)
    outcome = command(train_inpaint.main, "--data", place.data, "--base", place.base, "--out", "run", *train)
    assert outcome.status == 0, outcome
    draw = ("--ckpt", "run", "--images", place.data / "image/good", "--per-class", 1, "--steps", 1)
    assert command(sample.main, *draw).status == 0
    remembered = Path("state/few-shot-defects/chosen_paths.txt").read_text().splitlines()
    assert remembered == [str(place.data), str(place.base), str(place.data / "image/good")]
    file = Path("run/adapter.safetensors")
    strange = rewritten(file, config=read_adapter(file)[1].config | {"data": [str(place.data.parent / "x")]})
    outcome = command(sample.main, "--ckpt", strange, *draw[2:], "--out", "x")
    assert outcome.failed_with("x, which lies outside")
    monkeypatch.setenv("XDG_STATE_HOME", str(Path("another user").resolve()))
    assert command(sample.main, *draw, "--out", "y").failed_with(str(place.data), "--masks")
    assert not Path("x").exists() and not Path("y").exists()


def test_where_nothing_can_be_remembered_commands_still_work(place: Place, tmp_path: Path,
                                                             monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "file"))
    trusted_paths.remember(str(place.base))
    assert not trusted_paths.is_trusted(place.base)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    trusted_paths.remember(None, "owner/name", str(tmp_path / "gone"), str(place.base), str(place.base))
    assert (tmp_path / "state/few-shot-defects/chosen_paths.txt").read_text() == f"{place.base}\n"
    assert trusted_paths.is_trusted(place.base / "unet") and not trusted_paths.is_trusted(f"{place.base}2")


def test_photos_and_training_data_elsewhere(place: Place, controlled: Path, tmp_path: Path) -> None:
    """evaluate.py: what lies in the folders of its own command line is followed."""
    flags = ("--real", place.data, "--fake", "fake", "--out", "out", "--features", LITE, "--judge", LITE,
             "--folds", 2, "--bootstrap", 10)
    shutil.copytree(place.data, "fake")
    for photo, measured in ((place.data / "image/good/000.png", True), (Path("/net/host/000.png"), False)):
        Path("fake/samples.jsonl").write_text(json.dumps(
            {"file": "image/contamination/000.png", "photo": str(photo)}) + "\n")
        outcome = command(evaluate.main, *flags)
        assert outcome.status == 0, outcome
        assert ("not measured: mask fidelity" in outcome.out) is not measured
        assert ("/net/host/000.png, which lies outside" in outcome.out) is not measured
    Path("fake/samples.jsonl").unlink()
    assert load_sets([str(place.data)], "fake", [], str(controlled), False).held_out is None
    config = read_adapter(controlled)[1].config | {"data": ["/net/host/bottle"]}
    outcome = command(evaluate.main, *flags, "--ckpt", rewritten(controlled, config=config))
    assert outcome.failed_with("/net/host/bottle", "outside the current folder", "--ckpt")
