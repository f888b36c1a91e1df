"""The tables of docs/ whose numbers lie in benchmarks/*.json, row by row.

`python -m benchmarks.tables` prints them; a test compares them with the pages.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from benchmarks.evaluation_tables import (
    STRATEGIES,
    best_weights,
    coverage,
    judges,
    photos,
    photos_by_type,
    photos_downstream,
    places,
)
from benchmarks.performance_tables import cpu, roofline
from benchmarks.recorded import DAMAGES, percent, results
from evaluation.metrics import wilson
from runtime import errors

ABLATED = ("tokens", "parts", "rank", "images", "guidance", "sampler", "ema", "weights",
           "min_snr", "preset")


def ablations() -> Iterable[str]:
    """docs/recipe.md: each arm of train_class.py's ablations, over its seeds."""
    for name in ABLATED:
        arms: dict[str, list[int]] = {}
        for row in results(name)["rows"]:
            arms.setdefault(row["arm"], []).append(row["correct"])
            assert row["total"] == 100
        for arm, right in arms.items():
            low, high = wilson(sum(right), 100 * len(right))
            yield (f"| {name}: {arm} | {percent(sum(right) / len(right) / 100)} % | {percent(low)} to "
                   f"{percent(high)} | {', '.join(map(str, right))} |")


def latent_variants() -> Iterable[str]:
    """docs/recipe.md: variants encoded once against images encoded at every step."""
    right: dict[str, int] = {}
    for row in results("latent_variants")["rows"]:
        right[row["arm"]] = right.get(row["arm"], 0) + row["correct"]
    yield "{} of 300 right against {}".format(*right.values())


def controlnet() -> Iterable[str]:
    """docs/controlnet.md: class and place of the damage, for each arm."""
    for row in results("controlnet")["rows"]:
        low, high = row["interval"]
        name = row["arm"].replace("--mask-guidance 2", "`--mask-guidance 2`").replace(
            "without control", "its UNet without control")
        iou = [f"{row['iou'][damage]:.2f}" for damage in (*DAMAGES, "mean")]
        yield (f"| {name} | {row['correct']}, {percent(row['correct'] / row['total'])} % ({percent(low)} to "
               f"{percent(high)}) | {' | '.join(iou)} | {row['iou_pixels']['mean']:.2f} |")
    most = results("controlnet")["ceiling"]
    iou = [f"{most['iou'][damage]:.2f}" for damage in (*DAMAGES, "mean")]
    yield f"| the bottles themselves | | {' | '.join(iou)} | {most['iou_pixels']['mean']:.2f} |"


def controlnet_size() -> Iterable[str]:
    """docs/controlnet.md: what each rank takes at SD 1.5's size."""
    for row in results("controlnet_size")["rows"]:
        checkpoint, resume = row["checkpoint_bytes"], row["resume_bytes"]
        size = "{:.2f} GB".format if checkpoint > 1e9 else lambda value: f"{1e3 * value:.0f} MB"
        yield (f"| {row['parameters']:,} | {size(checkpoint / 1e9)} | {size(resume / 1e9)} | "
               f"{row['peak_bytes'] / 1e9:.1f} GB |")


def contexts() -> Iterable[str]:
    """docs/integrations.md: images right with the table of damage types, and with words of a prompt."""
    table, prompt = (row["correct"] for row in results("context")["rows"])
    yield f"with the table {table} of 100 images were right, by prompt {prompt}"


def defect_weight() -> Iterable[str]:
    """docs/inpainting.md: images right and mean fidelity, for each --defect-weight."""
    for row in results("defect_weight")["rows"]:
        yield f"| {row['arm'].removeprefix('weight ')} | {row['correct']} | {row['fidelity']:.2f} |"


def mask_jitter() -> Iterable[str]:
    """docs/inpainting.md: images right and mean fidelity, for each --mask-jitter, over the seeds."""
    arms: dict[str, list[dict[str, Any]]] = {}
    for row in results("mask_jitter")["rows"]:
        arms.setdefault(row["arm"].removeprefix("jitter "), []).append(row)
    for arm, rows in arms.items():
        each = ", ".join(str(row["correct"]) for row in rows)
        fidelity = sum(row["fidelity"] for row in rows) / len(rows)
        yield f"| {arm} | {sum(row['correct'] for row in rows)} ({each}) | {fidelity:.2f} |"


