"""The practices that comments and docstrings cite by their ids, each in one line and with one command.

`dlrun explain KEY` names those behind a key, `dlrun explain practices` all of them.
"""

from __future__ import annotations

import re

__all__ = ["COMMANDS", "PRACTICES", "cited", "without_ids"]

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

# one command for each, without `dlrun`; `outputs/latest` is the last run or sweep
COMMANDS = {
    "D1": "check check.only=[data_audit]",
    "D2": "check check.only=[data_duplicates]",
    "D3": "train dataset.normalize=data",
    "D4": "train dataset.val_fraction=0.2",
    "D5": "train seed=2",
    "D6": "train dataset.balance=true",
    "D7": "show augment augment=strong",
    "D8": "train objective=pseudo_label objective.unlabelled=photos",
    "D9": "train objective=adversarial",
    "D10": "train -m optimizer=sgd,adam dataset.limit=2000",
    "D11": "report outputs/latest",
    "M1": "study kernel_width",
    "M2": "study depth_skips",
    "M3": "train experiment=finetune dataset.root=photos",
    "M4": "study activation",
    "M5": "train model.norm=batch",
    "M6": "study initialisation",
    "M7": "train model.output_bias=frequency",
    "M8": "ladder model.depth=2,4,6 model.width=16,32",
    "M9": "check check.only=[lint_width]",
    "M10": "train objective=denoise dataset=image_folder dataset.root=photos",
    "M11": "train dataset=table dataset.csv=train.csv dataset.targets=[species,age_group]",
    "O1": "study optimizer",
    "O2": "train optimizer=sgd scheduler.momentum_start=0.5 scheduler.momentum_end=0.99",
    "O3": "train scheduler=cosine scheduler.warmup=2",
    "O4": "train trainer.clip_norm=1",
    "O5": "lr_range",
    "O6": "batch_time",
    "O7": "train optimizer.layer_decay=0.75",
    "O8": "train trainer.patience=5 trainer.keep=all",
    "O9": "train trainer.patience=5 trainer.while_gap_shrinks=true",
    "O10": "train trainer.precision=bf16 trainer.accumulate=4 trainer.ema=0.999",
    "R1": "train regularizer=elastic",
    "R2": "train regularizer=dropout",
    "R3": "train objective=mixup regularizer=label_smoothing",
    "R4": "prune outputs/latest --sparsity 0.5,0.9",
    "R5": "train regularizer=none",
    "C1": "check check.only=[initial_loss]",
    "C2": "check check.only=[penalty]",
    "C3": "check check.only=[overfit]",
    "C4": "check check.only=[gradient]",
    "C5": "check --explain gradient",
    "C6": "check --explain gradient",
    "C7": "check check.only=[garbage]",
    "C8": "check check.only=[independence]",
    "C9": "check check.only=[flow]",
    "C10": "check check.only=[probabilities]",
    "B1": "report outputs/latest",
    "B2": "compare outputs",
    "B3": "report outputs/latest",
    "B4": "report outputs/latest",
    "B5": "report outputs/latest",
    "B6": "report outputs/latest",
    "B7": "compare outputs",
    "B8": "train",
    "S1": "train -m optimizer.lr=loguniform:1e-4:1e-1 search.trials=20",
    "S2": "train -m search=grid_jitter optimizer.lr=0.001,0.01,0.1",
    "S3": "train -m optimizer.lr=loguniform:1e-3:1e-2 search.extend=true",
    "S4": "train -m search=staged optimizer.lr=loguniform:1e-5:1",
    "S5": "train -m search=tpe optimizer.lr=loguniform:1e-4:1e-1",
    "S6": "train -m seed=1,2,3,4 hydra.launcher.workers=2 search.prune=median",
    "S7": "train -m search=default",
    "S8": "train -m optimizer.lr=loguniform:1e-4:1e-1 regularizer.l2=loguniform:1e-6:1e-2",
    "S9": "train -m seed=1,2,3",
    "S10": "compare outputs",
    "E1": "train -m seed=1,2,3",
    "E2": "ensemble outputs/latest",
    "E3": "ensemble outputs/latest --members checkpoints",
    "E4": "train trainer.ema=0.999",
    "E5": "ensemble outputs/latest --vote majority",
    "E6": "train objective=distill objective.teacher=five-votes",
    "E7": "ensemble outputs/latest",
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
