"""The board: one page of all runs that sorts, filters, draws and stays up to date, whatever the runs hold."""

from __future__ import annotations

import hashlib
import json
import math
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dlrun.analysis import compare
from dlrun.folders.disk import lock, unlock
from dlrun.reports import board_runs
from dlrun.reports.board import Board
from dlrun.reports.board_runs import Runs, content
from support.browser import watch_page
from support.commands import Outcome, without_torch
from support.filters import KEPT, REFUSED, ROWS
from support.many_runs import curves, many, one
from support.pages import CHROMIUM, EVIL
from support.stored import config, result, write, write_run

browser = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
RATES, MODELS = "sweeps/20260101-000000-a-rates", "sweeps/20260101-000000-b-models"


@pytest.fixture(scope="module")
def thousand(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A thousand runs of sixty epochs and their page."""
    root = many(tmp_path_factory.mktemp("board") / "outputs", 1000)
    Board(root, root / "board.html").update()
    return root


@pytest.fixture(scope="module")
def forty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty runs of twelve epochs and their page."""
    root = many(tmp_path_factory.mktemp("board") / "outputs", 40, epochs=12)
    Board(root, root / "board.html").update()
    return root


def data(page: Path) -> dict[str, Any]:
    """What a page holds."""
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page.read_text(), re.DOTALL)
    assert found is not None
    return json.loads(found[1])  # type: ignore[no-any-return]


def cells(found: dict[str, Any], name: str) -> list[Any]:
    return next(column["cells"] for column in found["columns"] if column["name"] == name)


def test_the_command_writes_one_page_without_torch(tmp_path: Path) -> None:
    many(tmp_path / "outputs", 12, epochs=3)
    done = without_torch([("board",), ("board", "outputs/runs", "--out", "deep/all.html")], tmp_path)
    assert [outcome.code for outcome in done] == [0, 0]
    assert done[0].out.strip() == "12 runs: outputs/board.html"
    assert len(data(tmp_path / "outputs/board.html")["links"]) == 12
    few = data(tmp_path / "deep/all.html")
    assert len(few["links"]) == 10
    write(tmp_path / "outputs/runs" / Path(cells(few, "run")[3]).name / "report.html", "report")
    (again,) = without_torch([("board", "outputs/runs", "--out", "deep/all.html")], tmp_path)
    assert again.code == 0
    (linked,) = filter(None, data(tmp_path / "deep/all.html")["links"])
    assert (tmp_path / "deep" / linked).resolve().parent.name == Path(cells(few, "run")[3]).name


def test_rows_columns_and_links_are_those_of_the_comparison(forty: Path) -> None:
    found, rows = data(forty / "board.html"), compare.rows([str(forty)])
    assert cells(found, "run") == [row["run"] for row in rows]
    assert cells(found, "val_acc") == [row["val_acc"] for row in rows]
    settings = [column["name"] for column in found["columns"] if column["setting"]]
    assert set(settings) == {"model", "seed", "optimizer.lr", "regularizer.l2", "model.width"}
    for link, row in zip(found["links"], rows, strict=True):
        report = Path(row["run"]) / "report.html"
        assert bool(link) == report.exists()
        assert not link or (forty / link).resolve() == report.resolve()
    assert sum(map(bool, found["links"])) == 2


def test_curves_are_those_of_metrics_csv_with_steps_and_cumulative_time(tmp_path: Path) -> None:
    path = one(tmp_path / "o/a", 0.9, 5, random.Random(0))
    runs = Runs(tmp_path / "o")
    assert runs.refresh()
    (drawn,) = content(runs, tmp_path)["curves"]
    rows = (path / "metrics.csv").read_text().splitlines()
    seconds = [float(row.split(",")[6]) + float(row.split(",")[7]) for row in rows[1:]]
    assert drawn["epoch"] == [1, 2, 3, 4, 5]
    assert drawn["time"] == pytest.approx([sum(seconds[: k + 1]) for k in range(5)], rel=1e-4)
    assert drawn["val_acc"] == pytest.approx([float(row.split(",")[5]) for row in rows[1:]], rel=1e-4)
    assert drawn["steps"] == 100  # 6,400 images in batches of 64


