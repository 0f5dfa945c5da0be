"""Rounding to 16 bits, against the definition: the nearest representable value, of two the one with an even pattern."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from hotstart.engines.checkpoints.finite import all_finite
from hotstart.engines.runtimes.tensorrt_llm.sixteen_bits import to_bits, to_float32
from hypothesis import given
from hypothesis import strategies as st

INFINITE = {"F16": 0x7C00, "BF16": 0x7F80}
#: The next value that the type would have above its largest one: from half way to it, rounding gives infinity.
BEYOND = {"F16": 2.0**16, "BF16": 2.0**128}


def decode(pattern: int, stored: str) -> float:
    """The value of a finite pattern, by the formula of IEEE 754."""
    bits = 10 if stored == "F16" else 7
    bias = 15 if stored == "F16" else 127
    exponent, fraction = (pattern & 0x7FFF) >> bits, pattern & ((1 << bits) - 1)
    size = (
        fraction * 2.0 ** (1 - bias - bits)
        if exponent == 0
        else (1 + fraction / (1 << bits)) * 2.0 ** (exponent - bias)
    )
    return -size if pattern & 0x8000 else size


def nearest(value: float, stored: str) -> int:
    """The pattern of a finite value, found by bisection over all patterns of its sign."""
    low, high = 0, INFINITE[stored]
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if decode(middle, stored) <= abs(value) else (low, middle)
    above = BEYOND[stored] if high == INFINITE[stored] else decode(high, stored)
    below = abs(value) - decode(low, stored)
    chosen = low if below < above - abs(value) or (below == above - abs(value) and low % 2 == 0) else high
    return chosen | (0x8000 if np.signbit(value) else 0)


@given(st.floats(width=32, allow_nan=False, allow_infinity=False), st.sampled_from(["F16", "BF16"]))
def test_float32_rounds_to_the_nearest(value: float, wanted: str) -> None:
    assert int(to_bits(np.array([value], np.float32), "F32", wanted)[0]) == nearest(value, wanted)


@given(st.floats(allow_nan=False, allow_infinity=False, min_value=-1e38, max_value=1e38))
def test_float64_rounds_once_to_float16_and_by_way_of_float32_to_bfloat16(value: float) -> None:
    array = np.array([value], np.float64)
    assert int(to_bits(array, "F64", "F16")[0]) == nearest(value, "F16")
    assert int(to_bits(array, "F64", "BF16")[0]) == nearest(float(np.float32(value)), "BF16")


@given(st.integers(0, 0xFFFE), st.sampled_from(["F16", "BF16"]))
def test_ties_go_to_the_even_pattern(pattern: int, wanted: str) -> None:
    if (pattern & 0x7FFF) >= INFINITE[wanted] - 1:
        return
    middle = (decode(pattern, wanted) + decode(pattern + 1, wanted)) / 2
    if float(np.float32(middle)) != middle:  # half of bfloat16's smallest is no float32
        return
    assert int(to_bits(np.array([middle], np.float32), "F32", wanted)[0]) == pattern + pattern % 2


@pytest.mark.parametrize(("stored", "wanted"), [("F16", "BF16"), ("BF16", "F16")])
def test_each_of_the_other_types_values_rounds_to_the_nearest(stored: str, wanted: str) -> None:
    finite = patterns(stored, finite=True)
    found = to_bits(as_stored(finite, stored), stored, wanted)
    expected = [nearest(decode(int(pattern), stored), wanted) for pattern in finite]
    np.testing.assert_array_equal(found, np.array(expected, np.uint16))


@pytest.mark.parametrize("stored", ["F16", "BF16"])
def test_the_same_type_is_copied_and_float32_holds_every_value(stored: str) -> None:
    finite = patterns(stored, finite=True)
    np.testing.assert_array_equal(to_bits(as_stored(finite, stored), stored, stored), finite)
    exact = [decode(int(pattern), stored) for pattern in finite]
    np.testing.assert_array_equal(to_float32(as_stored(finite, stored), stored), np.array(exact, np.float32))


@pytest.mark.parametrize("stored", ["F16", "BF16"])
def test_only_patterns_with_a_full_exponent_are_not_finite(stored: str) -> None:
    finite = patterns(stored, finite=True)
    assert all_finite(finite, stored)
    assert all_finite(finite[:0], stored)
    others = patterns(stored, finite=False)
    assert not any(all_finite(np.array([0, pattern], np.uint16), stored) for pattern in others)


@pytest.mark.parametrize("wanted", ["F16", "BF16"])
@pytest.mark.parametrize("pattern", [0x7FC00000, 0xFFFFFFFF, 0x7F800001, 0x7F800000, 0xFF800000])
def test_nan_and_infinity_stay_what_they_are(pattern: int, wanted: str) -> None:
    value = np.array([pattern], np.uint32).view(np.float32)
    found = to_bits(value, "F32", wanted)
    assert not all_finite(found, wanted)
    assert bool(np.isnan(to_float32(as_stored(found, wanted), wanted))[0]) == bool(np.isnan(value)[0])


def patterns(stored: str, *, finite: bool) -> npt.NDArray[np.uint16]:
    every = np.arange(1 << 16, dtype=np.uint16)
    return every[((every & 0x7FFF) < INFINITE[stored]) == finite]


def as_stored(bits: npt.NDArray[np.uint16], stored: str) -> npt.NDArray[np.uint16] | npt.NDArray[np.float16]:
    return bits.view(np.float16) if stored == "F16" else bits
