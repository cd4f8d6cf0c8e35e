"""Building and starting the simulated device, each in a process of its own; its C under valgrind."""

import importlib.util
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import moe_graph
from moe_graph.foundation import cann

pytestmark = [
    pytest.mark.skipif(not cann.torch_npu_is_installed(), reason="the torch_npu wheel is not installed"),
    pytest.mark.skipif(cann.torch_npu_is_installed() and cann.is_present(), reason="a real CANN is on this machine"),
]
SOURCES = Path(moe_graph.__file__).parent / "simulator" / "runtime"
START = "import moe_graph.simulator as s, torch; print(s.is_active(), torch.ones(3).npu().cpu().tolist())"
STARTED = "True [1.0, 1.0, 1.0]\n"


def python(*arguments, **environment):
    """Run Python in a fresh process; variables set to None are taken out of its environment. No cache gets the library in C++, too."""
    merged = {**os.environ, "MOE_GRAPH_SIM_PLAIN_CALLS": "0", **environment}
    merged = {name: str(value) for name, value in merged.items() if value is not None}
    return subprocess.run([sys.executable, *arguments], env=merged, capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="session")
def cache(tmp_path_factory):
    """A cache of these tests' own, filled by whoever comes first."""
    return tmp_path_factory.mktemp("cache")


def built(cache):
    return sorted(path.name for path in (cache / "simulator").iterdir() if path.is_dir())


@pytest.mark.slow
def test_concurrent_cold_starts_build_one_library(cache):
    with ThreadPoolExecutor(4) as pool:
        runs = list(pool.map(lambda _: python("-c", START, MOE_GRAPH_CACHE=cache), range(4)))
    assert [run.stdout for run in runs] == [STARTED] * 4, runs[0].stderr
    assert [run.returncode for run in runs] == [0] * 4
    assert len(built(cache)) == 1


def test_a_warm_start_needs_neither_compiler_nor_pyelftools(cache):
    assert python("-c", START, MOE_GRAPH_CACHE=cache).stdout == STARTED
    without = f"import sys; sys.modules['elftools'] = None; {START}"
    run = python("-c", without, MOE_GRAPH_CACHE=cache, CC="", PATH="")
    assert run.stdout == STARTED, run.stderr


def test_a_damaged_cache_is_built_again(cache, tmp_path):
    assert python("-c", START, MOE_GRAPH_CACHE=cache).stdout == STARTED
    shutil.copytree(cache, tmp_path / "cache")
    (entry,) = (tmp_path / "cache" / "simulator" / name for name in built(cache))
    (entry / "libascendcl.so").write_bytes(b"")
    lax = f"import os; os.umask(0); {START}"
    run = python("-c", lax, MOE_GRAPH_CACHE=tmp_path / "cache")
    assert run.stdout == STARTED, run.stderr
    assert {path.stat().st_mode & 0o777 for path in entry.iterdir()} == {0o644}


def test_imported_after_plain_torch(cache):
    code = f"import torch; assert 'torch_npu' not in __import__('sys').modules; {START}"
    run = python("-c", code, MOE_GRAPH_CACHE=cache, TORCH_DEVICE_BACKEND_AUTOLOAD="0")
    assert (run.returncode, run.stdout) == (0, STARTED), run.stderr


def test_started_from_threads_at_once(cache):
    code = (
        "import threading, importlib, moe_graph\n"
        "threads = [threading.Thread(target=importlib.import_module, args=('moe_graph.simulator',)) for _ in range(4)]\n"
        "[t.start() for t in threads]; [t.join() for t in threads]\n" + START
    )
    run = python("-c", code, MOE_GRAPH_CACHE=cache)
    assert (run.returncode, run.stdout) == (0, STARTED), run.stderr


QUEUE = """
import os
import moe_graph.simulator as s, torch, torch_npu
os.environ.update({after})
x = torch.arange(32).view(8, 4).half().npu()
for _ in range(50):
    y = torch_npu.npu_moe_re_routing(x, torch.tensor([[1, 2], [3, 2]]).npu())[0]
    assert (y + 0).cpu()[:, 0].tolist() == [0, 12, 16, 20, 4, 8, 24, 28], y
for _ in range(2):
    try:
        torch_npu.npu_moe_re_routing(x, torch.tensor([[1, 2], [3, 1]]).npu())
    except RuntimeError as error:
        print("must be A = 8, got 7" in str(error))
    try:
        torch.ops.npu.attention_worker_scheduler(x)
    except NotImplementedError as error:
        print("attention_worker_scheduler" in str(error))
print(os.environ.get("TASK_QUEUE_ENABLE"))
"""


