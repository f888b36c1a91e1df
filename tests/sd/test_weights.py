"""sd/weights.py against files in every published layout, diffusers' readers of them, a hub on loopback."""

from __future__ import annotations

import json
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import published
import pytest
import torch
from bases import CPU, ROOT
from forked_commands import ForkedCommands
from hub_server import HubServer
from published import FP16, FP32, SMALL_UNET, SMALL_VAE, UNET_JSON, VAE_JSON, components, without
from safetensors.torch import load_file

from runtime.errors import UserError
from sd.pretrained import compvis, weights
from sd.pretrained.weights import DEFAULT_BASE, INPAINTING_BASE, REVISIONS, fingerprint, load_unet, load_vae
from sd.unet import UNet, UNetConfig
from sd.vae import VAE


@pytest.fixture(scope="module")
def inpainting(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return published.write_model(tmp_path_factory.mktemp("inpainting"), unet=SMALL_UNET | {"in_channels": 9},
                                 files=(FP16,))


@pytest.fixture()
def copy(base: Path, tmp_path: Path) -> Path:
    """`base` again, to be spoilt."""
    return Path(shutil.copytree(base, tmp_path / "copy"))


def assert_same(module: torch.nn.Module, tensors: dict[str, torch.Tensor]) -> None:
    state = module.state_dict()
    assert state.keys() == tensors.keys()
    for name, tensor in state.items():
        assert torch.equal(tensor, tensors[name].to(tensor.dtype)), name


# --- names, shapes and sizes of the published files ---

@pytest.mark.parametrize(("channels", "parameters"), [(4, 859_520_964), (9, 859_535_364)])
def test_unet_has_the_published_tensors(channels: int, parameters: int) -> None:
    with torch.device("meta"):
        state = UNet(UNetConfig(in_channels=channels)).state_dict()
    shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
    assert shapes == published.unet_shapes(UNET_JSON | {"in_channels": channels})
    assert (len(shapes), sum(tensor.numel() for tensor in state.values())) == (686, parameters)


def test_vae_has_the_published_tensors() -> None:
    with torch.device("meta"):
        state = VAE().state_dict()
    assert {name: tuple(tensor.shape) for name, tensor in state.items()} == published.vae_shapes(VAE_JSON)
    assert (len(state), sum(tensor.numel() for tensor in state.values())) == (248, 83_653_863)


def test_the_test_files_have_the_published_byte_counts() -> None:
    """Names, shapes and types fix a safetensors file's length: these are the lengths that the hub lists."""
    nine = published.unet_shapes(UNET_JSON | {"in_channels": 9})
    assert published.file_size(published.unet_shapes(UNET_JSON), "F16") == 1_719_125_304
    assert published.file_size(published.unet_shapes(UNET_JSON), "F32") == 3_438_167_536
    assert published.file_size(nine, "F16") == 1_719_154_104
    assert published.file_size(published.vae_shapes(VAE_JSON, legacy=True), "F32") == 334_643_276
    assert published.file_size(published.vae_shapes(VAE_JSON), "F16") == 167_335_342


def test_every_name_of_the_original_file() -> None:
    """v1-5-pruned-emaonly.safetensors: 1145 tensors, 4,265,146,304 bytes, among them all that we need."""
    unet, vae = published.unet_shapes(UNET_JSON), published.vae_shapes(VAE_JSON)
    file = published.original_layout(unet, vae, published.text_shapes())
    file = {name: published.with_convolutions(name, shape) for name, shape in file.items()}
    others = {name: tuple(tensor.shape) for name, tensor in published.schedule_buffers().items()}
    others["cond_stage_model.transformer.text_model.embeddings.position_ids"] = (1, 2 * 77)  # of int64
    assert len(file) + len(others) == 1145
    assert abs(published.file_size(file | others) - 4_265_146_304) <= 8
    for prefix, rename, shapes in (("model.diffusion_model.", compvis.unet_name, unet),
                                   ("first_stage_model.", compvis.vae_name, vae)):
        names = [rename(name.removeprefix(prefix)) for name in file if name.startswith(prefix)]
        assert sorted(names) == sorted(shapes)


def test_the_rename_table_inverts_the_writers(base: Path) -> None:
    """Name by name, and not only as a set."""
    unet, vae = components(base)
    for old, new in published.original_unet({name: name for name in unet}).items():
        assert compvis.unet_name(old) == new
    for old, new in published.original_vae({name: name for name in vae}).items():
        assert compvis.vae_name(old) == new


# --- every layout ---

@pytest.mark.parametrize("file", [FP32, FP16])
def test_folder(base: Path, copy: Path, file: str) -> None:
    for folder in ("unet", "vae"):
        (copy / folder / (FP16 if file == FP32 else FP32)).unlink()
    precision = torch.float32 if file == FP32 else torch.float16
    for module, tensors in zip((load_unet(str(copy), **CPU), load_vae(str(copy), **CPU)), components(base),
                               strict=True):
        assert_same(module, {name: tensor.to(precision) for name, tensor in tensors.items()})
        assert not module.training
        assert all(p.dtype == torch.float32 and not p.requires_grad for p in module.parameters())


def test_fp32_comes_before_fp16(base: Path) -> None:
    assert_same(load_unet(str(base), **CPU), components(base)[0])


def test_the_dtype_asked_for(base: Path) -> None:
    unet = load_unet(str(base), device="cpu", dtype=torch.bfloat16)
    assert {p.dtype for p in unet.parameters()} == {torch.bfloat16}
    assert_same(unet, {name: tensor.bfloat16() for name, tensor in components(base)[0].items()})


def test_outputs_equal_those_of_diffusers_on_the_same_folder(base: Path) -> None:
    from diffusers import AutoencoderKL, UNet2DConditionModel
    theirs = UNet2DConditionModel.from_pretrained(base, subfolder="unet")
    their_vae = AutoencoderKL.from_pretrained(base, subfolder="vae")  # renames the legacy attention itself
    torch.manual_seed(0)
    z, t, context = torch.randn(2, 4, 16, 8), torch.tensor([1, 981]), torch.randn(2, 3, 24)
    image = torch.randn(1, 3, 64, 32)
    with torch.no_grad():
        unet, vae = load_unet(str(base), **CPU), load_vae(str(base), **CPU)
        mean = their_vae.encode(image).latent_dist.mean * 0.18215
        for ours, expected in ((unet(z, t, context), theirs(z, t, context).sample),
                               (vae.posterior(image)[0], mean),
                               (vae.decode(z * 0.18215), their_vae.decode(z).sample)):
            torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.usefixtures("small_original")
@pytest.mark.parametrize(("dtype", "ema"), [(torch.float32, True), (torch.float16, False)])
def test_original_file(base: Path, tmp_path: Path, dtype: torch.dtype, ema: bool) -> None:
    unet, vae = components(base)
    file = tmp_path / "v1-5.safetensors"
    published.write(file, published.original_tensors(unet, vae, ema=ema), dtype)
    assert_same(load_unet(str(file), **CPU), published.in_precision(unet, dtype))
    assert_same(load_vae(str(file), **CPU), published.in_precision(vae, dtype))


@pytest.mark.usefixtures("small_original")
def test_original_file_as_diffusers_converts_it(base: Path, tmp_path: Path) -> None:
    from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint, convert_ldm_vae_checkpoint
    tensors = published.original_tensors(*components(base), ema=True)
    file = published.write(tmp_path / "v1-5.safetensors", tensors)
    assert_same(load_unet(str(file), **CPU), convert_ldm_unet_checkpoint(dict(tensors), SMALL_UNET))
    assert_same(load_vae(str(file), **CPU), convert_ldm_vae_checkpoint(dict(tensors), SMALL_VAE))


@pytest.mark.usefixtures("small_original")
def test_nine_channels(inpainting: Path, tmp_path: Path) -> None:
    unet = load_unet(str(inpainting), **CPU, in_channels=9)
    assert unet.conv_in.weight.shape == (16, 9, 3, 3)
    tensors = load_file(inpainting / "unet" / FP16)
    vae = load_file(inpainting / "vae" / FP16)
    file = tmp_path / "inpainting.safetensors"
    published.write(file, published.original_tensors(tensors, vae))
    assert_same(load_unet(str(file), **CPU, in_channels=9), unet.state_dict())
    for wrong in (inpainting, file):
        with pytest.raises(UserError, match=f"in_channels is 9, 4 is needed here; {DEFAULT_BASE}"):
            load_unet(str(wrong), **CPU)


def test_tiny_is_the_folder_beside_sd(base: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert weights.TINY == ROOT / "tiny"
    monkeypatch.setattr(weights, "TINY", base)
    monkeypatch.chdir(tmp_path)  # whatever the working folder is
    assert_same(load_unet("tiny", **CPU), components(base)[0])


def test_an_overwritten_file_does_not_reach_a_loaded_model(base: Path, copy: Path) -> None:
    unet = load_unet(str(copy), **CPU)
    file = copy / "unet" / FP32
    file.write_bytes(bytes(file.stat().st_size))
    assert_same(unet, components(base)[0])


def test_fingerprint(base: Path, copy: Path, tmp_path: Path) -> None:
    """One base in every precision; another for another seed, and for the lightest fine-tuning."""
    (copy / "unet" / FP32).unlink()
    prints = {fingerprint(load_unet(str(folder), device="cpu", dtype=dtype)) for folder in (base, copy)
              for dtype in (torch.float32, torch.float16, torch.bfloat16)}
    assert len(prints) == 1 and len(prints.copy().pop()) == 16
    other = published.write_model(tmp_path / "other", files=(FP32,), seed=5)
    unet = load_unet(str(base), **CPU)
    for parameter in unet.parameters():
        parameter += 1e-3 * parameter.std() * torch.randn_like(parameter) if parameter.numel() > 1 else 0
    assert len(prints | {fingerprint(load_unet(str(other), **CPU)), fingerprint(unet)}) == 3


# --- faults ---

def edit(change: Callable[[dict[str, Any]], Any], file: str = f"unet/{FP32}") -> Callable[[Path], None]:
    """A spoiler of a folder: applies `change` to the tensors of one of its files."""
    def spoil(folder: Path) -> None:
        tensors = load_file(folder / file)
        change(tensors)
        published.write(folder / file, tensors)
    return spoil


def truncate(folder: Path) -> None:
    file = folder / "unet" / FP32
    file.write_bytes(file.read_bytes()[:-1000])


def overwrite(content: bytes) -> Callable[[Path], None]:
    return lambda folder: (folder / "unet" / FP32).write_bytes(content) and None


def pickled(folder: Path) -> None:
    for file in (FP32, FP16):
        (folder / "unet" / file).unlink()
    (folder / "unet" / "diffusion_pytorch_model.bin").write_bytes(b"pickle")


@pytest.mark.parametrize(("spoil", "expected"), [
    (edit(lambda t: t.pop("conv_in.weight")), [FP32, "of the 686 tensors", "lacks 1 (conv_in.weight)"]),
    (edit(without("mid_block.resnets")), ["lacks 20 (mid_block.resnets.0.conv1.bias", "and 17 more"]),
    (edit(lambda t: t.update(extra=torch.zeros(1))), ["has 1 too many (extra)"]),
    (edit(lambda t: t.update({"conv_out.bias": torch.zeros(7)})), ["1 of another shape (conv_out.bias [7]"]),
    (edit(lambda t: t.update({"conv_out.bias": torch.zeros(4, 1, 1)})), ["conv_out.bias [4, 1, 1] for [4]"]),
    (edit(lambda t: t.update({"conv_out.bias": torch.zeros(4).char()})), ["torch.int8", "quantised"]),
    (truncate, [FP32, "not a whole safetensors file", "fetch it again"]),
    (overwrite(b""), ["not a whole safetensors file"]),
    (overwrite(b"PK\x03\x04" + bytes(500)), ["not a whole safetensors file"]),
    (overwrite(struct.pack("<Q", 2**63 - 1) + b"{}"), ["header too large"]),
    (overwrite(struct.pack("<Q", 90_000_000) + b"{}" * 99), ["invalid header length"]),
    (overwrite(struct.pack("<Q", 16) + b'{"a":[1,2,3]}   '), ["not a whole safetensors file"]),
    (overwrite(b"version https://git-lfs.github.com/spec/v1\noid sha256:19da7aaa\n"), ["git lfs pull"]),
    (pickled, ["no unet/diffusion_pytorch_model.safetensors", "pickles (.bin) are not read"]),
    (lambda folder: shutil.rmtree(folder / "unet"), ["no unet/diffusion_pytorch_model.safetensors"]),
])
def test_spoilt_folder(copy: Path, spoil: Callable[[Path], None], expected: list[str]) -> None:
    spoil(copy)
    assert_refused(str(copy), expected)


def assert_refused(base: str, expected: list[str], load: Callable[..., Any] = load_unet) -> None:
    with pytest.raises(UserError) as caught:
        load(base, **CPU)
    message = str(caught.value)
    assert "\n" not in message and base in message
    for words in expected:
        assert words in message, message


def test_vae_under_both_spellings(copy: Path) -> None:
    file, name = copy / "vae" / FP32, "encoder.mid_block.attentions.0.query.bias"
    tensors = load_file(file)
    published.write(file, tensors | {name.replace("query", "to_q"): tensors[name].clone()})
    assert_refused(str(copy), ["encoder.mid_block.attentions.0.to_q.bias under two names"], load_vae)


@pytest.mark.parametrize(("part", "key", "value"), [
    ("unet", "use_linear_projection", True), ("unet", "cross_attention_dim", 1024),
    ("unet", "cross_attention_dim", [768, 768]), ("unet", "attention_head_dim", [5, 10, 20, 20]),
    ("unet", "addition_embed_type", "text_time"), ("unet", "transformer_layers_per_block", [1, 2, 10]),
    ("unet", "down_block_types", ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"]),
    ("unet", "block_out_channels", [320, 640, 1280]), ("unet", "block_out_channels", "320"),
    ("unet", "block_out_channels", []), ("unet", "layers_per_block", 0), ("unet", "norm_num_groups", "32"),
    ("unet", "norm_eps", 1e-6), ("vae", "latents_mean", [0.0]), ("vae", "scaling_factor", "x"),
    ("vae", "down_block_types", ["DownEncoderBlock2D"] * 3), ("vae", "use_quant_conv", False)])
def test_other_architecture(copy: Path, part: str, key: str, value: Any) -> None:
    file = copy / part / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {key: value}))
    named = "down_block_types" if key == "block_out_channels" and value == [320, 640, 1280] else key
    load = load_unet if part == "unet" else load_vae
    assert_refused(str(copy), [str(file), named, "Stable Diffusion 1.5 has"], load)


def test_harmless_settings(copy: Path) -> None:
    file = copy / "unet" / "config.json"
    more = {"sample_size": 96, "upcast_attention": False, "use_linear_projection": None, "anything": [1]}
    file.write_text(json.dumps(json.loads(file.read_text()) | more))
    assert not load_unet(str(copy), **CPU).training


@pytest.mark.parametrize("content", ["", "[]", "{", "\xff"])
def test_damaged_config(copy: Path, content: str) -> None:
    (copy / "unet" / "config.json").write_text(content, encoding="latin-1")
    assert_refused(str(copy), ["config.json: not a model's config.json"])


def test_widths_that_the_groups_do_not_divide(copy: Path) -> None:
    file = copy / "unet" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"norm_num_groups": 7}))
    assert_refused(str(copy), ["config.json", "divisible"])


