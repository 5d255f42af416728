"""One page that tells a run or a sweep, with nothing outside it: `dlrun report PATH`, the end of `dlrun train`.

Written from the files alone, pictures included, so it can be written again for a run of long ago. What files say
is a stranger's word: every text is escaped, and the page forbids itself to load anything. Nothing imports torch.
"""

from __future__ import annotations

import base64
import contextlib
import io
import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from string import Template
from typing import Any

from dlrun import compare, plots, rundir, verdicts
from dlrun.composing import builtin_conf
from dlrun.config import UserError

__all__ = ["write", "write_sweep"]

# in their own colours in the dark as well
NATURAL = ("filters", "confusion")
WHAT = {
    "loss": "Train and validation loss by epoch, on a linear and a logarithmic scale",
    "accuracy": "Train and validation accuracy by epoch",
    "update_ratios": "Length of a step relative to the weights, by layer and epoch",
    "dead": "Units that never fire or are saturated, by layer and epoch",
    "histograms": "Histograms of activations, gradients and weights by layer",
    "confusion": "Confusion matrix on the validation split",
    "filters": "Filters of the first layer",
    "time": "Time by epoch",
    "curves": "Learning curves of all runs",
}


def write(run_folder: Path) -> Path:
    """Draw the pictures of a run and write its report; return the page."""
    result, metrics = rundir.result(run_folder), rundir.metrics(run_folder)
    config = result.get("config") or rundir.config(run_folder)
    choices = config.get("choices") or {}
    title = " ".join(str(choices.get(group) or "") for group in ("dataset", "model")).strip() or run_folder.name
    pictures = [file for file in plots.draw(run_folder) if file.stem != "errors"]
    parts = [
        _head(title, run_folder, result),
        _verdicts(result, metrics, rundir.layers(run_folder), config),
        _section("Pictures", "".join(map(_picture, pictures))),
        _section("Worst validation errors", _gallery(run_folder)),
        _section("Checks before training", _table(rundir.checks(run_folder), long=("message",))),
        _section("Config", _config(config)),
        _section("Every epoch", _table(metrics, tall=True)),
        _section("The rest of result.json", _rest(result)),
    ]
    return _page(run_folder, f"{title}: {result.get('status', '')}", parts)


def write_sweep(folder: Path) -> Path:
    """Draw the learning curves of all runs below a folder and write their table; return the page.

    Raises UserError when there are none.
    """
    rows = compare.rows([str(folder)])
    if not rows:
        raise UserError(f"{folder}: no runs here; expected a run, a sweep or a folder of them, such as outputs/latest")
    labels: dict[str, Path] = {}
    links: dict[str, str] = {}
    for row in rows:
        path = Path(row["run"])
        label = os.path.relpath(path, folder)
        labels[label], row["run"] = path, label
        if rundir.report(path).exists():
            links[label] = os.path.relpath(rundir.report(path), folder)
    shown = [c for c in rows[0] if any(row[c] not in ("", compare.QUIET.get(c, "")) for row in rows)]
    curves = plots.curves(folder, labels)
    many = f"{len(rows)} run{'s' * (len(rows) > 1)}, best first"
    parts = [
        f"<header><h1>{escape(folder.resolve().name)}</h1><p class=soft>{many}; a click on a column sorts</p></header>",
        _section("Runs", _table([{c: row[c] for c in shown} for row in rows], links=links)),
        _section("Pictures", _picture(curves) if curves else ""),
    ]
    return _page(folder, folder.resolve().name, parts)


def _page(folder: Path, title: str, parts: Iterable[str]) -> Path:
    template = Template(Path(__file__).with_name("report.html").read_text(encoding="utf-8"))
    text = template.substitute(title=escape(f"dlrun {title}"), body="\n".join(p for p in parts if p))
    rundir.write_atomic(rundir.report(folder), text.encode("utf-8", "replace"))
    return rundir.report(folder)


def _section(title: str, content: str) -> str:
    return f"<section><h2>{escape(title)}</h2>{content}</section>" if content else ""


def _text(value: Any) -> str:
    return escape(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))


