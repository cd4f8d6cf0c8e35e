"""GE's data dump: the format against a reading by hand, and two dumps compared."""

from __future__ import annotations

import json
import struct

import pytest
import torch

pytest.importorskip("google.protobuf", reason="protobuf is not installed (extra: npu)")

from moe_graph.data_dump import command, compare, folder, operator_file  # noqa: E402
from moe_graph.data_dump.operator_file import DataDumpError, Typed  # noqa: E402
from moe_graph.engine import dtypes  # noqa: E402

INT4 = next(one for one in dtypes.TYPES if one.name == "DT_INT4")
VALUES = {
    "bfloat16": torch.tensor([[1.5, -2.0], [float("nan"), 3.0]], dtype=torch.bfloat16),
    "float16": torch.tensor([0.1, float("inf")], dtype=torch.float16),
    "int64 scalar": torch.tensor(-7),
    "bool": torch.tensor([True, False, True]),
    "float8": torch.tensor([0.5, -448.0]).to(torch.float8_e4m3fn),
    "empty": torch.empty(0, 3),
    "transposed": torch.arange(6.0).reshape(2, 3).t(),
}


def wire(data: bytes) -> list[tuple[int, object]]:
    """The fields of a protobuf message, by the rules of the wire format."""
    at, found = 0, []

    def varint() -> int:
        nonlocal at
        value = shift = 0
        while True:
            byte = data[at]
            at += 1
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value

    while at < len(data):
        key = varint()
        value: object = varint()
        if key & 7 == 2:
            length = int(value)
            value, at = data[at : at + length], at + length
        found.append((key >> 3, value))
    return found


def test_a_file_holds_header_and_bytes_in_the_order_of_the_description(tmp_path):
    x, y = torch.tensor([[1.0, 2.0]]), torch.tensor([3], dtype=torch.int32)
    operator_file.write(tmp_path / "file", "Add_1", [Typed(x)], [Typed(y)])
    content = (tmp_path / "file").read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    header = wire(content[8 : 8 + length])
    assert dict(header)[1] == b"2.0" and dict(header)[6] == b"Add_1"
    (given,) = [dict(wire(value)) for number, value in header if number == 4]
    (computed,) = [dict(wire(value)) for number, value in header if number == 3]
    assert (given[1], given[2], given[5], wire(given[3])) == (1, 2, 8, [(1, b"\x01\x02")])  # float, ND, 8 bytes, [1, 2]
    assert (computed[1], computed[2], computed[6], wire(computed[3])) == (7, 2, 4, [(1, b"\x01")])
    assert content[8 + length :] == struct.pack("<ffi", 1.0, 2.0, 3)


@pytest.mark.parametrize("value", VALUES.values(), ids=VALUES)
def test_what_is_written_is_read(tmp_path, value):
    operator_file.write(tmp_path / "file", "Op", [Typed(value)], [])
    (read,) = operator_file.read(tmp_path / "file").inputs
    assert read.value.dtype == value.dtype
    assert torch.equal(
        read.value.contiguous().view(-1).view(torch.uint8), value.contiguous().view(-1).view(torch.uint8)
    )
    assert read.value.shape == value.shape


def test_int4_is_stored_two_to_a_byte(tmp_path):
    value = torch.tensor([[1, 15, 7]], dtype=torch.uint8)
    operator_file.write(tmp_path / "file", "Op", [], [Typed(value, INT4)])
    assert (tmp_path / "file").read_bytes()[-2:] == bytes([0xF1, 0x07])
    (read,) = operator_file.read(tmp_path / "file").outputs
    assert torch.equal(read.value, value) and read.described == "DT_INT4 [1, 3]"


@pytest.mark.parametrize("content", [b"", b"1234567", struct.pack("<Q", 3) + b"\xff\xff\xff"])
def test_what_is_no_dump_is_refused_by_its_file(tmp_path, content):
    (tmp_path / "file").write_bytes(content)
    with pytest.raises(DataDumpError, match="file: not a file of GE's data dump"):
        operator_file.read(tmp_path / "file")


