"""Training without a score to select by: `dlrun train dataset.val_fraction=0`, or trainer.fit_all=true (D4, O8).

Nothing is selected: the weights of the last epoch are kept and tested. What needs a validation score is refused, or, if
it belongs to the recipe that trainer.fit_all repeats, not used. Without labels (M10) a loss selects.
"""

from __future__ import annotations

from dlrun.config.settings import Settings
from dlrun.errors import UserError
from dlrun.vocabulary import reads_labels

__all__ = ["by_own_loss", "note", "unselected"]

# what needs labels, or takes no weights of an objective: key, and what to type instead
LABELS = {
    "dataset.balance": "dataset.balance=false",
    "model.output_bias": "model.output_bias=default",
    "trainer.compile": "trainer.compile=false",
    "optimizer.lookahead": "optimizer.lookahead=0",
}
FIXED = (".Muon", ".LBFGS")


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


def by_own_loss(cfg: Settings, classes: int) -> Settings:
    """Return the settings of a run without labels (M10), whose monitor is a loss; others as they are.

    Raises UserError for what needs labels, also for one class alone, and for optimizers and compilers that do not take
    the weights of an objective.
    """
    if reads_labels(cfg.plain):
        if classes < 2:
            what = "images without labels; choose objective=simclr, rotation, autoencode or denoise"
            raise UserError(f"dataset.class_level={cfg.plain['dataset'].get('class_level')}: {what}")
        return cfg
    name = cfg.choices.get("objective") or "objective"
    for key, instead in LABELS.items():
        section, _, last = key.partition(".")
        value = cfg.plain[section].get(last)
        if value not in (None, False, 0, "default"):
            raise UserError(f"{key}={value}: not with objective={name}, which reads no labels; type {instead}")
    target = str(cfg.optimizer.get("_target_", ""))
    if target.endswith(FIXED):
        what = f"takes no weights of objective={name}; choose optimizer=adamw"
        raise UserError(f"optimizer={target.rpartition('.')[2].lower()}: {what}")
    monitor = cfg.trainer.monitor
    return cfg if monitor.endswith("_loss") else cfg.changed(trainer={"monitor": "val_loss"})


def _of_val(column: str) -> bool:
    return "val" in column.split("_")
