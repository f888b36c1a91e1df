"""Ablations on the embedded base, by an independent judge: `python benchmarks/ablation.py tokens`.

Each arm is a train script and sample.py on the demo dataset with the demo's flags but for those it varies.
Results go to benchmarks/<name>.json: the commands, the confusion matrix of each run, and the machine.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from metrics import wilson  # noqa: E402
from tiny.judge import demo_images, describe, judged, load_folder, load_or_train  # noqa: E402

TRAIN = "--base tiny --resolution 128 --epochs 80 --batch-size 8 --lr 2e-3 --lr-decay 50=0.5 70=0.1 " \
        "--embedding-lr 1e-2 --init-std 0.5 --tokens-per-class 4 --class-dropout 0.1 --ema 0.99 " \
        "--preview-every 0 --save-every 40"
SAMPLE = "--guidance 2 --steps 25 --per-class 50 --batch-size 40"

# name -> arms: what each adds to TRAIN, and to SAMPLE (a later flag wins over an earlier one)
ABLATIONS: dict[str, dict[str, tuple[str, str]]] = {
    "tokens": {f"{k} token{'s' * (k > 1)} a class": (f"--tokens-per-class {k}", "") for k in (1, 4, 8)},
    "parts": {"both": ("", ""), "adapters only": ("--embedding-lr 0", ""), "embedding only": ("--lr 0", "")},
    "rank": {f"rank {r}": (f"--rank {r} --alpha {2 * r}", "") for r in (4, 16, 64)},
    "images": {f"{n} images a class": (f"--max-samples-per-damage-type {n} --epochs {1600 // n} --lr-decay "
                                       f"{1000 // n}=0.5 {1400 // n}=0.1", "") for n in (5, 10, 20)},
    "guidance": {f"guidance {g}": ("", f"--guidance {g}") for g in (1, 2, 4)},
    "latent_variants": {f"{k} variants" if k else "encoded at every step": (f"--latent-variants {k}", "")
                        for k in (0, 1, 5, 25)},
    "defect_weight": {f"weight {w}": (f"--defect-weight {w}", "") for w in (0, 0.25, 0.5, 0.75)},
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
        script, sample = "train_inpaint.py", f"{SAMPLE} --images {photos}/image/good"
    judge = load_or_train(500, arguments.work / "judge.safetensors")
    ceiling = judged(judge, *demo_images(10_000, 100))
    describe("fresh drawn images", ceiling)
    rows = []
    for arm, (train_flags, sample_flags) in ABLATIONS[arguments.name].items():
        for seed in arguments.seeds:
            run = arguments.work / f"{script[:-3]}{'_'.join(['', *train_flags.split()])}-{seed}"
            out = arguments.work / f"{arguments.name}-{arm.replace(' ', '_')}-{seed}"
            train_command = f"--data {data} --out {run} --seed {seed} {TRAIN} {train_flags}".split()
            sample_command = f"--ckpt {run} --out {out} --seed {seed} {sample} {sample_flags}".split()
            seconds = [command(script, *train_command), command("sample.py", *sample_command)]
            table = judged(judge, *load_folder(out))
            describe(f"{arm}, seed {seed}", table)
            correct, total = int(table.trace()), int(table.sum())
            noted = [json.loads(line) for line in (out / "samples.jsonl").read_text().splitlines()]
            fidelity = [row["fidelity"] for row in noted if "fidelity" in row]
            rows.append({"arm": arm, "seed": seed, "correct": correct, "total": total,
                         "interval": wilson(correct, total), "confusion": table.tolist(),
                         "fidelity": sum(fidelity) / len(fidelity) if fidelity else None,
                         "train": " ".join(train_command), "sample": " ".join(sample_command),
                         "train_seconds": round(seconds[0]), "sample_seconds": round(seconds[1])})
            result = {"date": datetime.date.today().isoformat(), "machine": platform.machine(),
                      "cores": os.cpu_count(), "torch": torch.__version__, "classes": 4,
                      "judge_on_fresh_images": ceiling.tolist(), "rows": rows}
            (ROOT / "benchmarks" / f"{arguments.name}.json").write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
