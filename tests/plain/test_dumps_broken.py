"""Files that are no dumps, or broken ones: one line that names the file, never a traceback, never a graph that is half there."""

import contextlib
import io
import random
import re
import sys
from pathlib import Path

import pytest
from google.protobuf import text_format
from hypothesis import given, settings
from hypothesis import strategies as st

from moe_graph.dumps import DumpError, read
from moe_graph.dumps.inspect import main
from moe_graph.dumps.reading_text import parse, unescape
from moe_graph.engine import proto

DUMPS = Path(__file__).parent.parent / "dumps"
SAMPLES = sorted(DUMPS.glob("dynamo_*.*"))
HEADER = "from torchair._ge_concrete_graph import ge_apis as ge\n"


class _Text(str):
    """`format` fills in what is not given: a graph that can be read."""

    def format(self, **given):
        return super().format(**{"dim": "4", "attribute": "i: 1", "output": 0, **given})


GRAPH = _Text(
    'op {{ name: "a" type: "Data" attr {{ key: "x" value {{ {attribute} }} }} '
    'output_desc {{ name: "y" dtype: DT_FLOAT shape {{ dim: {dim} }} }} }} '
    'op {{ name: "n" type: "NetOutput" input: "a:{output}" input_desc {{ name: "input0" }} }}\n'
)


def refused(path):
    with pytest.raises(DumpError) as caught:
        read(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ") and "\n" not in message, message
    return message


def written(tmp_path, content, name="dynamo_original_graph_1.txt"):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "empty"),
        (b" \n\n", "empty"),
        (b"\x08\x01\x12\x00" * 100, "binary"),
        (b"\xff\xfe\xfd abc", "UTF-8"),
        ("hello, world", "line 1"),
        ('{"graph": {"op": []}}', "line 1"),
        ("answer: 42\n", "no operators"),
        ('op: 3\nname: "x"', "plain value"),
        ('op { name: "a" }', "without a type"),
        ('op { name: "a" type: "Relu" }\nop { name: "a" type: "NetOutput" }', "two nodes are named 'a'"),
        ('op { name: "a" type: "NetOutput" input: "gone:0" }', "no node has that name"),
        ('op { name: "a" type: "NetOutput" input: "gone" }', "not NAME:OUTPUT"),
        ('op { name: "a" type: "Relu" }', "no NetOutput"),
        ('op { name: "a" type "Relu" }', "expected ':'"),
        ("op { name: }", "expected a value"),
        ('graph { node { name: "a" op_type: "Conv" } }', "ge:TYPE"),
        ("op { " * 100000, "the text ends"),
        (GRAPH.format(dim='"x"'), "a size of a shape must be a whole number, got 'x'"),
        (GRAPH.format(dim="1.5"), "got '1.5'"),
        (GRAPH.format(dim="{ }"), "a size of a shape"),
        (GRAPH.format(attribute="i: " + "9" * 6000), "line 1: a whole number of 6000 digits"),
        (GRAPH.format(attribute="i: 0x" + "f" * 6000), "line 1: a whole number of 6002 digits"),
        (GRAPH.format(attribute="i: -9223372036854775809"), "beyond 64 bits"),
        (GRAPH.format(attribute="func { " * 5000 + "} " * 5000), "nested more than 100 deep"),
        (GRAPH.format(attribute="list: 3"), "not built as a dump"),
        (GRAPH.format(output=300000000), "reads output 300000000 of 'a', which no operator has"),
        (GRAPH.format(output=-2), "which no operator has"),
    ],
)
def test_what_is_no_dump_is_refused(tmp_path, content, says):
    assert says in refused(written(tmp_path, content))


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("import os\nos.system('true')\n", "line 2"),
        ("def f(", "line 1: not Python"),
        (HEADER, "does not end with NetOutput"),
        (HEADER + "x_0 = ge.Relu(y_0)\n_ = ge.NetOutput([x_0], dependencies=[])\n", "'y_0' is used"),
        (HEADER + "for i in range(3): pass\n", "not a call of a GE operator"),
        (HEADER + "x_0 = ge.Relu(" + "(" * 5000 + ")" * 5000 + ")", "line 2"),
        (HEADER + "x_0 = ge.Relu(" + "-" * 100000 + "1)", ""),
        (HEADER + 'a_0 = ge.Data(index=0, dtype=0, shape=[], placement="NPU", node_name="a")\n' * 2, "second node"),
        (HEADER.replace("\n", "\x00\n"), "binary"),
        (HEADER + 'x_0 = ge.Data(index=0, dtype=0, shape=["a", None], node_name="a")\n', "whole number, got 'a'"),
        (HEADER + 'x_0 = ge.Const(1, dtype=[3], node_name="e")\n', "node 'e': dtype must be the number of a data type"),
        (HEADER + f"x_0 = ge.Const({10**30}, dtype=9)\n", "beyond 64 bits"),
        (HEADER + f"x_0 = ge.Const(0x{'f' * 6000}, dtype=9)\n", "beyond 64 bits"),
    ],
)
def test_python_that_torchair_did_not_write_is_refused(tmp_path, content, says):
    assert says in refused(written(tmp_path, content, "dynamo_original_graph_1.py"))


