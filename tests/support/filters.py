"""What a filter of runs must keep of a few rows: the cases of dlrun/analysis/filter_grammar.txt."""

from __future__ import annotations

__all__ = ["KEPT", "REFUSED", "ROWS"]

# by run: model, optimizer.lr, val_acc (None: the run has none), status
ROWS: dict[str, tuple[str, float, float | None, str]] = {
    "a": ("resnet20", 0.1, 0.9, "completed"),
    "b": ("resnet56", 0.01, 0.8, "completed"),
    "c": ("cnn", 0.001, 0.6, "completed"),
    "d": ("cnn", 1.0, None, "diverged"),
}
# the filter, and the runs that it keeps
KEPT: dict[str, str] = {
    "": "abcd",
    "resnet": "ab",
    "RESNET": "ab",
    '"resnet"': "ab",
    "val_acc>0.7": "ab",
    "val_acc >= 0.8": "ab",
    "val_acc<0.8": "c",
    "val_acc<=8e-1": "bc",
    "val_acc>0.7 and model=resnet20": "a",
    "val_acc>0.7 model=resnet20": "a",
    "model=resnet": "",
    "model=ResNet20": "a",
    "model~resnet": "ab",
    "model!=cnn": "ab",
    "optimizer.lr=0.10": "a",
    "lr=1e-1": "a",
    "lr>=0.1 or model=cnn": "acd",
    "lr>=0.1 and model=cnn or model=resnet56": "bd",
    "model=resnet56 or lr>=0.1 and model=cnn": "bd",
    "(model=resnet56 or lr>=0.1) and not status=diverged": "ab",
    "not cnn": "ab",
    "not not cnn": "cd",
    'val_acc=""': "d",
    "val_acc!=''": "abc",
    "val_acc!=0.9": "bcd",
    "not val_acc>0.7": "cd",
    "model>5": "",
    "'resnet20' or 'resnet56'": "ab",
    '"and"': "",
}
REFUSED = ("val_acc>", "=3", "(cnn", "cnn)", "nothere=1", "cnn and", '"cnn', "or cnn", "not", "model= =x")