def _head(title: str, folder: Path, result: Mapping[str, Any]) -> str:
    status = str(result.get("status", "unknown"))
    scores = {
        "test accuracy": _decimals(result.get("test_acc"), 4),
        "test loss": _decimals(result.get("test_loss"), 4),
        "validation accuracy": _decimals(result.get("val_acc"), 4),
        "validation loss": _decimals(result.get("val_loss"), 4),
        "best epoch": f"{_text(result['best_epoch'])} of {_text(result.get('epochs', '?'))}"
        if "best_epoch" in result
        else "",
        "seconds of training": _decimals(result.get("seconds"), 1),
        "parameters": f"{result['parameters']:,}" if isinstance(result.get("parameters"), int) else "",
    }
    boxes = "".join(f"<div><b>{value}</b>{name}</div>" for name, value in scores.items() if value)
    word = re.sub(r"\W", "", status)
    reason = f": {_text(result['reason'])}" if result.get("reason") else ""
    origin = f"{folder.resolve().name}, started {result.get('started', 'at an unknown time')}"
    return (
        f"<header><h1>{escape(title)}</h1><p><span class='badge {word}'>{escape(status)}</span>{reason}</p>"
        f"<p class=soft>{escape(origin)}</p></header><div class=numbers>{boxes}</div>"
    )


def _decimals(value: Any, digits: int) -> str:
    return f"{value:.{digits}f}" if isinstance(value, (int, float)) else ""


def _verdicts(
    result: Mapping[str, Any],
    metrics: Sequence[Mapping[str, str]],
    layers: Sequence[Mapping[str, str]],
    config: Mapping[str, Any],
) -> str:
    found = result.get("verdicts")
    if found is None and metrics:
        judged = verdicts.judge(metrics, layers, config, result.get("data", {}), str(result.get("status")))
        found = [finding.record() for finding in judged]
    if found is None:
        return ""
    cards = []
    for one in found:
        kind = "stop" if one.get("severity") == "stop" else "warn"
        fix = f"<p>To try next: <code>{_text(one['try'])}</code></p>" if one.get("try") else ""
        cards.append(f"<div class='card {kind}'>{_text(one.get('sentence', ''))}{fix}</div>")
    return _section("Verdicts", "".join(cards) or "<div class='card fine'>Nothing stands out: a healthy run.</div>")


def _picture(file: Path) -> str:
    kind = "" if file.stem in NATURAL else " class=chart"
    data = base64.b64encode(file.read_bytes()).decode()
    what = WHAT.get(file.stem, file.stem)
    return f"<figure class=picture><img{kind} alt='{escape(what)}' src='data:image/png;base64,{data}'></figure>"


def _gallery(folder: Path) -> str:
    from PIL import Image

    shown, found = rundir.arrays(folder, "showcase"), rundir.arrays(folder, "predictions")
    if "val_logits" not in found or not len(shown.get("images", ())):
        return ""
    classes, cards = plots.names(folder, found["val_logits"].shape[1]), []
    for row, image, loss in zip(shown["rows"], shown["images"], shown["losses"], strict=True):
        buffer = io.BytesIO()
        Image.fromarray(image.squeeze(-1) if image.shape[-1] == 1 else image).save(buffer, "PNG")
        true, guess = classes[found["val_labels"][row]], classes[found["val_logits"][row].argmax()]
        name = _text(str(found["val_ids"][row]))
        cards.append(
            f"<figure><img alt='{name}' src='data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}'>"
            f"<figcaption><b>{escape(true)}</b>, taken for <b>{escape(guess)}</b><br>loss {loss:.2f}<br>"
            f"<span class=soft>{name}</span></figcaption></figure>"
        )
    return f"<div class=gallery>{''.join(cards)}</div>"