def test_long_runs_are_thinned_but_keep_their_ends_and_their_best(tmp_path: Path) -> None:
    path = one(tmp_path / "o/a", 0.9, 2000, random.Random(0))
    lines = (path / "metrics.csv").read_text().splitlines()
    lines[1234] = re.sub(r"^1234,(.*?,.*?,.*?,.*?),[^,]*", r"1234,\1,0.999", lines[1234])
    write(path / "metrics.csv", "\n".join(lines) + "\n")
    runs = Runs(tmp_path / "o")
    runs.refresh()
    (drawn,) = content(runs, tmp_path)["curves"]
    assert len(drawn["epoch"]) <= board_runs.POINTS + 1
    assert {1, 1234, 2000} <= set(drawn["epoch"])
    assert max(drawn["val_acc"]) == 0.999


def test_a_sweep_brings_its_axes_scores_and_scale(forty: Path) -> None:
    found = data(forty / "board.html")
    named = {sweep["name"]: sweep for sweep in found["sweeps"]}
    assert set(named) == {RATES, MODELS}
    rates = named[RATES]
    axes = {axis["name"]: axis for axis in rates["axes"]}
    assert axes["optimizer.lr"]["log"]
    runs, scores = cells(found, "run"), cells(found, "val_acc")
    for row, score, rate in zip(rates["rows"], rates["scores"], axes["optimizer.lr"]["numbers"], strict=True):
        assert RATES in runs[row]
        assert score == (scores[row] if cells(found, "status")[row] == "completed" else None)
        assert rate == cells(found, "optimizer.lr")[row]


def test_bad_folders_are_left_out_with_their_reason(tmp_path: Path, dlrun: Callable[..., Outcome]) -> None:
    many(tmp_path / "outputs", 6, epochs=3)
    write(tmp_path / "outputs/runs/torn/config.yaml", "a: [1,\n")
    write(tmp_path / "outputs/runs/deep/config.yaml", "seed: 1\n")
    write(tmp_path / "outputs/runs/deep/result.json", '{"config": {"a": ' + '{"a": ' * 900 + "1" + "}" * 901 + "}")
    write_run(tmp_path / "outputs/runs/huge", config(), val_acc=10**400, status="completed")
    (one(tmp_path / "outputs/runs/curve", 0.5, 2, random.Random(0)) / "metrics.csv").write_bytes(b"\xff\xfe\x00epoch")
    write(tmp_path / "outputs/sweeps/20260101-000000-a-rates/sweep.yaml", "axes: {")
    outcome = dlrun("board")
    assert outcome.code == 0
    found = data(tmp_path / "outputs/board.html")
    left = dict(found["left_out"])
    assert {name.rpartition("/")[2] for name in left} >= {"torn", "huge", "curve"}
    assert "config.yaml" in left["outputs/runs/torn"]
    assert len(found["links"]) >= 7
    assert outcome.out.count("left out: ") == len(left)


def test_a_folder_that_cannot_be_read_hides_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a", "closed/b", "c"):
        one(tmp_path / name, 0.5, 1, random.Random(0))
    scandir = os.scandir

    def closed(folder: Any) -> Any:
        if Path(folder).name == "closed":
            raise PermissionError(13, "Permission denied")
        return scandir(folder)

    monkeypatch.setattr(os, "scandir", closed)
    runs = Runs(tmp_path)
    runs.refresh()
    assert [path.name for path in runs.found] == ["a", "c"]
    assert list(runs.left_out) == [str(tmp_path / "closed")]


