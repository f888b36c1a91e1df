"""docs/colab.ipynb, cell by cell, as a notebook runs it: on the embedded base, with few steps."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
import types
from pathlib import Path

import pytest
from bases import ROOT

from tiny.demo import write_demo

SETTINGS = """
WORK, PHOTOS, BASE = "work", "bottle", "tiny"
TRAIN = "--max-steps 2 --resolution 64 --batch-size 8 --preview-every 1 --preview-steps 1 --latent-variants 1"
TRAIN += " --no-validate --epochs 1"
SAMPLE = "--per-class 2 --steps 2"
EVALUATE += " --folds 2 --bootstrap 10"
"""


def cells() -> list[str]:
    """The source of each code cell."""
    notebook = json.loads((ROOT / "docs/colab.ipynb").read_text())
    assert notebook["nbformat"] == 4 and all(not cell.get("outputs") for cell in notebook["cells"])
    return ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]


def as_python(cell: str) -> str:
    """The cell with IPython's `!command {name}` as Python."""
    return re.sub(r"^( *)!(.+)$", lambda line: f"{line[1]}run(f{line[2]!r})", cell, flags=re.M)


def test_settings_come_first_and_every_name_is_set() -> None:
    names = set(re.findall(r"^([A-Z]+) =", cells()[0], re.M))
    assert set(re.findall(r"\{([A-Z]+)\}", "".join(cells()))) <= names
    assert {"WORK", "PHOTOS", "BASE", "TRAIN", "SAMPLE", "EVALUATE"} <= names


def test_an_unset_repository_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {"run": None}
    exec(cells()[0], names)
    names["WORK"] = "work"
    with pytest.raises(ValueError, match="set REPOSITORY"):
        exec(as_python(cells()[1]), names)


@pytest.mark.slow
def test_it_runs_on_the_embedded_base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    write_demo(tmp_path / "bottle", 4, 0, size=64)
    for script in ROOT.glob("*.py"):  # the notebook runs in the project's folder
        (tmp_path / script.name).symlink_to(script)
    shown: list[str] = []

    def run(line: str) -> None:
        words = shlex.split(line)
        if words[0] != "pip":  # what it installs is here already
            assert words[0] == "python", line
            done = subprocess.run([sys.executable, *words[1:]], capture_output=True, text=True)
            assert done.returncode == 0, done

    display = types.SimpleNamespace(Image=lambda name: shown.append(name), display=lambda picture: None)
    monkeypatch.setitem(sys.modules, "IPython", types.SimpleNamespace(display=display))
    monkeypatch.setitem(sys.modules, "IPython.display", display)
    names: dict[str, object] = {"run": run}
    for number, cell in enumerate(cells()):
        exec(compile(as_python(cell), f"cell {number}", "exec"), names)
        if number == 0:
            exec(SETTINGS, names)
    assert all(Path(name).is_file() for name in shown)
    assert [Path(name).name for name in shown] == ["doctor.png", "epoch_0001.png", "grid.png", "report.png"]
    assert Path("work/generated.zip").stat().st_size > 1000 and Path("work/report/report.html").is_file()
    assert len(list(Path("work/generated/image").rglob("*.png"))) == 8
