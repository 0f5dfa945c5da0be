"""Triton's gRPC messages for the completion model, made and read. Pure.

Tensors are BYTES of shape [1]: in ``raw_*_contents`` a little-endian length of four bytes and the bytes themselves
(https://github.com/triton-inference-server/server, "Binary Tensor Data" extension).
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from hotstart.exchange.names import TRITON_MODEL
from hotstart.router.stubs import service_pb2
from pydantic_core import from_json

FINAL_PARAMETER = "triton_final_response"
EMPTY_FINAL_PARAMETER = "triton_enable_empty_final_response"
_LENGTH = struct.Struct("<I")


@dataclass(frozen=True, slots=True)
class Details:
    """What the completion model says with its last message."""

    finish_reason: str  # stop | length | cancelled
    prompt_tokens: int
    completion_tokens: int


@dataclass(frozen=True, slots=True)
class Piece:
    """One message of an answer."""

    text: str
    final: bool
    details: Details | None = None


class Fault(StrEnum):
    """Whose fault a refusal is: the prefix of the completion model's error text."""

    INVALID = "invalid"
    OVERLOADED = "overloaded"
    INTERNAL = "internal"
    UNAVAILABLE = "unavailable"  # Triton has no such model ready: its own texts, see _UNAVAILABLE


@dataclass(frozen=True, slots=True)
class Refusal:
    """The completion model, or Triton, answered with an error."""

    fault: Fault
    message: str


_PREFIX = re.compile(rf"\b({Fault.INVALID}|{Fault.OVERLOADED}|{Fault.INTERNAL}): ")
_UNAVAILABLE = ("is not found", "is not ready", "is stopping", "unloading", "has no available versions")


def make_request(request_id: str, prompt: str, suffix: str | None, options: bytes) -> Any:
    """A ``ModelInferRequest`` for one completion."""
    tensors = [("prompt", prompt.encode()), ("options", options)]
    if suffix is not None:
        tensors.append(("suffix", suffix.encode()))
    return _make_message(request_id, tensors)


def make_cancel(request_id: str) -> Any:
    """A ``ModelInferRequest`` that ends the request ``request_id``; its own answer is empty."""
    return _make_message("cancel-" + request_id, [("prompt", b""), ("cancel", request_id.encode())])


def _make_message(request_id: str, tensors: list[tuple[str, bytes]]) -> Any:
    message = service_pb2.ModelInferRequest(model_name=TRITON_MODEL, id=request_id)
    for name, value in tensors:
        message.inputs.add(name=name, datatype="BYTES", shape=(1,))
        message.raw_input_contents.append(_LENGTH.pack(len(value)) + value)
    # Without it Triton sends no message for a final response without tensors, and its reader would wait for ever.
    message.parameters[EMPTY_FINAL_PARAMETER].bool_param = True
    return message


def read_answer(message: Any) -> tuple[str, Piece | Refusal]:
    """Request id and content of a ``ModelStreamInferResponse``; '' where Triton does not say which request it means."""
    response = message.infer_response
    if message.error_message:
        return response.id, read_refusal(message.error_message)
    final = FINAL_PARAMETER in response.parameters and response.parameters[FINAL_PARAMETER].bool_param
    try:
        tensors = {
            output.name: raw[_LENGTH.size :]
            for output, raw in zip(response.outputs, response.raw_output_contents, strict=True)
        }
        details = tensors.get("details")
        text = tensors.get("text", b"").decode("utf-8", "replace")
        return response.id, Piece(text, final, _read_details(details) if details else None)
    except (ValueError, TypeError, AttributeError) as error:
        return response.id, Refusal(Fault.INTERNAL, f"the completion model's message is unreadable: {error}")


def _read_details(raw: bytes) -> Details:
    said = from_json(raw)
    return Details(
        finish_reason=str(said.get("finish_reason", "stop")),
        prompt_tokens=int(said.get("prompt_tokens", 0)),
        completion_tokens=int(said.get("completion_tokens", 0)),
    )


def read_refusal(text: str) -> Refusal:
    """The fault in an error's text: the first prefix counts, as a message may quote others.

    Triton may put words of its own before it.
    """
    prefix = _PREFIX.search(text)
    if prefix is not None:
        return Refusal(Fault(prefix.group(1)), text[prefix.end() :].strip())
    if any(words in text for words in _UNAVAILABLE):
        return Refusal(Fault.UNAVAILABLE, text)
    return Refusal(Fault.INTERNAL, text)
