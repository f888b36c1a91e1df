"""Refuses models that Stable Diffusion 1.5's training objective and noise schedule do not fit.

Their tensors may have SD 1.5's names and shapes, so they would load, and train and sample wrongly.
"""

from __future__ import annotations

import re
from pathlib import Path

from runtime.errors import UserError
from runtime.files import json_object

# Fields of scheduler_config.json that change what the UNet predicts, with SD 1.5's values; absent counts as
# SD 1.5's. The other fields choose a sampler.
SCHEDULE = {"prediction_type": "epsilon", "num_train_timesteps": 1000, "beta_schedule": "scaled_linear",
            "beta_start": 0.00085, "beta_end": 0.012, "trained_betas": None, "rescale_betas_zero_snr": False}
FAMILIES = {1024: "Stable Diffusion 2", 2048: "SDXL"}  # by the width of the context


def check_scheduler_config(model: str, file: Path) -> None:
    """Raise UserError if a scheduler_config.json states another schedule or prediction type."""
    given = json_object(file.read_bytes(), f"{file}: not a scheduler_config.json")
    if "FlowMatch" in str(given.get("_class_name")):
        raise _refused(model, f"is a flow matching model ({file}: {given['_class_name']})")
    for key, wanted in SCHEDULE.items():
        if given.get(key, wanted) not in (None, wanted):
            raise _refused(model, f"has {key} {given[key]!r} ({file}), not {wanted!r}")


def check_single_file(model: str, file: Path, shapes: dict[str, list[int]],
                      metadata: dict[str, str]) -> None:
    """Raise UserError if an original file is of another model family, prediction type or schedule.

    Known are: the width of cross-attention, the marker tensors `v_pred` and `ztsnr`, the metadata field
    modelspec.prediction_type, and `parameterization` in a .yaml of the same name beside the file.
    """
    for key, shape in shapes.items():
        if key.endswith("attn2.to_k.weight") and shape[-1] in FAMILIES:
            raise _refused(model, f"is of the {FAMILIES[shape[-1]]} family (its context is {shape[-1]} wide)")
    yaml = file.with_suffix(".yaml")
    text = yaml.read_text("utf-8", "replace") if yaml.is_file() else ""
    predictions = ["v"] * ("v_pred" in shapes) + re.findall(r"parameterization:\s*[\"']?(\w+)", text)
    for prediction in [*predictions, metadata.get("modelspec.prediction_type", "epsilon")]:
        if prediction not in ("epsilon", "eps"):
            raise _refused(model, f"predicts {prediction}, not epsilon")
    if "ztsnr" in shapes:
        raise _refused(model, "was trained with a zero terminal SNR schedule")


def _refused(model: str, what: str) -> UserError:
    return UserError(f"{model}: this model {what}; give one trained as Stable Diffusion 1.5 was: epsilon "
                     "prediction, its noise schedule and its architecture")