@pytest.mark.parametrize(("base", "expected"), [
    ("no-such-model", ["no such file or folder, and not a hub id", "1.5 is stable-diffusion-v1-5/"]),
    ("models/v1-5.safetensors", ["no such file or folder"]),
    ("models/v1-5.ckpt", ["no such file or folder"]),
    ("https://huggingface.co/a/b", ["not a hub id"]),
])
def test_what_is_no_base(base: str, expected: list[str]) -> None:
    assert_refused(base, expected)


@pytest.mark.parametrize("name", ["v1-5.ckpt", "model.bin", "model.pt"])
def test_pickles_are_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"\x80\x02}q\x00.")
    assert_refused(str(tmp_path / name), ["a pickle can run code", "v1-5-pruned-emaonly.safetensors"])


@pytest.mark.usefixtures("small_original")
@pytest.mark.parametrize(("change", "expected"), [
    (without("model.diffusion_model."), ["no tensor is called model.diffusion_model."]),
    (without("model.diffusion_model.out."), ["lacks 4 (conv_norm_out.bias"]),
    (lambda t: t.update({"model.diffusion_model.label_emb.0.0.weight": torch.zeros(2)}),
     ["has 1 too many (model.diffusion_model.label_emb.0.0.weight)"]),
    (lambda t: t.update({"model.diffusion_model.input_blocks.1": torch.zeros(2)}),
     ["has 1 too many (model.diffusion_model.input_blocks.1)"]),
    (lambda t: t.update({"model.diffusion_model.out.0.bias": torch.zeros(3)}), ["out.0.bias [3] for [16]"]),
    (lambda t: t.update({"model.diffusion_model.out.00.bias": torch.zeros(16)}), ["under two names"]),
    (lambda t: t.update({"model.diffusion_model.input_blocks.0.0.weight": torch.zeros(3)}),
     ["input_blocks.0.0.weight [3] for [16, 4, 3, 3]"]),
])
def test_spoilt_original_file(base: Path, tmp_path: Path, change: Callable[[dict[str, Any]], Any],
                              expected: list[str]) -> None:
    tensors = published.original_tensors(*components(base))
    change(tensors)
    assert_refused(str(published.write(tmp_path / "v1-5.safetensors", tensors)), expected)


