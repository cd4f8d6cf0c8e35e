"""What int8 values and their scales must be, given the values that were quantized."""

from __future__ import annotations

import pytest


def assert_quantized(y, scale, values, accuracy=1e-6):
    """y * scale is within half a step of `values` [N, M], a scale for each row, and the largest value is +-127.

    accuracy: of the values themselves, relative to the row's largest.
    """
    for row, quantized, one in zip(values, y, scale):
        largest = max(map(abs, row), default=0.0)
        assert one == pytest.approx(largest / 127, rel=accuracy)
        for value, number in zip(row, quantized):
            step = one if one else 1.0
            assert abs(number * one - value) <= step * (0.5 + 1e-4) + accuracy * largest
            if abs(value) == largest and largest:
                assert abs(number) == 127
