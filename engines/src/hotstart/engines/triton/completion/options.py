"""A request's options: parsed, checked and merged with what the model's serving options declare. Pure."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from hotstart.engines.triton.completion.errors import InvalidRequest
from hotstart.exchange.messages import ServingOptions, StopMode

MOST_STOP_STRINGS = 16
LONGEST_STOP_STRING = 256  # characters
HIGHEST_TEMPERATURE = 2.0  # as in OpenAI's API
HIGHEST_SEED = 2**32 - 1  # CTranslate2 takes an unsigned int


@dataclass(frozen=True)
class RequestOptions:
    """How one request is to be generated. Temperature 0 is greedy; ``top_k`` 0 means all tokens."""

    max_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    stop_mode: StopMode = StopMode.NONE
    stream: bool = False


KNOWN = frozenset({"max_tokens", "temperature", "top_p", "top_k", "seed", "stop", "stop_mode", "stream"})


def parse_options(text: bytes, serving: ServingOptions) -> RequestOptions:
    """The options in JSON ``text`` (empty means all defaults). ``max_tokens`` is capped at the model's.

    Raises:
        InvalidRequest: no JSON object, an unknown field, a wrong type, or a value out of its bounds.
    """
    value = _parse_object(text)
    unknown = sorted(set(value) - KNOWN)
    if unknown:
        raise InvalidRequest(f"options.{unknown[0]} is unknown; known are {', '.join(sorted(KNOWN))}")
    most = serving.max_new_tokens
    seed = value.get("seed")
    return RequestOptions(
        max_tokens=min(int(_number(value, "max_tokens", most, 1, 2**31 - 1, whole=True)), most),
        temperature=_number(value, "temperature", 0.0, 0.0, HIGHEST_TEMPERATURE),
        top_p=_top_p(value),
        top_k=int(_number(value, "top_k", 0, 0, 2**31 - 1, whole=True)),
        seed=None if seed is None else int(_number(value, "seed", 0, 0, HIGHEST_SEED, whole=True)),
        stop=_stop_strings(value) + serving.stop_strings,
        stop_mode=_stop_mode(value, serving.stop),
        stream=_flag(value, "stream"),
    )


def _parse_object(text: bytes) -> dict[str, Any]:
    if not text.strip():
        return {}
    try:
        value = json.loads(text)
    except ValueError as error:
        raise InvalidRequest(f"options is no JSON: {error}") from error
    if not isinstance(value, dict):
        raise InvalidRequest("options must be a JSON object")
    return {name: entry for name, entry in value.items() if entry is not None}


def _number(value: dict[str, Any], name: str, default: float, low: float, high: float, *, whole: bool = False) -> float:
    number = value.get(name, default)
    kind = "a whole number" if whole else "a number"
    if isinstance(number, bool) or not isinstance(number, int if whole else (int, float)):
        raise InvalidRequest(f"options.{name} must be {kind}")
    if not low <= number <= high:
        raise InvalidRequest(f"options.{name} must be {kind} from {low} to {high}, not {number}")
    return number


def _top_p(value: dict[str, Any]) -> float:
    top_p = _number(value, "top_p", 1.0, 0.0, 1.0)
    if top_p == 0.0:
        raise InvalidRequest("options.top_p must be above 0; for greedy decoding set temperature to 0")
    return float(top_p)


def _stop_strings(value: dict[str, Any]) -> tuple[str, ...]:
    stop = value.get("stop", [])
    strings = [stop] if isinstance(stop, str) else stop
    if not isinstance(strings, list) or not all(isinstance(entry, str) for entry in strings):
        raise InvalidRequest("options.stop must be a string or a list of strings")
    if len(strings) > MOST_STOP_STRINGS:
        raise InvalidRequest(f"options.stop must have at most {MOST_STOP_STRINGS} strings, not {len(strings)}")
    if any(not 0 < len(entry) <= LONGEST_STOP_STRING for entry in strings):
        raise InvalidRequest(f"options.stop: each string must have 1 to {LONGEST_STOP_STRING} characters")
    return tuple(strings)


def _stop_mode(value: dict[str, Any], default: StopMode) -> StopMode:
    mode = value.get("stop_mode", default)
    try:
        return StopMode(mode)
    except ValueError:
        raise InvalidRequest("options.stop_mode must be line, block or none") from None


def _flag(value: dict[str, Any], name: str) -> bool:
    flag = value.get(name, False)
    if not isinstance(flag, bool):
        raise InvalidRequest(f"options.{name} must be true or false")
    return flag
