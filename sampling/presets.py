"""How images are drawn where the command line does not say: as --preset says, or the checkpoint records."""

from __future__ import annotations

from checkpoints.metadata import Header
from checkpoints.presets import DRAWING, as_flags, possible, preset_of
from sd.samplers import SAMPLERS


def drawing_settings(given: dict[str, float | None], preset: str | None, header: Header,
                     control: Header | None, sampler: str) -> tuple[dict[str, float], str]:
    """The value of each flag of DRAWING, and a line that says where they come from ("" if all were given).

    given: the flags on the command line, None where there is none; control: the header of --control.
    A value that the checkpoint or the sampler has no use for is left out.
    """
    source = preset_of(preset, header.kind).drawing if preset else header.drawing
    masks = (control or header).control
    fitting = possible(source, null=header.has_null and (control is None or control.has_null),
                       empty_mask=masks is not None and masks.mask_dropout > 0)
    taken = {name: value for name, value in fitting.items()
             if given[name] is None and (name != "eta" or "eta" in SAMPLERS[sampler].takes)}
    said = {name: value for name, value in given.items() if value is not None}
    return DRAWING | taken | said, _line(header, preset, taken, bool(said))


def _line(header: Header, preset: str | None, taken: dict[str, float], said: bool) -> str:
    if taken:
        return f"drawn as {f'--preset {preset}' if preset else 'the checkpoint'} says: {as_flags(taken)}"
    if said or preset or header.drawing:
        return ""
    return (f"drawn plainly, as the recipe; a checkpoint of {header.strategy.script} --preset better on the "
            f"embedded base: {preset_of('better', header.kind).measured} (docs/recipe.md)")
