"""What the page of a board holds, and runs whose every text is markup."""

from __future__ import annotations

import json
import random
import re
from pathlib import Path
from typing import Any

from support.many_runs import curves
from support.pages import EVIL
from support.stored import config, result, write, write_run

__all__ = ["RATES", "cells", "data", "hostile"]

RATES = "sweeps/20260101-000000-a-rates"  # of support.many_runs


def data(page: Path) -> dict[str, Any]:
    """What a page holds."""
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page.read_text(), re.DOTALL)
    assert found is not None
    return json.loads(found[1])  # type: ignore[no-any-return]


def cells(found: dict[str, Any], name: str) -> list[Any]:
    return next(column["cells"] for column in found["columns"] if column["name"] == name)


def hostile(root: Path) -> Path:
    """Runs, a sweep and a folder whose every text is markup."""
    word = f"{EVIL}\u2028</script></title><!--"
    for k in range(3):
        cfg = config(choices__model=f"{word}{k}", optimizer__lr=10.0**-k, trainer__epochs=word)
        cfg[word] = {word: f"{word}{k}"}
        more = {"reason": word, "verdicts": [{"name": word}], "checks": word}
        path = write_run(root / "javascript:alert(1)" / f"{k:04d}", **result(cfg, 0.5 + k / 10, **more))
        curves(path, 3, 0.5, random.Random(k))
        write(path / "report.html", "report")
    write(root / "javascript:alert(1)/sweep.yaml", "axes: []\nrounds: []\n")
    name = "<img src=x onerror=alert(1)>'\"$body"
    write_run(root / name, **result(config(), 0.4, status=word))
    write(root / f"bad{name}/config.yaml", f"{{{word}")
    return root
