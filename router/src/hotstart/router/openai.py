"""OpenAI's completions API as types: parses a request's body, makes the bodies of answers. Pure.

The edge of the data path: what ``parse_completion`` lets through is well formed, so nothing malformed reaches Triton.
Reference: https://platform.openai.com/docs/api-reference/completions
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Annotated, Any

from hotstart.exchange.messages import PromptFormat
from hotstart.router.errors import ApiError, invalid
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic_core import PydanticCustomError, to_json

MAX_STOPS = 4  # OpenAI's limit
MAX_STOP_CHARS = 256
INT64 = 2**63
SEEDS = 2**32  # the completion model's; OpenAI's are of 64 bits

# Parameters of OpenAI's API that Hotstart does not serve, and the values that ask for nothing.
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "n": (1,),
    "best_of": (1,),
    "echo": (False,),
    "logprobs": (),
    "logit_bias": ({},),
    "presence_penalty": (0, 0.0),
    "frequency_penalty": (0, 0.0),
}


def _one_prompt(value: Any) -> Any:
    if isinstance(value, list):
        if any(isinstance(item, (int, list)) for item in value):
            raise PydanticCustomError("token_array", "token arrays are not served; send the prompt as a string")
        if len(value) != 1:
            raise PydanticCustomError("prompts", "exactly one prompt is served; send one request for each prompt")
        return value[0]
    return value


def _stop_list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


StopString = Annotated[str, Field(min_length=1, max_length=MAX_STOP_CHARS)]


class StreamOptions(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    include_usage: bool | None = None
    include_obfuscation: bool | None = None  # newer clients may send it; there is nothing to obfuscate


class CompletionBody(BaseModel):
    """The body of POST /v1/completions."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)

    model: str = Field(min_length=1)
    prompt: Annotated[str, BeforeValidator(_one_prompt)]
    suffix: str | None = None
    max_tokens: int | None = Field(default=None, ge=1, lt=2**31)
    temperature: float | None = Field(default=None, ge=0.0, le=2.0)
    top_p: float | None = Field(default=None, gt=0.0, le=1.0)
    stop: Annotated[list[StopString] | None, BeforeValidator(_stop_list)] = Field(default=None, max_length=MAX_STOPS)
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    seed: int | None = Field(default=None, ge=-INT64, lt=INT64)
    user: str | None = None
    n: Any = None
    best_of: Any = None
    echo: Any = None
    logprobs: Any = None
    logit_bias: Any = None
    presence_penalty: Any = None
    frequency_penalty: Any = None


@dataclass(frozen=True, slots=True)
class Completion:
    """A well-formed request. What is None was not said by the client and is the model's own to choose."""

    model: str
    prompt: str
    suffix: str | None
    max_tokens: int | None
    temperature: float | None
    top_p: float | None
    stop: tuple[str, ...]
    seed: int | None
    stream: bool
    include_usage: bool


@dataclass(frozen=True, slots=True)
class Usage:
    """Counts of tokens."""

    prompt: int
    completion: int


def parse_completion(body: bytes) -> Completion:
    """The request in ``body``.

    Raises:
        ApiError: 400 that names the first parameter at fault.
    """
    try:
        parsed = CompletionBody.model_validate_json(body)
    except ValidationError as error:
        raise _first_fault(error) from None
    _refuse_unserved(parsed)
    if not parsed.prompt and not parsed.suffix:
        raise invalid("'prompt' is empty: send the text before the cursor, or a 'suffix'.", param="prompt")
    if parsed.stream_options is not None and not parsed.stream:
        raise invalid("'stream_options' is only allowed when 'stream' is true.", param="stream_options")
    return Completion(
        model=parsed.model,
        prompt=parsed.prompt,
        suffix=parsed.suffix,
        max_tokens=parsed.max_tokens,
        temperature=parsed.temperature,
        top_p=parsed.top_p,
        stop=tuple(parsed.stop or ()),
        seed=parsed.seed,
        stream=bool(parsed.stream),
        include_usage=bool(parsed.stream_options and parsed.stream_options.include_usage),
    )


