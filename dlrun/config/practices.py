"""The practices that comments and docstrings cite by their ids, each in one line (`dlrun explain KEY`)."""

from __future__ import annotations

import re

__all__ = ["PRACTICES", "cited", "without_ids"]

PRACTICES = {
    "D1": "check the data before training: unreadable, constant or non-finite samples, labels out of range",
    "D2": "find duplicates within and across splits, and the same image under two labels",
    "D3": "normalise inputs with the mean and standard deviation of the training split",
    "D4": "choose on a stratified, recorded validation split; use the test split once, at the end",
    "D5": "shuffle the training data anew in every epoch, reproducibly",
    "D6": "report class counts; balance the sampling or the loss if classes are uneven",
    "D7": "augment training images only, each sample on its own",
    "D8": "pseudo-labels: add unlabelled images that the model classifies with confidence",
    "D9": "adversarial training: add images perturbed along the sign of the gradient",
    "D10": "compare settings on a slice of the training data first",
    "D11": "look at the validation samples with the largest loss",
    "M1": "vary depth, width and kernel size; small kernels are usually better",
    "M2": "skip connections make deep networks trainable",
    "M3": "fine-tune a pretrained network, or use a model of your own",
    "M4": "choose the activation; sigmoid and tanh saturate in hidden layers",
    "M5": "normalise before the activation; a batch norm makes the bias before it redundant",
    "M6": "treat the initialisation as a hyperparameter",
    "M7": "start the output bias at the class frequencies, so that training need not learn them",
    "M8": "add capacity until validation stops improving, then regularise",
    "M9": "prefer widths that are powers of two",
    "M10": "pretrain without labels, then fine-tune",
    "M11": "train several tasks over one shared network",
    "O1": "compare optimizers: SGD, momentum of 0.5 to 0.99, Nesterov, Adagrad, RMSprop, Adam, L-BFGS",
    "O2": "raise the momentum over the first epochs, from 0.5 to 0.99",
    "O3": "lower the learning rate over time, after a warm-up if needed",
    "O4": "clip gradients by norm or by value",
    "O5": "find the learning rate with a short range test (dlrun lr_range)",
    "O6": "find the batch size beyond which a sample costs no less time (dlrun batch_time)",
    "O7": "use other learning rates in some layers",
    "O8": "stop early on the validation score; keep checkpoints and choose later",
    "O9": "keep training while the gap between training and validation shrinks",
    "O10": "mixed precision, gradient accumulation and averaged weights",
    "R1": "penalise large weights (L1, L2, elastic net), without biases and norms; search on a log scale",
    "R2": "dropout of 0.2 to 0.5 in training, off at test time",
    "R3": "limit the weights of a unit, smooth labels, add noise to inputs",
    "R4": "report the share of weights near zero under an L1 penalty",
    "R5": "develop without regularisation first",
    "C1": "the first loss must be that of guessing: ln C for softmax over C classes",
    "C2": "more regularisation must mean more loss",
    "C3": "the model must memorise a tiny subset",
    "C4": "compare gradients with finite differences",
    "C5": "near a kink of ReLU, max or hinge the two may differ",
    "C6": "tiny gradients make that comparison meaningless",
    "C7": "after a short training, validation must beat guessing",
    "C8": "each output must depend on its own input, and on nothing else",
    "C9": "every trainable parameter must receive a gradient and change",
    "C10": "the loss must receive logits, not probabilities",
    "B1": "plot training and validation loss per epoch: its shape shows a wrong learning rate",
    "B2": "the gap between training and validation accuracy shows overfitting",
    "B3": "an update should change weights by about 0.001 of their norm",
    "B4": "watch activations: dead and saturated units, means far from zero",
    "B5": "look at the filters of the first layer: noise means trouble",
    "B6": "compare weight histograms between epochs",
    "B7": "measure seconds per epoch and samples per second",
    "B8": "stop at once when the loss is not finite",
    "S1": "search at random; learning rates and penalties on a log scale",
    "S2": "if a grid is needed, shift its points at random",
    "S3": "search beyond a range if the best value is at its edge",
    "S4": "search from coarse to fine: many short trials, then fewer long ones",
    "S5": "Bayesian optimisation can choose the next trial",
    "S6": "run trials in parallel and stop bad ones early",
    "S7": "tune the learning rate first, then momentum, batch size and penalties",
    "S8": "search related settings together, such as rate and penalty",
    "S9": "repeat with several seeds: a difference within their spread is noise",
    "S10": "collect all results in one table",
    "E1": "combine models that differ in their seed",
    "E2": "combine the best trials of a search, chosen on validation",
    "E3": "combine checkpoints of one run",
    "E4": "average the weights over the last steps",
    "E5": "combine by votes, by confidence or by mean probability",
    "E6": "distil an ensemble into one model",
    "E7": "weigh accuracy against the cost of more members",
}

_IDS = r"[DMORCBSE]\d{1,2}(?:-[DMORCBSE]\d{1,2})?"
_CITED = re.compile(rf"\s*\(({_IDS}(?:, {_IDS})*)\)")


def cited(text: str) -> list[str]:
    """Return the ids that a text cites in parentheses, such as (O1) or (C1-C10, D3), in order."""
    found: list[str] = []
    for part in ", ".join(_CITED.findall(text)).split(", "):
        first, _, last = part.partition("-")
        family = [name for name in PRACTICES if name[0] == first[:1]]
        start, end = (family.index(name) if name in family else -1 for name in (first, last or first))
        found += family[start : end + 1] if 0 <= start <= end else []
    return list(dict.fromkeys(found))


def without_ids(text: str) -> str:
    """Return a text without the ids that it cites."""
    return _CITED.sub("", text)
