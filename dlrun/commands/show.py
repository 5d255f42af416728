"""`dlrun show augment [key=value ...]`: draw training images, raw and augmented (D7)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dlrun.commands.arguments import described
from dlrun.errors import UserError
from dlrun.vocabulary import Exit

if TYPE_CHECKING:
    from dlrun.config.settings import Settings

__all__ = ["main"]


def main(argv: list[str]) -> int:
    """Draw some training images, raw and augmented, and print where the picture is; returns 0."""
    from dlrun.config.compose import run

    helping = bool({"-h", "--help"} & set(argv))
    if helping:
        print(described(__doc__ or ""))
    words = [word for word in argv if word != "augment"]
    if len(words) == len(argv) and not helping:
        raise UserError("expected `dlrun show augment`, then settings such as augment=crop_flip augment.rotate=15")

    def task(cfg: Settings, _: dict[str, Any]) -> int:
        from dlrun.folders import outputs
        from dlrun.probes import augmentations
        from dlrun.run.execute import label
        from dlrun.training.experiment import build

        exp = build(cfg)
        for note in exp.data.notes:
            print(note)
        picture = augmentations.draw(exp, label(cfg))
        print(f"picture: {outputs.write_study('show', cfg.run_dir, label(cfg), None, picture)[0]}")
        return Exit.FINE

    return run("show", words, task)
