"""Ablations on the embedded base, by an independent judge: `python benchmarks/ablation.py tokens`.

Each arm is a train script and sample.py on the demo dataset with the demo's flags but for those it varies, a
third of the demo's epochs, 25 steps and guidance 2. Results go to benchmarks/<name>.json: the commands, the
confusion matrix of each run, and the machine.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import shlex
import subprocess
import sys
import time
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from metrics import wilson  # noqa: E402
from tiny.judge import demo_images, describe, judged, load_folder, load_or_train  # noqa: E402

TRAIN = "--base tiny --resolution 128 --epochs 40 --batch-size 8 --lr 2e-3 --lr-decay 25=0.5 35=0.1 " \
        "--embedding-lr 1e-2 --init-std 0.5 --tokens-per-class 4 --class-dropout 0.1 --ema 0.99 " \
        "--preview-every 0 --save-every 20"
PROMPT = "--prompt 'dark vessel with {damage} on-white'"  # the base's words for the like of the demo's bottle
SAMPLE = "--guidance 2 --steps 25 --eta 1 --per-class 25 --batch-size 25"

# name -> arms: what each adds to TRAIN, and to SAMPLE (a later flag wins over an earlier one)
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
    "context": {"class": ("", ""), "prompt": (f"--context prompt --embedding-lr 5e-3 {PROMPT}", "")},
    "latent_variants": {"25 variants": ("", ""), "encoded at every step": ("--latent-variants 0", "")},
    "defect_weight": {"weight 0": ("", ""), "weight 0.5": ("--defect-weight 0.5", ""),
                      "weight 0.75": ("--defect-weight 0.75", "")},
}
INPAINT = ("defect_weight",)  # by train_inpaint.py, painted into undamaged photos that were not trained on


def command(script: str, *arguments: str) -> float:
    """Run one of our commands; its seconds."""
    began = time.time()
    subprocess.run([sys.executable, str(ROOT / script), *arguments], check=True, cwd=ROOT)
    return time.time() - began


def main() -> None:
    """The command: train and judge each arm, writing the rows as they come."""
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=ABLATIONS)
    parser.add_argument("--seeds", type=int, nargs="+", default=[42])
    parser.add_argument("--work", type=Path, default=Path("/tmp/ablation"))
    arguments = parser.parse_args()
    data, photos = arguments.work / "bottle", arguments.work / "photos"
    for folder, per_class, seed in ((data, 20, 0), (photos, 50, 1)):
        if not folder.exists():
            command("data.py", "demo", str(folder), "--per-class", str(per_class), "--seed", str(seed))
    script, sample = "train_class.py", SAMPLE
    if arguments.name in INPAINT:
        script, sample = "train_inpaint.py", f"{SAMPLE} --eta 0 --images {photos}/image/good --masks {data}"
    judge = load_or_train(500, arguments.work / "judge.safetensors")
    ceiling = judged(judge, *demo_images(10_000, 100))
    describe("fresh drawn images", ceiling)
    rows = []
    for arm, (train_flags, sample_flags) in ABLATIONS[arguments.name].items():
        for seed in arguments.seeds:
            run = arguments.work / f"{script[:-3]}{'_'.join(['', *shlex.split(train_flags)])}-{seed}"
            out = arguments.work / f"{arguments.name}-{arm.replace(' ', '_')}-{seed}"
            train_command = shlex.split(f"--data {data} --out '{run}' --seed {seed} {TRAIN} {train_flags}")
            sample_command = shlex.split(f"--ckpt '{run}' --out {out} --seed {seed} {sample} {sample_flags}")
            trained = (run / "adapter.safetensors").exists()  # by another ablation
            seconds = [command(script, *train_command), command("sample.py", *sample_command)]
            table = judged(judge, *load_folder(out))
            describe(f"{arm}, seed {seed}", table)
            correct, total = int(table.trace()), int(table.sum())
            noted = [json.loads(line) for line in (out / "samples.jsonl").read_text().splitlines()]
            fidelity = [row["fidelity"] for row in noted if "fidelity" in row]
            rows.append({"arm": arm, "seed": seed, "correct": correct, "total": total,
                         "interval": wilson(correct, total), "confusion": table.tolist(),
                         "fidelity": sum(fidelity) / len(fidelity) if fidelity else None,
                         "train": shlex.join(train_command), "sample": shlex.join(sample_command),
                         "train_seconds": None if trained else round(seconds[0]),
                         "sample_seconds": round(seconds[1])})
            result = {"date": datetime.date.today().isoformat(), "machine": platform.machine(),
                      "cores": os.cpu_count(), "torch": torch.__version__, "classes": 4,
                      "judge_on_fresh_images": ceiling.tolist(), "rows": rows}
            (ROOT / "benchmarks" / f"{arguments.name}.json").write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
