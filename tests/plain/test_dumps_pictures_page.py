"""The page of a graph: what is in the file, and what it does in a browser (headless Chromium)."""

from __future__ import annotations

import json
import re
import shutil
import time

import pytest

import pictures
from moe_graph.dumps import html
from moe_graph.dumps.model import CONTROL, Descriptor, Edge, Graph, Node

HOSTILE = '</script><img src=x onerror="window.hurt=1"><script>window.hurt=1</script>'


def _data(page: str) -> dict:
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)[1])


def test_the_file_holds_the_graph_and_names_nothing_outside():
    graph = pictures.layers(1)
    page = html.html(graph)
    assert not re.search(r"""https?://|src=|href=|@import|url\(""", page)
    data = _data(page)
    assert [node["name"] for node in data["nodes"]] == [node.name for node in graph.nodes]
    routing = next(node for node in data["nodes"] if node["name"] == "layer0/routing")
    assert routing["attributes"] == [["idx_type", "0"]]
    assert [source and data["nodes"][source["at"]]["name"] for source in routing["inputs"]] == [
        "layer0/gather",
        "layer0/counts",
        None,
    ]
    assert data["hidden"] == [] and set(data["views"]) == {"", "constant", "shape", "constant shape"}
    kinds = {node["kind"] for node in (data["nodes"][at] for at in data["views"]["constant shape"]["nodes"])}
    assert "constant" not in kinds and "shape" not in kinds and "moe" in kinds


def test_values_no_json_has_become_text():
    node = Node(
        "n", "Const", outputs=(Descriptor("", None),), attributes={"value": float("nan"), "many": [1, 2.5], "t": "a"}
    )
    graph = Graph("g", (node, Node("m", "Cast", (Edge("n"), Edge("n", CONTROL), Edge("gone")))))
    first, second = _data(html.html(graph))["nodes"]
    assert first["attributes"] == [["value", '"nan"'], ["many", "[1, 2.5]"], ["t", "a"]]
    assert [source["at"] for source in second["inputs"]] == [0, 0, -1]


def test_text_of_a_graph_ends_no_element(tmp_path):
    graph = Graph(
        HOSTILE, (Node(HOSTILE + "\ud800", HOSTILE, attributes={HOSTILE: HOSTILE}, source=(HOSTILE,), fx=HOSTILE),)
    )
    html.write(graph, tmp_path / "g.html")
    page = (tmp_path / "g.html").read_text(encoding="utf-8")
    assert page.count("</script>") == 2 and "<img" not in page
    assert _data(page)["nodes"][0]["type"] == HOSTILE


@pytest.mark.slow
def test_ten_thousand_nodes_are_written_in_five_seconds():
    graph = pictures.layers(400)
    start = time.process_time()
    html.html(graph)
    assert len(graph.nodes) > 10_000 and time.process_time() - start < 5


@pytest.fixture(scope="module")
def browser():
    sync = pytest.importorskip("playwright.sync_api", reason="needs the package playwright: pip install playwright")
    with sync.sync_playwright() as playwright:
        own = shutil.which("chromium") or shutil.which("google-chrome") or shutil.which("chromium-browser")
        try:
            started = playwright.chromium.launch(executable_path=own, args=["--no-sandbox"])
        except sync.Error as error:
            pytest.skip(f"needs Chromium (apt-get install chromium, or playwright install chromium): {error}")
        yield started
        started.close()


@pytest.fixture
def opened(browser, tmp_path):
    """opened(graph) -> the page, its errors, seconds until it is drawn."""
    contexts = []

    def open_(graph):
        html.write(graph, tmp_path / "g.html")
        context = browser.new_context(viewport={"width": 1200, "height": 800}, offline=True)
        contexts.append(context)
        page, errors = context.new_page(), []
        page.on("console", lambda message: errors.append(message.text))
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("request", lambda request: errors.append(request.url) if not request.url.startswith("file:") else None)
        start = time.perf_counter()
        page.goto((tmp_path / "g.html").as_uri())
        page.evaluate("() => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")
        return page, errors, time.perf_counter() - start

    yield open_
    for context in contexts:
        context.close()


