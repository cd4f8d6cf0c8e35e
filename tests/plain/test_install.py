"""The way in: what the extras install, the console script, `doctor`, and the switch that lets a plain `import torch` work."""

import configparser
import json
import os
import re
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from moe_graph.commands import doctor, switch, table
from moe_graph.foundation import cann

CHECKOUT = Path(__file__).parents[2]
on_simulator = pytest.mark.skipif(
    not cann.torch_npu_is_installed() or cann.is_present(), reason="needs the torch_npu wheel, without CANN"
)


def python(*arguments, **environment):
    """Runs Python away from the checkout; a variable that is None is taken away."""
    env = {**os.environ, "PYTHONPATH": str(CHECKOUT), **environment}
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=300,
        env={name: value for name, value in env.items() if value is not None},
        cwd="/",
    )


# ---- without torch ----

NO_TORCH = """
import sys
class NoTorch:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "torch_npu"):
            raise ImportError("asked for torch")
sys.meta_path.insert(0, NoTorch())
import moe_graph_command
sys.argv = ["moe-graph", *sys.argv[1:]]
sys.exit(moe_graph_command.main())
"""


@pytest.mark.parametrize("command", table.COMMANDS)
def test_help_needs_no_torch(command):
    run = python("-c", NO_TORCH, command, "--help")
    assert run.returncode == 0 and run.stdout.startswith("usage: "), run.stderr


@pytest.mark.parametrize("arguments", [(), ("--help",)])
def test_the_commands_are_shown(arguments):
    run = python("-c", NO_TORCH, *arguments)
    assert run.returncode == 0, run.stderr
    assert all(f"\n  {name} " in run.stdout for name in table.COMMANDS)


def test_the_version_is_said_without_torch():
    from moe_graph import __version__

    assert python("-c", NO_TORCH, "--version").stdout == f"moe_graph {__version__}\n"
    assert python("-X", "importtime", "-m", "moe_graph", "--version").stderr.count(" torch\n") == 0


def test_a_dump_is_inspected_without_torch():
    run = python("-c", NO_TORCH, "inspect", CHECKOUT / "tests/dumps/dynamo_optimized_graph_1.txt", "--json")
    (graph,) = json.loads(run.stdout)["graphs"]
    assert sum(graph["types"].values()) == 20, run.stderr


def test_what_needs_torch_gets_the_whole_package():
    run = python("-c", NO_TORCH, "status")
    assert run.returncode == 1 and "asked for torch" in run.stderr


# ---- doctor ----


def test_doctor_says_one_command_for_the_first_thing_that_is_wrong(monkeypatch, capsys):
    monkeypatch.setattr(doctor, "look", lambda: [
        doctor.Finding("Python", "3.11"),
        doctor.Finding("torch", "not installed", True, "pip install a"),
        doctor.Finding("cache", "not writable", True, "export b"),
    ])  # fmt: skip
    assert doctor.main([]) == 1
    assert capsys.readouterr().out.splitlines()[-1] == "to fix it: pip install a"


def test_doctor_sees_a_torch_that_torch_npu_is_not_built_for(monkeypatch):
    monkeypatch.setattr(doctor, "_version", {"torch": "2.14.0+cpu", "torch_npu": "2.13.0"}.get)
    monkeypatch.setattr(doctor.importlib.metadata, "requires", lambda package: ["numpy", "torch==2.13.0.*"])
    found = doctor._pair()
    assert found.wrong and found.mend == "pip install torch==2.13.0 torch_npu==2.13.0"
    monkeypatch.setattr(doctor, "_version", {"torch": "2.13.0+cpu", "torch_npu": "2.13.0"}.get)
    assert not doctor._pair().wrong


def test_doctor_on_an_empty_machine(monkeypatch):
    monkeypatch.setattr(doctor, "_version", lambda package: "")
    monkeypatch.setattr(doctor.machine, "c_compiler", lambda: None)
    monkeypatch.setattr(doctor.platform, "system", lambda: "Darwin")
    wrong = {finding.what: finding.mend for finding in doctor.look() if finding.wrong}
    assert list(wrong) == ["platform", "torch", "torch_npu", "other packages", "C compiler"]
    assert wrong["platform"] == "" and wrong["C compiler"] == "pip install ziglang"


# ---- the switch ----


@pytest.fixture
def site(tmp_path, monkeypatch):
    """What `activate` writes goes here; as a `.pth` it is read where `site.addsitedir` finds it."""
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tmp_path))
    return tmp_path


def test_activate_and_deactivate(site, capsys):
    assert switch.main(["deactivate"]) == 0 and "it was not active" in capsys.readouterr().out
    assert switch.main(["activate"]) == 0
    (file,) = site.glob("*.pth")
    assert file.read_text().startswith("import ") and file.read_text().count("\n") == 1
    assert switch.main(["deactivate"]) == 0
    assert list(site.iterdir()) == []


def test_an_environment_that_cannot_be_written_is_said(monkeypatch, capsys):
    monkeypatch.setattr(sysconfig, "get_path", lambda name: "/nowhere")
    assert switch.main(["activate"]) == 1
    assert 'eval "$(moe-graph env)"' in capsys.readouterr().err


PLAIN = (
    "import site; site.addsitedir({site!r}); import sys; print(any(hasattr(f, 'started_by') for f in sys.meta_path))"
)


@pytest.mark.parametrize(
    "options, variable, on",
    [((), None, True), ((), "1", True), ((), "0", False), (("--opt-in",), None, False), (("--opt-in",), "1", True)],
)
def test_who_is_switched_on(site, options, variable, on):
    switch.main(["activate", *options])
    assert python("-c", PLAIN.format(site=str(site)), MOE_GRAPH_SIM=variable).stdout == f"{on}\n"


