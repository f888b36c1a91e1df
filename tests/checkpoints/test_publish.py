"""An adapter and its card sent to the hub: to a local server that speaks its protocol."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from bases import ROOT
from hub_uploads import TOKEN, UploadHub
from huggingface_hub import constants
from runs import convert
from safetensors.torch import load_file

from checkpoints.adapter import read_adapter


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[UploadHub]:
    """The server, which huggingface_hub in this process takes for the hub; the user is logged in."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    with UploadHub(tmp_path / "hub") as server:
        for name, value in (("ENDPOINT", server.url), ("HF_HUB_DISABLE_XET", True), ("HF_HUB_OFFLINE", False),
                            ("HF_TOKEN_PATH", "nowhere"), ("HF_STORED_TOKENS_PATH", "nowhere")):
            monkeypatch.setattr(constants, name, value)
        yield server


def test_an_adapter_goes_to_the_hub_and_comes_back(run: Path, hub: UploadHub) -> None:
    """In a process of its own, as a user sees it."""
    done = subprocess.run(
        [sys.executable, str(ROOT / "lora.py"), "convert", str(run), "bottle", "--to", "diffusers",
         "--push-to-hub", "me/bottle"],
        env=hub.environment(Path("cache").resolve()), text=True, capture_output=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert f"uploaded to {hub.url}/me/bottle" in done.stderr
    assert done.stdout.splitlines() == ["bottle/pytorch_lora_weights.safetensors",
                                        "bottle/damage_types.safetensors", "bottle/README.md"]
    assert hub.visibility == {"me/bottle": "private"}
    assert set(hub.validated) == {Path("bottle/README.md").read_text()}
    sent = {file.name: file.read_bytes() for file in Path("hub/me/bottle").iterdir()}
    assert sent == {file.name: file.read_bytes() for file in Path("bottle").iterdir()}
    assert convert("hub/me/bottle", "back", "--from", "diffusers").status == 0
    settings = read_adapter(Path("back/adapter.safetensors"))[1].config
    assert settings["data"] == ["bottle"] and settings["base"] == "base" and "out" not in settings
    assert not any("/" in str(value) for value in settings.values()), "nor any other folder of the user's"
    before, after = load_file(run / "adapter.safetensors"), load_file("back/adapter.safetensors")
    assert all((before[name] == after[name]).all() for name in before)


def test_public_only_if_asked_for(run: Path, hub: UploadHub) -> None:
    said = convert(run, "a", "--to", "kohya", "--push-to-hub", "me/a", "--public", "--json")
    assert json.loads(said.out)["url"] == f"{hub.url}/me/a" and hub.visibility == {"me/a": "public"}
    assert convert(run, "b", "--to", "kohya", "--public").failed_with("--public", "--push-to-hub")
    assert not Path("b").exists()


def test_what_can_be_known_before_anything_is_written(run: Path, hub: UploadHub,
                                                      monkeypatch: pytest.MonkeyPatch) -> None:
    """So the same command goes on once it is mended."""
    def refused(repo: str, *expected: str) -> None:
        outcome = convert(run, "out", "--to", "peft", "--push-to-hub", repo)
        assert outcome.failed_with(f"--push-to-hub {repo}: ", *expected), outcome
        assert len(outcome.err.splitlines()) == 1 and not Path("out").exists()

    for repo in ("me/bottle/x", "bottle", "me/my bottle", ""):
        refused(repo, "OWNER/NAME")
    with monkeypatch.context() as patch:
        patch.setenv("HF_TOKEN", TOKEN + "x")
        refused("me/bottle", "HTTP 401", "hf auth login")
        patch.delenv("HF_TOKEN")
        refused("me/bottle", "nobody is logged in")
    with monkeypatch.context() as patch:
        patch.setattr(constants, "HF_HUB_OFFLINE", True)
        refused("me/bottle", "HF_HUB_OFFLINE forbids it")
    with monkeypatch.context() as patch:
        patch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
        refused("me/bottle", "127.0.0.1:9 could not be reached")
    assert hub.visibility == {}


@pytest.mark.parametrize(("part", "status", "advice"), [("repos/create", 403, "check OWNER"),
                                                        ("commit/main", 403, "the token's rights"),
                                                        ("objects/batch", 418, "try again")])
def test_what_the_hub_refuses_later(part: str, status: int, advice: str, run: Path, hub: UploadHub) -> None:
    """What was converted stays, and the command that sends it is said."""
    hub.status[part] = status
    outcome = convert(run, "a b", "--to", "kohya", "--push-to-hub", "me/bottle")
    assert outcome.failed_with("--push-to-hub me/bottle", f"HTTP {status}", advice), outcome
    assert outcome.err.endswith("hf upload me/bottle 'a b' . --private\n")
    assert Path("a b/a b.safetensors").is_file() and Path("a b/README.md").is_file()