def placement() -> Iterable[str]:
    """docs/inpainting.md: where masks go, by the rule before this one and now."""
    now = results("placement")
    both = (now["earlier"], now)

    def row(title: str, cell: Callable[[dict[str, Any]], str]) -> str:
        return f"| {title} | {' | '.join(cell(found) for found in both)} |"

    def counted(product: str, key: str) -> Callable[[dict[str, Any]], str]:
        def cell(found: dict[str, Any]) -> str:
            about = found[product].get(key)
            return f"{100 * about['share']:.0f} % ({about['right']} of {about['of']})" if about else ""
        return cell

    for key, title in (("on the bolt", "at least 80 % on the bolt, where it is so on its own photo"),
                       ("on its part", "on the part it belongs to"),
                       ("on its part, both bolts whole", "the same, both bolts whole"),
                       ("on its part, a bolt partly outside", "the same, a bolt partly outside its photo"),
                       ("on its part, another size", "the same, another size (1.25 times or more)")):
        yield row(f"bolts: {title}", counted("bolts", key))
    yield row("bolts: masks placed, of these with the first photo",
              lambda found: "{placed} of {of}, {placed at once}".format(**found["bolts"]))
    for product in ("drawn bottles", "photographed bottles"):
        yield row(f"{product}: within 0.1 radii of its distance from the centre",
                  counted(product, "within 0.1 radii of its distance from the centre"))
        yield row(f"{product}: breaks on the lip, contamination inside",
                  counted(product, "breaks on the lip, contamination inside, as on its own photo"))
    yield row("cloth: least and most of what a tenth of the picture receives, 1 is even",
              lambda found: f"{min(found['cloth']['tenths']):.2f} to {max(found['cloth']['tenths']):.2f} "
                            f"({found['cloth']['placed']} masks)")
    yield row("1,000 placements at 512 px, one core",
              lambda found: f"{found['1,000 placements at 512 px']['seconds']:.0f} s")


def views() -> Iterable[str]:
    """docs/data.md: what each view shows of the damage."""
    for product, found in results("views")["products"].items():
        name = {"long_damage_at_both_ends": "6 strips of 512 x 128, damaged at both ends"
                }.get(product, f"40 {product}")
        for view, row in found.items():
            title = {"one square": "one square, as before", "pad": "`--fit pad`"}.get(view, f"`{view}`")
            lost = f"{row['lost']} of {row['regions']}" if view == "one square" else row["lost"]
            cells = ", ".join(f"{round(value + 1e-9):.0f}" for value in row["cells"])
            few = f"{100 * row['examples under 4 cells']:.1f}".removesuffix(".0")
            yield f"| {f'{name} ' * (view == 'one square')}| {title} | {lost} | {cells} | {few} % |"


def painted_views() -> Iterable[str]:
    """docs/inpainting.md: whether small painted damage is where its mask says, over the seeds."""
    rows = results("painted_views")["rows"]
    for view in ("whole", "close"):
        own = [row for row in rows if row["view"] == view]
        images = sum(row["images"] for row in own)
        good = round(sum(row["over half"] * row["images"] for row in own))
        low, high = wilson(good, images)
        means = ", ".join(f"{row['iou']:.2f}" for row in own)
        right = sum(row["right"] for row in own)
        least, most = wilson(right, images)
        yield (f"| `--view {view}` | {means} | {good} of {images} ({percent(low)} to {percent(high)} %) | "
               f"{right} of {images} ({percent(least)} to {percent(most)} %) | {gains(own[0])} |")


def gains(row: dict[str, Any]) -> str:
    """What a classifier and a segmenter gain by images, in points, and where they are without them."""
    found = []
    for key in ("accuracy", "iou"):
        alone, gain = (row["downstream"][name][metric]
                       for name, metric in (("real only", key), ("generated", f"{key}_gain")))
        value, low, high = (percent(gain[name]) for name in ("value", "low", "high"))
        found.append(f"{value} [{low}, {high}] to {percent(alone['value'])}")
    return " | ".join(found)


def painted_bolts() -> Iterable[str]:
    """docs/inpainting.md: damage painted on bolts, with masks of both rules."""
    rows = results("painted_bolts")["rows"]
    for rule in dict.fromkeys(row["masks"] for row in rows):
        own = [row for row in rows if row["masks"] == rule]
        images, part, right = (sum(row[key] for row in own) for key in ("images", "on its part", "right"))
        low, high = wilson(right, images)
        yield (f"| {rule} | {part} of {images} | {right} of {images} ({percent(low)} to {percent(high)} %) | "
               f"{gains(own[0])} |")


def selection() -> Iterable[str]:
    """docs/sampling.md: images right, kept and drawn, for each level of --select, over the seeds."""
    levels: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in results("selection")["rows"]:
        levels.setdefault((row["strategy"], row["level"]), []).append(row)
    for (strategy, level), rows in levels.items():
        right, kept, drawn = (sum(row[key] for row in rows) for key in ("right", "kept", "drawn"))
        thrown = [sum(row["thrown_away"].get(key, 0) for row in rows)
                  for key in ("probability", "copy_distance")]
        low, high = wilson(right, kept)
        interval = f"{percent(right / kept)} % ({percent(low)} to {percent(high)})"
        by_seed = ", ".join(str(row["right"]) for row in rows)
        yield (f"| {STRATEGIES[strategy]}, `{level}` | {right} of {kept}, {interval} | {by_seed} | {drawn} | "
               f"{thrown[0]} | {thrown[1]} |")


TABLES: dict[str, tuple[Callable[[], Iterable[str]], ...]] = {
    "recipe": (ablations, latent_variants),
    "evaluation": (judges, coverage, places, best_weights, photos, photos_by_type, photos_downstream),
    "controlnet": (controlnet, controlnet_size),
    "inpainting": (placement, defect_weight, mask_jitter, painted_views, painted_bolts),
    "data": (views,), "sampling": (selection,),
    "integrations": (contexts,), "performance": (cpu, roofline)}


def main() -> None:
    """Print every table."""
    for page, tables in TABLES.items():
        for table in tables:
            print(f"docs/{page}.md, {table.__name__}:", *table(), sep="\n")


if __name__ == "__main__":
    errors.run(main)