def test_a_component_given_as_original_file(base: Path) -> None:
    assert_refused(str(base / "unet" / FP32), ["not an original SD 1.5 file", "folder that holds unet/"])


# --- the hub: other processes, for its address and cache are read when huggingface_hub is imported ---

def hub(base: Path, inpainting: Path) -> HubServer:
    return HubServer({DEFAULT_BASE: base, INPAINTING_BASE: inpainting, "someone/fine-tune": base},
                     commits=REVISIONS)


def test_download_cache_and_offline_reuse(base: Path, inpainting: Path, forked: ForkedCommands,
                                          tmp_path: Path) -> None:
    unet_only = published.original_tensors(*components(base))
    without("first_stage_model.")(unet_only)
    file = published.write(tmp_path / "no-vae.safetensors", unet_only)
    code = f"""
unet, vae = load_unet(DEFAULT_BASE, **CPU), load_vae(DEFAULT_BASE, **CPU)
print(fingerprint(unet), fingerprint(load_unet(INPAINTING_BASE, **CPU, in_channels=9)))
print(fingerprint(load_unet('someone/fine-tune@main', **CPU)), load_vae({str(file)!r}, **CPU).config)
"""
    with hub(base, inpainting) as server:
        environment = server.environment(tmp_path / "cache")
        first = forked.python(code, environment, tmp_path)
        assert first.status == 0, first
        assert first.err.splitlines() == [
            *(f"{model}: fetching it from {server.url}, once"
              for model in (DEFAULT_BASE, INPAINTING_BASE, "someone/fine-tune")),
            f"{file}: holds no VAE, taking that of {DEFAULT_BASE}"]
        assert first.out.split()[0] == fingerprint(load_unet(str(base), **CPU)) == first.out.split()[2]
        assert server.count("GET", f"storage/models/{DEFAULT_BASE}/unet/{FP32}") == 1
        assert server.count("GET", FP16) == server.count("GET", f"{INPAINTING_BASE}/unet/{FP16}") == 1
        assert server.count("HEAD", f"{DEFAULT_BASE}/resolve/{REVISIONS[DEFAULT_BASE]}/") > 0
        assert server.count("HEAD", f"{DEFAULT_BASE}/resolve/main") == 0
    # The server is gone. With the cache, neither that nor being told so makes a difference.
    for more in ({}, {"HF_HUB_OFFLINE": "1"}):
        again = forked.python(code, environment | more, tmp_path)
        assert (again.status, again.out) == (0, first.out)
        assert again.err.splitlines() == first.err.splitlines()[3:]


