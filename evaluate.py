"""Generated images against real ones: numbers that say what they are worth, beside what they must beat."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

import errors
import processes
from adapter import find_adapter, read_adapter
from augmentation import ORIENTATIONS
from config import flag, parse
from controls import cut_and_paste
from decode import size_of
from downstream import measure_downstream, tasks_for
from errors import UserError
from evaluation_data import Side, Sides, load_sides
from features import FeatureStore, read_square
from fidelity import sources_in
from files import remove_leftovers, save_image, save_json, save_text
from folders import Photo
from locks import locked
from machine import choose_device
from measures import (
    ALL,
    COPY,
    GENERATED,
    PASTED,
    RENDERED,
    Findings,
    count_images,
    groups_of,
    measure_cmmd,
    measure_dca,
    measure_distances,
    measure_fidelity,
    measure_memorisation,
)
from memorisation import closest_pairs
from networks import Network, NetworkConfig, WeightsMissing, load_clip, load_network, pixels
from pictures import grid, tensor_to_image
from processes import together
from rendering import through_vae
from report import chart, table
from report_page import page

EXAMPLE = """example:
  python evaluate.py --real DS-MVTec/bottle --fake generated/bottle
  python evaluate.py --real my/bottle --fake generated/bottle --ckpt runs/bottle-class --downstream
  python evaluate.py --real demo/bottle --fake demo/generated --base tiny --features tiny --judge tiny
"""
SHOWN = 6  # images a class beside each other


@dataclass
class Config(NetworkConfig):
    """The command line of evaluate.py."""

    real: list[str] = flag(..., "real images: what one gives to --data in training", group="what")
    fake: str = flag(..., "folder that sample.py wrote, or any in the same layout", group="what")
    out: str = flag("evaluation", "folder for metrics.json, report.png and report.html", group="what")
    json: bool = flag(False, "print metrics.json rather than the tables", group="what")
    classes: list[str] = flag([], "only these damage types (default: all)", group="what")
    ckpt: str | None = flag(None, "checkpoint that drew --fake: it tells which real images it was trained on "
                            "(default: unknown, so none count as held out)", group="what")
    skip_unreadable: bool = flag(False, "leave out damaged files and count the rest", group="what")
    base: str | None = flag(None, "the base that drew --fake: also measure the training images as its VAE "
                            "draws them, the most that can be reached on it, and judge by judges who learnt "
                            "from such (default: not)", group="what")
    clip: str | None = flag(None, "hub id or folder of a CLIP model, for CMMD (default: no CMMD)",
                            group="networks")
    seed: int = flag(42, "seed of folds, bootstrap and judges", group="how", minimum=0)
    folds: int = flag(5, "judges, each tested on the real images that it was not trained on", group="how",
                      minimum=2)
    judge_epochs: int = flag(30, "passes of a judge over its real images", group="how", minimum=1)
    bootstrap: int = flag(200, "resamplings for the interval of FID", group="how", minimum=10)
    orientation: str = flag("any", "as in training: whether images may be flipped and turned", group="how",
                            choices=ORIENTATIONS)
    downstream: bool = flag(False, "also train on real images with and without these, and test on real ones",
                            group="how")
    downstream_seeds: int = flag(3, "trainings of each kind", group="how", minimum=1)
    batch_size: int = flag(32, "images at once", group="machine", minimum=1, maximum=10**4)
    workers: int = flag(0, "processes that load images", group="machine", minimum=0, maximum=256)
    device: str = flag("auto", "auto, cpu, cuda, cuda:1, ..", group="machine")


def load_networks(config: Config, device: torch.device, findings: Findings) -> dict[str, Network]:
    """The networks by what they are for; which cannot be had is noted as missing, with how to get it."""
    wanted = {"features": lambda: load_network(config.features, config.features_weights, device),
              "judge": lambda: load_network(config.judge, config.judge_weights, device),
              "clip": lambda: load_clip(config.clip, device)}
    networks = {}
    for name in ("features", "judge", *(["clip"] if config.clip else [])):
        try:
            networks[name] = wanted[name]()
            findings.networks[name] = networks[name].about
        except WeightsMissing as error:
            findings.missing[name] = str(error)
            print(f"not measured: {name}: {error.short}", file=sys.stderr)
    return networks


def gather(config: Config, sides: Sides, twins: dict[Path, Photo], findings: Findings,
           out: Path) -> dict[str, Side]:
    """The sets of images that are measured: the generated ones, and the controls but held-out real ones."""
    training = sides.reference[np.isin(sides.reference.label, sides.chosen)]
    rows = {GENERATED: sides.fake, COPY: training}
    if twins:
        rows[RENDERED] = Side([twins[photo.image] for photo in training.photos], training.label)
    try:
        rows[PASTED] = cut_and_paste(sides.reference, sides.classes, *wanted_of(sides),
                                     out / "cut_and_paste", config.seed, config.orientation)
    except UserError as error:
        findings.missing[PASTED] = str(error)
    return rows


def drawn_size(config: Config, sides: Sides) -> int:
    """The side of what the model drew: --ckpt's resolution, which painted photos need not have, if known."""
    return read_adapter(find_adapter(Path(config.ckpt)))[1].resolution if config.ckpt else wanted_of(sides)[1]