def _table(
    rows: Sequence[Mapping[str, Any]],
    *,
    long: Sequence[str] = (),
    tall: bool = False,
    links: Mapping[str, str] | None = None,
) -> str:
    """A table that a click sorts; numbers are shown short and sorted in full."""
    if not rows:
        return ""
    columns = [c for c in rows[0] if c is not None]
    numeric = {c for c in columns if c != "run" and all(_is_number(row[c]) or row[c] in ("", None) for row in rows)}
    head = "".join(f"<th{' class=number' if c in numeric else ''}><button>{_text(c)}</button></th>" for c in columns)
    lines = []
    for row in rows:
        cells = []
        for c in columns:
            value = "" if row[c] is None else row[c]
            shown = _text(value)
            if c in numeric and value != "":
                number = float(value)
                short = str(value) if number.is_integer() and "e" not in str(value) else f"{number:.4g}"
                cells.append(f"<td class=number data-value='{number!r}'>{escape(short)}</td>")
                continue
            if links and c == "run" and value in links:
                shown = f"<a href='{escape(links[value])}'>{shown}</a>"
            kind = "long" if c in long else str(value) if c == "status" and str(value).isidentifier() else ""
            cells.append(f"<td class='{kind}'>{shown}</td>" if kind else f"<td>{shown}</td>")
        lines.append(f"<tr>{''.join(cells)}</tr>")
    frame = "scroll tall" if tall else "scroll"
    return f"<div class='{frame}'><table><thead><tr>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table></div>"


def _is_number(value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return False
    try:
        float(value)
    except ValueError:
        return False
    return True


def _config(config: Mapping[str, Any]) -> str:
    import yaml

    given, usual = dict(_flat(config)), dict(_flat(_defaults(config.get("choices") or {})))
    rows = []
    for key, value in given.items():
        default = _followed(usual.get(key), given)
        if not _same(default, value) and not key.startswith(("run.", "sweep.")):
            rows.append({"key": key.removeprefix("choices."), "value": _plain(value), "default": _plain(default)})
    differs = _table(rows) or "<p>Everything is at its default.</p>"
    whole = yaml.safe_dump(dict(config), sort_keys=False, allow_unicode=True)
    return f"{differs}<details><summary>All of it</summary><pre>{escape(whole)}</pre></details>"


def _defaults(choices: Mapping[str, Any]) -> dict[str, Any]:
    """The config that the chosen options would give by themselves; without Hydra, which takes half a second."""
    import yaml

    def read(name: str) -> dict[str, Any]:
        for folder in (Path("conf"), Path(os.environ.get("DLRUN_CONF") or "conf"), builtin_conf()):
            with contextlib.suppress(OSError, ValueError, yaml.YAMLError):
                found = yaml.safe_load((folder / f"{name}.yaml").read_bytes())
                return found if isinstance(found, dict) else {}
        return {}

    def option(group: str, name: str) -> dict[str, Any]:
        found = read(f"{group}/{name}")
        below = [
            option(group, n) for n in found.pop("defaults", []) if isinstance(n, str) and n not in ("_self_", name)
        ]
        return {k: v for part in (*below, found) for k, v in part.items()}

    root = read("train")
    usual = {k: v for k, v in root.items() if k not in ("defaults", "hydra")}
    usual["choices"] = {k: v for one in root.get("defaults", []) if isinstance(one, dict) for k, v in one.items()}
    for group, chosen in choices.items():
        # what a stored config names is a stranger's word: no path leads out of the folder
        if re.fullmatch(r"\w+", str(group)) and re.fullmatch(r"\w[\w-]*", str(chosen)) and group != "experiment":
            usual[group] = {**(usual.get(group) or {}), **option(str(group), str(chosen))}
    return usual


def _flat(node: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    for key, value in node.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _followed(value: Any, config: Mapping[str, Any]) -> Any:
    """What a default such as ${trainer.epochs} comes to in a config."""
    match = re.fullmatch(r"\$\{([\w.]+)\}", value) if isinstance(value, str) else None
    return config.get(match[1], value) if match else value


def _same(default: Any, value: Any) -> bool:
    # YAML 1.1 reads 1e-8 as a text, Hydra as a number
    return bool(default == value) or (_is_number(default) and _is_number(value) and float(default) == float(value))


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else "" if value is None else json.dumps(value)


def _rest(result: Mapping[str, Any]) -> str:
    known = {"config", "verdicts", "status", "reason"}
    text = json.dumps({k: v for k, v in result.items() if k not in known}, indent=1, ensure_ascii=False)
    return f"<details><summary>Versions, data, origin</summary><pre>{escape(text)}</pre></details>"
