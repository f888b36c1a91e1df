"""Compare generated images with real ones: numbers with their intervals, beside controls measured alike."""

from __future__ import annotations

import json
import sys
import textwrap
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from dataset.augmentation import ORIENTATIONS
from dataset.layouts import Photo, product_root
from evaluation.caveats import caveats
from evaluation.clip import load_clip
from evaluation.cut_paste import cut_and_paste
from evaluation.dca import How, measure_dca
from evaluation.downstream import measure_downstream, tasks_for
from evaluation.examples import Example, examples
from evaluation.features import FeatureStore
from evaluation.fidelity import sources_in
from evaluation.image_sets import EvaluationSets, ImageSet, load_sets
from evaluation.instances import measure_instances
from evaluation.measures import (
    Rows,
    count_images,
    measure_cmmd,
    measure_distances,
    measure_fidelity,
    measure_memorisation,
)
from evaluation.networks import Network, NetworkConfig, WeightsMissing, load_network, pixels
from evaluation.numbers import BEFORE, COPY, GENERATED, PASTED, RENDERED, Findings
from evaluation.out_folder import claim, refuse_mixing
from evaluation.report import chart, table
from evaluation.report_page import page
from evaluation.seen_views import as_seen
from evaluation.selected import with_before
from evaluation.vae_reconstruction import as_the_base_draws
from evaluation.verdict import verdict
from runtime import distributed, errors
from runtime.cli import flag, parse
from runtime.device import choose_device
from runtime.distributed import together
from runtime.errors import UserError
from runtime.files import save_image, save_json, save_text
from runtime.locks import locked

EXAMPLE = """example:
  python evaluate.py --real DS-MVTec/bottle --fake generated/bottle
  python evaluate.py --real my/bottle --fake generated/bottle --ckpt runs/bottle-class --downstream
  python evaluate.py --real demo/bottle --fake demo/generated --ckpt demo/run \\
      --features efficientnet_lite0 --judge efficientnet_lite0
"""


@dataclass
class Config(NetworkConfig):
    """The command line of evaluate.py."""

    real: list[str] = flag(..., "real images: the value of --data in training", group="what")
    fake: str = flag(..., "folder that sample.py wrote, or any in the same layout", group="what")
    out: str = flag("report", "folder for metrics.json, report.png and report.html", group="what",
                    common=True)
    json: bool = flag(False, "print metrics.json instead of the tables", group="what")
    classes: list[str] = flag([], "only these damage types (default: all)", group="what", common=True)
    ckpt: str | None = flag(None, "checkpoint that drew --fake: it tells which real images it was trained on "
                            "(default: unknown, so none count as held out)", group="what", common=True)
    skip_unreadable: bool = flag(False, "leave out damaged files and count the rest", group="what")
    base: str | None = flag(None, "the base that drew --fake: classifiers learn from real images after a "
                            "pass through its VAE, and the training images after that, the best that it can "
                            "reach, are measured too (default: the base of --ckpt)", group="what",
                            common=True)
    clip: str | None = flag(None, "hub id or folder of a CLIP model, for CMMD (default: no CMMD)",
                            group="networks")
    seed: int = flag(42, "seed of folds, bootstrap and classifiers", group="how", minimum=0, common=True)
    folds: int = flag(5, "parts of the real images; each of as many classifiers leaves one out and is tested "
                      "on it", group="how", minimum=2)
    bootstrap: int = flag(200, "resamplings for the interval of FID", group="how", minimum=10)
    orientation: str = flag("any", "as in training: whether images may be flipped and turned", group="how",
                            choices=ORIENTATIONS, common=True)
    downstream: bool = flag(False, "also train on real images with and without these, and test on real ones",
                            group="how", common=True)
    downstream_seeds: int = flag(3, "trainings of each kind", group="how", minimum=1)
    downstream_epochs: int = flag(30, "passes of a training over its real images", group="how", minimum=1)
    batch_size: int = flag(32, "images at once", group="speed", minimum=1, maximum=10**4, common=True)
    workers: int = flag(0, "processes that load images", group="speed", minimum=0, maximum=256)
    device: str = flag("auto", "auto, cpu, cuda, cuda:1, ..", group="speed", common=True)


def load_networks(config: Config, device: torch.device, findings: Findings) -> dict[str, Network]:
    """The networks by their use; one whose weights are missing is noted, with how to get them."""
    wanted = {"features": lambda: load_network(config.features, config.features_weights, device),
              "judge": lambda: load_network(config.judge, config.judge_weights, device)}
    if clip := config.clip:
        wanted["clip"] = lambda: load_clip(clip, device)
    networks = {}
    for name, load in wanted.items():
        try:
            networks[name] = load()
            findings.networks[name] = networks[name].about
        except WeightsMissing as error:
            findings.missing[name] = str(error)
            print(f"not measured: {name}: {error.short}", file=sys.stderr)
    return networks


def rows_of(config: Config, sets: EvaluationSets, reconstructions: dict[Path, Photo], findings: Findings,
            out: Path) -> Rows:
    """The sets of images that are measured: the generated ones, and the controls except held-out real
    ones."""
    training = sets.training
    rows = {GENERATED: sets.fake, COPY: training}
    if sets.before:
        rows[BEFORE] = sets.before
    if reconstructions:
        rows[RENDERED] = ImageSet([reconstructions[photo.image] for photo in training.photos], training.label)
    try:
        rows[PASTED] = cut_and_paste(sets.reference, sets, out / "cut_and_paste", config.seed,
                                     config.orientation)
    except UserError as error:
        findings.missing[PASTED] = str(error)
        return rows
    if left_out := ", ".join(sets.classes[i] for i in sets.chosen if not len(rows[PASTED].of([i]))):
        findings.missing[f"{PASTED} of {left_out}"] = (
            "no image has a mask to cut it out with, or its product has no good images to paste it "
            "onto; the row's numbers over all types are of the others")
    return rows


