"""The input that pretrained weights expect, in the place of what a config leaves open (`dataset.normalize=auto`, D3).

Mean, std, size, interpolation and crop of the weights are used unless `dataset` says otherwise. They become part of the
run's config, so that every later verb has them without the weights.
"""

from __future__ import annotations

from typing import Any

from dlrun.config.settings import Settings
from dlrun.errors import UserError
from dlrun.models.pretrained import Statistics, expected_input
from dlrun.training.starting import input_of, source

__all__ = ["expected", "fitted_to_weights"]

INTERPOLATIONS = {"bilinear": "bilinear", "area": "area", "box": "area"}  # of others the nearest is bicubic


def expected(cfg: Settings) -> Statistics | None:
    """Return the input that the weights of this config expect; None without weights, or if it is unknown."""
    if (found := source(cfg)) is not None:
        return expected_input(cfg.model) if found.run is None else input_of(found.run)
    return expected_input(cfg.model) if cfg.model.get("weights") else None


def fitted_to_weights(cfg: Settings) -> tuple[Settings, tuple[str, ...]]:
    """Return settings whose `dataset` has what the weights expect in the place of auto, and a line for the screen.

    Raises UserError for dataset.normalize=weights without weights that say what they expect.
    """
    dataset, found = cfg.plain["dataset"], expected(cfg)
    normalize = dataset.get("normalize", "data")
    if normalize == "weights" and found is None:
        raise UserError(
            "dataset.normalize=weights: there are no weights that say what they expect; "
            "type dataset.normalize=data, or [[mean,…],[std,…]]"
        )
    if found is None:
        return cfg, ()
    changed: dict[str, Any] = {}
    if normalize in ("auto", "weights"):
        changed["normalize"] = [list(found.mean), list(found.std)]
    if dataset.get("interpolation") == "auto":
        changed["interpolation"] = INTERPOLATIONS.get(found.interpolation, "bicubic")
    crop = cfg.augment.get("crop")
    if not isinstance(crop, int) or isinstance(crop, bool):
        crop = 0  # none, full, or another shape
    if dataset.get("crop_pct") == "auto":
        changed["crop_pct"] = round(found.crop, 4) if dataset.get("resize") == "crop" and not crop else 1.0
        if dataset.get("image_size") == 0 and (crop or found.size):
            square = found.size[:1] if len({*found.size}) == 1 else ()
            # images are kept larger than a crop, which evaluation cuts out of their centre
            changed["image_size"] = int(crop / found.crop) if crop else square[0] if square else list(found.size)
    if not changed:
        return cfg, ()
    shown = ", ".join(f"dataset.{key}={_shown(value)}" for key, value in changed.items())
    return cfg.changed(dataset=changed), (f"as the weights of {found.of} expect: {shown}",)


def _shown(value: Any) -> str:
    if isinstance(value, list):
        return f"[{','.join(map(_shown, value))}]"
    return f"{value:g}" if isinstance(value, float) else str(value)