def test_where_moe_graph_is_gone_the_switch_does_nothing(site):
    switch.main(["activate"])
    (file,) = site.glob("*.pth")
    file.write_text(file.read_text().replace("simulator/inherit", "simulator/gone"))
    run = python("-c", PLAIN.format(site=str(site)))
    assert (run.stdout, run.stderr) == ("False\n", "")


@on_simulator
def test_a_plain_script_and_its_child_have_the_device(site, tmp_path):
    switch.main(["activate"])
    work = "import torch, torch_npu; print(torch.ones(2).npu().device, flush=True)"
    start = f"import site; site.addsitedir({str(site)!r}); "
    child = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {start + work!r}], check=True)"
    run = python("-c", start + work + "\n" + child)
    assert run.stdout == "npu:0\nnpu:0\n", run.stderr


@on_simulator
def test_env_switches_a_shell_on():
    shell = 'eval "$("$0" -m moe_graph env)"; "$0" -c "import torch; print(torch.ones(2).npu().device)"'
    run = subprocess.run(["sh", "-c", shell, sys.executable], capture_output=True, text=True, timeout=300, cwd=CHECKOUT)
    assert run.stdout == "npu:0\n", run.stderr


@on_simulator
def test_a_failed_import_of_torch_is_told_what_to_do():
    code = """
try:
    import torch
except RuntimeError:
    pass
import moe_graph
"""
    run = python("-c", code, TORCH_DEVICE_BACKEND_AUTOLOAD=None)
    last = run.stderr.splitlines()[-1]
    assert last.startswith("ImportError: an `import torch` has failed") and "moe-graph activate" in last


# ---- what the extras install ----


@pytest.mark.slow
@pytest.mark.network
def test_the_recipe_keeps_torch_and_torch_npu_together(tmp_path):
    """Resolved by pip without installing, from an empty environment."""
    report = tmp_path / "report.json"
    run = python("-m", "pip", "install", "--quiet", "--dry-run", "--ignore-installed", "--no-build-isolation", "--report", report,
                 f"{CHECKOUT}[simulator]")  # fmt: skip
    if "No matching distribution" in run.stderr or "Failed to establish" in run.stderr:
        pytest.skip(f"no package index: {run.stderr.splitlines()[-1]}")
    assert run.returncode == 0, run.stderr
    found = {item["metadata"]["name"].lower().replace("-", "_"): item["metadata"]["version"]
             for item in json.loads(report.read_text())["install"]}  # fmt: skip
    assert found["torch"].split("+")[0] == found["torch_npu"] == "2.13.0"
    assert {"pyelftools", "pyyaml", "protobuf", "packaging"} <= set(found)


def test_an_extra_of_each_version_asks_for_the_pair_that_is_exercised():
    settings = configparser.ConfigParser(interpolation=None)
    settings.read(CHECKOUT / "setup.cfg")
    (tox,) = [settings[name] for name in settings.sections() if name.startswith("testenv:torch{")]
    exercised = {
        version: {re.search(rf"^torch{version}: .*(torch{npu}==\S+)", text, re.M)[1] for npu, text in lines}
        for version in re.search(r"torch\{(.*)\}", tox.name)[1].split(",")
        for lines in [(("", tox["deps"]), ("_npu", tox["commands_pre"]))]
    }
    extras = {
        name.removeprefix("simulator-"): {line for line in text.splitlines() if line.startswith("torch")}
        for name, text in settings["options.extras_require"].items()
        if name.startswith("simulator-")
    }
    assert extras == exercised


# ---- a notebook ----


@on_simulator
@pytest.mark.slow
def test_a_kernel_that_imports_torch_first_has_the_device(site, monkeypatch):
    client = pytest.importorskip("jupyter_client.manager", reason="Jupyter is not installed")
    pytest.importorskip("ipykernel", reason="Jupyter is not installed")
    for line in subprocess.run(
        [sys.executable, "-m", "moe_graph", "env"], capture_output=True, text=True
    ).stdout.splitlines():
        for name, value in re.findall(r"export (\w+)=[\"']?([^\"']*)", line):
            monkeypatch.setenv(name, value)
    manager, kernel = client.start_new_kernel(startup_timeout=300)
    try:
        said = []
        reply = kernel.execute_interactive(
            "import torch\nimport moe_graph\nx = torch.ones(2).npu()\nprint((x + 1).cpu().tolist(), x.device)",
            timeout=300,
            output_hook=lambda message: said.append(message["content"].get("text", "")),
        )
        assert reply["content"]["status"] == "ok", reply["content"]
        assert "[2.0, 2.0] npu:0" in "".join(said)
    finally:
        kernel.stop_channels()
        manager.shutdown_kernel(now=True)


# ---- files to copy ----


@pytest.mark.parametrize("name", ["Dockerfile", "workflow.yml"])
def test_files_to_copy_install_what_the_readme_says(name):
    text = (CHECKOUT / "examples" / "ci" / name).read_text()
    index = re.search(r"--extra-index-url \S+", (CHECKOUT / "README.md").read_text())[0]
    assert "[simulator]" in text and index in text
    commands = re.findall(r"moe-graph (\w+)", text.replace("-t moe-graph", "").replace("moe-graph python", ""))
    assert set(commands) <= set(table.COMMANDS)
    if name.endswith(".yml"):
        yaml = pytest.importorskip("yaml")
        job = yaml.safe_load(text)["jobs"]["test"]
        assert job["strategy"]["matrix"]["product"] == ["A2", "A3"]
        assert job["steps"][-1]["run"].startswith("pytest --npu-sim=")