def check_format(completion: Completion, prompt_format: str) -> None:
    """Whether the model has a place for all that the request brings; a format that is not known lets all pass.

    Raises:
        ApiError: 400.
    """
    if completion.suffix and prompt_format == PromptFormat.PLAIN:
        message = f"'suffix' is not served by {completion.model}, whose prompt format is plain; leave it out."
        raise invalid(message, param="suffix", code="unsupported_parameter")


def _refuse_unserved(body: CompletionBody) -> None:
    for name, neutral in NEUTRAL.items():
        value = getattr(body, name)
        if value is None or any(value == same and type(value) is type(same) for same in neutral):
            continue
        allowed = f"; leave it out or send {json.dumps(neutral[0])}" if neutral else "; leave it out"
        raise invalid(f"'{name}' is not served with this value{allowed}.", param=name, code="unsupported_parameter")


def _first_fault(error: ValidationError) -> ApiError:
    first = error.errors(include_url=False, include_input=False)[0]
    kind, location = first["type"], first["loc"]
    if kind == "json_invalid":
        return invalid(f"The body is not JSON in UTF-8: {first['msg']}.", code="invalid_json")
    if not location:
        return invalid("The body must be a JSON object.", code="invalid_json")
    param = str(location[0]) if len(location) < 2 or location[0] != "stream_options" else ".".join(map(str, location))
    if kind == "extra_forbidden":
        return invalid(f"Unknown parameter: '{param}'; remove it.", param=param, code="unknown_parameter")
    if kind == "missing":
        return invalid(f"Missing required parameter: '{param}'.", param=param, code="missing_required_parameter")
    code = "invalid_type" if kind.endswith("_type") else "invalid_value"
    return invalid(f"Invalid '{param}': {first['msg']}.", param=param, code=code)


def make_options(completion: Completion, max_new_tokens: int) -> bytes:
    """The completion model's ``options`` as JSON; ``max_tokens`` is at most the model's own limit."""
    options: dict[str, Any] = {"max_tokens": token_limit(completion, max_new_tokens), "stream": completion.stream}
    for name in ("temperature", "top_p"):
        value = getattr(completion, name)
        if value is not None:
            options[name] = value
    if completion.seed is not None:
        options["seed"] = completion.seed % SEEDS
    if completion.stop:
        options["stop"] = completion.stop
    return to_json(options)


def token_limit(completion: Completion, max_new_tokens: int) -> int:
    """Most tokens that the request can generate."""
    return max_new_tokens if completion.max_tokens is None else min(completion.max_tokens, max_new_tokens)


def make_answer(
    request_id: str, model: str, created: int, text: str, finish_reason: str | None, usage: Usage | None
) -> dict[str, Any]:
    """A whole completion, or one chunk of a stream: OpenAI gives both the same shape."""
    answer: dict[str, Any] = {
        "id": request_id,
        "object": "text_completion",
        "created": created,
        "model": model,
        "choices": [{"text": text, "index": 0, "logprobs": None, "finish_reason": finish_reason}],
    }
    if usage is not None:
        answer["usage"] = make_usage(usage)
    return answer


def make_usage_chunk(request_id: str, model: str, created: int, usage: Usage) -> dict[str, Any]:
    """The chunk before ``[DONE]`` that ``stream_options.include_usage`` asks for: no choices."""
    return {**make_answer(request_id, model, created, "", None, usage), "choices": []}


def make_usage(usage: Usage) -> dict[str, int]:
    total = usage.prompt + usage.completion
    return {"prompt_tokens": usage.prompt, "completion_tokens": usage.completion, "total_tokens": total}


def make_model(model: str, created: int) -> dict[str, Any]:
    """One entry of GET /v1/models."""
    return {"id": model, "object": "model", "created": created, "owned_by": model.partition("/")[0]}


def encode_event(value: dict[str, Any]) -> bytes:
    """One server-sent event."""
    return b"data: " + to_json(value) + b"\n\n"


LAST_EVENT = b"data: [DONE]\n\n"
