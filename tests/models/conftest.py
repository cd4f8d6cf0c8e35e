"""Public models are tested where RECIPES names a checkout of hicann/cann-recipes-infer: `RECIPES=... tox -e models`."""

import os
from pathlib import Path

import pytest


def pytest_collection_modifyitems(items):
    here = Path(__file__).parent
    if not os.environ.get("RECIPES"):
        mark = pytest.mark.skip(reason="RECIPES does not name a checkout of hicann/cann-recipes-infer")
        for item in items:
            if here in item.path.parents:
                item.add_marker(mark)
