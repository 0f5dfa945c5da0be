"""The tokenizer of a checkpoint: rebuilt from a GGUF's tokens and merges, and checked against the weights. Pure.

Only the ``tokenizers`` library ever reads one; nothing of a checkpoint is executed.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from hotstart.engines.errors import Reason, Terminal
from hotstart.engines.key import canonical_json
from hotstart.exchange.messages import PromptFormat, ServingOptions
from tokenizers import Tokenizer

# A vocabulary is padded to a multiple of 64 or so; a tokenizer that knows less than this share is another model's.
LEAST_SHARE = 0.9

# Tokens that end a text in one model family or another (llama.cpp's list of end-of-generation tokens).
END_OF_TEXT = frozenset(
    (
        *("<|endoftext|>", "<|end_of_text|>", "<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<EOT>", "</s>"),
        *("<|file_sep|>", "<file_sep>", "<|repo_name|>", "<repo_name>", "<reponame>"),
    )
)

_BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
# The pattern in tokenizer.json of LLaMA 3 (https://huggingface.co/meta-llama/Meta-Llama-3-8B).
_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_DIGITS = {"type": "Sequence", "pretokenizers": [{"type": "Digits", "individual_digits": True}, _BYTE_LEVEL]}
_LLAMA3_SPLIT = {
    "type": "Sequence",
    "pretokenizers": [
        {"type": "Split", "pattern": {"Regex": _LLAMA3}, "behavior": "Isolated", "invert": False},
        {**_BYTE_LEVEL, "use_regex": False},
    ],
}
#: tokenizer.ggml.pre -> how text is split before BPE (llama.cpp, llama_vocab::impl::load).
PRE_TOKENIZERS: dict[str, dict[str, Any]] = {
    "smollm": _DIGITS,
    "starcoder": _DIGITS,
    "refact": _DIGITS,
    "gpt-2": _BYTE_LEVEL,
    "llama-bpe": _LLAMA3_SPLIT,
}


def make_tokenizer_json(
    tokens: Sequence[str], merges: Sequence[str], control: Iterable[int], pre: str, whole: Iterable[int] = ()
) -> bytes:
    """tokenizer.json of a byte-level BPE from what a GGUF holds.

    Args:
        control: ids of tokens that are no text.
        whole: ids of tokens that are text, and are never put together of others.

    Raises:
        Terminal: TokenizerMismatch, ``pre`` is unknown or a merge is malformed.
    """
    if pre not in PRE_TOKENIZERS:
        raise Terminal(
            Reason.TOKENIZER_MISMATCH,
            f"The GGUF's pre-tokenizer is {pre!r}; known are {', '.join(PRE_TOKENIZERS)}. "
            "Use the safetensors checkpoint with its tokenizer.json.",
        )
    pairs = [merge.split(" ") for merge in merges]
    if any(len(pair) != 2 for pair in pairs):
        raise Terminal(
            Reason.TOKENIZER_MISMATCH, "A merge of the GGUF's tokenizer is not of two tokens: convert it again."
        )
    special = frozenset(control)
    added = [
        {"id": i, "content": tokens[i], "special": i in special, "normalized": False}
        | {"single_word": False, "lstrip": False, "rstrip": False}
        for i in sorted({*special, *whole})
    ]
    model: dict[str, Any] = {"type": "BPE", "vocab": {token: i for i, token in enumerate(tokens)}, "merges": pairs}
    model |= {"dropout": None, "unk_token": None, "continuing_subword_prefix": None, "end_of_word_suffix": None}
    model |= {"fuse_unk": False, "byte_fallback": False, "ignore_merges": pre == "llama-bpe"}
    document: dict[str, Any] = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": None,
    }
    document |= {"pre_tokenizer": PRE_TOKENIZERS[pre], "post_processor": None, "model": model}
    document |= {"decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}}
    return canonical_json(document).encode()


def parse_tokenizer(text: bytes) -> Tokenizer:
    """The tokenizer in tokenizer.json.

    Raises:
        Terminal: TokenizerMismatch, the library cannot read it.
    """
    try:
        return Tokenizer.from_buffer(text)
    except Exception as error:
        raise Terminal(
            Reason.TOKENIZER_MISMATCH, f"tokenizer.json cannot be read ({error}): upload the one of this checkpoint."
        ) from error


def check_fit(tokenizer: Tokenizer, vocab: int) -> None:
    """Raises Terminal (TokenizerMismatch) where tokenizer and weights are of different models."""
    ids = tokenizer.get_vocab(with_added_tokens=True).values()
    known, highest = len(ids), max(ids, default=-1)
    if highest >= vocab or known < LEAST_SHARE * vocab:
        raise Terminal(
            Reason.TOKENIZER_MISMATCH,
            f"The tokenizer has {known} tokens with ids up to {highest}, the weights have {vocab}: "
            "upload the tokenizer.json that belongs to this checkpoint.",
        )


def check_markers(tokenizer: Tokenizer, serving: ServingOptions) -> None:
    """Raises Terminal (MarkersNotInTokenizer) where fill-in-the-middle markers are no single tokens."""
    if serving.prompt_format is not PromptFormat.FIM:
        return
    fields = {"prefix": serving.fim_prefix, "suffix": serving.fim_suffix, "middle": serving.fim_middle}
    missing = [f"{name} {marker!r}" for name, marker in fields.items() if tokenizer.token_to_id(marker) is None]
    if missing:
        raise Terminal(
            Reason.MARKERS_NOT_IN_TOKENIZER,
            f"serving.prompt: the tokenizer has no token for the marker {', '.join(missing)}: "
            "set the model's own markers, or format: plain.",
        )


def end_ids(tokenizer: Tokenizer, declared: Iterable[int], vocab: int) -> tuple[int, ...]:
    """Tokens that end a completion: the declared ones first, then those that end a text in any model family.

    Raises:
        Terminal: TokenizerMismatch, a declared one is outside the vocabulary, or there is none at all.
    """
    first = tuple(dict.fromkeys(declared))
    known = sorted(i for i in map(tokenizer.token_to_id, END_OF_TEXT) if i is not None)
    ids = tuple(dict.fromkeys((*first, *known)))
    outside = [i for i in ids if not 0 <= i < vocab]
    if outside or not ids:
        what = f"the end token {outside[0]} is outside the vocabulary" if outside else "no end token is declared"
        raise Terminal(Reason.TOKENIZER_MISMATCH, f"{what} of {vocab} tokens: set eos_token_id in config.json.")
    return ids


def first_id(tokenizer: Tokenizer) -> int | None:
    """The token that the tokenizer itself puts before a text."""
    bare, first = (tokenizer.encode("a", add_special_tokens=special).ids[:1] for special in (False, True))
    return None if bare == first else int(first[0])


def make_vocabulary(tokenizer: Tokenizer, size: int) -> list[str]:
    """Token strings by id, with ``<extra_id_N>`` where the weights have rows that the tokenizer does not use."""
    tokens = {i: token for token, i in tokenizer.get_vocab(with_added_tokens=True).items()}
    return [tokens.get(i, f"<extra_id_{i}>") for i in range(size)]