def _drawn(page) -> int:
    """How many different colours the picture has."""
    return page.evaluate(
        "() => { const c = document.getElementById('graph'); const d = c.getContext('2d').getImageData(0, 0, c.width, c.height).data;"
        " return new Set(new Uint32Array(d.buffer)).size }"
    )


@pytest.mark.slow
@pytest.mark.parametrize("layers", [0, 8, 200, 400])
def test_opens_finds_and_shows(opened, layers):
    graph = pictures.layers(layers) if layers else pictures.routing()
    wanted = f"layer{layers - 1}/back" if layers else "MoeReRouting"
    page, errors, seconds = opened(graph)
    assert seconds < (5 if layers == 400 else 3)  # 10,000 nodes
    assert _drawn(page) > 10
    assert page.inner_text("#counts").startswith(f"{len(graph.nodes)} nodes")

    page.keyboard.press("/")
    page.keyboard.type(wanted)
    assert wanted in page.inner_text("#hits")
    page.keyboard.press("Enter")
    assert wanted in page.inner_text("#panel .name")
    page.click("#panel .close")
    assert page.is_hidden("#panel")

    # The node found is in the middle: click it there.
    box = page.locator("#graph").bounding_box()
    page.mouse.click(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    panel = page.inner_text("#panel")
    assert "MoeReRouting" in panel and "idx_type" in panel
    if layers:
        assert "not fed" in panel and "model.py:" in panel
    assert errors == []


@pytest.mark.slow
def test_folds_moves_and_jumps(opened):
    graph = pictures.layers(4)
    page, errors, _ = opened(graph)
    assert "24 collapsed" in page.inner_text("#counts")
    page.check("#constants")
    assert "12 collapsed" in page.inner_text("#counts")
    page.check("#shapes")
    assert "collapsed" not in page.inner_text("#counts")
    page.uncheck("#constants")

    page.fill("#search", "layer2/zero")
    page.keyboard.press("Enter")
    assert "= 0" not in page.inner_text("#panel")  # it is the constant itself
    page.click("text=collapsed: show it")
    assert page.is_checked("#constants")
    page.click("#panel .go >> text=layer2/rows")
    assert page.inner_text("#panel .name") == "layer2/rows"
    assert "int64[] = 0" in page.inner_text("#panel")

    before = page.screenshot()
    page.mouse.move(400, 400)
    page.mouse.wheel(0, 300)
    page.wait_for_timeout(60)
    moved = page.screenshot()
    page.click("#in")
    page.wait_for_timeout(60)
    zoomed = page.screenshot()
    page.click("#theme")
    page.wait_for_timeout(60)
    assert len({before, moved, zoomed, page.screenshot()}) == 4
    page.click("#next")
    assert page.inner_text("#panel h2") in ("MoeReRouting", "GroupedMatmul")
    assert errors == []


@pytest.mark.slow
def test_a_hostile_name_runs_nothing(opened):
    names = [HOSTILE, "<img src=x onerror=window.hurt=1>", "\ud800", "__proto__", "constructor"]
    nodes = tuple(
        Node(
            name,
            name,
            (Edge(names[0]),) if at else (),
            attributes={name: name, "__proto__": name},
            source=(name,),
            fx=name,
        )
        for at, name in enumerate(names)
    )
    page, errors, _ = opened(Graph(HOSTILE, nodes))
    for name in names[:2]:
        page.fill("#search", name)
        page.keyboard.press("Enter")
        assert page.inner_text("#panel .name") == name
    assert page.evaluate("() => window.hurt") is None
    assert page.locator("img").count() == 0
    assert errors == []
    # Were text to become an element after all, the policy holds its script.
    page.evaluate(
        "() => { const e = document.createElement('div'); e.innerHTML = '<img src=x onerror=\"window.hurt=1\">'; document.body.append(e) }"
    )
    page.wait_for_timeout(200)
    assert page.evaluate("() => window.hurt") is None
    assert any("Content Security Policy" in error for error in errors)


@pytest.mark.slow
def test_a_graph_without_nodes_opens(opened):
    page, errors, _ = opened(Graph("empty", ()))
    assert page.inner_text("#counts") == "no nodes"
    assert errors == []
