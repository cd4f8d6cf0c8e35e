"""The snippets of README and docs for any machine run."""

import pytest

import readme

SNIPPETS = readme.snippets(on_device=False)


@pytest.mark.parametrize("code", SNIPPETS.values(), ids=SNIPPETS)
def test_snippet(code):
    exec(compile(code, "snippet", "exec"), {"__name__": "__main__"})
