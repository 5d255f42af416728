"""`dlrun show augment [key=value ...]`: draw training images, raw and augmented (D7).

`dlrun show data [key=value ...]`: draw one sheet per class with images, counts and sizes, and a page of all (D6).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dlrun.commands.arguments import described
from dlrun.errors import UserError
from dlrun.vocabulary import Exit

if TYPE_CHECKING:
    from dlrun.config.settings import Settings

__all__ = ["main"]

WHAT = ("augment", "data")


def main(argv: list[str]) -> int:
    """Draw training images, augmented or by class, and print where the pictures are; returns 0."""
    from dlrun.config.compose import run

    helping = bool({"-h", "--help"} & set(argv))
    if helping:
        print(described(__doc__ or ""))
    asked = [word for word in argv if word in WHAT]
    if len(asked) != 1 and not helping:
        raise UserError(
            "expected `dlrun show augment` or `dlrun show data`, then settings such as augment=crop_flip "
            "augment.rotate=15, or dataset=image_folder dataset.root=FOLDER"
        )
    task = _data if asked == ["data"] else _augment
    return run("show", [word for word in argv if word not in WHAT], task)


def _augment(cfg: Settings, _: dict[str, Any]) -> int:
    from dlrun.folders import outputs
    from dlrun.probes import augmentations
    from dlrun.run.beginning import label
    from dlrun.training.experiment import build

    exp = build(cfg)
    for note in exp.data.notes:
        print(note)
    picture = augmentations.draw(exp, label(cfg))
    print(f"picture: {outputs.write_study('show', cfg.run_dir, label(cfg), None, picture)[0]}")
    return Exit.FINE


def _data(cfg: Settings, _: dict[str, Any]) -> int:
    from dlrun.folders import outputs
    from dlrun.probes import data_sheets
    from dlrun.training.shared_data import read_data

    data, name = read_data(cfg.plain["dataset"], list(cfg.trust)), str(cfg.choices.get("dataset") or "data")
    for note in data.notes:
        print(note)
    made = data_sheets.draw(data, cfg.name or name)
    folder = outputs.write_sheets("show", cfg.run_dir, cfg.name or name, made.rows, made.pictures)
    print(f"page: {folder / 'data.png'}")
    more = f", none for the {made.left_out} classes between the largest and the smallest" if made.left_out else ""
    print(f"one sheet per class beside it{more}; numbers: {folder / 'data.csv'}")
    return Exit.FINE
