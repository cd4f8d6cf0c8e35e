"""A user's traceback shows the user's frames: those of the launcher and of the simulated device are left out.

Only what is printed is changed: the exception goes its way, so debuggers and `except` see all of it.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

_PACKAGE = Path(__file__).parents[1]
_OURS = tuple(str(_PACKAGE / room) for room in ("__main__.py", "commands", "simulator"))
_STARTERS = ("<frozen runpy>", "runpy.py", "moe_graph_command.py", "moe-graph")
_NO_SUCH_DEVICE = ("107001", "Invalid device ID", "invalid device ordinal")


def fold() -> None:
    """From now on an exception that ends the program is printed without these frames."""
    before = sys.excepthook

    def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        left_out = 0
        for one in _chain(error):
            kept, count = _without_ours(one.__traceback__, whole=one is error)
            one.__traceback__ = kept
            left_out += count
        before(kind, error, error.__traceback__)
        if left_out:
            print(
                f"moe_graph: {left_out} frames of the launcher and the simulated device are not shown: --full-traceback shows them",
                file=sys.stderr,
            )
        if any(words in str(error) for words in _NO_SUCH_DEVICE):
            print(
                "moe_graph: there are too few simulated devices: moe-graph run --devices N, or MOE_GRAPH_SIM_DEVICES=N",
                file=sys.stderr,
            )

    sys.excepthook = hook


def _chain(error: BaseException) -> Iterator[BaseException]:
    """The exception, and those that Python prints before it."""
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        yield current
        current = current.__cause__ or (None if current.__suppress_context__ else current.__context__)


def _without_ours(trace: TracebackType | None, whole: bool = True) -> tuple[TracebackType | None, int]:
    """The traceback less these frames, and how many there were. One that has no other frames stays as it is, if `whole`."""
    frames = []
    while trace is not None:
        frames.append(trace)
        trace = trace.tb_next
    files = [frame.tb_frame.f_code.co_filename for frame in frames]
    # Before the first frame of the program Python's own starter is the launcher's doing; later it may be the program's.
    first = next(
        (at for at, file in enumerate(files) if not (file.startswith(_OURS) or file.endswith(_STARTERS))), None
    )
    if first is None:
        return (frames[0], 0) if frames and whole else (None, len(frames))
    kept = [frame for frame, file in zip(frames[first:], files[first:]) if not file.startswith(_OURS)]
    result: TracebackType | None = None
    for frame in reversed(kept):
        result = TracebackType(result, frame.tb_frame, frame.tb_lasti, frame.tb_lineno)
    return result, len(frames) - len(kept)
