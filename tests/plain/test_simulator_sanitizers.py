"""The C of the simulated device under the compiler's sanitizers, driven without Python: call by call, and at random.

AddressSanitizer (with LeakSanitizer) and UndefinedBehaviorSanitizer in one program, ThreadSanitizer in another, as they exclude each
other. A finding ends the program, so that its output is in the message of the test.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

import moe_graph

SOURCES = Path(moe_graph.__file__).parent / "simulator" / "runtime"
HERE = Path(__file__).parent
SANITIZERS = ["address,undefined", "thread"]
ENVIRONMENT = {
    "ASAN_OPTIONS": "detect_leaks=1:detect_stack_use_after_return=1:allocator_may_return_null=1",
    "UBSAN_OPTIONS": "print_stacktrace=1",
    "TSAN_OPTIONS": "halt_on_error=1:allocator_may_return_null=1",
}


def compiled(folder: Path, source: Path, sanitizer: str) -> Path:
    """The program of this source and the runtime's; skips where there is no compiler, or none that has the sanitizer."""
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        pytest.skip("no C compiler")
    flags = f"-std=c11 -g -O1 -pthread -fno-omit-frame-pointer -fsanitize={sanitizer} -fno-sanitize-recover=all".split()
    probe = folder / "probe.c"
    probe.write_text("int main(void) { return 0; }\n")
    tried = subprocess.run([compiler, *flags, str(probe), "-o", str(folder / "probe")], capture_output=True, text=True)
    if tried.returncode != 0 or subprocess.run([folder / "probe"], capture_output=True).returncode != 0:
        pytest.skip(f"the C compiler {compiler} makes no programs with -fsanitize={sanitizer} that run here")
    program = folder / source.stem
    sources = [*sorted(SOURCES.glob("*.c")), source]
    subprocess.run([compiler, *flags, f"-I{SOURCES}", *map(str, sources), "-ldl", "-o", str(program)], check=True)
    return program


@pytest.mark.slow
@pytest.mark.parametrize("sanitizer", SANITIZERS)
@pytest.mark.parametrize("source", ["simulator_driver.c", "simulator_captures.c"])
def test_the_runtime_is_clean(tmp_path, source, sanitizer):
    program = compiled(tmp_path, HERE / source, sanitizer)
    run = subprocess.run([program], capture_output=True, text=True, env=ENVIRONMENT, timeout=120)
    assert (run.returncode, run.stdout) == (0, "ok\n"), run.stderr


@pytest.mark.slow
def test_random_calls_of_the_operator_are_clean(tmp_path):
    """Calls with valid and invalid arguments, each with the status code and the rows its kind must give."""
    program = compiled(tmp_path, HERE / "simulator_fuzz.c", "address,undefined")
    run = subprocess.run([program, "50000", "7"], capture_output=True, text=True, env=ENVIRONMENT, timeout=120)
    assert (run.returncode, run.stdout) == (0, "50000 rounds\n"), run.stderr
