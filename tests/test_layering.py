"""Arrows point down only: which room may import from which. The whole architecture, on one page."""

from __future__ import annotations

import pytest
from bases import ROOT
from source_imports import imports, sources

LIBRARIES = "runtime sd sd.pretrained lora data dataset checkpoints"
# From the leaves up. A room may import from itself and from the rooms beside its name, and from no others.
MAY_IMPORT = {
    "runtime": "",
    "sd": "runtime",
    "sd.pretrained": "runtime sd",
    "lora": "runtime",
    "dataset": "runtime",
    "data": "runtime dataset",
    "checkpoints": "runtime sd sd.pretrained lora",
    "evaluation": LIBRARIES,
    "sampling": LIBRARIES + " evaluation",
    "training": LIBRARIES + " evaluation",
    "scripts": LIBRARIES + " evaluation sampling training",
    "tiny": LIBRARIES + " evaluation sampling training",
    "benchmarks": LIBRARIES + " evaluation sampling training tiny",
}
# Imported inside a function: two command lines whose script is a library too.
LAZY = {("lora", "checkpoints.convert"), ("data", "tiny.demo")}


def room(module: str) -> str:
    """The room that a module stands in."""
    if "." not in module:
        return module if module in MAY_IMPORT else "scripts"
    return "sd.pretrained" if module.startswith("sd.pretrained") else module.partition(".")[0]


def violations(sources: dict[str, str]) -> set[tuple[str, str]]:
    """(importing module, imported module) for each import that the table forbids."""
    return {(module, other) for module, source in sources.items() for other in imports(source, set(sources))
            if room(other) != room(module) and room(other) not in MAY_IMPORT[room(module)].split()
            and (module, other) not in LAZY}


def test_arrows_point_down_only() -> None:
    assert violations(sources()) == set()


@pytest.mark.parametrize(("module", "line", "other"), [
    ("sd.unet", "import lora", "lora"), ("runtime.files", "from dataset import masks", "dataset.masks"),
    ("evaluation.report", "from sampling.generation import x", "sampling.generation"),
    ("training.loop", "def f():\n    from train_class import Config", "train_class")])
def test_a_violation_is_seen(module: str, line: str, other: str) -> None:
    known = sources()
    assert violations(known | {module: known[module] + "\n" + line}) == {(module, other)}


def test_the_table_has_no_cycle() -> None:
    order = list(MAY_IMPORT)
    for place, name in enumerate(order):
        assert all(order.index(other) < place for other in MAY_IMPORT[name].split()), name


def test_the_root_holds_the_seven_scripts_alone() -> None:
    assert {file.stem for file in ROOT.glob("*.py")} == {
        "train_class", "train_inpaint", "train_controlnet", "sample", "evaluate", "lora", "data"}
