"""`dlrun batch_time [--seconds=60]`: measure the time per step by batch size, and suggest a batch size (O6)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dlrun.commands.arguments import described, next_command, numbers
from dlrun.vocabulary import Exit

if TYPE_CHECKING:
    from dlrun.config.settings import Settings

__all__ = ["main"]


def main(argv: list[str]) -> int:
    """Time powers of two, print and store the table; returns 0, or 3 if not even a batch of one fits."""
    from dlrun.config.compose import run

    if {"-h", "--help"} & set(argv):
        print(described(__doc__ or ""))
    found, rest = numbers(argv, {"--seconds": 60.0})

    def task(cfg: Settings, _: dict[str, Any]) -> int:
        from dlrun.folders import outputs
        from dlrun.probes import batch_time
        from dlrun.run.beginning import label
        from dlrun.training.experiment import build

        print("batch size   ms / step   ms / sample   samples/s   peak MB")

        def show(t: batch_time.Timing) -> None:
            memory = f"{t.peak_mb:,.0f}" if t.peak_mb else "-"
            each = 1e3 * t.sample_seconds
            row = f"{t.batch_size:>10}  {1e3 * t.step_seconds:>10.2f}  {each:>12.4f}  {1e3 / each:>10,.0f}  {memory:>8}"
            print(row, flush=True)

        timings, ending = batch_time.measure(build(cfg), found["--seconds"], show)
        print(f"stopped: {ending}")
        if not timings:
            return Exit.CHECK_FAILED
        size = batch_time.knee(timings)
        picture = batch_time.draw(timings, size, ending, label(cfg))
        files = outputs.write_study("batch_time", cfg.run_dir, label(cfg), batch_time.table(timings), picture)
        print(f"knee: {size}, the smallest batch whose time per sample is within 25 % of the lowest")
        print(f"table: {files[0]}, picture: {files[1]}")
        setting = f"trainer.batch_size={size}"
        print(f"next: {next_command('train', rest, setting)}")
        print(f"the best learning rate depends on the batch size: {next_command('lr_range', rest, setting)}")
        return Exit.FINE

    return run("batch_time", rest, task)