@pytest.mark.parametrize("before, after", [("1", {}), ("2", {}), (None, {"TASK_QUEUE_ENABLE": "2"})])
def test_launches_never_wait_in_the_task_queue(cache, before, after):
    """An error comes out of the call that is wrong, each time, and no result is read before it is written."""
    run = python("-c", QUEUE.replace("{after}", repr(after)), MOE_GRAPH_CACHE=cache, TASK_QUEUE_ENABLE=before)
    assert run.stdout.split() == ["True"] * 4 + [before or after["TASK_QUEUE_ENABLE"]], run.stdout + run.stderr


def test_on_950_the_reason_of_a_failure_is_told(cache):
    code = """
import moe_graph.simulator, torch, torch_npu
x, counts = torch.ones(4, 8).half().npu(), torch.tensor([[3, 3]], dtype=torch.int32).npu()
try:
    torch_npu.npu_moe_re_routing(x, counts)
except RuntimeError as error:
    print("must be A = 4, but exceeds it" in str(error), "aclrtGetErrorVerbose" in str(error))
"""
    run = python("-c", code, MOE_GRAPH_CACHE=cache, MOE_GRAPH_SIM_SOC="950")
    assert run.stdout == "True False\n", run.stdout + run.stderr


@pytest.mark.parametrize(
    "soc, name", [("A2", "Ascend910B1"), ("A3", "Ascend910_9391"), ("950", "Ascend950PR_9599")], ids=["A2", "A3", "950"]
)
def test_products(cache, soc, name):
    code = (
        "import moe_graph.simulator as s, torch; print(s.soc(), torch.npu.device_count(), torch.npu.get_device_name())"
    )
    run = python("-c", code, MOE_GRAPH_CACHE=cache, MOE_GRAPH_SIM_SOC=soc, MOE_GRAPH_SIM_DEVICES="3")
    assert run.stdout == f"{soc} 3 {name}\n", run.stderr


def test_devices_have_memory_of_their_own(cache):
    code = """
import moe_graph.simulator, torch
a, b = torch.arange(4.).to("npu:0"), torch.arange(4.).to("npu:1")
assert (a.device.index, b.device.index, (b + 1).device.index) == (0, 1, 1)
assert torch.equal(a.to("npu:1"), b) and a.to("npu:1").device.index == 1
before = torch.npu.memory_allocated(0), torch.npu.memory_allocated(1)
torch.npu.set_device(1)
c = torch.ones(1 << 20).npu()
assert c.device.index == 1
assert torch.npu.memory_allocated(0) == before[0] and torch.npu.memory_allocated(1) >= before[1] + (4 << 20)
print("ok")
"""
    run = python("-c", code, MOE_GRAPH_CACHE=cache, MOE_GRAPH_SIM_DEVICES="2")
    assert run.stdout == "ok\n", run.stderr


def test_expandable_segments(cache):
    code = """
import moe_graph.simulator, torch
free = torch.npu.mem_get_info()[0]
parts = [torch.full((30 << 20,), i, dtype=torch.uint8).npu() for i in range(4)]
whole = torch.cat(parts)
assert [whole[i * (30 << 20)].item() for i in range(4)] == [0, 1, 2, 3]
assert free - torch.npu.mem_get_info()[0] >= 240 << 20
del parts, whole
torch.npu.empty_cache()
assert torch.npu.mem_get_info()[0] >= free
print("ok")
"""
    run = python("-c", code, MOE_GRAPH_CACHE=cache, PYTORCH_NPU_ALLOC_CONF="expandable_segments:True")
    assert (run.returncode, run.stdout) == (0, "ok\n"), run.stderr


def last_line(run):
    assert run.returncode != 0
    return run.stderr.strip().splitlines()[-1]


