"""What `inspect` and `diff` make of a folder of dumps: the graph that was optimized last."""

import os
import shutil
from pathlib import Path

import pytest

from moe_graph.dumps import diff_command, inspect

DUMPS = Path(__file__).parent.parent / "dumps"


@pytest.fixture
def folder(tmp_path):
    """Two graphs of a program, written one after the other, and the first again, by another process, last of all."""
    for at, (number, pid) in enumerate([(1, 7), (2, 7), (1, 8)]):
        for step, stage in enumerate(("original", "optimized")):
            file = tmp_path / f"dynamo_{stage}_graph_{number}_rank_0_pid_{pid}_ts_2026112612000000000{at}.pbtxt"
            shutil.copy(DUMPS / f"dynamo_{stage}_graph_1.pbtxt", file)
            os.utime(file, ns=(0, 1_000_000_000 * (2 * at + step)))
    return tmp_path


def test_diff_compares_the_stages_of_the_last_graph(folder, capsys):
    code = diff_command.main([str(folder)])
    out, err = capsys.readouterr()
    assert "original_graph_1_rank_0_pid_8" in err and "optimized_graph_1_rank_0_pid_8" in err
    two = [str(next(folder.glob(f"dynamo_{stage}_graph_1*pid_8*"))) for stage in ("original", "optimized")]
    assert (diff_command.main(two), capsys.readouterr().out) == (code, out)


def test_a_dump_alone_or_an_optimized_one_without_its_original_is_said(folder, capsys):
    (original,) = folder.glob("dynamo_original_graph_1*pid_8*")
    assert diff_command.main([str(original)]) == 2 and "no folder" in capsys.readouterr().err
    original.unlink()
    assert diff_command.main([str(folder)]) == 2 and "there is no dynamo_original_graph_1" in capsys.readouterr().err


def test_the_picture_of_a_folder_is_of_the_graph_optimized_last(folder, tmp_path, capsys):
    picture = tmp_path / "graph.svg"
    assert inspect.main([str(folder), "--svg", str(picture)]) == 0
    from_folder = picture.read_text()
    assert inspect.main([str(next(folder.glob("dynamo_optimized*pid_8*"))), "--svg", str(picture)]) == 0
    assert picture.read_text() == from_folder and from_folder.startswith("<svg")