def measure(config: Config, sets: EvaluationSets, rows: Rows, reconstructions: dict[Path, Photo],
            networks: dict[str, Network], findings: Findings, out: Path) -> dict[str, list[Example]]:
    """Fill `findings`; returns pictures of each class."""
    def store(network: Network) -> FeatureStore:
        return FeatureStore(network, out / "features", config.batch_size, config.workers)

    count_images(findings, rows, sets)
    measure_instances(findings, rows, sets, reconstructions, config.orientation, config.seed)
    stores = {"pixel": store(pixels(torch.device("cpu")))}
    if "features" in networks:
        stores["feature"] = store(networks["features"])
        for crop in (False, True):
            measure_distances(findings, rows, sets, stores["feature"], config.seed, config.bootstrap, crop)
    if "clip" in networks:
        measure_cmmd(findings, rows, sets, store(networks["clip"]))
    if "judge" in networks:
        measure_dca(findings, rows, sets, reconstructions,
                    How(networks["judge"], config.folds, config.seed, config.orientation, config.batch_size,
                        config.workers))
        if config.downstream:
            help_training(config, sets, PASTED in rows, networks["judge"], findings, out)
    try:
        sources = {GENERATED: sources_in(Path(config.fake), config.real)}
        if PASTED in rows:
            sources[PASTED] = sources_in(out / "cut_and_paste", config.real)
        measure_fidelity(findings, rows, sets, sources)
    except UserError as error:
        findings.missing["mask fidelity"] = str(error)
    return examples(sets, measure_memorisation(findings, rows, sets, stores))


def help_training(config: Config, sets: EvaluationSets, pasted: bool, network: Network, findings: Findings,
                  out: Path) -> None:
    """--downstream: train with and without generated images. The damage that is pasted is of training images
    only."""
    def paste(train: ImageSet, turn: int) -> ImageSet:
        return cut_and_paste(train, sets, out / "cut_and_paste" / f"turn_{turn}", config.seed,
                             config.orientation)

    tasks = tasks_for(sets, network, config.downstream_epochs, config.orientation, findings)
    measure_downstream(findings, sets, tasks, paste if pasted else None, config.folds,
                       config.downstream_seeds, config.seed)


@together
def main() -> None:
    """The command: load both sides, measure, write the report."""
    config = parse(Config, __doc__, EXAMPLE)
    if distributed.first():  # the networks are small, so other ranks do nothing
        refuse_mixing(Path(config.out), [*config.real, config.fake])
        with locked(Path(config.out)):
            evaluate(config)


def evaluate(config: Config) -> None:
    """Measure and write the reports."""
    device, out, findings = choose_device(config.device), Path(config.out), Findings()
    config.fake = str(product_root(config.fake))  # where samples.jsonl is
    sets = load_sets(config.real, config.fake, config.classes, config.ckpt, config.skip_unreadable)
    real_digest = claim(out, sets.real, config.real)
    sets = as_seen(with_before(sets, Path(config.fake), findings), config.ckpt, out / "views")
    print(f"{len(sets.fake)} generated images against {len(sets.reference)} training images"
          + (f", {len(sets.held_out)} real ones held out" if sets.held_out else ""), file=sys.stderr)
    networks = load_networks(config, device, findings)
    reconstructions = as_the_base_draws(sets, config.base, config.ckpt, device, findings, out / "through_vae")
    rows = rows_of(config, sets, reconstructions, findings, out)
    pictures = measure(config, sets, rows, reconstructions, networks, findings, out)
    features = networks.get("features")
    findings.warnings = caveats(sets, Path(config.fake), networks, config.ckpt)
    sentences, fid = verdict(findings), features.fid if features else "FID"

    about = {**{f"network: {name}": text for name, text in findings.networks.items()},
             "resize": "to the network's input in one step, bicubic, antialiased, in float",
             "settings": " ".join(f"{name}={value}" for name, value in asdict(config).items())}
    metrics = {"verdict": [sentence._asdict() for sentence in sentences], "fid": fid, **findings.as_json(),
               "classes": sets.classes, "config": asdict(config), "real": real_digest}
    charts = chart(findings, sets.classes, fid), chart(findings, sets.classes, fid, columns=1)
    save_json(out / "metrics.json", metrics)  # first: it tells whose the others are
    save_image(out / "report.png", charts[0])
    save_text(out / "report.html", page(findings, sentences, pictures, charts, about, fid))
    if config.json:
        return print(json.dumps(metrics))
    for grade, text in sentences:
        print(textwrap.fill(f"{grade + ':':9}{text}", 100, subsequent_indent=" " * 9))
    print(table(findings, list(sets.groups()), fid))
    for line in [*findings.warnings, *(f"not measured: {k}: {v}" for k, v in findings.missing.items())]:
        print(f"\nnote: {line}")
    print(f"\n{out}: report.html, report.png, metrics.json")


if __name__ == "__main__":
    errors.run(main)
