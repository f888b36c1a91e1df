"""A product of the published dataset fetched from a local hub, which fails in every way that hubs do."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from forked_commands import End, ForkedCommands
from hub_server import HubServer
from trees import make_product

from dataset.hub import HUB_DATASET

CODE = """
from dataset.layouts import find_products; from dataset.scan import scan_products
scan = scan_products(find_products(["DS-MVTec/bottle"]))
print(len(scan.photos), *scan.problems)
"""
Fetch = Callable[[dict[str, str]], End]


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("published")
    make_product(root / "DS-MVTec/bottle")
    make_product(root / "DS-MVTec/cable", count=1)
    return root


@pytest.fixture
def fetch(forked: ForkedCommands, tmp_path: Path) -> Fetch:
    """What a command sees of the product: the number of its photos, and their problems."""
    return lambda environment: forked.python(CODE, environment, tmp_path)


def refused(done: End, *texts: str) -> bool:
    *_, last = done.err.splitlines()
    return (done.status == 2 and last.startswith("error: DS-MVTec/bottle: ") and "Traceback" not in
            done.err and all(text in last for text in texts))


def test_once_fetched_it_needs_no_hub(published: Path, fetch: Fetch, tmp_path: Path) -> None:
    with HubServer(datasets={HUB_DATASET: published}) as server:
        environment = server.environment(tmp_path / "cache")
        first = fetch(environment)
        assert first.status == 0 and first.out.splitlines()[-1] == "9", first
        assert server.count("GET", "rbg_mask") == server.count("GET", "cable") == 0
    for more in ({}, {"HF_HUB_OFFLINE": "1"}):
        again = fetch(environment | more)
        assert again.out.splitlines()[-1] == "9", again


def test_what_came_by_half_is_not_taken_for_the_whole(published: Path, fetch: Fetch, tmp_path: Path) -> None:
    """Some files arrive, then the hub answers 500, then it is gone: never a smaller dataset in silence."""
    with HubServer(datasets={HUB_DATASET: published}) as server:
        environment = server.environment(tmp_path / "cache")
        server.status = {"/image/dent/001.png": 500}
        assert refused(fetch(environment), "fetching it from the hub failed")
        assert list((tmp_path / "cache").rglob("image/crack/*.png"))
    for more in ({}, {"HF_HUB_OFFLINE": "1"}):
        assert refused(fetch(environment | more), "failed")
    with HubServer(datasets={HUB_DATASET: published}) as server:
        mended = fetch(server.environment(tmp_path / "cache"))
        assert mended.out.splitlines()[-1] == "9", mended
        assert server.count("GET", "image/crack") == 0  # only what was missing


@pytest.mark.parametrize(("fault", "words"), [
    ({"status": {"api/datasets": 429}}, "429"), ({"status": {"api/datasets": 500}}, "500"),
    ({"gated": {HUB_DATASET}}, "access is restricted"),
    ({"repos": {"models": {}, "datasets": {}}}, "not on the hub, or private")])
def test_what_the_hub_refuses(fault: dict, words: str, published: Path, fetch: Fetch, tmp_path: Path) -> None:
    with HubServer(datasets={HUB_DATASET: published}) as server:
        vars(server).update(fault)
        assert refused(fetch(server.environment(tmp_path / "cache")), "failed", words)


def test_what_the_dataset_does_not_have(published: Path, fetch: Fetch, tmp_path: Path) -> None:
    with HubServer(datasets={HUB_DATASET: published / "DS-MVTec"}) as server:
        assert refused(fetch(server.environment(tmp_path / "cache")), "has nothing of this name")


def test_damaged_on_the_way_and_slow(published: Path, fetch: Fetch, tmp_path: Path) -> None:
    """Pictures carry checksums of their own: each damaged one is named."""
    with HubServer(datasets={HUB_DATASET: published}) as server:
        server.garbage, server.delay = {"image/good/002.png"}, 0.3
        done = fetch(server.environment(tmp_path / "cache"))
        assert done.status == 0 and done.out.splitlines()[-1].startswith("8 "), done
        assert "good/002.png: cannot be read" in done.out
