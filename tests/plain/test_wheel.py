"""What is released: wheel and source distribution hold what git tracks, and the installed wheel works away from the checkout.

Built from a copy of the tracked files, installed into a virtual environment of its own, which takes torch and the other
requirements from the packages of the environment that runs the tests. Nothing reaches for a network.
"""

from __future__ import annotations

import email
import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path, PurePosixPath

import pytest

from moe_graph.foundation import cann

CHECKOUT = Path(__file__).parents[2]
# Where setup.cfg says that the packages are; every tracked file below is part of the package.
PACKAGES = {"moe_graph": "moe_graph", "meta": "moe_graph/meta", "converters": "moe_graph/converters"}
# In the checkout and of no use to who has the source distribution.
GIT_ONLY = re.compile(r"\.(ci|github)/|\.git")
# The form that semver.org gives, without build metadata, which a package index refuses.
SEMANTIC_VERSION = re.compile(r"(0|[1-9]\d*)\.(0|[1-9]\d*)\.(0|[1-9]\d*)(-[0-9A-Za-z.-]+)?")


def _git_files() -> set[str] | None:
    """The files of the checkout that git tracks; None if this is no checkout of git."""
    if shutil.which("git") is None or not (CHECKOUT / ".git").exists():
        return None
    listed = subprocess.run(["git", "-C", CHECKOUT, "ls-files", "-z"], capture_output=True, text=True, check=True)
    return {name for name in listed.stdout.split("\0") if name and (CHECKOUT / name).exists()}


TRACKED = _git_files()
# Not by find_spec: asked for pip, setuptools's own finder gives up its distutils, and torch's compilers need it.
_INSTALLED = {found.metadata["Name"].lower() for found in importlib.metadata.distributions()}
_MISSING = sorted({"build", "pip", "setuptools"} - _INSTALLED)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(TRACKED is None, reason="compares with what git tracks, and this is no checkout of git"),
    pytest.mark.skipif(bool(_MISSING), reason=f"needs the build tools {', '.join(_MISSING)}"),
]
on_simulator = pytest.mark.skipif(
    not cann.torch_npu_is_installed() or cann.is_present(), reason="needs the torch_npu wheel, without CANN"
)


def checked(command, **options) -> str:
    """The standard output of a command that must succeed."""
    run = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=300, **options)
    assert run.returncode == 0, f"{command}\n{run.stdout}\n{run.stderr}"
    return run.stdout


def copied(destination: Path) -> Path:
    """The tracked files as they are now; a build of the checkout itself would take up what earlier builds left there."""
    for name in TRACKED:
        (destination / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(CHECKOUT / name, destination / name)
    return destination


def build(source: Path, destination: Path, kind: str) -> Path:
    checked([sys.executable, "-m", "build", "--no-isolation", f"--{kind}", "--outdir", destination, source])
    (result,) = destination.glob("*.whl" if kind == "wheel" else "*.tar.gz")
    return result


@pytest.fixture(scope="module")
def sdist(tmp_path_factory) -> Path:
    return build(copied(tmp_path_factory.mktemp("copy")), tmp_path_factory.mktemp("sdist"), "sdist")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    return build(copied(tmp_path_factory.mktemp("copy")), tmp_path_factory.mktemp("wheel"), "wheel")


@pytest.fixture(scope="module")
def metadata(wheel) -> email.message.Message:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        return email.message_from_bytes(archive.read(name))


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """Runs Python where the wheel is installed, from an empty folder: `installed("-c", "...")` gives what was printed."""
    folder = tmp_path_factory.mktemp("installed")
    venv.create(folder, with_pip=False, symlinks=os.name != "nt")
    (python,) = [*folder.glob("bin/python"), *folder.glob("Scripts/python.exe")]
    checked([sys.executable, "-m", "pip", "--python", python, "install", "--no-index", "--no-deps", "--quiet", wheel])
    # Written only now, or pip takes an installation in the outer environment for the one it was asked for. Folders named
    # in a .pth come after the environment's own, and .pth files in them, such as those of editable packages, are not read.
    (own,) = [*folder.glob("lib/python*/site-packages"), *folder.glob("Lib/site-packages")]
    (own / "requirements.pth").write_text("\n".join(path for path in sys.path if path.endswith("-packages")) + "\n")

    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment["MOE_GRAPH_CACHE"] = str(tmp_path_factory.mktemp("cache"))  # the C files of this wheel are compiled

    def run(*arguments, cwd=None) -> str:
        return checked([python, *arguments], cwd=cwd or tmp_path_factory.mktemp("empty"), env=environment)

    run.packages = own
    return run


def contents(wheel: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist() if not name.endswith("/")}


def test_the_wheel_is_what_git_tracks_of_the_packages(wheel):
    expected = {}
    for name in TRACKED:
        folder, _, rest = name.partition("/")
        if name == "moe_graph_command.py":
            expected[name] = (CHECKOUT / name).read_bytes()
        elif folder in PACKAGES:
            expected[f"{PACKAGES[folder]}/{rest}"] = (CHECKOUT / name).read_bytes()
    found = {name: data for name, data in contents(wheel).items() if ".dist-info/" not in name}
    assert len(expected) > 150
    assert sorted(found) == sorted(expected)
    assert [name for name in found if found[name] != expected[name]] == []


def test_one_wheel_serves_every_python_and_platform(wheel):
    assert wheel.name.endswith("-py3-none-any.whl")


def test_the_source_distribution_is_what_git_tracks(sdist):
    with tarfile.open(sdist) as archive:
        files = [
            PurePosixPath(member.name).relative_to(sdist.name.removesuffix(".tar.gz"))
            for member in archive
            if member.isfile()
        ]
    made = {str(file) for file in files if file.name == "PKG-INFO" or file.parts[0] == "moe_graph.egg-info"}
    assert sorted({str(file) for file in files} - made) == sorted(name for name in TRACKED if not GIT_ONLY.match(name))


def test_the_source_distribution_builds_the_same_wheel(sdist, wheel, tmp_path):
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path / "source", **({"filter": "data"} if hasattr(tarfile, "data_filter") else {}))
    (source,) = (tmp_path / "source").iterdir()
    from_sdist, from_checkout = contents(build(source, tmp_path / "wheel", "wheel")), contents(wheel)
    assert sorted(from_sdist) == sorted(from_checkout)
    assert [name for name in from_sdist if from_sdist[name] != from_checkout[name]] == []


