"""train_controlnet.py as a person runs it: over a frozen class checkpoint, whole or as low-rank updates."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import published
import pytest
import torch
from bases import Place, command, rows, write_base, write_text
from PIL import Image
from published import FP32
from runs import train_control, train_stage_a, trained_control
from safetensors.torch import load_file
from torch import Tensor, nn
from trees import make_flat, make_product

import sample
import train_controlnet
from checkpoints import adapter
from checkpoints.adapter import read_adapter
from checkpoints.controlnet import new_control
from checkpoints.loading import LoadedCheckpoint, load_checkpoint, read_checkpoint
from checkpoints.metadata import ControlHeader
from checkpoints.prompts import contexts_for
from sampling.generation import SamplingConfig, sample_images
from sd.guidance import ControlCondition
from training import loop

WHOLE = ControlHeader(class_ckpt="", init=None, fingerprint="", rank=0, channels=3,
                      class_channels=False, mask_dropout=0)
LOW_RANK = ControlHeader(class_ckpt="", init=None, fingerprint="", rank=2, channels=3,
                         class_channels=False, mask_dropout=0)


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def metrics(folder: str = "run") -> list[dict]:
    return [{key: value for key, value in row.items() if key != "seconds"}
            for row in rows(Path(folder, "metrics.jsonl"))[1:]]


def digest(module: nn.Module) -> str:
    """A hash of all tensors of a module."""
    state = {name: tensor.numpy().tobytes() for name, tensor in module.state_dict().items()}
    return hashlib.sha256(b"".join(name.encode() + state[name] for name in sorted(state))).hexdigest()


def loaded(ckpt: Path | str, strength: float = 1.0) -> LoadedCheckpoint:
    return load_checkpoint(read_checkpoint(ckpt), strength=strength, device=torch.device("cpu"),
                           dtype=torch.float32)


def write_init(folder: Path, seed: int = 0) -> Path:
    """A published ControlNet for the small base."""
    from bases import UNET
    config = published.CONTROLNET_JSON | {
        "block_out_channels": list(UNET.block_out_channels), "layers_per_block": UNET.layers_per_block,
        "cross_attention_dim": UNET.cross_attention_dim, "attention_head_dim": UNET.attention_head_dim,
        "norm_num_groups": UNET.norm_num_groups}
    published.write(folder / FP32, published.random_tensors(published.controlnet_shapes(config), seed))
    (folder / "config.json").write_text(json.dumps(config))
    return folder


# --- what a run leaves, and what it leaves alone ---

@pytest.mark.parametrize("rank", [0, 2])
def test_a_run_and_its_folder(place: Place, stage_a: Path, rank: int) -> None:
    outcome = train_control(place, stage_a, "--control-rank", rank, "--epochs", 2, "--preview-every", 2,
                            "--preview-steps", 2)
    assert outcome.status == 0 and "12 images: broken_large 3" in outcome.out, outcome
    run = Path("runs/bottle-control")
    assert sorted(path.name for path in run.iterdir()) == [
        "adapter.safetensors", "config.json", "curves.png", "metrics.jsonl", "previews", "resume.safetensors"]
    with Image.open(run / "previews/epoch_0002.png") as preview:
        assert preview.width > 3 * 64 and preview.height > 4 * 64
    assert len(metrics(str(run))) == 6 and all(row["grad_norm"] > 0 for row in metrics(str(run)))
    tensors, header = read_adapter(run / "adapter.safetensors")
    assert (header.kind, header.step, header.resolution, header.class_dropout) == ("control", 6, 64, 0.3)
    assert header.base == str(place.base) and header.control.rank == rank and header.control.channels == 3
    own = [name for name in tensors if name.startswith("control.")]
    encoder = [name for name in own if ".controlnet_" not in name]
    assert encoder and all(("lora_" in name) is (rank > 0) for name in encoder)
    assert all(tensors[name].abs().max() > 0 for name in own
               if rank == 0 or "controlnet_" in name or "lora_B" in name and "attn2.to_" not in name)


@pytest.mark.parametrize("rank", [0, 2])
def test_stage_a_is_the_same_to_the_last_bit(place: Place, stage_a: Path, rank: int,
                                             monkeypatch: pytest.MonkeyPatch) -> None:
    """In memory, by hash before and after training; and its tensors as the new checkpoint holds them."""
    seen: list[tuple[nn.Module, str]] = []

    def load(*arguments: object, **named: object) -> LoadedCheckpoint:
        frozen = load_checkpoint(*arguments, **named)
        seen.extend((module, digest(module)) for module in (frozen.unet, frozen.context, frozen.vae))
        return frozen

    monkeypatch.setattr(train_controlnet, "load_checkpoint", load)
    tensors = trained_control(place, stage_a, "--control-rank", rank, "--max-steps", 3, "--ema", 0.5)
    assert len(seen) == 3 and all(digest(module) == before for module, before in seen)
    before = load_file(stage_a / "adapter.safetensors")
    assert all(torch.equal(tensors[name], tensor) for name, tensor in before.items())
    assert all(name in before or name.startswith("control.") for name in tensors)


@pytest.mark.parametrize("about", [WHOLE, LOW_RANK], ids=["whole", "low-rank"])
def test_a_fresh_one_draws_what_stage_a_draws(stage_a: Path, about: ControlHeader) -> None:
    """To the last bit, with any mask."""
    a = loaded(stage_a)
    wanted, drawing = [("good", 0), ("broken_large", 1)], SamplingConfig(steps=3, guidance=2)
    contexts = contexts_for(a.context, [3, 0])
    control = ControlCondition(new_control(about, a.unet, seed=0), contexts, torch.ones(2, 3, 64, 64))
    expected = sample_images(a.unet, a.vae, contexts, wanted, drawing, 64)
    assert torch.equal(sample_images(a.unet, a.vae, contexts, wanted, drawing, 64, control), expected)


@pytest.mark.parametrize("flags", [(), ("--control-rank", 2), ("--control-rank", 2, "--init", "seg"),
                                   ("--class-channels",)])
def test_it_is_loaded_as_it_was_trained(place: Place, stage_a: Path, flags: tuple,
                                        monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever strength the LoRA is then given: the ControlNet was copied from the UNet with all of it."""
    write_init(Path("seg"))
    made = []
    monkeypatch.setattr(train_controlnet, "new_control",
                        lambda *arguments: made.append(new_control(*arguments)) or made[0])
    trained_control(place, stage_a, "--max-steps", 3, *flags)
    rng = torch.Generator().manual_seed(0)
    channels = made[0].config.conditioning_channels
    assert channels == (4 if "--class-channels" in flags else 3)
    inputs = (torch.randn(1, 4, 8, 8, generator=rng), torch.tensor([500]),
              torch.randn(1, 2, 16, generator=rng), torch.ones(1, channels, 64, 64))
    for strength in (1.0, 0.3):
        both = loaded("run", strength)
        net = both.controlnet.net
        both.unet.conv_in.weight.zero_()  # what changes the UNet, such as --lora, leaves the ControlNet
        with torch.no_grad():
            (skips, mid), (their_skips, their_mid) = net(*inputs), made[0].eval()(*inputs)
        assert not any(weight.requires_grad for weight in net.parameters())
        for ours, theirs in zip([*skips, mid], [*their_skips, their_mid], strict=True):
            assert theirs.abs().max() > 1e-4
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_low_rank_updates_are_small_and_keep_the_encoder_in_the_unets_memory(stage_a: Path) -> None:
    unet = loaded(stage_a).unet
    control = new_control(LOW_RANK, unet, seed=0)
    assert control.conv_in.weight.data_ptr() == unet.conv_in.weight.data_ptr()
    assert not control.conv_in.weight.requires_grad
    adapted = {name.rsplit(".lora_A", 1)[0] for name, _ in control.named_parameters() if "lora_A" in name}
    linears = {name for name, module in unet.named_modules()
               if type(module) is nn.Linear and not name.startswith("up_blocks")}
    assert adapted == linears


