"""The README's snippets for any machine run."""

import pytest

import readme


@pytest.mark.parametrize("code", readme.snippets(on_device=False), ids=lambda code: code.splitlines()[0])
def test_snippet(code):
    exec(compile(code, "README.md", "exec"), {"__name__": "__main__"})
