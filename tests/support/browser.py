"""A page opened in headless Chromium inside a frame, which may be as narrow as a phone, and watched by a script."""

from __future__ import annotations

import json
import re
import subprocess
from html import unescape
from pathlib import Path
from typing import Any

from support.pages import CHROMIUM

__all__ = ["watch_page"]

# the script outside the frame is not bound by the policy of the page inside
FRAME = """<!doctype html><body><iframe id="frame" src="{address}" style="width: {width}px; height: 900px; border: 0">
</iframe><script>
const frame = document.getElementById("frame");
const wait = (ms) => new Promise((done) => setTimeout(done, ms));
let loads = 0;
frame.addEventListener("load", async () => {{
  if (loads++) return;
  const inside = () => frame.contentDocument, all = (word) => [...inside().querySelectorAll(word)];
  const go = async (hash) => {{ frame.contentWindow.location.hash = hash; await wait(30); }};
  const texts = (word) => all(word).map((found) => found.textContent);
  let seen;
  const run = async () => {{ {script} }};
  try {{ seen = await run(); }} catch (problem) {{ seen = {{ error: String(problem.stack) }}; }}
  document.body.dataset.seen = JSON.stringify(seen);
  frame.remove(); // its timers end, and with them the virtual time
}});
</script>"""


def watch_page(page: Path, folder: Path, script: str, *, hash: str = "", width: int = 1300, virtual: int = 0) -> Any:
    """Return what a script returns once a page is loaded; `virtual` (ms) lets timers run that far, faster than time.

    The script has `inside()` (the document of the page), `all(selector)`, `texts(selector)`, `go(hash)`, `wait(ms)` and
    `loads`. Fails if anything reaches the console: an error, or something that the policy of the page forbids.
    """
    frame = folder / "frame.html"
    frame.write_text(FRAME.format(address=f"file://{page}#{hash}", width=width, script=script))
    command = [str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"]
    command += ["--disable-dev-shm-usage", "--enable-logging=stderr", f"--user-data-dir={folder / 'profile'}"]
    command += ["--allow-file-access-from-files", "--window-size=1400,1000", "--dump-dom"]
    command += [f"--virtual-time-budget={virtual}"] if virtual else []
    done = subprocess.run([*command, f"file://{frame}"], capture_output=True, text=True, timeout=120)
    assert "CONSOLE" not in done.stderr, done.stderr[-2000:]
    seen = re.search(r'data-seen="([^"]*)"', done.stdout)
    assert seen is not None, done.stderr[-500:]
    found = json.loads(unescape(seen[1]))
    assert not (isinstance(found, dict) and "error" in found), found["error"]
    return found
