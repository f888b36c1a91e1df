"""benchmarks.roofline: the file holds what is counted now, to the last launch; and how it is counted."""

from __future__ import annotations

import json

import pytest
import torch
import torch.nn.functional as F
from bases import ROOT, command
from torch import nn

from benchmarks import roofline
from training import kernel_counts
from training.kernel_counts import Operation, counted, flops, moved
from training.roofline import GPUS, HOST, SLOWER, Gpu, bracket, floor

FILE = json.loads((ROOT / "benchmarks/roofline.json").read_text())


def recorded(work: roofline.Work) -> dict:
    return next(row for row in FILE["rows"] if row["what"] == roofline.name_of(work))


RIVALS = (roofline.Work("A", 1, 4), roofline.Work("sampling", 1, 1))  # counting these takes much longer
OURS = (roofline.Work("A", 4, 1), roofline.Work("B1", 1, 4), roofline.Work("B2", 4, 4),
        roofline.Work("sampling", 4, 4))


@pytest.mark.parametrize("work", [*RIVALS, *OURS], ids=roofline.name_of)
def test_the_counts_are_those_on_record(work: roofline.Work) -> None:
    """Whoever changes a step sees here what that costs or saves on a GPU, and records it by the command."""
    there = recorded(work)
    rivals = {name: counts for name, counts in there["contenders"].items() if not name.startswith("ours")}
    found = roofline.compared(work, None if work in RIVALS else rivals)
    for name, counts in found["contenders"].items():
        assert {**counts, "floor_ms": 0} == {**there["contenders"][name], "floor_ms": 0}, name
    assert there["goals"] == found["goals"]


def test_one_row_is_printed_and_the_file_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    """With --ours, beside the counts on record of the others."""
    monkeypatch.setattr(roofline, "ours", lambda work, level: {
        "launches": 1, "flops": 0.5e12, "moved": 2 * 10**9, "kept": 3 * 2**20,
        "floor_ms": dict.fromkeys([gpu.name for gpu in GPUS], 7.0)})
    monkeypatch.delattr(roofline, "rival_counts")
    before = (ROOT / "benchmarks/roofline.json").read_bytes()
    outcome = command(roofline.main, "--only", "A, 1 token, batch 1", "--ours")
    assert "| A, 1 token, batch 1: ours, lean | 1 | 0.50 | 2.0 | 3 | 7, 7, 7, 7 |" in outcome.out, outcome
    told = json.loads(command(roofline.main, "--only", "B2", "--ours", "--json").out)
    assert {row["strategy"] for row in told["rows"]} == {"B2"}
    assert all(all(row["goals"].values()) for row in told["rows"])
    assert (ROOT / "benchmarks/roofline.json").read_bytes() == before


# ---- the counter

def test_operations_views_and_bytes() -> None:
    with counted() as count:
        x, weight = torch.empty(6, 4), torch.empty(5, 4)
        count.take()
        y = x @ weight.T
        y.view(-1)[:3].add_(1)
        y.expand(2, 6, 5).sum()
        y.zero_()
    product, added, total, zeros = count.take()
    assert product == Operation("mm", 2 * 6 * 4 * 5, 4 * (24 + 20 + 30))
    assert added == Operation("add_", 0, 4 * (3 + 3)) and zeros == Operation("zero_", 0, 4 * 30)
    assert total == Operation("sum", 0, 4 * (30 + 1))
    assert flops([product, added]) == 240 and moved([added, zeros]) == 4 * 36


def test_what_is_alive_is_counted_until_it_is_gone() -> None:
    with counted() as count:
        x = torch.empty(100)
        y = x.view(10, 10)
        assert count.alive == count.most == 400
        del x
        assert count.alive == 400
        del y
        assert count.alive == 0 and count.most == 400


def test_a_gpus_ways() -> None:
    """Attention is one launch that keeps a number a row, dropout one; others want a layout."""
    with counted() as count:
        q = torch.empty(1, 2, 32, 8, requires_grad=True)
        count.take()
        kept = count.alive
        y = F.scaled_dot_product_attention(q, q, q)
        assert count.alive - kept == 4 * (2 * 32 * 8 + 2 * 32) + 16
        F.dropout(y, 0.5).sum().backward()
        names = [operation.name for operation in count.take()]
        assert names[:2] == ["_scaled_dot_product_efficient_attention", "native_dropout"]
        image, norm = torch.empty(1, 8, 4, 4).to(memory_format=torch.channels_last), nn.GroupNorm(2, 8)
        conv = nn.Conv2d(8, 8, 3)
        conv.weight.data = conv.weight.data.contiguous(memory_format=torch.channels_last)
        count.take()
        y = conv(norm(image))
        assert [operation.name for operation in count.take()] == [
            "copy to another layout", "native_group_norm", "copy to another layout", "convolution"]
        assert y.is_contiguous(memory_format=torch.channels_last)


def test_autocast_as_on_a_gpu() -> None:
    """The dtypes that torch.autocast("cuda") documents; a trained weight is cast once."""
    with counted() as count:
        linear, norm, x = nn.Linear(8, 8), nn.LayerNorm(8), torch.empty(3, 8, dtype=torch.float16)
        count.take()
        with kernel_counts.autocast(torch.float16):
            assert linear(x).dtype == torch.float16 and linear(x).dtype == torch.float16
            assert norm(x).dtype == torch.float32
        assert [operation.name for operation in count.take()].count("_to_copy") == 2 + 1
        with kernel_counts.autocast(None):
            assert norm(x.float()).dtype == linear(x.float()).dtype == torch.float32
        assert F.linear(x.float(), linear.weight).dtype == torch.float32


def test_the_roofline_is_the_longer_of_arithmetic_and_traffic() -> None:
    gpu = Gpu("some", tflops=1, bandwidth=1)
    operations = (Operation("a", 2e12, 10**9), Operation("b", 0, 3 * 10**9))
    assert floor(operations, gpu) == pytest.approx(5)
    assert bracket(operations, gpu) == pytest.approx((5, 5 * SLOWER))
    assert bracket((Operation("a", 0, 0),) * 1000, gpu) == (0, 1000 * HOST)  # the host has to launch them
    assert [gpu.name for gpu in GPUS] == ["T4", "L4", "A100", "H100"]
