"""benchmarks.gpu_check on the CPU: its parts run, one that fails does not end the others, and it goes on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from bases import Outcome, command

from benchmarks import gpu_check
from benchmarks.gpu_fast import kind_of
from benchmarks.gpu_parts import PARTS


def check(folder: Path, *parts: str, share: float = 5.0) -> Outcome:
    return command(gpu_check.main, "--device", "cpu", "--base", "tiny", "--resolution", 64, "--share", share,
                   "--work", folder / "work", "--out", folder / "out.json", "--parts", *parts)


def found(folder: Path) -> dict[str, dict]:
    return json.loads((folder / "out.json").read_text())["parts"]


def test_what_is_missing_is_measured(tmp_path: Path) -> None:
    outcome = check(tmp_path, "dropout", share=1e-4)
    assert outcome.status == 0 and "FAILED: not done after 0 s" in outcome.out, outcome
    outcome = check(tmp_path, "dropout", "attention", "scaler")
    assert outcome.status == 0, outcome
    rows = found(tmp_path)
    assert rows.keys() == {"dropout", "attention"}  # the scaler has no meaning on a CPU
    assert rows["dropout"]["result"]["again"] == "same bits"
    assert rows["dropout"]["result"]["alone against in a batch"] < 1e-4
    assert rows["attention"]["result"].pop("by math, which is slow") == "none"
    assert rows["attention"]["result"] and all(rows["attention"]["result"].values())
    assert "head dimension 512" in outcome.out
    rows = found(tmp_path)
    assert check(tmp_path, "dropout").status == 0 and found(tmp_path) == rows


def test_a_part_that_fails_says_why(tmp_path: Path) -> None:
    (tmp_path / "work/tiny-64/base").mkdir(parents=True)  # nothing in it
    outcome = check(tmp_path, "parity", "attention")
    assert outcome.status == 0, outcome
    rows = found(tmp_path)
    assert "base" in rows["parity"]["failed"] and "result" in rows["attention"]


def test_what_is_refused(tmp_path: Path) -> None:
    assert check(tmp_path, "speed").failed_with("--parts", "'speed'", "memory")
    (tmp_path / "out.json").write_text("not one of ours")
    assert check(tmp_path, "card").failed_with("--out")
    (tmp_path / "out.json").write_text(json.dumps({"card": "another"}))
    assert check(tmp_path, "card").failed_with("--out", "other results")


def test_kernels_have_kinds() -> None:
    names = {"flash_fwd_kernel<..>": "attention", "cudnn::wgrad": "convolution", "Memcpy DtoD": "copy",
             "ampere_fp16_sgemm": "matrix product", "vectorized_gelu": "other"}
    assert {name: kind_of(name) for name in names} == names


def test_every_part_says_what_it_looks_at() -> None:
    assert all(part.title and part.minutes > 0 for part in PARTS.values())
    assert sum(part.minutes for part in PARTS.values()) == 45


@pytest.mark.slow
def test_the_parts_that_train_and_draw(tmp_path: Path) -> None:
    parts = ("card", "gradients", "profile", "switches", "stopping", "sampling", "strategies", "several")
    outcome = check(tmp_path, *parts)
    assert outcome.status == 0 and not [row for row in found(tmp_path).values() if "failed" in row], outcome
    rows = {name: row["result"] for name, row in found(tmp_path).items()}
    assert list(rows) == list(parts) and rows["stopping"]["steps"] == [1, 2, 3, 4, 5, 6, 7, 8]
    assert all(row["previews"] == 1 for row in rows["strategies"].values())
    assert max(rows["gradients"].values()) < 0.1 and len(rows["switches"]) == 2
    assert rows["profile"]["matrix product"].endswith(" ms") and len(rows["several"]["two"]) == 3