def test_a_broken_download_is_resumed(forked: ForkedCommands, tmp_path: Path) -> None:
    """huggingface-hub keeps what arrived in whole blocks of 10 MB and asks for the rest."""
    unet = SMALL_UNET | {"block_out_channels": [32, 64, 96, 128]}
    folder = published.write_model(tmp_path / "model", unet=unet, files=(FP32,))
    size = (folder / "unet" / FP32).stat().st_size
    assert 22_000_000 < size < 40_000_000
    with HubServer({"someone/model": folder}) as server:
        server.cuts = [12_000_000, 11_000_000]
        code = "print(fingerprint(load_unet('someone/model', **CPU)))"
        result = forked.python(code, server.environment(tmp_path / "cache"), tmp_path)
        assert result.status == 0, result.err
        assert result.out.strip() == fingerprint(load_unet(str(folder), **CPU))
        ranges = [request.range for request in server.requests if request.path.startswith("storage/")]
        assert ranges == [None, "bytes=10485760-", "bytes=20971520-"]
        assert server.bytes_sent < size + 5_000_000


def test_a_hub_that_goes_away_amid_a_download_and_one_that_is_slow(forked: ForkedCommands,
                                                                   tmp_path: Path) -> None:
    """One line, after a few tries, and no half file that is taken for a whole one by the same command."""
    unet = SMALL_UNET | {"block_out_channels": [32, 64, 96, 128]}
    folder = published.write_model(tmp_path / "model", unet=unet, files=(FP32,))
    code = "print(fingerprint(load_unet('someone/model', **CPU)))"
    with HubServer({"someone/model": folder}) as server:
        server.cuts = [12_000_000] + [0] * 50
        environment = server.environment(tmp_path / "cache")
        gone = forked.python(code, environment, tmp_path)
        *tries, last = gone.err.splitlines()  # huggingface-hub says that it tries again
        assert gone.status == 2 and gone.out == "" and "Traceback" not in gone.err
        assert last.startswith("error: ") and f"unet/{FP32} could not be fetched" in last and len(tries) < 20
        server.cuts, server.delay = [], 20  # it stands still
        still = forked.python(code, environment | {"HF_HUB_DOWNLOAD_TIMEOUT": "1"}, tmp_path)
        assert still.status == 2 and f"unet/{FP32} could not be fetched" in still.err.splitlines()[-1]
        server.delay = 0.01
        again = forked.python(code, environment, tmp_path)
        assert again.out.strip() == fingerprint(load_unet(str(folder), **CPU)), again.err


