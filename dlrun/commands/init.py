"""`dlrun init`: write a commented conf/ with a preset, a model and a dataset to start from; overwrites nothing."""

from __future__ import annotations

from pathlib import Path

from dlrun.commands.arguments import Parser
from dlrun.errors import UserError
from dlrun.vocabulary import Exit

__all__ = ["main"]

PRESET = """\
# A preset: options and settings under one name: dlrun train experiment=mine
# Settings typed after it take precedence: dlrun train experiment=mine trainer.epochs=3
model: mine               # conf/model/mine.yaml; or any other: cnn, mlp, resnet20 …
# dataset: mine           # conf/dataset/mine.yaml, once its folder exists
optimizer: sgd
scheduler: cosine
augment: crop_flip

trainer:                  # dlrun explain trainer lists these keys
  epochs: 20
  batch_size: 32
optimizer.lr: 0.05        # keys may be written as they are typed, too
"""
MODEL = """\
# A variant of a built-in network: dlrun train model=mine
# It starts from the option below and changes some keys; dlrun explain model model=mine lists all of them.
defaults: [cnn]
width: 24
depth: 4

# A network of your own instead: write the class MyNet(nn.Module) into mynet.py beside conf/, and only these lines here:
#   _target_: mynet.MyNet
#   hidden: 64            # any argument of its constructor; in_channels, num_classes and image_size are passed
# Then type: dlrun train model=mine trust=[mynet]
"""
DATASET = """\
# Images of your own, one folder per class: dlrun train dataset=mine
# photos/<class>/<image>, which dlrun splits, or photos/train/<class>/ and photos/test/<class>/
defaults: [image_folder]
root: photos              # the folder, from where dlrun is started; ~/photos works as well
image_size: 64            # images are resized to 64 × 64 pixels
val_fraction: 0.2         # share of the training images kept for validation
"""
FILES = {"experiment/mine.yaml": PRESET, "model/mine.yaml": MODEL, "dataset/mine.yaml": DATASET}


def main(argv: list[str]) -> int:
    """Write the files and print their names; returns 0. Raises UserError for a file that cannot be written."""
    Parser(prog="dlrun init", description=__doc__).parse_args(argv)
    written, kept = [], []
    for name, text in FILES.items():
        file = Path("conf") / name
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            with file.open("x", encoding="utf-8") as handle:  # fails if the file exists, whoever made it
                handle.write(text)
            written.append(file)
        except FileExistsError:
            kept.append(file)
        except OSError as error:
            raise UserError(f"{file}: cannot be written: {error.strerror}") from error
    for file in kept:
        print(f"{file} exists; not changed")
    for file in written:
        print(f"wrote {file}")
    print("next: `dlrun train experiment=mine`, `dlrun explain experiment`")
    return Exit.FINE
