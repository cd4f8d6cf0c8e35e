"""The cache of the simulated device's libraries: damaged entries, other users, links, the umask."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from moe_graph.simulator.runtime import cache
from moe_graph.simulator.runtime.errors import SimulatorError


@pytest.fixture
def entry(tmp_path):
    """A whole entry of two libraries."""
    folder = tmp_path / "entry"
    folder.mkdir()
    for name in ("libb.so", "liba.so"):
        (folder / name).write_bytes(name.encode() * 100)
    cache.seal(folder, ["libb.so", "liba.so"], wheel="w")
    return folder


def modes(folder: Path) -> set[int]:
    return {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()}


def test_a_whole_entry(entry):
    assert cache.libraries(entry) == [entry / "libb.so", entry / "liba.so"]  # in the order of loading
    assert modes(entry) == {0o644} and stat.S_IMODE(entry.stat().st_mode) == 0o755
    assert cache.libraries(entry.with_name("none")) is None


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "{}", '{"libraries": {}}', '{"libraries": ["liba.so"]}', '{"libraries": 3}']
)
def test_a_damaged_manifest_is_no_entry(entry, text):
    (entry / "manifest.json").write_text(text)
    assert cache.libraries(entry) is None


def test_lost_truncated_and_changed_libraries_are_no_entry(entry):
    library = entry / "liba.so"
    whole = library.read_bytes()
    for content in (b"", whole[:-1], whole[:-1] + b"x"):
        library.write_bytes(content)
        assert cache.libraries(entry) is None
    library.unlink()
    assert cache.libraries(entry) is None


def test_what_others_can_write_is_no_entry(entry, tmp_path):
    for path in (entry, entry / "manifest.json", entry / "liba.so"):
        mode = stat.S_IMODE(path.stat().st_mode)
        for lax in (0o020, 0o002):
            path.chmod(mode | lax)
            assert cache.libraries(entry) is None
        path.chmod(mode)
    assert cache.libraries(entry)
    outside = tmp_path / "outside.so"
    (entry / "liba.so").rename(outside)
    (entry / "liba.so").symlink_to(outside)
    assert cache.libraries(entry) is None
    link = tmp_path / "link"
    link.symlink_to(entry)
    assert cache.libraries(link) is None


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give files away")
def test_what_belongs_to_another_user_is_no_entry(entry, tmp_path):
    os.chown(entry / "liba.so", 12345, -1)
    assert cache.libraries(entry) is None
    os.chown(tmp_path, 12345, -1)
    with pytest.raises(SimulatorError, match="owner 12345"):
        cache.check_folder(tmp_path / "moe_graph" / "simulator")


def test_manifest_names_nothing_outside(entry):
    (entry / "manifest.json").write_text('{"libraries": {"../liba.so": "0"}}')
    assert cache.libraries(entry) is None


def test_folders_that_others_can_write_to_are_refused(tmp_path):
    folder = tmp_path / "cache" / "simulator"
    cache.make_folder(folder)
    cache.check_folder(folder)
    for lax in (folder, folder.parent):
        lax.chmod(0o757)
        with pytest.raises(SimulatorError, match=f"write to {lax} .*mode 0757.*set MOE_GRAPH_CACHE"):
            cache.check_folder(folder)
        lax.chmod(0o755)
    folder.parent.chmod(0o1777)  # like /tmp: others cannot touch what is in it
    cache.check_folder(folder)
    folder.chmod(0o1777)  # but they could add an entry
    with pytest.raises(SimulatorError):
        cache.check_folder(folder)


@pytest.mark.parametrize("mask", [0, 0o077])
def test_folders_do_not_depend_on_the_umask(tmp_path, mask):
    before = os.umask(mask)
    try:
        cache.make_folder(tmp_path / "a" / "b")
        with cache.locked(tmp_path / "a" / "b"):
            pass
    finally:
        os.umask(before)
    assert modes(tmp_path) == modes(tmp_path / "a") == {0o755}


def test_the_lock_follows_no_link(tmp_path):
    precious = tmp_path / "precious"
    precious.write_text("precious")
    (tmp_path / "lock").symlink_to(precious)
    with pytest.raises(SimulatorError, match=r"lock is a symbolic link"), cache.locked(tmp_path):
        pass
    assert precious.read_text() == "precious"


def test_replacing_leaves_alone_what_a_link_points_to(tmp_path, entry):
    made = tmp_path / "made"
    made.mkdir()
    link = tmp_path / "link"
    link.symlink_to(entry)
    cache.replace(link, made)
    assert link.is_dir() and not link.is_symlink() and cache.libraries(entry)
    made.mkdir()
    cache.replace(entry, made)
    assert list(entry.iterdir()) == []