def test_what_the_hub_refuses(base: Path, inpainting: Path, forked: ForkedCommands, tmp_path: Path) -> None:
    cases = {"someone/nothing": "it is not on the hub, or private",
             "someone/fine-tune@v9": "no such revision",
             "someone/gated": "access is restricted",
             "someone/down": "HTTP 500",
             "someone/down-later": f"unet/{FP32} could not be fetched",
             "someone/busy": "HTTP 429",
             "someone/damaged": "arrived damaged",
             "someone/empty": "no unet/diffusion_pytorch_model.safetensors"}
    (tmp_path / "empty").mkdir()
    code = f"""
for base in {list(cases)!r}:
    start = time.time()
    try: load_unet(base, **CPU)
    except errors.UserError as error: print(base, error)
    if time.time() - start > 100: print('slow')
load_unet('someone/gated', **CPU)
"""
    with hub(base, inpainting) as server:
        models = server.repos["models"]
        models |= {f"someone/{name}": base for name in ("gated", "down", "down-later", "damaged", "busy")}
        models["someone/empty"] = tmp_path / "empty"
        server.gated = {"someone/gated"}
        server.status = {"someone/down/": 500, "storage/models/someone/down-later": 503,
                         "someone/busy/": 429}
        server.garbage = {"someone/damaged/unet"}
        environment = server.environment(tmp_path / "cache")
        result = forked.python(code, environment, tmp_path)
        lines = result.out.splitlines()
        assert [line.split()[0] for line in lines] == list(cases), result.out + result.err
        for line, (name, words) in zip(lines, cases.items(), strict=True):
            assert words in line and name.split("@")[0] in line.split(maxsplit=1)[1]
        assert result.status == 2
        assert result.err.splitlines()[-1].startswith(
            "error: someone/gated: unet/config.json could not be fetched: access is restricted")
        server.garbage = set()
        mended = forked.python("load_unet('someone/damaged', **CPU)", environment, tmp_path)
        assert mended.status == 0, mended.err


