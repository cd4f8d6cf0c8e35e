"""Pictures of graphs: what they show, the layout, the text of SVG and DOT."""

from __future__ import annotations

import random
import re
import shutil
import subprocess
import xml.etree.ElementTree as ElementTree

import pytest

import pictures
from moe_graph.dumps import dot, svg
from moe_graph.dumps.layout import lay_out
from moe_graph.dumps.layout_order import crossings
from moe_graph.dumps.layout_place import isotonic
from moe_graph.dumps.layout_view import CONSTANT, SHAPE, kinds_of, moe_path, view
from moe_graph.dumps.model import CONTROL, Descriptor, Edge, Graph, Node

HOSTILE = '</script><img src=x onerror="alert(1)">\\'


def _chain(*types: str) -> Graph:
    nodes = [Node(f"n{at}", kind, (Edge(f"n{at - 1}"),) if at else ()) for at, kind in enumerate(types)]
    return Graph("chain", tuple(nodes))


@pytest.mark.parametrize("seed", range(6))
def test_boxes_do_not_touch_and_lines_go_down(seed):
    draw = random.Random(seed)
    count = draw.randrange(1, 60)
    sizes = [(draw.uniform(20, 200), draw.uniform(20, 70)) for _ in range(count)]
    lines = sorted({tuple(sorted(draw.sample(range(count), 2))) for _ in range(2 * count if count > 1 else 0)})
    layout = lay_out(sizes, lines)
    areas = [(x - w / 2, y - h / 2, x + w / 2, y + h / 2) for (x, y), (w, h) in zip(layout.centres, sizes)]
    for at, (left, top, right, bottom) in enumerate(areas):
        assert left >= 0 and top >= 0 and right <= layout.width and bottom <= layout.height
        for other in areas[:at]:
            assert right < other[0] or other[2] < left or bottom < other[1] or other[3] < top
    for (start, end), route in zip(lines, layout.routes):
        assert route[0][1] == pytest.approx(areas[start][3]) and route[-1][1] == pytest.approx(areas[end][1])
        assert areas[start][0] <= route[0][0] <= areas[start][2] and areas[end][0] <= route[-1][0] <= areas[end][2]
        assert all(upper[1] <= lower[1] for upper, lower in zip(route, route[1:]))


def test_a_circle_and_a_loop_are_drawn_all_the_same():
    layout = lay_out([(50.0, 20.0)] * 3, [(0, 1), (1, 2), (2, 0), (1, 1)])
    assert len(set(layout.centres)) == 3
    assert len(layout.routes) == 4


def test_lines_beyond_the_budget_of_bends_run_straight(monkeypatch):
    monkeypatch.setattr("moe_graph.dumps.layout.BENDS", 0)
    layout = lay_out([(50.0, 20.0)] * 4, [(0, 1), (1, 2), (2, 3), (0, 3)])
    assert [len(route) for route in layout.routes] == [2, 2, 2, 2]


def test_nothing_to_draw():
    assert lay_out([], []).centres == ()
    assert "<svg" in svg.svg(Graph("empty", ()))


def test_crossings_are_counted():
    assert crossings([[0, 1], [2, 3]], [[3], [2], [], []]) == 1
    assert crossings([[0, 1], [2, 3]], [[2], [3], [], []]) == 0


def test_isotonic_is_the_nearest_that_never_falls():
    assert isotonic([1.0, 3.0, 1.0, 5.0], [1.0, 1.0, 1.0, 1.0]) == [1.0, 2.0, 2.0, 5.0]
    assert isotonic([4.0, 0.0], [3.0, 1.0]) == [3.0, 3.0]


def test_kinds():
    kinds = kinds_of(pictures.layers(1))
    of = {name.rpartition("/")[2]: kind for name, kind in kinds.items()}
    assert of["x"] == of["weight"] == "input" and of["NetOutput"] == "output"
    assert of["k"] == "constant"
    assert of["sizes"] == of["rows"] == of["shape"] == "shape"
    assert of["routing"] == of["up"] == "moe"
    assert of["view"] == of["keys"] == "conversion"
    assert of["softmax"] == of["swish"] == "compute"


