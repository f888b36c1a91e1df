"""The model card, and an adapter sent to the hub: to a local server that speaks its protocol."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from bases import ROOT, command, place
from hub_uploads import TOKEN, UploadHub
from safetensors.torch import load_file
from test_formats import convert, run

import sample

__all__ = ["place", "run"]
NUMBERS = {"numbers": {
    "generated": {"all": {"dca": {"value": 0.5, "low": 0.25, "high": 0.75}, "n": {"value": 8}}},
    "held-out real": {"all": {"dca": {"value": 1.0, "low": None, "high": None}}}}}


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def pushed(server: UploadHub, *arguments: object, **more: str) -> subprocess.CompletedProcess[str]:
    """lora.py in a process of its own, for the hub's address is read when huggingface_hub is imported."""
    return subprocess.run([sys.executable, str(ROOT / "lora.py"), "convert", *map(str, arguments)], text=True,
                          env=server.environment(Path("cache").resolve()) | more, capture_output=True,
                          timeout=300)


def test_the_card(run: Path) -> None:
    assert command(sample.main, "--ckpt", run, "--steps", 2, "--per-class", 1).status == 0
    Path("metrics.json").write_text(json.dumps(NUMBERS))
    assert convert(run, "bottle", "--to", "diffusers", "--samples", "generated", "--numbers", "metrics.json",
                   "--data-licence", "CC BY-NC-SA 4.0").status == 0
    _, head, text = Path("bottle/README.md").read_text().split("---\n", 2)
    assert yaml.safe_load(head)["tags"][0] == "lora" and yaml.safe_load(head)["library_name"] == "diffusers"
    for part in ("# bottle", "- contamination", "![samples", "| LoRA rank | 4 |", "licence: CC BY-NC-SA 4.0",
                 "| generated | 0.5 [0.25, 0.75] | 8 |", "| held-out real | 1 | - |",
                 'pipe.load_lora_weights("bottle")', "row.view(1, 3, -1)"):
        assert part in text
    assert Path("bottle/samples.png").read_bytes() == Path("generated/grid.png").read_bytes()
    assert str(run) not in text  # no paths of this machine


def test_a_card_says_what_was_not_given(run: Path) -> None:
    assert convert(run, "bottle", "--to", "kohya").status == 0
    text = Path("bottle/README.md").read_text()
    assert "licence: not given" in text and "Numbers: not given" in text and "![" not in text
    assert 'weight_name="bottle.safetensors"' in text


def test_mistakes_leave_nothing(run: Path) -> None:
    Path("empty").mkdir()
    Path("list.json").write_text("[1]")
    for flags, expected in ((("--samples", "empty"), "holds no grid.png"),
                            (("--numbers", "no.json"), "no.json"),
                            (("--numbers", "list.json"), "not evaluate.py's")):
        assert convert(run, "out", "--to", "kohya", *flags).failed_with(expected)
    assert not Path("out").exists()


def test_an_adapter_goes_to_the_hub_and_comes_back(run: Path) -> None:
    with UploadHub(Path("hub").resolve()) as server:
        done = pushed(server, run, "bottle", "--to", "diffusers", "--push-to-hub", "me/bottle")
        assert done.returncode == 0, done.stderr
        assert f"uploaded to {server.url}/me/bottle" in done.stderr
        assert done.stdout.splitlines() == ["bottle/pytorch_lora_weights.safetensors",
                                            "bottle/damage_types.safetensors", "bottle/README.md"]
        assert server.visibility == {"me/bottle": "private"}
        assert set(server.validated) == {Path("bottle/README.md").read_text()}
    sent = {file.name: file.read_bytes() for file in Path("hub/me/bottle").iterdir()}
    assert sent == {file.name: file.read_bytes() for file in Path("bottle").iterdir()}
    assert convert("hub/me/bottle", "back", "--from", "diffusers").status == 0
    before, after = load_file(run / "adapter.safetensors"), load_file("back/adapter.safetensors")
    assert all((before[name] == after[name]).all() for name in before)


def test_what_the_hub_refuses(run: Path) -> None:
    """One line, and what was converted stays."""
    with UploadHub(Path("hub").resolve()) as server:
        flags = ("--to", "kohya", "--push-to-hub")
        stranger = pushed(server, run, "a", *flags, "me/bottle", HF_TOKEN=TOKEN + "x")
        named = pushed(server, run, "b", *flags, "me/bottle/x")
    gone = pushed(server, run, "c", *flags, "me/bottle")
    for done, out, expected in ((stranger, "a", "hf auth login"), (named, "b", "OWNER/NAME"),
                                (gone, "c", "could not be reached")):
        assert done.returncode == 2 and "Traceback" not in done.stderr
        last = done.stderr.splitlines()[-1]
        assert last.startswith("error: --push-to-hub me/bottle") and expected in last
        assert Path(out, f"{out}.safetensors").is_file()