@pytest.mark.parametrize(("extra", "expected"), [({}, "http://127.0.0.1:9 could not be reached"),
                                                 ({"HF_HUB_OFFLINE": "1"}, "HF_HUB_OFFLINE forbids")])
def test_no_network(forked: ForkedCommands, tmp_path: Path, extra: dict[str, str], expected: str) -> None:
    with HubServer() as server:
        environment = server.environment(tmp_path) | {"HF_ENDPOINT": "http://127.0.0.1:9"} | extra
    result = forked.python("print('start'); load_unet(DEFAULT_BASE, **CPU)", environment, tmp_path)
    assert result.status == 2 and len(result.err.splitlines()) == 1, result.err
    assert result.err.startswith(f"error: {DEFAULT_BASE}: unet/config.json") and expected in result.err


def test_the_server_lists_a_dataset_page_by_page(forked: ForkedCommands, tmp_path: Path) -> None:
    """The server's other half, which data.py's downloads use: revision, paginated tree, allow_patterns."""
    for i in range(7):
        (tmp_path / "set" / "bottle").mkdir(parents=True, exist_ok=True)
        (tmp_path / "set" / "bottle" / f"{i}.txt").write_text(str(i))
    (tmp_path / "set" / "cable.txt").write_text("no")
    code = """
from huggingface_hub import snapshot_download
from pathlib import Path
folder = Path(snapshot_download('someone/set', repo_type='dataset', allow_patterns=['bottle/*']))
print(sorted(path.name for path in folder.rglob('*.txt')))
"""
    with HubServer(datasets={"someone/set": tmp_path / "set"}, page=3) as server:
        result = forked.python(code, server.environment(tmp_path / "cache"), tmp_path)
        assert result.out.strip() == str([f"{i}.txt" for i in range(7)]), result.err
        assert server.count("GET", "/tree/") == 3 and server.count("GET", "cable.txt") == 0