# --- the data ---

def test_the_condition_is_the_mask(place: Place, stage_a: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three channels of {0,1}; empty for `good` always, for others in the share of --mask-dropout."""
    seen: list[tuple[int, Tensor]] = []

    def watched(*arguments: object) -> nn.Module:
        control = new_control(*arguments)
        control.register_forward_pre_hook(lambda _, inputs: conditions.append(inputs[3]))
        return control

    def record(*arguments: object) -> Tensor:
        losses = computed(*arguments)
        seen.extend(zip(arguments[3]["class_id"].tolist(), conditions.pop(), strict=True))
        return losses

    conditions, computed = [], loop.step_losses
    monkeypatch.setattr(train_controlnet, "new_control", watched)
    monkeypatch.setattr(loop, "step_losses", record)
    for dropout in (0, 0.5):
        seen.clear()
        trained_control(place, stage_a, "--epochs", 2, "--mask-dropout", dropout, "--restart")
        assert len(seen) == 24 and all(condition.shape == (3, 64, 64) for _, condition in seen)
        assert all(set(condition.unique().tolist()) <= {0, 1} for _, condition in seen)
        assert all(condition.sum() == 0 for class_id, condition in seen if class_id == 3)
        empty = [condition.sum() == 0 for class_id, condition in seen if class_id != 3]
        assert any(empty) is (dropout > 0) and not all(empty)


def test_several_damages_in_a_photo_have_a_channel_each() -> None:
    from data import DataConfig, load_dataset
    folder = make_flat(Path("DS-Cotton-Fabric"), [(1, 2), (2,), (0,)])
    config = DataConfig([str(folder)], resolution=64, load_masks=True, augment=False)
    plain, by_class = load_dataset(config), load_dataset(config, masks_by_class=True)
    names = by_class.classes
    assert len(by_class) == 4 and len(names) == 3
    regions = {item.class_id: plain.example(i, 0)["mask"][0] for i, item in enumerate(plain.items)
               if item.image.stem == "000"}
    for i, item in enumerate(by_class.items):
        mask = by_class.example(i, 0)["mask"]
        assert mask.shape == (3, 64, 64)
        shown = {"000": regions.keys(), "001": {names.index("bubble")}, "002": set()}[item.image.stem]
        assert {c for c in range(3) if mask[c].any()} == set(shown)
        if item.image.stem == "000":
            assert all(torch.equal(mask[c], region) for c, region in regions.items())
    config.augment = True
    mask = load_dataset(config, masks_by_class=True).example(0, 5)["mask"]
    assert set(mask.unique().tolist()) == {0, 1} and mask.sum((1, 2)).count_nonzero() == 2


# --- starting from a published one ---

@pytest.mark.parametrize("rank", [0, 2])
def test_a_published_start(place: Place, stage_a: Path, rank: int) -> None:
    init = write_init(Path("seg"))
    flags = ("--init", init, "--control-rank", rank, "--max-steps", 1, "--lr", 1e-6)
    tensors = trained_control(place, stage_a, *flags)
    name = "controlnet_mid_block.weight"
    torch.testing.assert_close(tensors[f"control.{name}"], load_file(init / FP32)[name], rtol=0, atol=2e-6)
    assert loaded("run").controlnet is not None
    write_init(init, seed=1)  # another one under the same name
    if rank:
        with pytest.raises(Exception, match="was trained on another ControlNet than seg"):
            loaded("run")
    else:
        assert loaded("run").controlnet is not None  # it holds everything


def test_refused_starts(place: Place, stage_a: Path) -> None:
    init = write_init(Path("seg"))
    assert train_control(place, stage_a, "--init", "nowhere").failed_with("--init nowhere")
    assert train_control(place, stage_a, "--init", init, "--class-channels").failed_with(
        "--init seg", "conditioning_channels is 3, 4 is needed")
    assert not Path("runs").exists()


# --- going on ---

VARIANTS = {
    "whole": (),
    "low rank, ema, no cache": ("--control-rank", 2, "--ema", 0.9, "--latent-variants", 0),
    "accumulate, previews": ("--accumulate", 2, "--batch-size", 2, "--preview-every", 1, "--preview-steps", 1,
                             "--preview-guidance", 2),
    "bf16, channels": ("--precision", "bf16", "--class-channels", "--checkpointing", "full"),
}


@pytest.mark.parametrize("name", VARIANTS)
def test_stopped_and_continued_is_the_same_to_the_last_bit(name: str, place: Place, stage_a: Path,
                                                           monkeypatch: pytest.MonkeyPatch) -> None:
    for folder in ("once", "twice"):
        Path(folder).mkdir()
    monkeypatch.chdir("once")
    trained_control(place, stage_a, *VARIANTS[name], "--max-steps", 5)
    monkeypatch.chdir("../twice")
    trained_control(place, stage_a, *VARIANTS[name], "--max-steps", 2)
    trained_control(place, stage_a, *VARIANTS[name], "--max-steps", 5)
    for file in ("adapter.safetensors", "resume.safetensors", "config.json"):
        assert Path("run", file).read_bytes() == Path("../once/run", file).read_bytes(), file
    assert metrics() == metrics("../once/run") and len(metrics()) == 5


def test_another_class_checkpoint_in_the_same_place_is_another_run(place: Place, stage_a: Path,
                                                                   tmp_path: Path) -> None:
    trained_control(place, stage_a, "--max-steps", 1)
    other = train_stage_a(place, tmp_path / "other", "--class-dropout", 0.3, "--tokens-per-class", 2,
                          "--seed", 1)
    assert train_control(place, other, "--out", "run").failed_with("class_checkpoint was")


def test_the_learning_rate_follows_the_rank() -> None:
    parsed = [train_controlnet.Config(["x"], class_ckpt="a", control_rank=rank) for rank in (0, 8)]
    assert [config.lr for config in parsed] == [1e-5, 1e-4]
    default = train_controlnet.Config(["x"], class_ckpt="a")
    assert (default.control_rank, default.lr) == (16, 1e-4)
    assert train_controlnet.Config(["x"], class_ckpt="a", control_rank=8, lr=0.5).lr == 0.5


# --- refusals ---

def test_class_checkpoints_that_do_not_fit(place: Place, stage_a: Path, tmp_path: Path) -> None:
    other_base = write_base(tmp_path / "other base", seed=1)
    outcome = train_control(place, stage_a, "--base", other_base)
    assert outcome.failed_with("adapter.safetensors", "other weights", "--base")
    assert train_control(place, stage_a, "--resolution", 128).failed_with("--resolution 128", "trained at 64")
    assert train_control(place, stage_a, "--view", "close").failed_with("--view close", "give --view whole")
    assert train_control(place, stage_a, "--data", make_product(tmp_path / "product")).failed_with(
        "--data", "crack, dent, good", "broken_large, broken_small, contamination, good")
    order = ["broken_small=0", "broken_large=1", "contamination=2", "good=3"]
    assert train_control(place, stage_a, "--damage-type-to-class-id", *order).failed_with("in the same order")
    assert train_control(place, tmp_path / "nothing").failed_with("give --class-ckpt a run")
    without = command(train_controlnet.main, "--data", place.data)
    assert without.failed_with("--class-ckpt: give the run folder")
    without_null = train_stage_a(place, tmp_path / "without null")
    outcome = train_control(place, without_null, "--class-dropout", 0.1)
    assert outcome.failed_with("--class-dropout 0.1", "null class")
    assert train_control(place, without_null, "--preview-guidance", 2).failed_with("--preview-guidance 2")
    trained_control(place, stage_a, "--max-steps", 1)
    assert train_control(place, "run").failed_with("--class-ckpt", "of kind 'control'")
    assert not Path("runs").exists()


def test_json_needs_a_plan(place: Place, stage_a: Path) -> None:
    assert train_control(place, stage_a, "--json").failed_with("--json", "--plan")


def test_a_prompt_checkpoint_always_has_a_null_prompt(place: Place, tmp_path: Path) -> None:
    """Trained without class dropout; previews may be guided all the same."""
    base = write_text(write_base(tmp_path / "base"))
    prompts = train_stage_a(Place(base, place.data), tmp_path / "prompts", "--context", "prompt")
    outcome = train_control(place, prompts, "--preview-guidance", 2, "--preview-every", 1,
                            "--preview-steps", 1, "--max-steps", 1, "--batch-size", 1,
                            "--latent-variants", 0, "--out", "run")
    assert outcome.status == 0 and list(Path("run/previews").iterdir()), outcome


def test_a_checkpoint_with_tensors_missing(place: Place, stage_a: Path) -> None:
    tensors = trained_control(place, stage_a, "--max-steps", 1)
    tensors.pop("control.controlnet_mid_block.bias")
    adapter.save_adapter(Path("less.safetensors"), tensors,
                         adapter.read_adapter(Path("run/adapter.safetensors"))[1])
    with pytest.raises(Exception, match=r"less\.safetensors: does not fit this model: "
                                        r"control\.controlnet_mid_block\.bias missing"):
        loaded("less.safetensors")


def test_close_views_are_learnt_and_drawn(place: Place, tmp_path: Path,
                                          monkeypatch: pytest.MonkeyPatch) -> None:
    """From strategy A to images: masks are as large and as anywhere as in training."""
    monkeypatch.chdir(tmp_path)
    stage_a = train_stage_a(place, Path("a"), "--view", "close")
    assert train_control(place, stage_a, "--out", "b", "--max-steps", 1, "--view", "close").status == 0
    outcome = command(sample.main, "--ckpt", "b", "--classes", "contamination", "--per-class", 4,
                      "--steps", 1)
    assert outcome.status == 0, outcome
    noted = rows(Path("generated/samples.jsonl"))
    assert {row["view"] for row in noted} == {"close"}
    assert train_control(place, stage_a, "--out", "c", "--max-steps", 1).failed_with("give --view close")
