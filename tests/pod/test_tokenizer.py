"""Nothing of a prompt comes back as a completion's text, and the lines of a prompt are found with any tokenizer."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hotstart.engines.triton.completion.prompts import encode, make_formatter
from hotstart.engines.triton.completion.tokenizer import choose_context, load_tokenizer, make_next_text
from hotstart.exchange.messages import PromptFormat
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from tests.support.pod import make_serving
from tests.support.tiny_checkpoint import FIM_MARKERS, make_tokenizer_json

TOKENIZER = Tokenizer.from_str(make_tokenizer_json())
MIDDLE = TOKENIZER.token_to_id(FIM_MARKERS[2])
SMILE = encode(TOKENIZER, "🙂").ids  # a token for each byte


def decode_after(prompt: list[int], text: str) -> str:
    next_text = make_next_text(TOKENIZER, prompt)
    return "".join(next_text(token) or "" for token in encode(TOKENIZER, text).ids)


@pytest.mark.parametrize(
    "prompt",
    [
        encode(TOKENIZER, "if c == '\ufffd").ids,
        [*encode(TOKENIZER, "a = '").ids, *SMILE[:3], MIDDLE],
        [*SMILE[1:], MIDDLE],
        [MIDDLE],
    ],
    ids=["a literal U+FFFD", "a broken character", "the end of a character alone", "a marker alone"],
)
def test_a_completion_begins_with_its_own_text_whatever_the_prompt_ends_with(prompt: list[int]) -> None:
    assert decode_after(prompt, " x = 1") == " x = 1"


@given(before=st.text(max_size=6), cut=st.integers(0, 12), text=st.text(alphabet="ab é🙂\n", max_size=6))
def test_only_what_follows_a_prompt_is_decoded(before: str, cut: int, text: str) -> None:
    assert decode_after(encode(TOKENIZER, before).ids[:cut], text) == text


def test_the_decoder_sees_a_whole_character_before_the_marker() -> None:
    context = choose_context(TOKENIZER, [*encode(TOKENIZER, "a = '").ids, *SMILE, MIDDLE])
    assert TOKENIZER.decode(context, skip_special_tokens=True).endswith("'🙂")


def test_lines_are_found_where_a_post_processor_takes_white_space_out_of_offsets(tmp_path: Path) -> None:
    """Those of GPT-NeoX and MPT do."""
    value = json.loads(make_tokenizer_json())
    value["post_processor"] = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(value))
    tokenizer = load_tokenizer(path, PromptFormat.PLAIN)
    prompt = "class A:\n" + "    def f(self):\n        return self.x + 1\n" * 40
    assert encode(tokenizer, prompt).ids == encode(Tokenizer.from_file(str(path)), prompt).ids
    prepared = make_formatter(tokenizer, make_serving(max_input_tokens=96), None).prepare(prompt, "")
    assert prepared.trimmed > 0
    assert tokenizer.decode(prepared.tokens).lstrip("\n").startswith(("    def", "        return"))


@pytest.mark.parametrize(("prompt_format", "special"), [(PromptFormat.PLAIN, True), (PromptFormat.FIM, False)])
def test_only_who_writes_plain_prompts_may_place_markers(
    tmp_path: Path, prompt_format: PromptFormat, special: bool
) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text(make_tokenizer_json())
    assert (MIDDLE in encode(load_tokenizer(path, prompt_format), FIM_MARKERS[2]).ids) is special
