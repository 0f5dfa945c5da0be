"""The tokenizer that is rebuilt from a GGUF, and what is read from any tokenizer."""

from __future__ import annotations

import json
from pathlib import Path

import gguf
import pytest
from hotstart.engines.checkpoints.gguf_file import GgufFile
from hotstart.engines.checkpoints.tokenizer import (
    PRE_TOKENIZERS,
    check_fit,
    end_ids,
    first_id,
    make_tokenizer_json,
    make_vocabulary,
    parse_tokenizer,
)
from hotstart.engines.errors import Reason, Terminal
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, processors

from tests.support.tiny_checkpoint import (  # isort: skip
    SPECIAL_TOKENS,
    make_tokenizer_json as make_tiny_tokenizer_json,
    write_tiny_gguf,
)

TINY = make_tiny_tokenizer_json()
TRAINED = Tokenizer.from_str(TINY)
VOCAB = json.loads(TINY)["model"]["vocab"]
TOKENS = sorted(VOCAB, key=VOCAB.__getitem__)
MERGES = [" ".join(merge) for merge in json.loads(TINY)["model"]["merges"]]
SPECIAL = range(len(SPECIAL_TOKENS))
REBUILT = parse_tokenizer(make_tokenizer_json(TOKENS, MERGES, SPECIAL, "smollm"))

code = st.text(st.sampled_from("defclassrtun_()[]{}:=+-*/<> \n\t0123456789'\"#.,;éλ→🙂"), max_size=60)


@given(code | st.text(max_size=40))
def test_rebuilt_and_trained_tokenizer_agree_and_lose_nothing(text: str) -> None:
    encoded = REBUILT.encode(text)
    assert encoded.ids == TRAINED.encode(text).ids
    assert REBUILT.decode(encoded.ids, skip_special_tokens=False) == text


def test_special_tokens_are_one_token_each_and_are_left_out_of_text() -> None:
    text = "<fim_prefix>def f(<fim_suffix>)<fim_middle>"
    encoded = REBUILT.encode(text)
    assert [token for token in encoded.tokens if token in SPECIAL_TOKENS] == [
        "<fim_prefix>",
        "<fim_suffix>",
        "<fim_middle>",
    ]
    assert REBUILT.decode(encoded.ids) == "def f()"


def test_tokens_that_a_user_defined_are_whole_and_stay_in_the_text() -> None:
    tokens = [*TOKENS, "<think>", "    "]  # a GGUF has them as they read, with spaces
    whole = range(len(TOKENS), len(tokens))
    tokenizer = parse_tokenizer(make_tokenizer_json(tokens, MERGES, SPECIAL, "smollm", whole))
    text = "<think>if é:\n    pass"
    encoded = tokenizer.encode(text)
    assert set(whole) <= set(encoded.ids)
    assert tokenizer.decode(encoded.ids) == text


def test_only_control_tokens_of_a_gguf_are_left_out_of_text(tmp_path: Path) -> None:
    path = write_tiny_gguf(tmp_path / "tiny.gguf", user_defined=frozenset({"<fim_middle>"}))
    tokenizer = parse_tokenizer(GgufFile(path).tokenizer_json)
    assert tokenizer.decode(tokenizer.encode("<fim_prefix>a<fim_middle>b").ids) == "a<fim_middle>b"


@pytest.mark.parametrize(
    ("pre", "said", "bos"),
    [("llama-bpe", None, 0), ("llama-bpe", False, None), ("smollm", None, None), ("smollm", True, 0)],
)
def test_a_text_is_begun_as_llama_cpp_begins_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pre: str, said: bool | None, bos: int | None
) -> None:
    """A file of LLaMA 3 need not say that its texts are."""
    name_pre, say_begun = gguf.GGUFWriter.add_tokenizer_pre, gguf.GGUFWriter.add_add_bos_token

    def say(writer: gguf.GGUFWriter, value: bool) -> None:
        if said is not None:
            say_begun(writer, said)

    monkeypatch.setattr(gguf.GGUFWriter, "add_tokenizer_pre", lambda writer, name: name_pre(writer, pre))
    monkeypatch.setattr(gguf.GGUFWriter, "add_add_bos_token", say)
    assert GgufFile(write_tiny_gguf(tmp_path / "tiny.gguf")).bos_id == bos


def test_digits_stand_alone_for_smollm_and_not_for_gpt2() -> None:
    assert [t for t in REBUILT.encode("a = 2025").tokens if t.isdigit()] == ["2", "0", "2", "5"]
    merges = [*MERGES, "2 0"]
    gpt2 = parse_tokenizer(make_tokenizer_json([*TOKENS, "20"], merges, SPECIAL, "gpt-2"))
    assert "20" in gpt2.encode("2025").tokens


@pytest.mark.parametrize("pre", PRE_TOKENIZERS)
@given(text=code)
def test_every_known_pre_tokenizer_loses_nothing(pre: str, text: str) -> None:
    tokenizer = parse_tokenizer(make_tokenizer_json(TOKENS, MERGES, SPECIAL, pre))
    assert tokenizer.decode(tokenizer.encode(text).ids, skip_special_tokens=False) == text


def test_the_same_gguf_gives_the_same_bytes() -> None:
    assert make_tokenizer_json(TOKENS, MERGES, SPECIAL, "smollm") == make_tokenizer_json(
        list(TOKENS), tuple(MERGES), reversed(SPECIAL), "smollm"
    )


@pytest.mark.parametrize(
    ("merges", "pre", "words"), [(MERGES, "poro-chat", "'poro-chat'; known are smollm"), (["a b c"], "smollm", "merge")]
)
def test_what_cannot_be_rebuilt_is_refused(merges: list[str], pre: str, words: str) -> None:
    with pytest.raises(Terminal, match=words) as failure:
        make_tokenizer_json(TOKENS, merges, SPECIAL, pre)
    assert failure.value.reason is Reason.TOKENIZER_MISMATCH


@pytest.mark.parametrize("text", [b"", b"{}", b"null", b"\xff\xfe", b'{"model": {"type": "Nonsense"}}'])
def test_what_is_no_tokenizer_is_refused(text: bytes) -> None:
    with pytest.raises(Terminal) as failure:
        parse_tokenizer(text)
    assert failure.value.reason is Reason.TOKENIZER_MISMATCH


def test_a_padded_vocabulary_fits_and_gets_names_for_its_padding() -> None:
    check_fit(REBUILT, 540)
    vocabulary = make_vocabulary(REBUILT, 540)
    assert vocabulary[:512] == TOKENS
    assert vocabulary[512:514] == ["<extra_id_512>", "<extra_id_513>"]
    assert len(set(vocabulary)) == 540


def test_ends_are_the_declared_ones_and_those_that_every_family_knows() -> None:
    assert end_ids(REBUILT, [9, 9, 0], 512) == (9, 0)
    assert end_ids(REBUILT, [], 512) == (0,)
    with pytest.raises(Terminal, match="512"):
        end_ids(REBUILT, [512], 512)


def test_whether_a_tokenizer_begins_texts_itself() -> None:
    beginning = Tokenizer.from_str(TINY)
    beginning.post_processor = processors.TemplateProcessing(
        single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", 0)]
    )
    assert first_id(beginning) == 0
    assert first_id(REBUILT) is None