HOSTILE = (
    "__import__('pathlib').Path({path!r}).touch()",
    "ge.Relu(__import__('pathlib').Path({path!r}).touch())",
    "ge.Relu(x_0, node_name=open({path!r}, 'w').name)",
    "ge.Data(index=open({path!r}, 'w').fileno(), dtype=0, shape=[], placement='NPU')",
    "ge.Const(eval('open({path!r}, \"w\")'), dtype=0)",
    "ge.Relu([open({path!r}, 'w') for _ in [0]])",
    "ge.Relu(tensor(open({path!r}, 'w')))",
    "(lambda: open({path!r}, 'w'))()",
)


@pytest.mark.parametrize("call", HOSTILE)
def test_nothing_in_a_py_dump_is_executed(tmp_path, call):
    trap = tmp_path / "executed"
    lines = [HEADER, 'x_0 = ge.Data(index=0, dtype=0, shape=[2], placement="NPU", node_name="x")']
    lines += [f"y_0 = {call.format(path=str(trap))}", "_ = ge.NetOutput([x_0], dependencies=[])"]
    path = written(tmp_path, "\n".join(lines), "dump.py")
    try:
        read(path)
    except DumpError as error:
        assert str(error).startswith(f"{path}: line 4")
    assert not trap.exists()
    eval(compile(f"open({str(trap)!r}, 'w').close()", "", "exec"))  # the trap does spring
    assert trap.exists()


def test_importing_a_module_is_not_executed(tmp_path):
    (tmp_path / "trap.py").write_text("raise SystemExit('executed')")
    text = "import trap\n" + (DUMPS / "dynamo_original_graph_1.py").read_text()
    sys.path.insert(0, str(tmp_path))
    try:
        assert len(read(written(tmp_path, text, "dump.py"))[0].nodes) == 21
    finally:
        sys.path.remove(str(tmp_path))
    assert "trap" not in sys.modules


@pytest.mark.parametrize("sample", SAMPLES, ids=lambda path: path.name)
def test_a_dump_cut_off_anywhere_is_refused_or_says_the_same(tmp_path, sample):
    """Only what follows the last operator (a line break, notes of the whole graph) may be missing unnoticed."""
    whole, content = read(sample)[0], sample.read_bytes()
    path = tmp_path / sample.name
    places = sorted({*random.Random(0).sample(range(len(content)), 150), *range(len(content) - 40, len(content))})
    for at in places:
        path.write_bytes(content[:at])
        try:
            (graph,) = read(path)
        except DumpError as error:
            assert str(error).startswith(f"{path}: ") and "\n" not in str(error)
        else:
            assert graph.nodes == whole.nodes and content[at:].count(b"op {") + content[at:].count(b"ge.") == 0, at


@pytest.mark.parametrize("sample", SAMPLES, ids=lambda path: path.name)
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_a_damaged_dump_never_fails_otherwise(tmp_path_factory, sample, data):
    content = bytearray(sample.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(content) - 1))
        content[at : at + data.draw(st.integers(0, 30))] = data.draw(st.binary(max_size=8))
    path = tmp_path_factory.mktemp("damaged") / sample.name
    path.write_bytes(content)
    try:
        read(path)
    except DumpError as error:
        assert "\n" not in str(error)


def test_the_command_names_every_file_it_cannot_read_and_shows_the_others(tmp_path, capsys):
    (tmp_path / "dynamo_original_graph_1.txt").write_bytes((DUMPS / "dynamo_original_graph_1.txt").read_bytes()[:500])
    (tmp_path / "dynamo_original_graph_2.txt").write_bytes((DUMPS / "dynamo_original_graph_1.txt").read_bytes())
    assert main([str(tmp_path), str(tmp_path / "missing.txt")]) == 1
    out, err = capsys.readouterr()
    lines = err.splitlines()
    assert len(lines) == 2
    assert lines[0].startswith(str(tmp_path / "dynamo_original_graph_1.txt: line ")), lines
    assert lines[1] == f"{tmp_path / 'missing.txt'}: No such file or directory"
    assert "graph_1 (txt, original" in out


WRONG = ("{ }", "< >", '"x"', "-3", "1.5", "DT_X", '[1, "a"]', "nan", "true", "[]", "{ dim: 3 }")