# --- memory ---

@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the peak from /proc")
def test_memory_stays_near_the_file(tmp_path: Path) -> None:
    unet = UNET_JSON | {"block_out_channels": [64, 128, 256, 256]}
    file = published.write(tmp_path / "unet" / FP32, {name: torch.zeros(shape) for name, shape in
                                                      published.unet_shapes(unet).items()})
    (tmp_path / "unet" / "config.json").write_text(json.dumps(unet))
    size = file.stat().st_size
    assert size > 130_000_000
    code = f"""
import torch
from sd.pretrained.weights import load_unet
def memory(field):
    return next(1024 * int(line.split()[1]) for line in open('/proc/self/status') if line.startswith(field))
before = memory('VmRSS')
unet = load_unet({str(tmp_path)!r}, device='cpu', dtype=torch.DTYPE)
print((memory('VmHWM') - before) / {size})
"""
    bounds = {"float32": 1.3, "float16": 0.8}
    with ThreadPoolExecutor() as pool:
        results = pool.map(lambda dtype: subprocess.run(
            [sys.executable, "-c", code.replace("DTYPE", dtype)], cwd=ROOT, text=True, capture_output=True,
            timeout=600), bounds)
        for result, bound in zip(results, bounds.values(), strict=True):
            assert 0.4 < float(result.stdout) < bound, result.stdout + result.stderr
