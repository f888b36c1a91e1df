"""gallery.html, and images that are rejected and drawn again."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from bases import Outcome, Place, command, rows
from runs import train_lora

import evaluate
import sample
from sampling.rejected import MOST, read_list

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")


@pytest.fixture(scope="module")
def run(place: Place, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_lora(place, tmp_path_factory.mktemp("gallery") / "run")


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def draw(run: Path, *arguments: object) -> Outcome:
    return command(sample.main, "--ckpt", run, "--steps", 2, "--per-class", 2, "--batch-size", 1, "--classes",
                   "broken_small", "good", *arguments)


def shown(page: Path) -> dict[str, Any]:
    """What the page knows."""
    found = re.search(r'<script id=data type="application/json">(.*?)</script>', page.read_text())
    assert found
    return json.loads(found[1])


def images(folder: str = "generated") -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes()
            for path in sorted(Path(folder).glob("image/*/*.png"))}


def files(folder: str) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in Path(folder).rglob("*") if path.is_file()}


def test_it_shows_every_image_beside_the_nearest_training_photo(run: Path, place: Place) -> None:
    outcome = draw(run)
    assert outcome.status == 0 and "gallery.html" in outcome.out
    page = Path("generated/gallery.html")
    found = shown(page)
    assert [image["file"] for image in found["images"]] == list(images())
    assert found["classes"] == ["broken_small", "good"] and list(found["scores"]) == ["distance"]
    for image in found["images"]:
        assert image["redraw"] == 0 and "outline" not in image and image["scores"]["distance"] > 0
        assert (place.data / "image" / image["class"] / image["other_name"]).is_file()
        assert all(image[name].startswith("data:image/jpeg;base64,") for name in ("picture", "other"))
    assert "http" not in page.read_text()  # it needs nothing from elsewhere
    before = page.read_bytes()
    assert draw(run).status == 0 and page.read_bytes() == before
    moved = place.data.with_name("moved")
    place.data.rename(moved)
    try:
        assert draw(run).status == 0
    finally:
        moved.rename(place.data)
    found = shown(page)
    assert "not where they were" in found["about"] and "other" not in found["images"][0]


def test_a_rejected_image_moves_away_and_another_is_drawn(run: Path) -> None:
    assert draw(run).status == 0
    first = images()
    listed = "image/broken_small/001.png"
    Path("rejected.txt").write_text(f"{listed} 0\n\n")
    outcome = draw(run, "--reject", "rejected.txt", "--json")
    told = json.loads(outcome.out)
    assert (told["drawn"], told["rejected"]) == (1, 1) and "1 moved to rejected/" in outcome.err
    second = images()
    assert first.keys() == second.keys()
    assert {name for name in first if first[name] != second[name]} == {listed}
    assert Path("generated/rejected/broken_small/001-0.png").read_bytes() == first[listed]
    gone, = rows(Path("generated/rejected/samples.jsonl"))
    assert gone["file"] == listed and "redraw" not in gone
    kept = rows(Path("generated/samples.jsonl"))
    assert sorted(row["file"] for row in kept) == sorted(first)
    assert [row["redraw"] for row in kept if row["file"] == listed] == [1]
    assert next(image["redraw"] for image in shown(Path("generated/gallery.html"))["images"]
                if image["file"] == listed) == 1
    # the same command again changes nothing, and says why; a larger --per-class goes on
    again = draw(run, "--reject", "rejected.txt")
    assert again.status == 0 and images() == second
    assert f"for the present one: {listed} 1\n" in again.err
    assert draw(run, "--reject", "rejected.txt", "--per-class", 3).status == 0
    assert images().items() > second.items()
    # the list of the first drawing, written by hand
    Path("rejected.txt").write_text(f"{listed}\n{listed} 1\n")
    assert draw(run, "--per-class", 3, "--reject", "rejected.txt").status == 0
    assert Path("generated/rejected/broken_small/001-1.png").read_bytes() == second[listed]
    assert images()[listed] not in (first[listed], second[listed])


def test_a_redrawn_image_depends_on_seed_class_number_and_redraw_alone(run: Path) -> None:
    """Not on when it was rejected: as image 10**6 + i of a folder that was never so large."""
    assert draw(run, "--classes", "good").status == 0
    Path("rejected.txt").write_text("image/good/000.png")
    assert draw(run, "--classes", "good", "--reject", "rejected.txt", "--batch-size", 2).status == 0
    drawn = images()["image/good/000.png"]
    shutil.rmtree("generated")
    assert draw(run, "--classes", "good", "--batch-size", 2).status == 0
    assert draw(run, "--classes", "good", "--batch-size", 2, "--reject", "rejected.txt").status == 0
    assert images()["image/good/000.png"] == drawn and MOST == 10**6


@pytest.mark.parametrize("moved", [False, True])
def test_a_rejection_that_was_stopped_is_completed(run: Path, moved: bool) -> None:
    """Between its three steps: the row is noted, the image moves, samples.jsonl is written."""
    assert draw(run).status == 0
    journal, first = Path("generated/samples.jsonl").read_bytes(), images()
    Path("rejected.txt").write_text("image/good/001.png")
    assert draw(run, "--reject", "rejected.txt").status == 0
    expected = files("generated")
    Path("generated/samples.jsonl").write_bytes(journal)
    Path("generated/image/good/001.png").unlink()
    if not moved:
        Path("generated/rejected/good/001-0.png").unlink()
        Path("generated/image/good/001.png").write_bytes(first["image/good/001.png"])
    assert draw(run).status == 0
    assert files("generated") == expected


def test_a_list_that_is_wrong_changes_nothing(run: Path) -> None:
    assert draw(run).status == 0
    before = images()
    for text, *said in (("image/good/007.png", "image/good/007.png", "was not drawn in"),
                        ("../run/adapter.safetensors 0", "was not drawn in"),
                        ("image/good/001.png 1", "was not drawn in"),
                        ("image/good/001.png 12345678", "line 1")):
        Path("rejected.txt").write_text(text)
        assert draw(run, "--reject", "rejected.txt").failed_with("--reject rejected.txt", *said)
    Path("rejected.txt").write_bytes(b"\xff\xfe\x00")
    assert draw(run, "--reject", "rejected.txt").failed_with("not text")
    assert draw(run, "--reject", "nothing.txt").failed_with("nothing.txt", "No such file")
    assert images() == before and not Path("generated/rejected").exists()


def test_painted_images_stand_beside_their_photos(place: Place, inpaint_run: Path) -> None:
    outcome = command(sample.main, "--ckpt", inpaint_run, "--images", place.data / "image/good", "--steps", 2,
                      "--classes", "broken_small", "--per-class", 2, "--layout", "mvtec")
    assert outcome.status == 0, outcome
    found = shown(Path("generated/gallery.html"))
    assert {"fidelity", "change"} < set(found["scores"]) and "painted into" in found["about"]
    journal = {row["file"]: row for row in rows(Path("generated/samples.jsonl"))}
    for image in found["images"]:
        assert image["other_name"] == Path(journal[image["file"]]["photo"]).name
        assert image["outline"].startswith("data:image/png;base64,")
    masks = {path.name: path.read_bytes() for path in Path("generated/ground_truth").rglob("*.png")}
    Path("rejected.txt").write_text("test/broken_small/000.png 0\n")
    outcome = command(sample.main, "--ckpt", inpaint_run, "--images", place.data / "image/good", "--steps", 2,
                      "--classes", "broken_small", "--per-class", 2, "--layout", "mvtec", "--reject",
                      "rejected.txt")
    assert outcome.status == 0, outcome
    aside = Path("generated-rejected/broken_small")  # in that layout every picture in the folder counts
    assert (aside / "000-0_mask.png").read_bytes() == masks["000_mask.png"] and (aside / "000-0.png").exists()
    assert not Path("generated/rejected").exists()


def test_the_evaluation_says_that_images_were_chosen(run: Path, place: Place) -> None:
    assert draw(run).status == 0
    Path("rejected.txt").write_text("image/good/001.png")
    assert draw(run, "--reject", "rejected.txt").status == 0
    outcome = command(evaluate.main, "--real", place.data, "--fake", "generated", "--classes", "good",
                      "--out", "out", "--features", "efficientnet_lite0", "--judge", "efficientnet_lite0",
                      "--folds", 2, "--bootstrap", 10)
    assert outcome.status == 0 and "1 of 3 drawn images were rejected" in outcome.out, outcome


TICK = """<script>
const click = element => element.click()
const choose = (id, value) => { at(id).value = value; at(id).onchange() }
click(document.querySelectorAll("figure input")[1])
choose("class", "good")
click(document.querySelectorAll("figure input")[0])
const shown_files = [...document.querySelectorAll(".frame > img:first-child")].map(image => image.alt)
choose("class", ""); choose("sort", "-distance")
const sorted = [...document.querySelectorAll(".frame > img:first-child")].map(image => image.alt)
click(at("beside"))
let saved = ""
const make_url = URL.createObjectURL
URL.createObjectURL = blob => { blob.text().then(text => { saved = text
  document.body.replaceChildren(make("pre", {textContent: JSON.stringify(
    {shown_files, sorted, saved, count: said, beside: document.body.className})})) }); return make_url(blob) }