@pytest.mark.parametrize("sample", [path for path in SAMPLES if path.suffix == ".txt"], ids=lambda path: path.name)
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_values_of_another_type_are_refused_or_shown(tmp_path_factory, sample, data):
    """What the reader lets through, tables and JSON can show."""
    text = sample.read_text()
    values = list(re.finditer(r":\s*([^\s{}]+)|({[^{}]*})", text))
    for match in sorted(
        data.draw(st.lists(st.sampled_from(values), min_size=1, max_size=3, unique=True)), key=re.Match.start
    )[::-1]:
        group = 1 if match[1] else 2
        text = text[: match.start(group)] + data.draw(st.sampled_from(WRONG)) + text[match.end(group) :]
    path = written(tmp_path_factory.mktemp("wrong"), text)
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()) as err:
        code = main([str(path), "--nodes"]) | main([str(path), "--nodes", "--json"])
    lines = err.getvalue().splitlines()
    assert code == bool(lines) and all(line.startswith(f"{path}: ") for line in lines)


def test_a_mark_of_byte_order_is_no_part_of_the_text(tmp_path):
    (graph,) = read(written(tmp_path, "\ufeff" + GRAPH.format()))
    assert [node.name for node in graph.nodes] == ["a", "n"]
    (graph,) = read(written(tmp_path, "\ufeff" + (DUMPS / "dynamo_original_graph_1.py").read_text(), "dump.py"))
    assert len(graph.nodes) == 21


def test_halves_of_characters_are_shown_as_question_marks(tmp_path):
    text = HEADER + 'x_0 = ge.Data(index=0, dtype=0, shape=[4], node_name="a\\ud800b")\n_ = ge.NetOutput([x_0])\n'
    (graph,) = read(written(tmp_path, text, "dump.py"))
    assert graph.nodes[0].name == "a?b"


def test_a_folder_without_dumps_is_refused(tmp_path):
    (tmp_path / "model.py").write_text("print()")
    assert "no dumps in this folder" in refused(tmp_path)


# The text form, against protobuf's own reader and writer.


@pytest.mark.parametrize("stage", ["original", "optimized"])
def test_text_is_read_as_protobuf_reads_it(stage):
    text = (DUMPS / f"dynamo_{stage}_graph_1.txt").read_text()
    expected = proto.messages().GraphDef()
    text_format.Parse(text, expected)
    found = parse(text)
    assert [op["name"][0].decode() for op in found["op"]] == [op.name for op in expected.op]
    for mine, op in zip(found["op"], expected.op):
        assert {entry["key"][0].decode() for entry in mine.get("attr", ())} == set(op.attr)
        constants = [e["value"][0]["t"][0]["data"][0] for e in mine.get("attr", ()) if "t" in e["value"][0]]
        assert constants == [value.t.data for value in op.attr.values() if value.HasField("t")]


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=60), st.booleans())
def test_bytes_survive_every_way_of_quoting(data, as_protobuf):
    if as_protobuf:
        message = proto.messages().AttrDef(s=data)
        assert parse(str(message))["s"] == [data]
    else:  # as torchair's pbtxt quotes
        assert unescape(repr(data)[1:]) == data


@settings(max_examples=200, deadline=None)
@given(st.lists(st.one_of(st.integers(-(2**63), 2**63 - 1), st.floats(width=32)), max_size=6))
def test_numbers_survive(numbers):
    message = proto.messages().AttrDef()
    message.list.i.extend(number for number in numbers if isinstance(number, int))
    message.list.f.extend(number for number in numbers if isinstance(number, float))
    expected = proto.messages().AttrDef()
    text_format.Parse(str(message), expected)
    values = parse(str(message)).get("list", [{}])[0]
    assert values.get("i", []) == list(expected.list.i)
    # protobuf writes a 32-bit float in as few digits as tell it apart.
    assert [proto.messages().AttrDef(f=number).f for number in values.get("f", [])] == pytest.approx(
        list(expected.list.f), nan_ok=True, abs=0, rel=0
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a: 1, b: [1, 2]; c <d: 'x' \"y\">", {"a": [1], "b": [1, 2], "c": [{"d": [b"xy"]}]}),
        ("a: 0x1F a: 017 a: -2 a: 1.5e3f # note\na: nan_", {"a": [31, 15, -2, 1500.0, "nan_"]}),
        ("a {} a: { b: DT_INT8 } a: []", {"a": [{}, {"b": ["DT_INT8"]}]}),
        ("a: -inf a: inf", {"a": [float("-inf"), float("inf")]}),
        (r"a: '\101\x41A\\\n\''", {"a": [b"AAA\\\n'"]}),
    ],
)
def test_the_forms_of_the_grammar(text, expected):
    assert parse(text) == expected
