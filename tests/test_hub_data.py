"""A product of the published dataset fetched from a local hub, which fails in every way that hubs do."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from bases import ROOT
from hub_server import HubServer
from trees import make_product

from folders import HUB_DATASET

CODE = """
import errors
from folders import find_products, scan_products
def main():
    scan = scan_products(find_products(["DS-MVTec/bottle"]))
    print(len(scan.photos), *scan.problems)
errors.run(main)
"""


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("published")
    make_product(root / "DS-MVTec/bottle")
    make_product(root / "DS-MVTec/cable", count=1)
    return root


def fetch(environment: dict[str, str], cwd: Path) -> subprocess.CompletedProcess[str]:
    """What a command sees of the product: the number of its photos, and their problems."""
    return subprocess.run([sys.executable, "-c", CODE], cwd=cwd, env=environment | {"PYTHONPATH": str(ROOT)},
                          text=True, capture_output=True, timeout=120)


def refused(done: subprocess.CompletedProcess[str], *texts: str) -> bool:
    *_, last = done.stderr.splitlines()
    return (done.returncode == 2 and last.startswith("error: DS-MVTec/bottle: ") and "Traceback" not in
            done.stderr and all(text in last for text in texts))


def test_once_fetched_it_needs_no_hub(published: Path, tmp_path: Path) -> None:
    with HubServer(datasets={HUB_DATASET: published}) as server:
        environment = server.environment(tmp_path / "cache")
        first = fetch(environment, tmp_path)
        assert first.returncode == 0 and first.stdout.splitlines()[-1] == "9", first
        assert server.count("GET", "rbg_mask") == server.count("GET", "cable") == 0
    for more in ({}, {"HF_HUB_OFFLINE": "1"}):
        again = fetch(environment | more, tmp_path)
        assert again.stdout.splitlines()[-1] == "9", again


def test_what_came_by_half_is_not_taken_for_the_whole(published: Path, tmp_path: Path) -> None:
    """Some files arrive, then the hub answers 500, then it is gone: never a smaller dataset in silence."""
    with HubServer(datasets={HUB_DATASET: published}) as server:
        environment = server.environment(tmp_path / "cache")
        server.status = {"/image/dent/001.png": 500}
        assert refused(fetch(environment, tmp_path), "fetching it from the hub failed")
        assert list((tmp_path / "cache").rglob("image/crack/*.png"))
    for more in ({}, {"HF_HUB_OFFLINE": "1"}):
        assert refused(fetch(environment | more, tmp_path), "failed")
    with HubServer(datasets={HUB_DATASET: published}) as server:
        mended = fetch(server.environment(tmp_path / "cache"), tmp_path)
        assert mended.stdout.splitlines()[-1] == "9", mended
        assert server.count("GET", "image/crack") == 0  # only what was missing


@pytest.mark.parametrize(("fault", "words"), [
    ({"status": {"api/datasets": 429}}, "429"), ({"status": {"api/datasets": 500}}, "500"),
    ({"gated": {HUB_DATASET}}, "401"), ({"repos": {"models": {}, "datasets": {}}}, "401")])
def test_what_the_hub_refuses(fault: dict, words: str, published: Path, tmp_path: Path) -> None:
    with HubServer(datasets={HUB_DATASET: published}) as server:
        vars(server).update(fault)
        assert refused(fetch(server.environment(tmp_path / "cache"), tmp_path), "failed", words)


def test_what_the_dataset_does_not_have(published: Path, tmp_path: Path) -> None:
    with HubServer(datasets={HUB_DATASET: published / "DS-MVTec"}) as server:
        assert refused(fetch(server.environment(tmp_path / "cache"), tmp_path), "has nothing of this name")


def test_damaged_on_the_way_and_slow(published: Path, tmp_path: Path) -> None:
    """Pictures carry checksums of their own: each damaged one is named."""
    with HubServer(datasets={HUB_DATASET: published}) as server:
        server.garbage, server.delay = {"image/good/002.png"}, 0.3
        done = fetch(server.environment(tmp_path / "cache"), tmp_path)
        assert done.returncode == 0 and done.stdout.splitlines()[-1].startswith("8 "), done
        assert "good/002.png: cannot be read" in done.stdout