def test_the_version_is_one(metadata, installed):
    version = metadata["Version"]
    newest = re.search(r"^## \[?([^\s\]]+)", (CHECKOUT / "CHANGELOG.md").read_text(), re.MULTILINE).group(1)
    assert SEMANTIC_VERSION.fullmatch(newest)
    code = "import moe_graph, importlib.metadata as m; print(moe_graph.__version__, m.version('moe_graph'))"
    assert installed("-c", code).split() == [version, version] == [newest, newest]


def test_the_metadata_says_what_an_index_shows(metadata):
    assert metadata["Name"].replace("-", "_") == "moe_graph"
    assert metadata["Summary"] and metadata["Requires-Python"] == ">=3.9"
    assert metadata["License-Expression"] or metadata["License"] == "BSD-3-Clause"
    assert metadata["License-File"] == "LICENSE"
    assert metadata["Description-Content-Type"] == "text/markdown"
    assert metadata.get_payload().strip() == (CHECKOUT / "README.md").read_text().strip()
    # torch_npu pins torch: whoever has only a CPU must get neither it nor CANN's companions.
    always = [line for line in metadata.get_all("Requires-Dist") if "extra ==" not in line]
    assert sorted(re.match(r"[\w.-]+", line).group() for line in always) == ["filelock", "numpy", "rich", "torch"]
    assert {"npu", "simulator"} <= set(metadata.get_all("Provides-Extra"))


OPERATOR = """
import json, sys
import moe_graph, torch
tokens = torch.arange(20, dtype=torch.int8).view(10, 2)
out = torch.ops.npu.npu_moe_re_routing(tokens, torch.tensor([[2, 0, 3], [1, 4, 0]]))
print(json.dumps([moe_graph.__file__, sys.modules["moe_graph.meta"].__file__, out[0][:, 0].tolist(),
                  out[2].tolist(), out[3].tolist()]))
"""


def test_the_operator_runs_from_the_installed_wheel(installed):
    package, meta, tokens, index, count = json.loads(installed("-c", OPERATOR))
    assert Path(package) == installed.packages / "moe_graph" / "__init__.py"
    assert Path(meta) == installed.packages / "moe_graph" / "meta" / "__init__.py"
    # Expert 0: two tokens of rank 0, one of rank 1; expert 1: four of rank 1; expert 2: three of rank 0.
    assert index == [0, 1, 5, 6, 7, 8, 9, 2, 3, 4]
    assert tokens == [2 * source for source in index]
    assert count == [3, 4, 3]


def test_the_status_command_runs_from_the_installed_wheel(installed):
    shown = installed("-m", "moe_graph", "status")
    assert "npu::npu_moe_re_routing" in shown and "converter" in shown


@on_simulator
def test_the_example_runs_from_the_installed_wheel(installed, tmp_path):
    """The simulated device is compiled from the wheel's C files, and the page of the dump is made of the wheel's parts."""
    (tmp_path / "graph_mode.py").write_bytes((CHECKOUT / "examples" / "graph_mode.py").read_bytes())
    shown = installed("-m", "moe_graph", "run", "--quiet", "graph_mode.py", cwd=tmp_path)
    assert shown.startswith("graph mode on npu:0") and ": 1 MoeReRouting node" in shown
    assert shown.count("equals the eager fallback") == 4

    (dump,) = (tmp_path / "graph_dump").glob("*optimized*")
    installed("-m", "moe_graph", "inspect", dump, "--html", "graph.html", cwd=tmp_path)
    page = (tmp_path / "graph.html").read_text()
    assert "MoeReRouting" in page
    script = (CHECKOUT / "moe_graph" / "dumps" / "page" / "page.js").read_text().strip()
    assert script.splitlines()[-1] in page


@on_simulator
def test_the_installed_command_runs_in_the_checkout(installed, tmp_path):
    """`python -m` finds the checkout's package before the installed one, and its parts beside it."""
    shown = installed("-m", "moe_graph", "run", "--quiet", "examples/graph_mode.py", cwd=copied(tmp_path))
    assert shown.startswith("graph mode on npu:0")


@on_simulator
def test_children_have_the_device_from_the_installed_wheel(installed, tmp_path):
    """The launcher puts the wheel's inherit/ on their path."""
    child = "import torch, moe_graph; print(torch.ones(2).npu().device, moe_graph.__file__)"
    (tmp_path / "parent.py").write_text(
        f"import subprocess, sys\nsubprocess.run([sys.executable, '-c', {child!r}], check=True)"
    )
    device, package = installed("-m", "moe_graph", "run", "--quiet", "parent.py", cwd=tmp_path).split()
    assert device == "npu:0"
    assert Path(package) == installed.packages / "moe_graph" / "__init__.py"
