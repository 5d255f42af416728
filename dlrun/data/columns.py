"""Which column of a table is the image, the label, the split, the group and the weight of a sample.

`dlrun train dataset=table dataset.csv=train.csv dataset.label_column=species`: by their usual names, by what their
values are, or by these keys.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from dlrun.data.sheet import Sheet, simple
from dlrun.data.tasks import BETWEEN, EMPTY
from dlrun.errors import UserError
from dlrun.vocabulary import FURTHER

__all__ = ["MISSING", "NONE", "TOGETHER", "Columns", "choose", "choose_id", "is_number", "labels"]


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


# by the names that published tables use, without case and punctuation
IDS = _words(
    "path filepath imagepath file filename fname imagefile imagefilename imagename image imageid imgid img imgname "
    "imgpath photo photoid picture id uid uuid name key"
)
LABELS = _words(
    "label labels class classname classlabel classid labelid labelname category categoryid categoryname target y "
    "diagnosis dx breed species individualid"
)
SPLITS = _words("split splitname subset set partition phase usage fold dataset")
GROUPS = _words(
    "group groupid patient patientid subject subjectid lesion lesionid case caseid video videoid clip clipid "
    "sequence sequenceid burst burstid individual"
)
WEIGHTS = ("sampleweight", "sampleweights")  # `weight` alone may be that of an animal
TOGETHER = "\x1f"  # between the labels of a row that has several
NONE = "none"  # what a key says if a column of a usual name is none
LOOKED = 200  # rows that show whether a column names images
MISSING = frozenset(("nan", "NaN", "<NA>", "#N/A"))  # NA, None and null may be names of classes
TRUE = frozenset(("1", "1.0", "True", "true", "TRUE"))
FALSE = frozenset(("0", "0.0", "False", "false", "FALSE", ""))


@dataclass(frozen=True)
class Columns:
    """Names of columns; `labels` has one, or one per class (one-hot) or task; the others are "" if there is none."""

    id: str
    labels: list[str]
    split: str = ""
    group: str = ""
    weight: str = ""
    several: bool = False  # each of `labels` is a task of its own (M11)
    sets: bool = False  # the label is a set of classes, see dlrun/data/tasks.py


def choose_id(sheet: Sheet, given: str | None, finds: Callable[[str], bool]) -> str:
    """Return the column whose values name images; `finds` tells whether a value does.

    Of several candidates the one that names most images, then the one with the commoner name. Raises UserError if none
    does, with an example.
    """
    if given:
        return sheet.named(given, "dataset.id_column")
    step = max(1, len(sheet.rows) // LOOKED)
    rows = sheet.rows[::step]

    def hits(number: int) -> int:
        return sum(bool(row[number]) and finds(row[number]) for row in rows)

    ranked = [(hits(n), simple(name) in IDS, -_place(name), name) for n, name in enumerate(sheet.columns)]
    best = max(ranked, default=(0, False, 0, ""))
    if best[0]:
        return best[-1]
    usual = [name for _, named, _, name in ranked if named]
    if usual:
        return min(usual, key=_place)  # the caller says that its images are missing
    raise UserError(
        f"{sheet.path}: no column names the images; it has {', '.join(sheet.columns)}; type dataset.id_column=COLUMN"
    )


def _place(name: str) -> int:
    return IDS.index(simple(name)) if simple(name) in IDS else len(IDS)


def choose(
    sheet: Sheet,
    name: str,
    *,
    label: str | Sequence[str] | None,
    split: str | None,
    group: str | None,
    weight: str | None,
    targets: Sequence[str] = (),
    sets: bool = False,
) -> Columns:
    """Return the columns of a table whose images column `name` names; the others are keys of `dataset` or None.

    Raises UserError if the label is not unmistakable.
    """
    chosen = {
        "split": _other(sheet, "split", split, SPLITS),
        "group": _other(sheet, "group", group, GROUPS),
        "weight": _other(sheet, "weight", weight, WEIGHTS),
    }
    if targets:
        found = [sheet.named(str(one), "dataset.targets") for one in targets]
        _require_several(label, found)
    elif label:
        wanted = [label] if isinstance(label, str) else [*label]
        found = [sheet.named(str(one), "dataset.label_column") for one in wanted]
    else:
        free = [one for one in sheet.columns if one not in (name, *chosen.values())]
        found = _label(sheet, free)
    # a column that is a label is nothing else, unless a key says so
    kept = {kind: one for kind, one in chosen.items() if one not in found and one != name}
    if sets and len(found) > 1:
        what = "dataset.multilabel=true: expected one column of classes with | between them"
        raise UserError(f"{what}, found {', '.join(found)}; type dataset.label_column=COLUMN")
    return Columns(name, found, **kept, several=bool(targets), sets=sets)


def _require_several(label: str | Sequence[str] | None, found: list[str]) -> None:
    """Raise UserError for one target, for one that is named twice or that no score can be named after."""
    key = f"dataset.targets=[{','.join(found)}]"
    if label:
        raise UserError(f"{key}: expected it without dataset.label_column, found both; omit one of them")
    if len(found) < 2:
        raise UserError(f"{key}: expected two or more columns, found one; type dataset.label_column={found[0]}")
    if twice := next((name for name in found if found.count(name) > 1), None):
        raise UserError(f"{key}: {twice} is named twice; omit one")
    if taken := next((name for name in found if f"val_{name}_acc" in FURTHER), None):
        raise UserError(f"{key}: val_{taken}_acc is another score; rename the column {taken}")


def _other(sheet: Sheet, kind: str, given: str | None, usual: Sequence[str]) -> str:
    if given == NONE and NONE not in sheet.columns:
        return ""
    if given:
        return sheet.named(given, f"dataset.{kind}_column")
    return next((one for word in usual for one in sheet.columns if simple(one) == word), "")


def _label(sheet: Sheet, free: Sequence[str]) -> list[str]:
    """The columns that hold the label, of those that are nothing else."""
    usual = [one for one in free if simple(one) in LABELS]
    if len(usual) > 1:
        usual = _one_of_equals(sheet, usual)
    if len(usual) == 1:
        return usual
    if not usual and len(free) == 1:
        return [*free]
    hot = [one for one in free if all(value in TRUE | FALSE for value in sheet.column(one))]
    if not usual and len(hot) > 1 and _one_hot(sheet, hot):
        return hot
    what = f"columns {', '.join(usual or free)} could be the label" if free else "there is no column for the label"
    ones = "; columns of 0 and 1 need one 1 per row" if len(hot) > 1 else ""
    raise UserError(f"{sheet.path}: {what}{ones}; type dataset.label_column=COLUMN, or [COLUMN,…] for one per class")


def _one_of_equals(sheet: Sheet, names: list[str]) -> list[str]:
    """Of columns that divide the rows alike, such as class_id and class_name, the one with text; else all."""
    parts = [sheet.column(name) for name in names]
    counts = [len(set(values)) for values in parts]
    if len(set(zip(*parts, strict=True))) != max(counts) or len(set(counts)) > 1:
        return names
    text = [name for name, values in zip(names, parts, strict=True) if not all(map(is_number, values))]
    return (text or names)[:1]


def is_number(text: str) -> bool:
    """Return whether a cell of a table is a number."""
    try:
        float(text)
    except ValueError:
        return False
    return True


def _one_hot(sheet: Sheet, names: Sequence[str]) -> bool:
    """Whether columns of 0 and 1 have one 1 in nine of ten rows and never two."""
    counts = [sum(row) for row in zip(*([value in TRUE for value in sheet.column(n)] for n in names), strict=True)]
    return bool(max(counts) <= 1) and sum(counts) >= 0.9 * len(counts)


def labels(sheet: Sheet, columns: Columns) -> list[str]:
    """Return the label of every row as text, "" if it has none; those of several tasks with TOGETHER between them.

    A row that lacks the label of one task has none. Raises UserError for a row with two of one-hot.
    """
    if columns.several:
        rows = zip(*map(sheet.column, columns.labels), strict=True)
        return [TOGETHER.join(row) if all(v and v not in MISSING for v in row) else "" for row in rows]
    if columns.sets:
        return [_set(label) for label in sheet.column(columns.labels[0])]
    if len(columns.labels) == 1:
        return ["" if label in MISSING else label for label in sheet.column(columns.labels[0])]
    found = []
    names = columns.labels
    for line, row in zip(sheet.lines, zip(*map(sheet.column, names), strict=True), strict=True):
        here = [name for name, value in zip(names, row, strict=True) if value in TRUE]
        strange = next((value for value in row if value not in TRUE | FALSE), None)
        if strange is not None or len(here) > 1:
            what = f"{strange!r}" if strange is not None else f"{len(here)} ones ({', '.join(here)})"
            raise UserError(f"{sheet.path}, line {line}: expected one 1 among {len(names)} label columns, found {what}")
        found.append(here[0] if here else "")
    return found


def _set(label: str) -> str:
    """A set of classes in one form: sorted, each once; "" for a cell without a label or with an empty name."""
    parts = sorted({part.strip() for part in label.split(BETWEEN)})
    return "" if label in MISSING or "" in parts or (EMPTY in parts and len(parts) > 1) else BETWEEN.join(parts)
