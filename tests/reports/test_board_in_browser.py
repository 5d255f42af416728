"""The board in headless Chromium: 1,000 runs open quickly, the table, curves and axes answer, nothing hostile runs."""

from __future__ import annotations

import json
import math
import random
import re
import threading
from pathlib import Path
from typing import Any

import pytest

from dlrun.reports.board import Board
from support.boards import RATES, cells, data, hostile
from support.browser import watch_page
from support.filters import KEPT, REFUSED, ROWS
from support.many_runs import many, one
from support.pages import CHROMIUM

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")


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


@pytest.mark.slow
def test_a_thousand_runs_open_within_three_seconds(thousand: Path, tmp_path: Path) -> None:
    script = """const { drawn, ready } = inside().body.dataset;
      return [drawn, ready, all("tbody tr").length, texts("#count")[0]];"""
    drawn, ready, rows, count = watch_page(thousand / "board.html", tmp_path, script)
    assert 0 < float(drawn) <= float(ready) < 3000
    assert rows == 200
    assert count.startswith("1,000 ")
    assert (thousand / "board.html").stat().st_size < 5e6


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


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
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


def test_an_open_page_shows_runs_that_come_later(tmp_path: Path) -> None:
    board, ended = Board(many(tmp_path / "o", 5, epochs=2), tmp_path / "live.html"), threading.Event()
    board.update(watch=0.5)

    def add() -> None:
        for number in range(60):
            if ended.wait(0.5):
                return
            one(tmp_path / f"o/runs/later{number}", 0.5, 2, random.Random(0))
            board.update(watch=0.5)

    adding = threading.Thread(target=add)
    adding.start()
    script = """
      const rows = () => inside()?.body?.dataset.ready ? all("tbody tr").length : 0, first = rows();
      for (let k = 0; k < 2000 && rows() <= first; k++) await wait(100);
      return [first, rows(), loads];"""
    try:
        first, later, loads = watch_page(board.file, tmp_path, script, virtual=250_000)
    finally:
        ended.set()
        adding.join()
    assert 5 <= first < later
    assert loads > 1


@pytest.mark.parametrize("width", [1300, 390])  # a desk's and a phone's
def test_the_page_is_never_wider_than_the_window(forty: Path, tmp_path: Path, width: int) -> None:
    script = "return [inside().documentElement.scrollWidth, frame.contentWindow.innerWidth, all('canvas').length];"
    wide, inner, drawn = watch_page(forty / "board.html", tmp_path, script, width=width)
    assert wide <= inner == width
    assert drawn >= 2


@pytest.mark.slow
def test_a_folder_without_runs_has_a_page_too(tmp_path: Path) -> None:
    (tmp_path / "o").mkdir()
    Board(tmp_path / "o", tmp_path / "board.html").update()
    seen = watch_page(
        tmp_path / "board.html", tmp_path, "return [all('tbody tr').length, inside().body.dataset.ready];"
    )
    assert seen[0] == 0
    assert float(seen[1]) > 0


@pytest.mark.slow
def test_an_address_that_names_what_is_not_there_shows_the_page_as_it_is(forty: Path, tmp_path: Path) -> None:
    script = """
      const seen = () => [all("tbody tr").length, all("tr.chosen").length, all("#plot canvas").length,
        ...["x", "y", "sweep"].map((id) => inside().getElementById(id).value)];
      const found = [seen()];
      await go("sort=nothere&x=weeks&y=constructor&sweep=gone&hide=nothere&run=0%3Agone&run=x&run=9999999%3A");
      found.push(seen());
      await go("%%%&run=none&hide=%00");
      return [...found, seen()];"""
    plain, odd, none = watch_page(forty / "board.html", tmp_path, script, virtual=3000)
    assert plain[:3] == [40, 5, 1]
    assert odd == [40, 0, 0, *plain[3:]]
    assert none == odd


@pytest.mark.slow
def test_train_curves_and_a_log_scale_can_be_added(forty: Path, tmp_path: Path) -> None:
    script = f"""{HOVER}
      const seen = [], box = (id) => inside().getElementById(id);
      for (const id of ["train", "log"]) {{
        box(id).click();
        const over = all("#plot .u-over")[0];
        await hover(over, over.clientWidth - 2, 20);
        seen.push(texts("#plot .tip .line").filter((text) => text.includes("train ")).length);
      }}
      box("y").value = "train_loss";
      box("y").dispatchEvent(new Event("change"));
      return [...seen, inside().location.hash, box("train-label").hidden];"""
    seen = watch_page(forty / "board.html", tmp_path, script, virtual=3000)
    assert seen == [5, 5, "#y=train_loss&train=1&log=1", True]
