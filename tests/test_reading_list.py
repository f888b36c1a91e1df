"""The core reads in one evening: README lists its modules and line counts, and they stand by themselves."""

from __future__ import annotations

import ast
import re

import pytest
from bases import ROOT
from source_imports import imports, sources

MOST_LINES = 2_400
# Beside core modules and runtime/, a core module may import these modules of its room and of the rooms below.
TRAINING = ("checkpoints.prompts sd.pretrained.weights training.batches training.config training.diffusion "
            "training.latents training.presets training.previews training.resume_state training.setup "
            "training.step_noise")
MAY_IMPORT = {
    "data": "dataset.augmentation dataset.classes dataset.decoded dataset.findings dataset.item_views "
            "dataset.layouts dataset.padding dataset.scan dataset.windows",
    "lora": "",
    **{f"sd.{name}": "sd.exact_shortcuts" for name in ("layers", "unet", "vae", "samplers", "controlnet",
                                                       "inpainting", "guidance")},
    "checkpoints.class_embedding": "",
    "training.loop": "training.batches training.config training.diffusion training.latents training.previews "
                     "training.resume_state training.run_folder training.schedules training.step_noise "
                     "training.validation",
    "sampling.generation": "dataset.masks",
    "train_class": TRAINING + " dataset.padding",
    "train_inpaint": TRAINING + " dataset.masks sd.pretrained.inpainting training.holes",
    "train_controlnet": TRAINING + " checkpoints.controlnet checkpoints.loading checkpoints.metadata "
                                   "dataset.padding sd.exact_shortcuts",
    "sample": "checkpoints.controlnet checkpoints.loading checkpoints.metadata checkpoints.presets "
              "checkpoints.prompts checkpoints.strategies dataset.layouts dataset.placement "
              "evaluation.networks sampling.batches sampling.drawings sampling.finished sampling.inputs "
              "sd.compilation sampling.opening sampling.placement_sheet sampling.presets "
              "sampling.sample_folder sampling.selection",
}


def listed() -> dict[str, int]:
    """File -> line count, from the table in README's section on reading the code."""
    section = (ROOT / "README.md").read_text().partition("## Reading the code")[2].partition("\n## ")[0]
    return {name: int(lines) for name, lines in re.findall(r"^\| `(\S+\.py)` \| (\d+) \|", section, re.M)}


def module_level(source: str) -> str:
    """The source's statements outside functions and classes."""
    body = [node for node in ast.parse(source).body if isinstance(node, (ast.Import, ast.ImportFrom))]
    return "\n".join(map(ast.unparse, body))


def stranger(source: str, module: str, modules: set[str]) -> set[str]:
    """Modules of ours that a core module imports at module level, and that the table does not allow."""
    return {other for other in imports(module_level(source), modules) if other not in MAY_IMPORT
            and not other.startswith("runtime") and other not in MAY_IMPORT[module].split()}


def test_the_list_is_the_core_with_the_right_counts() -> None:
    files = [name.replace(".", "/") + ".py" for name in MAY_IMPORT]
    counts = {file: len((ROOT / file).read_text().splitlines()) for file in files}
    assert listed() == counts, f"README's table should say {counts}"
    assert list(listed()) == list(counts), "in the order of reading"
    assert sum(counts.values()) <= MOST_LINES


def test_the_core_stands_by_itself() -> None:
    known = sources()
    found = {module: strangers for module in MAY_IMPORT
             if (strangers := stranger(known[module], module, set(known)))}
    assert found == {}, "import fewer modules, or explain them in the table"


@pytest.mark.parametrize(("module", "line"), [("sd.unet", "from sd.pretrained import weights"),
                                              ("train_class", "import checkpoints.lora_formats")])
def test_a_stranger_is_seen(module: str, line: str) -> None:
    known = sources()
    other = line.split()[-1] if line.startswith("import") else "sd.pretrained.weights"
    assert stranger(line + "\n" + known[module], module, set(known)) == {other}
    assert stranger(f"def f():\n    {line}", module, set(known)) == set()
