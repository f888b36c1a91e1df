"""What benchmarks/*.json hold, for the tables of docs/."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent
DAMAGES = ("broken_large", "broken_small", "contamination")


def results(name: str) -> dict[str, Any]:
    """What benchmarks/NAME.json holds."""
    return json.loads((FOLDER / f"{name}.json").read_text())


def percent(share: float) -> str:
    """0.763 -> 76.3."""
    return f"{100 * share:.1f}"
