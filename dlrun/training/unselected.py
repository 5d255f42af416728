"""Training without a validation split: `dlrun train dataset.val_fraction=0`, or trainer.fit_all=true (D4, O8).

Nothing is selected: the weights of the last epoch are kept and tested. What needs a validation score is refused, or, if
it belongs to the recipe that trainer.fit_all repeats, not used.
"""

from __future__ import annotations

from dlrun.config.settings import Settings
from dlrun.errors import UserError

__all__ = ["note", "unselected"]


def note(cfg: Settings) -> str:
    """Return the line on the screen of a run without validation."""
    trainer = cfg.trainer
    kept = f"the best epoch is that of {trainer.monitor}" if trainer.keep != "last" else "the last epoch is kept"
    return (
        f"no validation split: {kept}; early stopping, scheduler=plateau and comparing runs by val_acc are not possible"
    )


def unselected(cfg: Settings) -> Settings:
    """Return the settings with a monitor of train and the last epoch kept, unless trainer.monitor is of train already.

    Raises UserError for early stopping, a schedule that waits for a score, and checkpoints that are kept by it.
    """
    trainer = cfg.trainer
    if trainer.monitor.startswith("train_") or not _of_val(trainer.monitor):
        return cfg
    train = "trainer.monitor=train_loss"
    if trainer.patience and not trainer.fit_all:
        raise UserError(f"trainer.patience={trainer.patience}: there is no validation split; omit it, or type {train}")
    if str(cfg.scheduler.get("_target_", "")).endswith(".ReduceLROnPlateau"):
        raise UserError(f"scheduler=plateau: there is no validation split; choose scheduler=cosine, or type {train}")
    if trainer.keep == "top3":
        raise UserError(f"trainer.keep=top3: there is no validation split; type trainer.keep=last, all or {train}")
    keep = "all" if trainer.keep == "all" else "last"
    return cfg.changed(trainer={"monitor": "train_loss", "keep": keep, "patience": 0, "while_gap_shrinks": False})


def _of_val(column: str) -> bool:
    return "val" in column.split("_")
