"""From prompt and suffix to tokens, with a real tokenizer."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hotstart.engines.triton.completion.errors import InvalidRequest
from hotstart.engines.triton.completion.prompts import BadFormat, Encoded, PromptFormatter, make_formatter, near_end
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from tests.support.pod import make_serving
from tests.support.tiny_checkpoint import FIM_MARKERS, make_tokenizer_json

TOKENIZER = Tokenizer.from_str(make_tokenizer_json())
PREFIX, SUFFIX, MIDDLE = (TOKENIZER.token_to_id(marker) for marker in FIM_MARKERS)
FIM = dict(zip(("fim_prefix", "fim_suffix", "fim_middle"), FIM_MARKERS, strict=True))
CODE = st.lists(st.sampled_from(["def f(x):", "    return x + 1", "", "total = 0", "é = '🙂'"]), max_size=60).map(
    "\n".join
)


def plain(limit: int = 64, begin: int | None = None) -> PromptFormatter:
    return make_formatter(TOKENIZER, make_serving(max_input_tokens=limit), begin)


def fim(limit: int = 64) -> PromptFormatter:
    return make_formatter(TOKENIZER, make_serving(max_input_tokens=limit, prompt_format="fim", **FIM), None)


def encode(text: str) -> list[int]:
    return TOKENIZER.encode(text, add_special_tokens=False).ids


def test_a_plain_prompt_is_its_tokens() -> None:
    prepared = plain().prepare("def f(x):\n", "")
    assert (list(prepared.tokens), prepared.trimmed) == (encode("def f(x):\n"), 0)


def test_the_beginning_token_stays_when_the_prompt_is_trimmed() -> None:
    prepared = plain(8, begin=0).prepare("a = 1\n" * 20, "")
    assert prepared.tokens[0] == 0
    assert len(prepared.tokens) <= 8
    assert prepared.trimmed == len(encode("a = 1\n" * 20)) - len(prepared.tokens) + 1


def test_fim_puts_the_markers_around_prefix_and_suffix() -> None:
    prepared = fim().prepare("def f(x):\n", "\nprint(f(1))\n")
    expected = [PREFIX, *encode("def f(x):\n"), SUFFIX, *encode("\nprint(f(1))\n"), MIDDLE]
    assert list(prepared.tokens) == expected


@given(room=st.integers(8, 60), suffix=st.text(alphabet="é🙂计算\n", min_size=1, max_size=60))
def test_a_trimmed_suffix_ends_with_a_whole_character(room: int, suffix: str) -> None:
    tokens = fim(room).prepare("total = 0\n" * 40, suffix).tokens
    after = TOKENIZER.decode(tokens[tokens.index(SUFFIX) + 1 : -1])
    assert suffix.startswith(after)


def test_a_prompt_is_encoded_while_generations_go_on() -> None:
    """``encode_batch`` lets go of the interpreter's lock, which an engine needs for each token; ``encode`` holds it."""

    class OnlyBatches:
        def encode_batch(self, texts: Sequence[str], /, *, add_special_tokens: bool = True) -> Sequence[Encoded]:
            return TOKENIZER.encode_batch(texts, add_special_tokens=add_special_tokens)

        def token_to_id(self, token: str) -> int | None:
            return TOKENIZER.token_to_id(token)

    prepared = make_formatter(OnlyBatches(), make_serving(), None).prepare("def f(x):\n", "")
    assert list(prepared.tokens) == encode("def f(x):\n")


def test_what_a_format_has_no_place_for_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="suffix needs"):
        plain().prepare("x", "y")
    with pytest.raises(InvalidRequest, match="prompt is empty"):
        plain().prepare("", "")
    with pytest.raises(InvalidRequest, match="both empty"):
        fim().prepare("", "")


def test_unknown_markers_and_a_limit_without_room_are_found_at_load() -> None:
    with pytest.raises(BadFormat, match="fim_suffix '<none>'"):
        make_formatter(TOKENIZER, make_serving(prompt_format="fim", **{**FIM, "fim_suffix": "<none>"}), None)
    with pytest.raises(BadFormat, match="above 3"):
        fim(3)


@given(prompt=CODE, suffix=CODE, limit=st.integers(5, 80))
def test_the_input_is_within_the_limit(prompt: str, suffix: str, limit: int) -> None:
    if prompt or suffix:
        assert len(fim(limit).prepare(prompt, suffix).tokens) <= limit
    if prompt:
        assert len(plain(limit).prepare(prompt, "").tokens) <= limit


@given(lines=st.integers(20, 40))
def test_a_typed_on_prompt_keeps_its_start_for_a_while(lines: int) -> None:
    formatter = plain(40)
    prompt = "total = total + 1\n" * lines
    starts = {formatter.prepare(prompt + "x" * more, "").tokens[:10] for more in range(3)}
    trimmed = {formatter.prepare(prompt + "x" * more, "").trimmed for more in range(12)}
    assert len(starts) == 1
    assert len(trimmed) <= 3


@given(length=st.integers(0, 5000), longest=st.integers(10, 400), newlines=st.sets(st.integers(0, 4999), max_size=40))
def test_far_text_is_left_out_in_steps_too(length: int, longest: int, newlines: set[int]) -> None:
    text = "".join("\n" if index in newlines else "x" for index in range(length))
    start = near_end(text, longest)
    assert length - start <= 2 * longest
    assert length - start >= min(length, longest // 2)