const said = at("count").textContent
click(at("save"))
</script>"""


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
def test_ticks_filters_and_the_saved_list_in_a_browser(run: Path, tmp_path: Path) -> None:
    assert draw(run).status == 0
    page = Path("generated/gallery.html").read_text()
    Path("page.html").write_text(page.replace("</html>", TICK + "</html>"))
    done = subprocess.run([str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic",
                           "--no-first-run", "--disable-background-networking", "--disable-component-update",
                           "--disable-sync", f"--user-data-dir={tmp_path}/profile", "--dump-dom",
                           "--virtual-time-budget=5000", f"file://{tmp_path}/page.html"],
                          capture_output=True, text=True, timeout=300)
    found = re.search(r"<pre>(.*?)</pre>", done.stdout)
    assert found, (done.stdout[-2000:], done.stderr[-2000:])
    told = json.loads(found[1])
    assert told["shown_files"] == ["image/good/000.png", "image/good/001.png"]
    assert told["saved"] == "image/broken_small/001.png 0\nimage/good/000.png 0\n"
    assert told["count"] == "4 shown, 2 rejected" and told["beside"] == "beside"
    scores = {image["file"]: image["scores"]["distance"]
              for image in shown(Path("generated/gallery.html"))["images"]}
    assert [scores[name] for name in told["sorted"]] == sorted(scores.values(), reverse=True)


def test_lists_written_by_hand(tmp_path: Path) -> None:
    """With the mark that some editors put first, and with what only looks like a number."""
    listed = tmp_path / "rejected.txt"
    listed.write_bytes("\ufeffgood/000.png 2\ngood/001.png\ngood/002.png \u00b2\n".encode())
    assert read_list(listed, set()) == {"good/000.png": 2, "good/001.png": 0, "good/002.png \u00b2": 0}
    listed.write_text("./good/000.png 1\nbad\\001.png\nodd\\002.png\n")
    assert read_list(listed, {"odd\\002.png"}) == {"good/000.png": 1, "bad/001.png": 0, "odd\\002.png": 0}
