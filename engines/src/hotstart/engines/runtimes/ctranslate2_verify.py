"""Proves that a CTranslate2 engine loads and completes: the builder's last step before anything is uploaded."""

from __future__ import annotations

import json
from pathlib import Path

import ctranslate2
import numpy as np
from hotstart.engines.checkpoints.tokenizer import parse_tokenizer
from hotstart.engines.errors import Reason, Terminal

PROMPT = "def fibonacci(n):\n    "
TOKENS = 8


def verify(folder: Path) -> None:
    """Loads the engine twice; logits must be finite, tokens of the vocabulary, and both loads must agree.

    Raises:
        Terminal: VerificationFailed, with what was seen.
    """
    facts = json.loads((folder / "engine.json").read_text())
    tokenizer = parse_tokenizer((folder / "tokenizer.json").read_bytes())
    ids = [] if facts["bos_id"] is None else [facts["bos_id"]]
    ids += tokenizer.encode(PROMPT, add_special_tokens=False).ids
    vocabulary = json.loads((folder / "vocabulary.json").read_text())
    first, second = (_complete(folder, ids, vocabulary) for _ in range(2))
    if first != second:
        raise _failed(f"two loads of the engine complete the same prompt in two ways: {first} and {second}")


def _complete(folder: Path, ids: list[int], vocabulary: list[str]) -> list[int]:
    try:
        generator = ctranslate2.Generator(str(folder), device="cpu", inter_threads=1, intra_threads=1)
        logits = np.asarray(generator.forward_batch([ids]))
        prompt = [[vocabulary[i] for i in ids]]
        result = generator.generate_batch(
            prompt, max_length=TOKENS, min_length=TOKENS, sampling_topk=1, include_prompt_in_result=False
        )
    except (RuntimeError, ValueError) as error:
        raise _failed(f"the engine cannot be loaded or run: {error}") from error
    if not np.isfinite(logits).all():
        raise _failed("the engine computes NaN or Inf for a code prompt")
    tokens = list(result[0].sequences_ids[0])
    if len(tokens) != TOKENS or not all(0 <= token < len(vocabulary) for token in tokens):
        raise _failed(f"the engine completes a code prompt with {tokens}, not with {TOKENS} tokens of its vocabulary")
    return tokens


def _failed(what: str) -> Terminal:
    return Terminal(
        Reason.VERIFICATION_FAILED, f"The engine was built, but {what}: try quantization float32, or report it."
    )
