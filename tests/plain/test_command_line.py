"""`python -m moe_graph`: scripts and modules run as Python itself runs them."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from moe_graph.commands.table import main as moe_graph_main
from moe_graph.foundation import cann

on_simulator = pytest.mark.skipif(not cann.torch_npu_is_installed(), reason="the torch_npu wheel is not installed")

SCRIPT = """
import sys
import helper_beside_it
import torch
import torch_npu
assert __name__ == "__main__" and sys.modules["__main__"].__dict__ is globals()
print(sys.argv[1:], torch.npu.get_device_name(), torch.npu.device_count(), torch.ones(2).npu().cpu().tolist())
sys.exit(int(sys.argv[1]))
"""


def command(*arguments, cwd=None, input=None):
    return subprocess.run(
        [sys.executable, "-m", "moe_graph", *arguments],
        capture_output=True,
        text=True,
        timeout=300,
        cwd=cwd,
        input=input,
    )


@pytest.fixture
def script(tmp_path):
    (tmp_path / "helper_beside_it.py").write_text("")
    path = tmp_path / "some_script.py"
    path.write_text(SCRIPT)
    return path


@on_simulator
def test_a_script_gets_its_arguments_and_its_exit_code(script, tmp_path_factory):
    run = command(
        "run",
        "--soc",
        "950",
        "--devices",
        "2",
        str(script),
        "7",
        "--soc",
        "x",
        "-q",
        cwd=tmp_path_factory.mktemp("elsewhere"),
    )
    assert run.stdout == "['7', '--soc', 'x', '-q'] Ascend950PR_9599 2 [1.0, 1.0]\n", run.stderr
    assert run.returncode == 7
    assert run.stderr.startswith("moe_graph: simulated Ascend950PR_9599 (950), 2 devices")


@on_simulator
def test_a_module_is_found_from_the_working_directory(script):
    run = command("run", "-q", "-m", "some_script", "0", cwd=script.parent)
    assert (run.returncode, run.stdout) == (0, "['0'] Ascend910B1 1 [1.0, 1.0]\n"), run.stderr
    assert "moe_graph: simulated" not in run.stderr


@on_simulator
def test_a_traceback_is_shown(tmp_path):
    script = tmp_path / "fails.py"
    script.write_text("def f():\n    raise ValueError('its own error')\nf()\n")
    run = command("run", str(script))
    assert run.returncode == 1 and "ValueError: its own error" in run.stderr and "fails.py" in run.stderr


@on_simulator
@pytest.mark.parametrize("target", ["-", "/dev/stdin"])
def test_a_script_comes_out_of_a_pipe(target):
    source = "import sys, torch\nprint(sys.argv, __name__, sys.modules['__main__'].__dict__ is globals(), torch.ones(2).npu().sum().item())"
    run = command("run", "-q", target, "a", input=source)
    assert (run.returncode, run.stdout) == (0, f"[{target!r}, 'a'] __main__ True 2.0\n"), run.stderr


def test_a_script_that_is_not_there_is_one_line(tmp_path):
    run = command("run", str(tmp_path / "none.py"))
    assert run.returncode == 2
    assert run.stderr == f"moe_graph: there is no file {str(tmp_path / 'none.py')!r} to run\n"


@on_simulator
def test_a_start_that_fails_is_one_line(script):
    run = command("run", "--devices", "0", str(script), "0")
    assert run.returncode == 1
    assert run.stderr == "moe_graph: MOE_GRAPH_SIM_DEVICES must be a number from 1 to 64, got '0'\n"


@on_simulator
@pytest.mark.parametrize(
    "arguments",
    [
        ["check", "checks.py"],
        pytest.param(["conformance"], marks=pytest.mark.slow),
        pytest.param(["plan", "model.py:build"], marks=pytest.mark.slow),
        pytest.param(["verify", "--quick"], marks=pytest.mark.slow),
    ],
)
def test_a_device_that_cannot_start_is_one_line_of_each_command(arguments, monkeypatch):
    monkeypatch.setenv("MOE_GRAPH_SIM_SOC", "A5")
    run = command(*arguments)
    assert run.returncode == 1 and run.stdout == ""
    assert run.stderr == "moe_graph: MOE_GRAPH_SIM_SOC must be one of A2, A3, 950, got 'A5'\n"


def test_status():
    run = command("status")
    assert run.returncode == 0 and "npu::npu_moe_re_routing" in run.stdout and "converter" in run.stdout


@pytest.mark.parametrize("arguments", [["no_such_command"], ["run"], ["run", "--soc", "A5", "x.py"], ["status", "x"]])
def test_wrong_usage(arguments):
    run = command(*arguments)
    assert run.returncode == 2 and "usage: moe-graph" in run.stderr


def test_help_lists_the_commands():
    run = command("--help")
    assert run.returncode == 0 and "run " in run.stdout and "status " in run.stdout


DUMP = str(Path(__file__).parent.parent / "dumps" / "dynamo_original_graph_1.txt")


def test_a_reader_that_has_enough_ends_the_command_quietly():
    process = subprocess.Popen(
        [sys.executable, "-m", "moe_graph", "inspect", "--json", "--nodes", *[DUMP] * 20],  # more than a pipe holds
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "{\n"
    process.stdout.close()
    assert (process.stderr.read(), process.wait()) == ("", 141)


def test_what_an_encoding_lacks_is_shown_by_its_code(tmp_path):
    dump = tmp_path / "dynamo_original_graph_1.txt"
    dump.write_text(Path(DUMP).read_text().replace('"Add"', '"Addé"').replace('"Add:0"', '"Addé:0"'))
    environment = {**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}
    run = subprocess.run(
        [sys.executable, "-m", "moe_graph", "diff", DUMP, str(dump)], capture_output=True, env=environment, timeout=300
    )
    assert b"Traceback" not in run.stderr and b"Add\\xe9" in run.stdout


@pytest.mark.parametrize(
    "arguments",
    [("verify", "--json"), ("run", "-q", "--trace"), ("inspect", DUMP, "--onnx"), ("inspect", DUMP, "--dot")],
)
def test_where_no_file_can_be_is_said_before_the_work(tmp_path, arguments):
    command, *rest = arguments
    with pytest.raises(SystemExit) as ended:
        moe_graph_main([command, *rest, str(tmp_path / "none" / "file")])
    assert ended.value.code == 2


@on_simulator
def test_a_module_that_is_not_there_is_one_line(tmp_path):
    (tmp_path / "broken.py").write_text("import not_there")
    run = command("run", "-q", "-m", "no_such_module", cwd=tmp_path)
    assert (run.returncode, run.stderr) == (1, "moe_graph: No module named no_such_module\n")
    assert "Traceback" in command("run", "-q", "-m", "broken", cwd=tmp_path).stderr  # the module's own error