def measure(config: Config, sides: Sides, rows: dict[str, Side], twins: dict[Path, Photo],
            networks: dict[str, Network], findings: Findings, out: Path) -> dict[str, Image.Image]:
    """Fill `findings`; returns the sheet of closest pairs by its title."""
    def store(network: Network) -> FeatureStore:
        return FeatureStore(network, out / "features", config.batch_size, config.workers)

    count_images(findings, rows, sides)
    stores = {"pixel": store(pixels(torch.device("cpu")))}
    if "features" in networks:
        stores["feature"] = store(networks["features"])
        for crop in (False, True):
            measure_distances(findings, rows, sides, stores["feature"], config.seed, config.bootstrap, crop)
    if "clip" in networks:
        measure_cmmd(findings, rows, sides, store(networks["clip"]))
    if "judge" in networks:
        measure_dca(findings, rows, sides, twins, networks["judge"], config.orientation, config.folds,
                    config.judge_epochs, config.seed, (config.batch_size, config.workers))
        if config.downstream:
            help_training(config, sides, rows, networks["judge"], findings, out)
    try:
        sources = {GENERATED: sources_in(Path(config.fake), config.real),
                   PASTED: sources_in(out / "cut_and_paste", config.real)}
        measure_fidelity(findings, {row: rows[row] for row in sources if row in rows}, sides, sources)
    except UserError as error:
        findings.missing["mask fidelity"] = str(error)
    nearness = measure_memorisation(findings, rows, sides, stores)
    return {"Closest pairs": closest_pairs(sides.fake.photos, sides.reference.photos, nearness,
                                           sides.fake.label, sides.classes)}


def help_training(config: Config, sides: Sides, rows: dict[str, Side], judge: Network, findings: Findings,
                  out: Path) -> None:
    """--downstream: trains with and without generated images. Pasted damage is of training images alone."""
    def paste(train: Side, turn: int) -> Side:
        return cut_and_paste(train, sides.classes, counts, resolution, out / "cut_and_paste" / f"turn_{turn}",
                             config.seed, config.orientation)

    counts, resolution = wanted_of(sides)
    tasks = tasks_for(sides, judge, config.judge_epochs, config.orientation)
    measure_downstream(findings, sides, tasks, paste if PASTED in rows else None, config.folds,
                       config.downstream_seeds, config.seed)


def wanted_of(sides: Sides) -> tuple[dict[int, int], int]:
    """How many images of each class, and of which size, a control set needs to be like the generated one."""
    return ({i: int((sides.fake.label == i).sum()) for i in sides.chosen},
            min(size_of(sides.fake.photos[0].image)))