def test_arithmetic_on_sizes_ends_where_data_is_made():
    whole = (Descriptor("int64", ()),)
    nodes = (
        Node("n", "Data", outputs=(Descriptor("int64", (), "ND", "CPU"),)),
        Node("two", "Const", outputs=whole),
        Node("twice", "Mul", (Edge("n"), Edge("two")), outputs=whole),
        Node("positions", "Range", (Edge("two"), Edge("twice"), Edge("two")), outputs=(Descriptor("int64", None),)),
        Node("shifted", "Add", (Edge("positions"), Edge("twice")), outputs=(Descriptor("int64", None),)),
        Node("ratio", "RealDiv", (Edge("n"), Edge("two")), outputs=(Descriptor("float32", ()),)),
        Node("constant", "Mul", (Edge("two"), Edge("two")), outputs=whole),
    )
    for order in (nodes, nodes[::-1]):
        kinds = kinds_of(Graph("g", order))
        assert [name for name, kind in kinds.items() if kind == "shape"] == ["twice"]


def test_moe_path_is_what_lies_between():
    graph = _chain("Data", "MoeReRouting", "Cast", "Swish", "GroupedMatmul", "Add", "NetOutput")
    assert moe_path(graph) == {"n1", "n2", "n3", "n4"}
    assert moe_path(_chain("Data", "Add", "NetOutput")) == frozenset()


def test_large_graphs_leave_constants_and_arithmetic_on_sizes_out():
    small, large = pictures.layers(1), pictures.layers(3)
    assert len(view(small).boxes) == len(small.nodes)
    shown = {box.node.name for box in view(large).boxes}
    kinds = kinds_of(large)
    assert shown == {node.name for node in large.nodes if kinds[node.name] not in (CONSTANT, SHAPE)} != kinds.keys()
    assert len(view(large, hide=()).boxes) == len(large.nodes)


def test_svg_shows_each_node_once_and_each_line(tmp_path):
    graph = pictures.routing()
    svg.write(graph, tmp_path / "g.svg")
    root = ElementTree.parse(tmp_path / "g.svg").getroot()
    space = "{http://www.w3.org/2000/svg}"
    words = [[text.text for text in group.findall(f"{space}text")] for group in root.findall(f"{space}g")]
    assert [lines[0] for lines in words] == ["Data", "Data", "Data", "MoeReRouting", "NetOutput"]
    assert words[3][1] == "int8[16384, 7168] +3"
    assert len(root.findall(f"{space}path")) == 4


def test_svg_is_well_formed_whatever_names_hold():
    name = HOSTILE + "\x00\x1b\ud800]]>&amp;"
    text = svg.svg(Graph(name, (Node(name, name),)))
    assert not list(ElementTree.fromstring(text.encode()).iter("{http://www.w3.org/2000/svg}img"))


def test_dot_names_nodes_and_edges():
    nodes = (
        Node("a", "Data", outputs=(Descriptor("int8", (2, -1)),)),
        Node("b", "MoeReRouting", (Edge("a"), None, Edge("a", CONTROL))),
    )
    text = dot.dot(Graph("g", nodes))
    assert '"a" [label="Data\\na\\nint8[2, ?]" fillcolor="#e8f1fb"];' in text
    assert '  "a" -> "b";\n' in text and '"a" -> "b" [style=dashed];' in text


def test_dot_quotes_whatever_names_hold():
    names = [HOSTILE, 'a"b', "a\\", 'a\\"', "<b>", "graph", "a\nb"]
    graph = Graph(HOSTILE, tuple(Node(name, name, (Edge(names[0]),)) for name in names))
    text = dot.dot(graph)
    # Outside quoted strings nothing is left but the language itself.
    rest = re.sub(r'"(?:[^"\\]|\\.)*"', "", text, flags=re.DOTALL)
    assert "<" not in rest and "onerror" not in rest and '"' not in rest
    assert '"a\ufffd"' in dot.dot(Graph("g", (Node("a\0", "Data"),)))


@pytest.mark.skipif(shutil.which("dot") is None, reason="Graphviz (dot) is not installed")
def test_graphviz_reads_it_back():
    graph = Graph("g", (Node(HOSTILE, "Data"), Node('"; evil -> "x', "Cast", (Edge(HOSTILE),))))
    plain = subprocess.run(["dot", "-Tplain"], input=dot.dot(graph), text=True, capture_output=True, check=True).stdout
    assert sum(line.startswith("node ") for line in plain.splitlines()) == 2
