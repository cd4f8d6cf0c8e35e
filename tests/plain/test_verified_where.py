"""The table of what is verified where names tests that exist, and the page has it."""

import pytest
import verified_where as where


def test_every_named_test_exists():
    named = [
        (folder, name)
        for claim in where.CLAIMS
        for folder, name in (("plain", claim.plain), ("simulated", claim.simulated), ("hardware", claim.hardware))
        if name is not None
    ]
    assert len(named) > 20
    assert [name for folder, name in named if not where.exists(folder, name)] == []


def test_a_test_that_is_gone_is_seen():
    assert not where.exists("plain", "test_fallback::test_of_nothing")
    assert not where.exists("plain", "test_no_such_file::test_matches_the_reference")


def test_the_page_has_the_table():
    assert where.between_markers(where.PAGE.read_text()) == where.table(), "run python tests/verified_where.py"


def test_only_what_is_between_the_markers_is_written():
    text = where.written(f"before\n{where.BEGIN}\nof yesterday\n{where.END}\nafter\n")
    assert where.between_markers(text) == where.table()
    assert text.startswith("before\n") and text.endswith("\nafter\n") and "of yesterday" not in text
    assert where.written(text) == text
    with pytest.raises(SystemExit, match="markers"):
        where.written("no markers")
