"""Ablations on the embedded base, measured by an independent classifier.

Each arm runs a train script and sample.py on the demo dataset with the demo's flags, except those it varies,
a third of the demo's epochs, 25 steps and guidance 2. Results go to benchmarks/NAME.json: the commands, the
confusion matrix of each run, and the machine.
"""

from __future__ import annotations

import json
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.timing import command, record
from evaluation.metrics import wilson
from runtime import errors
from runtime.cli import flag, parse
from tiny.judge import classified, demo_images, describe, load_folder, load_or_train

TRAIN = "--base tiny --resolution 128 --epochs 40 --batch-size 8 --lr 2e-3 --lr-decay 25=0.5 35=0.1 " \
        "--embedding-lr 1e-2 --init-std 0.5 --tokens-per-class 4 --class-dropout 0.1 --ema 0.99 " \
        "--preview-every 0 --save-every 20"
PREVIEWS = "--preview-every 5 --features efficientnet_lite0 --judge efficientnet_lite0"
PROMPT = "--prompt 'dark vessel with {damage} on-white'"  # words that the embedded base was trained on
SAMPLE = "--guidance 2 --steps 25 --eta 1 --per-class 25 --batch-size 25"

# name -> arm -> flags added to TRAIN and to SAMPLE (the last of equal flags wins; {run}: the folder trained)
ABLATIONS: dict[str, dict[str, tuple[str, str]]] = {
    "tokens": {"1 token a class": ("--tokens-per-class 1", ""), "4 tokens": ("", ""),
               "8 tokens": ("--tokens-per-class 8", "")},
    "parts": {"both": ("", ""), "adapters only": ("--embedding-lr 0", ""), "embedding only": ("--lr 0", "")},
    "rank": {"rank 4": ("--rank 4 --alpha 8", ""), "rank 16": ("", ""),
             "rank 64": ("--rank 64 --alpha 128", "")},
    "images": {**{f"{n} images a class": (f"--max-samples-per-damage-type {n} --epochs {800 // n} --lr-decay "
                                          f"{500 // n}=0.5 {700 // n}=0.1", "") for n in (5, 10)},
               "20 images a class": ("", "")},
    "guidance": {"guidance 1": ("", "--guidance 1"), "guidance 2": ("", ""),
                 "guidance 4": ("", "--guidance 4")},
    "sampler": {"DDIM, 25 steps": ("", "--eta 0"), "DDIM, 100 steps": ("", "--eta 0 --steps 100"),
                "eta 1, 25 steps": ("", ""), "eta 1, 50 steps": ("", "--steps 50"),
                "DPM-Solver++, 10 steps": ("", "--eta 0 --sampler dpm++ --steps 10"),
                "DPM-Solver++, 25 steps": ("", "--eta 0 --sampler dpm++"),
                "eta 1, guidance in 200 to 800": ("", "--guidance-interval 200 800")},
    "ema": {"EMA 0.99": ("", ""), "no EMA": ("--ema 0", "")},
    "min_snr": {"no weights": ("", ""), "min-SNR, gamma 5": ("--min-snr-gamma 5", "")},
    "weights": {"last": (PREVIEWS, ""), "of the best preview": (PREVIEWS, "--ckpt {run}/best.safetensors")},
    "preset": {"better": ("", ""), "recipe": (
        "--tokens-per-class 1 --class-dropout 0 --ema 0 --preview-guidance 1", "--guidance 1 --eta 0")},
    "context": {"class": ("", ""), "prompt": (f"--context prompt --embedding-lr 5e-3 {PROMPT}", "")},
    "latent_variants": {"25 variants": ("", ""), "encoded at every step": ("--latent-variants 0", "")},
    "defect_weight": {"weight 0": ("", ""), "weight 0.5": ("--defect-weight 0.5", ""),
                      "weight 0.75": ("--defect-weight 0.75", "")},
    "mask_jitter": {"jitter 0": ("", "--mask-jitter 0"), "jitter 0.05": ("", ""),
                    "jitter 0.2": ("", "--mask-jitter 0.2")},
}
INPAINT = ("defect_weight", "mask_jitter")  # by train_inpaint.py, into undamaged photos not trained on


@dataclass
class Config:
    """The command line of benchmarks.ablation."""

    name: str = flag(..., "which ablation", choices=tuple(ABLATIONS), positional=True)
    seeds: list[int] = flag([42], "seeds of training and sampling")
    work: str = flag("/tmp/ablation", "folder for data, runs and images; what is there is used again")


def measure(classifier: Any, config: Config, arm: str, seed: int, train: str, sample: str) -> dict[str, Any]:
    """Train and sample one arm, and classify its images. train, sample: their flags; the script comes first.

    A run that another ablation trained is not trained again.
    """
    work = Path(config.work)
    script, *train_flags = shlex.split(train)
    varied = shlex.split(ABLATIONS[config.name][arm][0])
    run = work / f"{'_'.join([script.removesuffix('.py'), *varied])}-{seed}"
    sample = sample.replace("{run}", str(run))
    out = work / f"{config.name}-{arm.replace(' ', '_')}-{seed}"
    train_command = ["--data", str(work / "bottle"), "--out", str(run), "--seed", str(seed), *train_flags]
    sample_command = ["--ckpt", str(run), "--out", str(out), "--seed", str(seed), *shlex.split(sample)]
    trained = (run / "adapter.safetensors").exists()
    seconds = [command(script, *train_command), command("sample.py", *sample_command)]
    table = classified(classifier, *load_folder(out))
    describe(f"{arm}, seed {seed}", table)
    correct, total = int(table.trace()), int(table.sum())
    noted = [json.loads(line) for line in (out / "samples.jsonl").read_text().splitlines()]
    fidelity = [row["fidelity"] for row in noted if "fidelity" in row]
    return {"arm": arm, "seed": seed, "correct": correct, "total": total,
            "interval": wilson(correct, total), "confusion": table.tolist(),
            "fidelity": sum(fidelity) / len(fidelity) if fidelity else None,
            "train": shlex.join(train_command), "sample": shlex.join(sample_command),
            "train_seconds": None if trained else round(seconds[0]), "sample_seconds": round(seconds[1])}


def main() -> None:
    """Measure each arm and record the rows as they come."""
    config = parse(Config, __doc__, "", program="-m benchmarks.ablation")
    work, rows = Path(config.work), []
    for name, per_class, seed in (("bottle", 20, 0), ("photos", 50, 1)):
        if not (work / name).exists():
            command("data.py", "demo", work / name, "--per-class", per_class, "--seed", seed)
    script, sample = "train_class.py", SAMPLE
    if config.name in INPAINT:
        script = "train_inpaint.py"
        sample = f"{SAMPLE} --eta 0 --images '{work}/photos/image/good' --masks '{work}/bottle'"
    classifier = load_or_train(500, work / "judge.safetensors")
    ceiling = classified(classifier, *demo_images(10_000, 100))
    describe("new demo images", ceiling)
    for arm, (train_flags, sample_flags) in ABLATIONS[config.name].items():
        for seed in config.seeds:
            rows.append(measure(classifier, config, arm, seed, f"{script} {TRAIN} {train_flags}",
                                f"{sample} {sample_flags}"))
            record(f"benchmarks/{config.name}.json", classes=4, judge_on_fresh_images=ceiling.tolist(),
                   rows=rows)


if __name__ == "__main__":
    errors.run(main)
