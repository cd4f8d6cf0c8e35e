"""How long a page of a graph takes to write and to open in headless Chromium, by the number of nodes.

python benchmarks/dump_page.py [--layers 8 40 200]       needs the package playwright, and Chromium
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path

from playwright.sync_api import sync_playwright
from rich.console import Console
from rich.table import Table

from moe_graph.dumps import html

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
import pictures  # noqa: E402

DRAWN = "() => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))"
# Milliseconds of a frame after each of twenty moves. A browser draws at most one in 16.7 ms.
FRAMES = """async () => {
  const frame = () => new Promise(done => requestAnimationFrame(done));
  const times = [];
  for (let at = 0; at < 20; at++) {
    dispatchEvent(new KeyboardEvent("keydown", { key: at % 2 ? "ArrowUp" : "ArrowDown" }));
    const start = performance.now();
    await frame(); await frame();
    times.push((performance.now() - start) / 2);
  }
  return times;
}"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, nargs="+", default=[8, 40, 200], help="of 25 nodes each")
    options = parser.parse_args()
    table = Table("nodes", "write, s", "file, MB", "open, s", "frame near, ms", "frame of all, ms")
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        for layers in options.layers:
            graph, path = pictures.layers(layers), Path(folder) / "graph.html"
            start = time.perf_counter()
            html.write(graph, path)
            wrote = time.perf_counter() - start
            opened = []
            for _ in range(3):
                page = browser.new_page(viewport={"width": 1280, "height": 800})
                start = time.perf_counter()
                page.goto(path.as_uri())
                page.evaluate(DRAWN)
                opened.append(time.perf_counter() - start)
            near = statistics.median(page.evaluate(FRAMES))
            page.click("#fit")
            whole = statistics.median(page.evaluate(FRAMES))
            table.add_row(
                str(len(graph.nodes)),
                f"{wrote:.1f}",
                f"{path.stat().st_size / 1e6:.1f}",
                f"{statistics.median(opened):.2f}",
                f"{near:.0f}",
                f"{whole:.0f}",
            )
        browser.close()
    Console().print(table)


if __name__ == "__main__":
    main()
