"""The tables of docs/performance.md that lie in benchmarks/*.json, row by row."""

from __future__ import annotations

from collections.abc import Iterable

from benchmarks.recorded import results

# row of roofline.json -> its name in the page; only of the first the stock example is shown
COUNTED = {"A, 1 token, batch 4": "A", "A, 4 tokens, batch 4": "A, 4 tokens",
           "B2, 1 token, batch 4": "B2, whole ControlNet",
           "sampling, 1 token, batch 4": "guided sampling step"}
CONTENDERS = {"ours, none": "ours, `none`", "ours, lean": "ours, `lean`",
              "diffusers + peft, stock example": "the same, stock example"}
LEVELS = ("ours", "ours, --checkpointing lean", "ours, --checkpointing full")
# row of cpu.json, contender -> its name in the page
TIMED = {**{("training step, bf16", level): name for level, name in zip(LEVELS, (
             "training step, strategy A", "the same, `--checkpointing lean`",
             "the same, `--checkpointing full`"), strict=True)},
         ("training step, fp32", "ours"): "the same in fp32, `none`",
         ("training step, inpainting, bf16", "ours"): "training step, inpainting",
         ("training step, whole ControlNet, bf16", "ours"): "training step, whole ControlNet",
         ("guided DDIM-50, one image, bf16", "ours"): "guided DDIM-50",
         ("guided DDIM-50, eight images, bf16", "ours"): "guided DDIM-50, 256 px, eight images",
         ("guided DDIM-50, one image, fp32", "ours"): "guided DDIM-50, 256 px, fp32",
         ("guided DDIM-50, one image, bf16, rival compiled", "ours"):
             "guided DDIM-50, 256 px, rival compiled"}


def roofline() -> Iterable[str]:
    """What a step asks of a GPU, ours and the rival's."""
    for row in results("roofline")["rows"]:
        for contender, count in row["contenders"].items():
            name, title = COUNTED.get(row["what"]), CONTENDERS.get(contender, contender)
            if name is None or (title.startswith("the same") and name != "A"):
                continue
            kept = f"{count['kept'] / 2**20 / row['batch']:,.0f}" if count.get("kept") else ""
            floor = ", ".join(f"{value:.0f}" for value in count["floor_ms"].values())
            yield (f"| {name}: {title} | {count['launches']:,} | {count['flops'] / 1e12:.2f} | "
                   f"{count['moved'] / 1e9:.1f} | {kept} | {floor} |")


def cpu() -> Iterable[str]:
    """Seconds and memory on a CPU, and the rival's as a share of ours; in brackets its stock example's."""
    rows = {row["what"]: row["contenders"] for row in results("cpu")["rows"]}
    for (what, contender), title in TIMED.items():
        ours = rows[what][contender]
        seconds = f"{ours['seconds']:.1f}" if ours["seconds"] < 10 else f"{ours['seconds']:.0f}"
        best, *stock = ours["ratio"].values()
        shares = [f"{best[key]:.2f}" + "".join(f" ({other[key]:.2f})" for other in stock)
                  for key in ("seconds", "seconds_to_first", "peak_gib")]
        yield f"| {title} | {seconds} s, {ours['peak_gib']:.1f} GiB | {' | '.join(shares)} |"
