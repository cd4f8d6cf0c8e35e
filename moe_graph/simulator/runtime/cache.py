"""The cache of compiled libraries: an entry is a folder, whole, as it was written, and written by nobody else.

Libraries are code: they are loaded only from folders and files that belong to the user (or to root) and that no other user can have
written. An entry that is damaged, or that others can write to, counts as none; a folder of the cache that others can write to is refused.
What is written has the same permissions whatever the umask: 0755 and 0644.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from moe_graph.simulator.runtime.errors import SimulatorError

_MANIFEST = "manifest.json"
_NOBODY = 65534  # how files of root look from inside a user namespace
_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH


def libraries(entry: Path) -> list[Path] | None:
    """The libraries of an entry, in the order of loading; None if there is none, it is damaged, or others can have written it."""
    try:
        if not (_is_private(entry, stat.S_ISDIR) and _is_private(entry / _MANIFEST, stat.S_ISREG)):
            return None
        digests = json.loads((entry / _MANIFEST).read_text())["libraries"]
        paths = [entry / name for name in digests if name == Path(name).name]
        whole = all(
            _is_private(path, stat.S_ISREG) and _digest(path) == digest for path, digest in zip(paths, digests.values())
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):  # lost, empty, or not a manifest at all
        return None
    return paths if whole and paths and len(paths) == len(digests) else None


def made(entry: Path, make: Callable[[Path], list[str]], **notes: object) -> list[Path]:
    """The libraries of an entry. If there are none `make` writes them into a new folder, and names them in the order of loading.

    They are made beside the final place, which is then renamed, so that what is there is whole. Safe when several processes start at
    once. Raises SimulatorError if the cache cannot be written.
    """
    base = entry.parent
    check_folder(base)
    found = libraries(entry)
    if found is not None:
        return found
    try:
        make_folder(base)
        with locked(base):
            if libraries(entry) is None:
                with tempfile.TemporaryDirectory(dir=base, prefix=".build-") as temporary:
                    work = Path(temporary) / "new"
                    work.mkdir()
                    seal(work, make(work), **notes)
                    replace(entry, work)
    except OSError as error:
        raise SimulatorError(
            f"the simulated device cannot be built in {base} ({error}): set MOE_GRAPH_CACHE"
        ) from error
    found = libraries(entry)
    if found is None:
        raise SimulatorError(f"the simulated device was built in {entry}, and is not whole there: set MOE_GRAPH_CACHE")
    return found


def seal(folder: Path, names: list[str], **notes: object) -> None:
    """Make an entry of a folder: its manifest with the digest of each library, in this order, and permissions for all of it."""
    digests = {name: _digest(folder / name) for name in names}
    (folder / _MANIFEST).write_text(json.dumps({"libraries": digests, **notes}, indent=1))
    for path in folder.iterdir():
        path.chmod(0o644)
    folder.chmod(0o755)


def replace(entry: Path, made: Path) -> None:
    """Put the folder `made` where the entry is, whatever is there."""
    if entry.is_symlink() or entry.is_file():
        entry.unlink()
    elif entry.exists():
        shutil.rmtree(entry)
    made.rename(entry)


def check_folder(folder: Path) -> None:
    """Raises SimulatorError if another user can put files into this folder, or rename it or one that it is in."""
    resolved = folder.resolve()
    for path in (resolved, *resolved.parents):
        if not path.exists():
            continue
        found = path.stat()
        # A folder like /tmp lets others add files of their own, but not touch ours. The primary group is the user's own on most systems.
        others = found.st_mode & (stat.S_IWOTH if found.st_gid == os.getgid() else _OTHERS_WRITE)
        shared = others and (path == resolved or not found.st_mode & stat.S_ISVTX)
        if shared or found.st_uid not in (os.getuid(), 0, _NOBODY):
            raise SimulatorError(
                f"the simulated device loads no libraries from {folder}: other users can write to {path} "
                f"(owner {found.st_uid}, mode {stat.S_IMODE(found.st_mode):04o}): chmod go-w, or set MOE_GRAPH_CACHE"
            )


def make_folder(folder: Path) -> None:
    """The folder, and those it is in, with permissions that do not depend on the umask; what exists stays as it is."""
    for path in reversed((folder, *folder.parents)):
        if not path.exists():
            with contextlib.suppress(FileExistsError):
                path.mkdir(mode=0o700)
                path.chmod(0o755)


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Inside the block no other process is, that locks the same folder."""
    from filelock import FileLock  # a requirement of torch's; a start with a full cache does without

    path = folder / "lock"
    if (
        path.is_symlink()
    ):  # older filelocks empty what it points to; nobody else can make one here between this and the lock
        raise SimulatorError(f"the simulated device is not built: {path} is a symbolic link; remove it")
    with FileLock(path, mode=0o644):
        yield


def _is_private(path: Path, is_kind: Callable[[int], bool]) -> bool:
    """Is it of this kind, not a link, the user's own (or root's), and written by nobody else?"""
    found = path.lstat()
    return is_kind(found.st_mode) and found.st_uid in (os.getuid(), 0) and not found.st_mode & _OTHERS_WRITE


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