def test_only_what_has_changed_is_read_again(forty: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = many(tmp_path / "o", 20, epochs=3)
    read, seen = compare.read, []
    monkeypatch.setattr(compare, "read", lambda paths: seen.extend(paths) or read(paths))
    board = Board(root, root / "board.html")
    assert board.update()
    assert len(seen) == 20
    seen.clear()
    before = (root / "board.html").stat().st_mtime_ns
    assert not board.update()
    assert seen == []
    assert (root / "board.html").stat().st_mtime_ns == before
    path = next(iter(board.runs.found))
    curves(path, 7, 0.7, random.Random(1))
    assert board.update()
    assert seen == [str(path)]
    (drawn,) = [c for c in data(root / "board.html")["curves"] if c and len(c["epoch"]) == 7]
    assert drawn["epoch"] == [1, 2, 3, 4, 5, 6, 7]


def test_a_run_whose_owner_dies_is_interrupted_though_no_file_changes(tmp_path: Path) -> None:
    path = one(tmp_path / "o/a", None, 2, random.Random(0), status="running")
    runs = Runs(tmp_path / "o")
    handle = lock(path, "")
    try:
        runs.refresh()
        assert cells(content(runs, tmp_path), "status") == ["running"]
        assert not runs.refresh()
    finally:
        unlock(handle)
    assert runs.refresh()
    assert cells(content(runs, tmp_path), "status") == ["interrupted"]
    assert not runs.refresh()


@pytest.mark.parametrize(
    ("words", "part"),
    [(("nowhere",), "nowhere"), (("--watch=0",), "--watch"), (("--out", "."), "--out"), ((), "outputs")],
)
def test_mistakes_are_one_line(words: tuple[str, ...], part: str, dlrun: Callable[..., Outcome]) -> None:
    outcome = dlrun("board", *words)
    assert outcome.code == 2
    assert outcome.err.startswith("dlrun: ")
    assert part in outcome.err
    assert outcome.err.count("\n") == 1


def test_watch_follows_a_run_and_ends_with_ctrl_c(tmp_path: Path) -> None:
    root = many(tmp_path / "outputs", 4, epochs=3)
    page = root / "board.html"
    words = [sys.executable, "-m", "dlrun", "board", "--watch=0.2"]
    with subprocess.Popen(words, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            until(lambda: page.exists() and len(data(page)["links"]) == 4)
            assert data(page)["watch"] == 0.2
            first = page.stat().st_ino
            time.sleep(0.7)
            assert page.stat().st_ino == first  # nothing has changed, nothing is written
            one(root / "runs/new", None, 2, random.Random(0), status="running")
            until(lambda: len(data(page)["links"]) == 5)
            process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=20)
        finally:
            process.kill()
    assert (process.returncode, err) == (130, "")
    assert "outputs/board.html" in out
    assert data(page)["watch"] == 0  # a page that waits for nothing


def until(holds: Callable[[], bool], seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.05)


def hostile(root: Path) -> Path:
    """Runs, a sweep and a folder whose every text is markup."""
    word = f"{EVIL}\u2028</script></title><!--"
    for k in range(3):
        cfg = config(choices__model=f"{word}{k}", optimizer__lr=10.0**-k, trainer__epochs=word)
        cfg[word] = {word: f"{word}{k}"}
        more = {"reason": word, "verdicts": [{"name": word}], "checks": word, "data": {"train": word}}
        path = write_run(root / "javascript:alert(1)" / f"{k:04d}", **result(cfg, 0.5 + k / 10, **more))
        curves(path, 3, 0.5, random.Random(k))
        write(path / "report.html", "report")
    write(root / "javascript:alert(1)/sweep.yaml", "axes: []\nrounds: []\n")
    name = "<img src=x onerror=alert(1)>'\"$body"
    write_run(root / name, **result(config(), 0.4, status=word))
    write(root / f"bad{name}/config.yaml", f"{{{word}")
    return root


def test_no_text_of_a_run_ends_the_data_or_its_link(tmp_path: Path) -> None:
    root = hostile(tmp_path / "o")
    Board(root, root / "board.html").update()
    text = (root / "board.html").read_text()
    assert text.count("<script") == text.count("</script") == 3
    assert "\u2028" not in text
    assert "<img" not in text
    found = data(root / "board.html")
    assert [link for link in found["links"] if link] == [
        f"./javascript%3Aalert%281%29/{k:04d}/report.html" for k in (2, 1, 0)
    ]
    assert any(EVIL in str(cell) for cell in cells(found, "model"))
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', text)
    assert policy is not None
    assert "default-src 'none'" in policy[1]
    assert not re.search(r"unsafe|https?:|'self'|\*", policy[1])


@browser
def test_hostile_text_stays_text_in_a_browser(tmp_path: Path) -> None:
    root = hostile(tmp_path / "o")
    Board(root, root / "board.html").update()
    script = """
      const shown = texts("td").join() + texts("#left li").join();
      all("#columns input").forEach((box) => box.checked || box.click());
      const count = ["img", "script", "tbody tr"].map((word) => all(word).length), left = texts("#left summary")[0];
      const links = all("td a").map((a) => a.protocol), markup = shown.includes("<img src=x");
      return { title: inside().title, count, links, markup, left };"""
    seen = watch_page(root / "board.html", tmp_path, script, virtual=2000)
    assert seen["title"].startswith("dlrun board")
    assert seen["count"] == [0, 3, 4]
    assert seen["links"] == ["file:"] * 3
    assert seen["markup"]
    assert seen["left"].endswith("1")


@browser
def test_a_thousand_runs_open_within_three_seconds(thousand: Path, tmp_path: Path) -> None:
    script = """const { drawn, ready } = inside().body.dataset;
      return [drawn, ready, all("tbody tr").length, texts("#count")[0]];"""
    drawn, ready, rows, count = watch_page(thousand / "board.html", tmp_path, script)
    assert 0 < float(drawn) <= float(ready) < 3000
    assert rows == 200
    assert count.startswith("1,000 ")
    assert (thousand / "board.html").stat().st_size < 5e6


@browser
def test_rows_are_drawn_as_far_as_somebody_scrolls(thousand: Path, tmp_path: Path) -> None:
    script = """
      const frame = inside().getElementById("scroll"), seen = [];
      for (let k = 0; k < 5; k++) {
        frame.scrollTop = frame.scrollHeight;
        frame.dispatchEvent(new Event("scroll"));
        seen.push(all("tbody tr").length);
      }
      return [seen, all("tbody tr").at(-1).querySelector(".run").title];"""
    seen, last = watch_page(thousand / "board.html", tmp_path, script)
    assert seen == [400, 600, 800, 1000, 1000]
    assert last == cells(data(thousand / "board.html"), "run")[-1]


READ = """
  const column = (name) => all("#head th").findIndex((th) => th.dataset.name === name);
  const read = (name) => all("tbody tr").map((row) => row.cells[column(name)].textContent);
  const head = (name) => all("#head th")[column(name)].querySelector("button");
"""


@browser
def test_columns_sort_by_address_and_by_click(forty: Path, tmp_path: Path) -> None:
    script = f"""{READ}
      const names = () => all("tbody .run").map((cell) => cell.title), seen = {{ first: names() }};
      head("optimizer.lr").click(); seen.up = read("optimizer.lr");
      head("optimizer.lr").click(); seen.down = read("optimizer.lr"); seen.hash = inside().location.hash;
      await go("sort=test_acc"); seen.best = read("test_acc");
      await go("sort=-test_acc"); seen.worst = read("test_acc"); seen.arrow = head("test_acc").parentElement.ariaSort;
      head("val_acc").click(); seen.again = names();
      return seen;"""
    seen = watch_page(forty / "board.html", tmp_path, script, virtual=3000)
    found = data(forty / "board.html")
    assert seen["first"] == seen["again"] == cells(found, "run")  # failed runs last
    rates = [float(text) for text in seen["up"]]
    assert rates == sorted(rates)
    assert len(set(rates)) > 20
    assert [float(text) for text in seen["down"]] == rates[::-1]
    assert seen["hash"] == "#sort=-optimizer.lr"
    scores = [text for text in seen["best"] if text]
    assert scores == sorted(scores, reverse=True)
    assert seen["best"][: len(scores)] == scores  # empty cells last, both ways
    assert seen["worst"][: len(scores)] == scores[::-1]
    assert seen["arrow"] == "ascending"


@browser
def test_filters_keep_what_the_grammar_says(tmp_path: Path) -> None:
    for name, (model, lr, acc, status) in ROWS.items():
        one(tmp_path / "o" / name, acc, 2, random.Random(0), status, optimizer__lr=lr, choices__model=model)
    Board(tmp_path / "o", tmp_path / "board.html").update()
    script = f"""
      const seen = [];
      for (const text of {json.dumps([*KEPT, *REFUSED])}) {{
        await go(new URLSearchParams({{ filter: text }}).toString());
        const error = inside().getElementById("error");
        const kept = all("tbody .run").map((c) => c.textContent).sort().join("");
        seen.push([text, error.hidden ? kept : null, kept.length]);
      }}
      const box = inside().getElementById("filter");
      box.value = "resnet";
      box.dispatchEvent(new Event("input"));
      await wait(300);
      seen.push(["typed", all("tbody tr").length, inside().location.hash]);
      return seen;"""
    *seen, typed = watch_page(tmp_path / "board.html", tmp_path, script, virtual=8000)
    assert {text: kept for text, kept, _ in seen} == {**KEPT, **dict.fromkeys(REFUSED)}
    assert {rows for text, _, rows in seen if text in REFUSED} == {4}
    assert typed == ["typed", 2, "#filter=resnet"]


@browser
def test_columns_hide_and_show(forty: Path, tmp_path: Path) -> None:
    script = """
      const names = () => all("#head th").map((th) => th.dataset.name).filter(Boolean), seen = [names()];
      await go("hide=seed&hide=status&show=test_loss"); seen.push(names());
      all("#columns label").find((label) => label.dataset.name === "model").click();
      seen.push(names(), inside().location.hash, all("tbody tr")[0].cells.length);
      return seen;"""
    first, second, third, address, width = watch_page(forty / "board.html", tmp_path, script, virtual=2000)
    assert "test_loss" not in first
    assert set(second) == set(first) - {"seed", "status"} | {"test_loss"}
    assert set(third) == set(second) - {"model"}
    assert "hide=model" in address
    assert width == len(third) + 1


HOVER = """
  const hover = async (over, x, y, event = "mousemove") => {
    const box = over.getBoundingClientRect(), View = inside().defaultView;
    const more = { clientX: box.left + x, clientY: box.top + y, bubbles: true, pointerType: "mouse", view: View };
    over.dispatchEvent(event === "mousemove" ? new View.MouseEvent(event, more) : new View.PointerEvent(event, more));
    await wait(120);
  };
"""


@browser
def test_chosen_curves_lie_over_each_other_and_a_hover_shows_their_values(forty: Path, tmp_path: Path) -> None:
    script = f"""{HOVER}
      const seen = {{ best: all("tr.chosen .run").map((cell) => cell.title), legend: texts("#legend .words") }};
      for (const x of ["epoch", "step", "time"]) {{
        await go(`x=${{x}}`);
        const over = all("#plot .u-over")[0];
        await hover(over, over.clientWidth - 2, 20);
        seen[x] = [texts("#plot .tip .soft")[0], texts("#legend .value"), texts("#plot .tip .line").length];
      }}
      all("tbody tr")[7].click();
      const address = inside().location.hash.match(/run=/g).length;
      seen.six = [texts("#legend .words").length, all("tr.chosen").length, address];
      inside().getElementById("none").click();
      seen.none = [texts("#legend .words").length, all("#plot canvas").length];
      await go("filter=status%3Dcompleted+and+model%3Dcnn");
      inside().getElementById("choose").click();
      seen.all = [all("tbody tr").length, texts("#legend .words").length];
      return seen;"""
    seen = watch_page(forty / "board.html", tmp_path, script, virtual=6000)
    found = data(forty / "board.html")
    assert seen["best"] == cells(found, "run")[:5]
    assert all("lr=" in words for words in seen["legend"])  # what tells them apart
    ends = [c["val_acc"][-1] for c in found["curves"][:5]]
    assert [float(value) for value in seen["epoch"][1]] == pytest.approx(ends, abs=6e-5)
    assert seen["epoch"][0] == "epoch 12"
    assert seen["step"][0] == "step 1200"
    assert seen["time"][0].endswith(" s")
    assert seen["epoch"][2] == 5
    assert seen["six"] == [6, 6, 6]
    assert seen["none"] == [0, 0]
    assert seen["all"][0] == seen["all"][1] > 3


@browser
def test_axes_of_a_sweep_show_a_trial_and_open_its_report(forty: Path, tmp_path: Path) -> None:
    found = data(forty / "board.html")
    sweep = next(s for s in found["sweeps"] if s["name"] == RATES)
    axis = next(a for a in sweep["axes"] if a["name"] == "optimizer.lr")
    trial = next(k for k, row in enumerate(sweep["rows"]) if found["links"][row] and sweep["scores"][k] is not None)
    script = f"""{HOVER}
      await go("sweep={RATES}");
      const names = texts("#scatters .name"), opened = [], seen = [];
      const over = all("#scatters .u-over")[names.findIndex((name) => name.startsWith("optimizer.lr"))];
      inside().defaultView.open = (link) => opened.push(link);
      for (let x = 0; x < over.clientWidth; x += 6) for (let y = 0; y < over.clientHeight; y += 12) {{
        const frame = over.closest(".scatter"), box = over.getBoundingClientRect(), View = inside().defaultView;
        const more = {{ clientX: box.left + x, clientY: box.top + y, bubbles: true, pointerType: "mouse" }};
        over.dispatchEvent(new View.PointerEvent("pointermove", more));
        if (frame.querySelector(".tip")?.textContent.includes("/{trial_name(found, sweep, trial)}")) {{
          seen.push(frame.querySelector(".tip").textContent);
          over.dispatchEvent(new View.PointerEvent("click", more));
          return {{ names, seen, opened }};
        }}
      }}
      return {{ names, seen, opened }};"""
    seen = watch_page(forty / "board.html", tmp_path, script, virtual=3000)
    assert sorted(seen["names"]) == sorted(f"{a['name']}{' (log)' * a['log']}" for a in sweep["axes"])
    assert f"{sweep['scores'][trial]:.4f}" in seen["seen"][0]
    shown = re.search(r"optimizer\.lr=([\d.e-]+?)(?=[a-z]|$)", seen["seen"][0])
    assert shown is not None
    assert math.isclose(float(shown[1]), axis["numbers"][trial], rel_tol=5e-3)
    assert seen["opened"] == [found["links"][sweep["rows"][trial]]]


def trial_name(found: dict[str, Any], sweep: dict[str, Any], trial: int) -> str:
    return Path(cells(found, "run")[sweep["rows"][trial]]).name


@browser
def test_a_live_page_loads_itself_again_with_the_same_view(forty: Path, tmp_path: Path) -> None:
    page = tmp_path / "live.html"
    Board(forty, page).update(watch=1.0)
    script = """
      const box = inside().getElementById("filter");
      box.value = "completed";
      box.dispatchEvent(new Event("input"));
      await wait(200);
      all("tbody tr")[9].click();
      inside().getElementById("scroll").scrollTop = 200;
      const kept = () => [inside().location.hash, inside().getElementById("scroll").scrollTop, all("tr.chosen").length];
      const before = kept();
      await wait(6000);
      return [loads, before, kept(), inside().getElementById("filter").value];"""
    loads, before, after, words = watch_page(page, tmp_path, script, virtual=9000)
    assert loads >= 2
    assert before == after
    assert before[1:] == [200, 6]
    assert words == "completed"


@browser
@pytest.mark.parametrize("width", [1300, 390])  # a desk's and a phone's
def test_the_page_is_never_wider_than_the_window(forty: Path, tmp_path: Path, width: int) -> None:
    script = "return [inside().documentElement.scrollWidth, frame.contentWindow.innerWidth, all('canvas').length];"
    wide, inner, drawn = watch_page(forty / "board.html", tmp_path, script, width=width)
    assert wide <= inner == width
    assert drawn >= 2


@browser
def test_a_folder_without_runs_has_a_page_too(tmp_path: Path) -> None:
    (tmp_path / "o").mkdir()
    Board(tmp_path / "o", tmp_path / "board.html").update()
    seen = watch_page(
        tmp_path / "board.html", tmp_path, "return [all('tbody tr').length, inside().body.dataset.ready];"
    )
    assert seen[0] == 0
    assert float(seen[1]) > 0


def test_the_chart_library_is_the_released_file_and_its_licence_is_on_the_page(forty: Path) -> None:
    uplot = Path(board_runs.__file__).with_name("vendor") / "uplot"
    script = (uplot / "uPlot.iife.min.js").read_bytes()
    released = "19c8d4c6ad88929a79f4ae49d6f7161566dfd0ba3d15cc495e974f787eb78f1f"  # 1.6.32
    assert hashlib.sha256(script).hexdigest() == released
    text = (forty / "board.html").read_text()
    assert script.decode() in text
    assert (uplot / "LICENSE").read_text() in text
