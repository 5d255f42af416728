"""`dlrun lr_range [--low=1e-7] [--high=1] [--steps=100]`: suggest a learning rate to start with (O5)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dlrun.commands.arguments import described, next_command, numbers
from dlrun.errors import UserError
from dlrun.vocabulary import Exit

if TYPE_CHECKING:
    from dlrun.config.settings import Settings

__all__ = ["main"]

FLAGS = {"--low": 1e-7, "--high": 1.0, "--steps": 100.0}


def main(argv: list[str]) -> int:
    """Raise the rate batch by batch, print and store the curve of the loss; returns 0, or 3 without a suggestion."""
    from dlrun.config.compose import run

    if {"-h", "--help"} & set(argv):
        print(described(__doc__ or ""))
    found, rest = numbers(argv, FLAGS)
    low, high, steps = found["--low"], found["--high"], int(found["--steps"])
    if not low < high:
        raise UserError(f"--low={low:g} --high={high:g}: expected --low below --high")
    if steps < 10:
        raise UserError(f"--steps={steps}: expected 10 or more")

    def task(cfg: Settings, _: dict[str, Any]) -> int:
        from dlrun.folders import outputs
        from dlrun.probes import lr_range
        from dlrun.run.beginning import label
        from dlrun.training.experiment import build

        exp = build(cfg)
        points = lr_range.measure(exp, low, high, steps)
        kinds = {"normalised": lr_range.normalised(exp.model), "adaptive": lr_range.adaptive(exp.optimizer)}
        verdict = lr_range.judge(points, low, high, **kinds)
        print("\n".join(lr_range.lines(points)))
        picture = lr_range.draw(points, verdict, label(cfg))
        files = outputs.write_study("lr_range", cfg.run_dir, label(cfg), lr_range.table(points), picture)
        print(f"{verdict.text}\ncurve: {files[0]}, picture: {files[1]}")
        if verdict.lr is None:
            return Exit.CHECK_FAILED
        rates = [f"optimizer.lr={verdict.lr:g}"]
        if "sgd_lr" in cfg.optimizer:  # the rate of the parameters that Muon does not train keeps its ratio
            rates.append(f"optimizer.sgd_lr={cfg.optimizer['sgd_lr'] * verdict.lr / cfg.optimizer['lr']:.3g}")
        print(f"next: {next_command('train', rest, *rates)}")
        return Exit.FINE

    return run("lr_range", rest, task)
