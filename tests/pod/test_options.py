"""What a request may ask for, and what it hears when it asks for something else."""

from __future__ import annotations

import json

import pytest
from hotstart.engines.triton.completion.engine import make_sampling
from hotstart.engines.triton.completion.errors import InvalidRequest
from hotstart.engines.triton.completion.options import RequestOptions, parse_options
from hotstart.exchange.messages import StopMode

from tests.support.pod import make_serving


def parse(**value: object) -> RequestOptions:
    return parse_options(json.dumps(value).encode(), make_serving(stop="line", stop_strings=("<end>",)))


def test_nothing_asked_means_what_the_model_declares() -> None:
    assert parse_options(b"", make_serving(stop="line", stop_strings=("<end>",))) == parse()
    assert parse() == RequestOptions(max_tokens=48, stop=("<end>",), stop_mode=StopMode.LINE)


def test_max_tokens_is_capped_at_the_models() -> None:
    assert parse(max_tokens=5).max_tokens == 5
    assert parse(max_tokens=5000).max_tokens == 48


def test_stops_of_the_request_come_beside_the_models() -> None:
    assert parse(stop="x").stop == ("x", "<end>")
    assert parse(stop=["x", "y"], stop_mode="block").stop_mode is StopMode.BLOCK


def test_null_is_as_good_as_absent() -> None:
    assert parse(seed=None, stop=None, temperature=None) == parse()


@pytest.mark.parametrize(
    ("value", "field"),
    [
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 1.5}, "max_tokens"),
        ({"max_tokens": True}, "max_tokens"),
        ({"temperature": -0.1}, "temperature"),
        ({"temperature": 2.1}, "temperature"),
        ({"temperature": "hot"}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"top_p": 1.01}, "top_p"),
        ({"top_k": -1}, "top_k"),
        ({"seed": -1}, "seed"),
        ({"seed": 2**32}, "seed"),
        ({"stop": ""}, "stop"),
        ({"stop": [1]}, "stop"),
        ({"stop": ["x"] * 17}, "stop"),
        ({"stop_mode": "word"}, "stop_mode"),
        ({"stream": 1}, "stream"),
        ({"colour": "red"}, "colour"),
    ],
)
def test_a_bad_value_is_refused_by_its_name(value: dict[str, object], field: str) -> None:
    with pytest.raises(InvalidRequest, match=rf"^invalid: options\.{field}\b"):
        parse(**value)


@pytest.mark.parametrize("text", [b"{", b"[]", b'"x"', b"\xff"])
def test_what_is_no_json_object_is_refused(text: bytes) -> None:
    with pytest.raises(InvalidRequest, match=r"^invalid: options "):
        parse_options(text, make_serving())


def test_temperature_zero_is_greedy() -> None:
    assert make_sampling(RequestOptions(8, temperature=0.0, top_p=0.5)) == {"sampling_topk": 1}
    sampling = make_sampling(RequestOptions(8, temperature=0.5, top_p=0.9, top_k=3))
    assert sampling == {"sampling_topk": 3, "sampling_topp": 0.9, "sampling_temperature": 0.5}