@pytest.mark.parametrize(
    "environment, line",
    [
        (
            {"CC": "/nonexistent", "PATH": ""},
            "needs a C compiler, once: install gcc or clang, set CC, or pip install ziglang",
        ),
        ({"CC": "false"}, "the C compiler failed on libascendcl.so (false)"),
        ({"MOE_GRAPH_CACHE": "/proc/none"}, "set MOE_GRAPH_CACHE"),
        ({"MOE_GRAPH_SIM_SOC": "A5"}, "MOE_GRAPH_SIM_SOC must be one of A2, A3, 950, got 'A5'"),
        ({"MOE_GRAPH_SIM_DEVICES": "many"}, "MOE_GRAPH_SIM_DEVICES must be a number from 1 to 64, got 'many'"),
    ],
    ids=["no compiler", "broken compiler", "no cache", "unknown product", "no number"],
)
def test_what_is_missing_is_one_line(tmp_path, environment, line):
    if environment.get("PATH") == "" and importlib.util.find_spec("ziglang"):
        pytest.skip("zig's compiler is installed")
    run = python("-c", START, **{"MOE_GRAPH_CACHE": tmp_path, **environment})
    assert "SimulatorError: " in last_line(run) and line in last_line(run)
    if "MOE_GRAPH_CACHE" not in environment and (tmp_path / "simulator").exists():
        assert built(tmp_path) == []  # nothing half-built stays


@pytest.mark.parametrize(
    "module, line",
    [
        ("torch_npu", "not installed: pip install"),
        ("elftools", "pip install pyelftools"),
        ("sympy", "needs the package sympy"),
    ],
)
def test_missing_packages_are_one_line(tmp_path, cache, module, line):
    hide = f"""
import importlib.abc, sys
class Hide(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split('.')[0] == {module!r}:
            raise ModuleNotFoundError(f'No module named {{name!r}}', name=name)
import importlib.util
real = importlib.util.find_spec
importlib.util.find_spec = lambda name, package=None: None if name == {module!r} else real(name, package)
import moe_graph
sys.meta_path.insert(0, Hide())
import moe_graph.simulator
"""
    run = python(
        "-c", hide, MOE_GRAPH_CACHE=cache if module == "sympy" else tmp_path, TORCH_DEVICE_BACKEND_AUTOLOAD="0"
    )
    assert "SimulatorError: " in last_line(run) and line in last_line(run), run.stderr


@pytest.mark.slow
def test_starts_and_exits_are_clean(cache):
    code = START + "; x = torch.ones(3, device='npu') + 1; e = torch.npu.Event(); e.record()"
    for _ in range(5):
        run = python("-c", code, MOE_GRAPH_CACHE=cache)
        assert (run.returncode, run.stdout) == (0, STARTED), run.stderr


@pytest.fixture(scope="session", params=["simulator_driver.c", "simulator_captures.c"])
def driver(request, tmp_path_factory):
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        pytest.skip("no C compiler")
    program = tmp_path_factory.mktemp("driver") / "driver"
    sources = [*SOURCES.glob("*.c"), Path(__file__).with_name(request.param)]
    warnings = ["-Wall", "-Wextra", "-Werror"]
    command = [
        compiler,
        "-std=c11",
        "-g",
        "-O1",
        "-pthread",
        *warnings,
        f"-I{SOURCES}",
        *map(str, sources),
        "-ldl",
        "-o",
        str(program),
    ]
    subprocess.run(command, check=True)
    return program


def test_the_runtime_without_python(driver):
    run = subprocess.run([driver], capture_output=True, text=True, env={})
    assert (run.returncode, run.stdout) == (0, "ok\n"), run.stderr


@pytest.mark.slow
def test_the_runtime_under_valgrind(driver):
    valgrind = shutil.which("valgrind")
    if valgrind is None:
        pytest.skip("valgrind is not installed")
    command = [
        valgrind,
        "--quiet",
        "--error-exitcode=9",
        "--leak-check=full",
        "--show-leak-kinds=definite",
        "--errors-for-leak-kinds=definite",
        driver,
    ]
    run = subprocess.run(command, capture_output=True, text=True, env={})
    assert (run.returncode, run.stdout) == (0, "ok\n"), run.stderr