def test_a_file_that_was_cut_off_is_refused(tmp_path):
    operator_file.write(tmp_path / "file", "Op", [], [Typed(torch.ones(4))])
    (tmp_path / "file").write_bytes((tmp_path / "file").read_bytes()[:-1])
    with pytest.raises(DataDumpError, match="ends before its tensors do"):
        operator_file.read(tmp_path / "file")


def dump(root, runs):
    """A dump of one graph: for each run (type, operator, output) in the order of execution."""
    for run, operators in enumerate(runs):
        at = root / "20261126210818" / "0" / "graph_1" / "0" / f"{run}"
        at.mkdir(parents=True)
        for task, (type_, name, value) in enumerate(operators):
            path = at / folder.file_name(type_, name, task, 0, 1000 + task)
            operator_file.write(path, name, [], [Typed(value)])
    return root


def test_outputs_are_compared_by_operator_within_the_dtype(tmp_path):
    one, near, far = torch.ones(2), torch.ones(2) * (1 + 5e-7), torch.tensor([1.0, 2.0])
    a = dump(tmp_path / "a", [[("Relu", "z/Relu", one), ("Add", "Add_1", one)], [("Relu", "z/Relu", one)]])
    b = dump(tmp_path / "b", [[("Relu", "z/Relu", near), ("Add", "Add_1", far)], [("Relu", "z/Relu", one)]])
    rows = compare.compare(a, b)
    assert [(row.run, row.name, row.status) for row in rows] == [
        (0, "z_Relu", "agrees"),
        (0, "Add_1", "differs"),
        (1, "z_Relu", "agrees"),
    ]
    assert rows[1].found["position"] == (1,) and rows[1].found["max_abs_error"] == 1.0


def test_a_fused_operator_stands_for_the_last_of_its_parts(tmp_path):
    one, two = torch.ones(2), torch.ones(2) * 2
    device = dump(tmp_path / "device", [[("FusionOp", "Relu_1Add_2", two)]])
    here = dump(tmp_path / "here", [[("Relu", "Relu_1", one), ("Add", "Add_2", two), ("Mul", "Mul_3", two)]])
    for first, second in ((device, here), (here, device)):
        rows = compare.compare(first, second)
        assert [(row.name, row.status) for row in rows if row.status != "in one dump"] in (
            [("Relu_1Add_2", "agrees")],
            [("Add_2", "agrees")],
        )
        assert [row.name for row in rows if row.status == "in one dump"] == ["Mul_3"]


def test_several_ranks_are_not_mixed(tmp_path):
    for rank in range(2):
        dump(tmp_path / f"worldsize2_global_rank{rank}", [[("Relu", "Relu", torch.ones(1))]])
    with pytest.raises(DataDumpError, match="worldsize2_global_rank0, worldsize2_global_rank1; name the folder of one"):
        folder.places(tmp_path)


def test_the_command_says_where_two_dumps_differ(tmp_path, capsys):
    a = dump(tmp_path / "a", [[("Relu", "Relu_1", torch.tensor([1.0, 2.0]))]])
    b = dump(tmp_path / "b", [[("Relu", "Relu_1", torch.tensor([1.0, 3.0]))]])
    assert command.main([str(a), str(a)]) == 0
    assert capsys.readouterr().out == "1 outputs: 1 agrees\n"
    assert command.main([str(a), str(b)]) == 1
    shown = capsys.readouterr().out
    assert "Relu_1 (Relu)" in shown and "at [1]: 2.0 and 3.0 (1 elements differ, largest error 1)" in shown
    assert command.main([str(a), str(b), "--atol", "1"]) == 0
    capsys.readouterr()
    assert command.main([str(a), str(b), "--json"]) == 1
    (row,) = json.loads(capsys.readouterr().out)["outputs"]
    assert row["found"]["position"] == [1] and row["status"] == "differs"


def test_a_folder_without_a_dump_is_one_line(tmp_path, capsys):
    assert command.main([str(tmp_path), str(tmp_path)]) == 2
    assert capsys.readouterr().err.startswith(f"{tmp_path}: no file of GE's data dump below it")
