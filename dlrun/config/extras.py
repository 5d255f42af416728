"""Checks that the optional packages which a config needs are installed (`dlrun train logger=mlflow`)."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any

from dlrun.errors import UserError

__all__ = ["PACKAGES", "require_dataset", "require_launcher", "require_logger", "require_model", "require_optimizer"]


def require_logger(cfg: Mapping[str, Any]) -> None:
    """Raise UserError if the package of the chosen logger is not installed; imports nothing."""
    kind = _kind(cfg)
    if kind != "none" and find_spec(kind) is None:
        raise UserError(f"logger={kind}: the package {kind} is not installed; type pip install 'dlrun[{kind}]'")


def require_model(cfg: Mapping[str, Any]) -> None:
    """Raise UserError if the package of the chosen model is not installed; imports nothing."""
    target = str((cfg.get("model") or {}).get("_target_", ""))
    if target == "dlrun.models.timm.build" and find_spec("timm") is None:
        raise UserError("model=timm: the package timm is not installed; type pip install 'dlrun[timm]'")


def require_dataset(cfg: Mapping[str, Any]) -> None:
    """Raise UserError if the package of the chosen dataset is not installed; imports nothing."""
    target = str((cfg.get("dataset") or {}).get("_target_", ""))
    packages = {"huggingface": "datasets", "shards": "webdataset"}  # by the name of the extra
    for extra, package in packages.items():
        if target == f"dlrun.data.{extra}.{extra}" and find_spec(package) is None:
            raise UserError(
                f"dataset={extra}: the package {package} is not installed; type pip install 'dlrun[{extra}]'"
            )


def require_optimizer(cfg: Mapping[str, Any]) -> None:
    """Raise UserError if the package of the chosen optimizer is not installed; imports nothing."""
    module, _, name = str((cfg.get("optimizer") or {}).get("_target_", "")).rpartition(".")
    if module == "dlrun.optim.further" and find_spec("pytorch_optimizer") is None:
        raise UserError(
            f"optimizer={name}: the package pytorch_optimizer is not installed; type pip install 'dlrun[optimizers]'"
        )


def _kind(cfg: Any) -> str:
    return str((cfg.get("logger") or {}).get("kind", "none"))  # runs of older versions have no logger


PACKAGES = {"joblib": "joblib", "ray": "ray", "submitit_slurm": "submitit"}


def require_launcher(options: Mapping[str, Any]) -> None:
    """Raise UserError if the package of the chosen launcher is not installed; imports nothing."""
    name = str(options["name"])
    if (package := PACKAGES.get(name)) and find_spec(package) is None:
        raise UserError(
            f"hydra/launcher={name}: the package {package} is not installed; type pip install 'dlrun[{package}]'"
        )