def warn(config: Config, sides: Sides, findings: Findings, networks: dict[str, Network]) -> None:
    """What a reader must know before the numbers."""
    n, m = len(sides.fake), len(sides.reference)
    if "features" in networks and min(n, m) <= networks["features"].dim:
        findings.warnings.append(
            f"FID of {n} generated against {m} real images in {networks['features'].dim} dimensions is "
            "mostly the noise of small numbers. Do not compare it with published values, nor with other "
            "numbers of images; compare rows at equal N.")
    if sides.held_out is None:
        findings.warnings.append(
            "The generator may have been trained on all of these real images, and the judge learns from them "
            "too: DCA then rewards copies. Train on a part of them (--max-samples-per-damage-type) and give "
            "--ckpt, to judge by images that the generator never saw.")
    copies = findings.get(GENERATED, ALL, "copies")
    if copies and copies["low"] > 0:
        findings.warnings.append(f"{copies['count']} of {copies['n']} generated images are near copies of "
                                 "a training image: look at the closest pairs.")
    kinds = {kind: {photo.image.suffix.lower() in (".jpg", ".jpeg") for photo in side.photos}
             for kind, side in (("real", sides.reference), ("generated", sides.fake))}
    if kinds["real"] != kinds["generated"]:
        findings.warnings.append("JPEG on one side and not on the other moves FID and KID by itself.")


def examples(sides: Sides) -> Image.Image:
    """Some real and some generated images of each class, above each other."""
    rows, labels = [], []
    for i in sides.chosen:
        for kind, side in (("real", sides.reference), ("generated", sides.fake)):
            photos = side[side.label == i].photos[:SHOWN]
            rows.append([tensor_to_image(read_square(photo, 160)) for photo in photos])
            labels.append(f"{sides.classes[i]}\n{kind}")
    return grid(rows, labels)


@together
def main() -> None:
    """The command: load both sides, measure, write the report."""
    config = parse(Config, __doc__, EXAMPLE)
    if processes.first():  # its networks are small: the others would only compute the same
        with locked(Path(config.out)):
            remove_leftovers(Path(config.out))
            evaluate(config)


def evaluate(config: Config) -> None:
    """Measure, and leave the reports."""
    device, out, findings = choose_device(config.device), Path(config.out), Findings()
    sides = load_sides(config.real, config.fake, config.classes, config.ckpt, config.skip_unreadable)
    print(f"{len(sides.fake)} generated images against {len(sides.reference)} training images"
          + (f", {len(sides.held_out)} real ones held out" if sides.held_out else ""), file=sys.stderr)
    networks = load_networks(config, device, findings)
    twins = {} if config.base is None else through_vae(sides, config.base, drawn_size(config, sides), device,
                                                       out / "through_vae")
    rows = gather(config, sides, twins, findings, out)
    pairs = measure(config, sides, rows, twins, networks, findings, out)
    warn(config, sides, findings, networks)

    fid = networks["features"].fid if "features" in networks else "FID"
    groups = list(groups_of(sides))
    picture = chart(findings, sides.classes, fid)
    about = {**{f"network: {name}": text for name, text in findings.networks.items()},
             "resize": "to the network's input in one step, bicubic, antialiased, in float",
             "settings": " ".join(f"{name}={value}" for name, value in asdict(config).items())}
    metrics = {"fid": fid, **asdict(findings), "classes": sides.classes, "config": asdict(config)}
    save_json(out / "metrics.json", metrics)
    save_image(out / "report.png", picture)
    text = page(findings, about, {"All numbers": picture, "Examples": examples(sides), **pairs}, fid)
    save_text(out / "report.html", text)
    if config.json:
        return print(json.dumps(metrics))
    print(table(findings, groups, fid))
    for line in [*findings.warnings, *(f"not measured: {k}: {v}" for k, v in findings.missing.items())]:
        print(f"\nnote: {line}")
    print(f"\n{out}: report.html, report.png, metrics.json")


if __name__ == "__main__":
    errors.run(main)
