"""Requests that are malformed or ask for what is not served: 4xx in OpenAI's shape, and nothing reaches Triton."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hotstart.router.errors import ApiError
from hotstart.router.openai import Completion, make_options, parse_completion
from hypothesis import given
from hypothesis import strategies as st

from tests.router.bench import MODEL, Bench
from tests.support.fake_triton import FakeTriton

GOOD = {"model": MODEL, "prompt": "def f(x):"}

BAD: list[tuple[dict[str, Any], str, str]] = [
    ({"prompt": [1, 2, 3]}, "prompt", "invalid_value"),
    ({"prompt": [[1, 2]]}, "prompt", "invalid_value"),
    ({"prompt": ["a", "b"]}, "prompt", "invalid_value"),
    ({"prompt": []}, "prompt", "invalid_value"),
    ({"prompt": 7}, "prompt", "invalid_type"),
    ({"prompt": [None]}, "prompt", "invalid_type"),
    ({"prompt": ""}, "prompt", None),  # type: ignore[list-item]
    ({"suffix": 1}, "suffix", "invalid_type"),
    ({"max_tokens": 0}, "max_tokens", "invalid_value"),
    ({"max_tokens": -1}, "max_tokens", "invalid_value"),
    ({"max_tokens": 2**40}, "max_tokens", "invalid_value"),
    ({"max_tokens": "16"}, "max_tokens", "invalid_type"),
    ({"max_tokens": True}, "max_tokens", "invalid_type"),
    ({"max_tokens": 1.5}, "max_tokens", "invalid_type"),
    ({"temperature": -0.1}, "temperature", "invalid_value"),
    ({"temperature": 2.1}, "temperature", "invalid_value"),
    ({"temperature": "hot"}, "temperature", "invalid_type"),
    ({"top_p": 0}, "top_p", "invalid_value"),
    ({"top_p": 1.1}, "top_p", "invalid_value"),
    ({"stop": ["a", "b", "c", "d", "e"]}, "stop", "invalid_value"),
    ({"stop": [""]}, "stop", "invalid_value"),
    ({"stop": [1]}, "stop", "invalid_type"),
    ({"stop": 1}, "stop", "invalid_type"),
    ({"stop": "x" * 1000}, "stop", "invalid_value"),
    ({"stream": "yes"}, "stream", "invalid_type"),
    ({"stream_options": {"include_usage": True}}, "stream_options", None),  # type: ignore[list-item]
    ({"stream": True, "stream_options": {"x": 1}}, "stream_options.x", "unknown_parameter"),
    ({"stream": True, "stream_options": {"include_usage": 3}}, "stream_options.include_usage", "invalid_type"),
    ({"seed": 1.5}, "seed", "invalid_type"),
    ({"seed": 2**63}, "seed", "invalid_value"),
    ({"user": 1}, "user", "invalid_type"),
    ({"n": 2}, "n", "unsupported_parameter"),
    ({"n": True}, "n", "unsupported_parameter"),
    ({"best_of": 3}, "best_of", "unsupported_parameter"),
    ({"echo": True}, "echo", "unsupported_parameter"),
    ({"logprobs": 0}, "logprobs", "unsupported_parameter"),
    ({"logit_bias": {"50256": -100}}, "logit_bias", "unsupported_parameter"),
    ({"presence_penalty": 0.5}, "presence_penalty", "unsupported_parameter"),
    ({"frequency_penalty": -1}, "frequency_penalty", "unsupported_parameter"),
    ({"top_k": 5}, "top_k", "unknown_parameter"),
    ({"model": ""}, "model", "invalid_value"),
    ({"model": None}, "model", "invalid_type"),
]


async def test_every_bad_parameter_is_named_and_reaches_no_pod(bench: Bench, triton: FakeTriton) -> None:
    await bench.serve(triton)
    for changes, param, code in BAD:
        async with bench.http.post("/v1/completions", json={**GOOD, **changes}) as response:
            assert response.status == 400, changes
            answer = await response.json()
        error = answer["error"]
        assert set(answer) == {"error"} and set(error) == {"message", "type", "param", "code"}, changes
        assert (error["param"], error["type"], error["code"]) == (param, "invalid_request_error", code), changes
        assert error["message"]
    assert triton.seen == [] and bench.lane.book.in_flight == 0


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[]", b"null", b'"text"', b"\xff\xfe", b'{"model":"shop/coder","prompt":"\\ud800"}', b'{"model":"a"}'],
)
async def test_what_is_no_json_object_is_a_400(bench: Bench, triton: FakeTriton, body: bytes) -> None:
    await bench.serve(triton)
    async with bench.http.post("/v1/completions", data=body) as response:
        assert response.status == 400
        assert (await response.json())["error"]["type"] == "invalid_request_error"
    assert triton.seen == []


@pytest.mark.parametrize("value", [b"NaN", b"Infinity", b"-Infinity", b"1e999"])
async def test_numbers_that_are_none_are_refused(bench: Bench, triton: FakeTriton, value: bytes) -> None:
    await bench.serve(triton)
    body = b'{"model":"shop/coder","prompt":"x","temperature":' + value + b"}"
    async with bench.http.post("/v1/completions", data=body) as response:
        assert response.status == 400
    assert triton.seen == []


async def test_parameters_that_ask_for_nothing_are_accepted(bench: Bench, triton: FakeTriton) -> None:
    await bench.serve(triton)
    neutral = {"n": 1, "best_of": 1, "echo": False, "logprobs": None, "logit_bias": {}, "presence_penalty": 0}
    none = dict.fromkeys(("suffix", "max_tokens", "temperature", "top_p", "stop", "stream", "seed", "user"))
    async with bench.http.post(
        "/v1/completions", json={**GOOD, **neutral, **none, "frequency_penalty": 0.0}
    ) as response:
        assert response.status == 200, await response.text()


async def test_an_unknown_model_is_a_404(bench: Bench, triton: FakeTriton) -> None:
    await bench.serve(triton)
    for name in ("shop/other", "coder", "shop/coder/x", "../etc"):
        async with bench.http.post("/v1/completions", json={**GOOD, "model": name}) as response:
            assert response.status == 404
            error = (await response.json())["error"]
        assert (error["code"], error["param"]) == ("model_not_found", "model") and name in error["message"]


async def test_a_body_that_is_too_large_is_a_413(bench: Bench, triton: FakeTriton) -> None:
    await bench.serve(triton)
    async with bench.post(prompt="x" * 2**20) as response:
        assert response.status == 413
        assert (await response.json())["error"]["code"] == "body_too_large"
    assert triton.seen == []


async def test_a_body_that_is_not_in_the_encoding_it_names_is_a_400(bench: Bench, triton: FakeTriton) -> None:
    await bench.serve(triton)
    headers = {"Content-Encoding": "gzip", "Content-Type": "application/json"}
    async with bench.http.post("/v1/completions", data=b'{"model": "no gzip"}', headers=headers) as response:
        assert response.status == 400
        assert (await response.json())["error"]["code"] == "invalid_body"
    assert triton.seen == []


async def test_unknown_urls_and_methods_have_the_same_shape(bench: Bench) -> None:
    async with bench.http.get("/v1/nonesuch") as response:
        assert response.status == 404 and (await response.json())["error"]["code"] == "unknown_url"
    async with bench.http.get("/v1/completions") as response:
        assert response.status == 405 and response.headers["Allow"] == "POST"
        assert (await response.json())["error"]["message"]


async def test_before_the_first_routes_a_completion_is_a_503_and_the_router_not_ready(bench: Bench) -> None:
    async with bench.post() as response:
        assert response.status == 503 and (await response.json())["error"]["code"] == "starting"
    async with bench.http.get("/readyz") as response:
        assert response.status == 503
    async with bench.http.get("/healthz") as response:
        assert response.status == 200


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=5,
)
FIELDS = (
    "prompt",
    "suffix",
    "max_tokens",
    "temperature",
    "top_p",
    "stop",
    "stream",
    "stream_options",
    "seed",
    "n",
    "x",
)


@given(st.dictionaries(st.sampled_from(FIELDS), json_values))
def test_whatever_comes_is_a_completion_or_a_400(fields: dict[str, Any]) -> None:
    try:
        completion = parse_completion(json.dumps({"model": "n/m", **fields}).encode())
    except ApiError as error:
        assert error.status == 400 and error.message
        return
    options = json.loads(make_options(completion, 32))
    assert 1 <= options["max_tokens"] <= 32
    assert completion.prompt or completion.suffix
    assert 0 <= options.get("temperature", 0) <= 2 and len(options.get("stop", [])) <= 4
    completion.prompt.encode()


@given(st.integers(-(2**63), 2**63 - 1))
def test_every_seed_of_openais_is_one_of_the_models(seed: int) -> None:
    completion = parse_completion(json.dumps({**GOOD, "seed": seed}).encode())
    given_on = json.loads(make_options(completion, 32))["seed"]
    assert 0 <= given_on < 2**32 and given_on == (seed if 0 <= seed < 2**32 else given_on)


@given(st.binary(max_size=200))
def test_any_bytes_are_a_completion_or_a_400(body: bytes) -> None:
    try:
        assert isinstance(parse_completion(body), Completion)
    except ApiError as error:
        assert error.status == 400
