"""What an error's text says of whose fault it is."""

from __future__ import annotations

import pytest
from hotstart.router.wire import Fault, Refusal, read_refusal


@pytest.mark.parametrize(
    ("text", "refusal"),
    [
        ("invalid: stop has too many strings", Refusal(Fault.INVALID, "stop has too many strings")),
        ("overloaded: the queue is full", Refusal(Fault.OVERLOADED, "the queue is full")),
        ("Triton's words, invalid: prompt is empty", Refusal(Fault.INVALID, "prompt is empty")),
        # Who quotes a prefix does not have it.
        ("internal: ValueError: invalid: 0x7f", Refusal(Fault.INTERNAL, "ValueError: invalid: 0x7f")),
        ("invalid: 'internal: ' is no stop", Refusal(Fault.INVALID, "'internal: ' is no stop")),
        ("an uninvalid: text", Refusal(Fault.INTERNAL, "an uninvalid: text")),
        ("Request for unknown model: 'completion' is not found", None),
        ("the model broke", Refusal(Fault.INTERNAL, "the model broke")),
    ],
)
def test_the_first_prefix_says_whose_fault_it_is(text: str, refusal: Refusal | None) -> None:
    assert read_refusal(text) == (refusal or Refusal(Fault.UNAVAILABLE, text))
