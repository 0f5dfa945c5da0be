"""The engine's tokenizer: as prompts need it, and as what follows a prompt is decoded by it."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from hotstart.engines.triton.completion.generation import NextText
from hotstart.exchange.messages import PromptFormat
from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream

#: Tokens of the prompt that the decoder sees, so that a first token keeps its space: a character of four and a marker
#: stand whole in them.
CONTEXT_FOR_DECODING = 8
BROKEN_CHARACTER = "\N{REPLACEMENT CHARACTER}"


def load_tokenizer(path: Path, prompt_format: PromptFormat) -> Tokenizer:
    """The tokenizer for prompts of this format.

    It has no post-processor: all that one would still do, as special tokens are never added, is to take white space
    out of the offsets by which the lines of a prompt are found.
    """
    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.post_processor = None
    # In a fim prompt our markers alone may be markers; who writes plain prompts may place them by hand.
    tokenizer.encode_special_tokens = prompt_format is PromptFormat.FIM
    return tokenizer


def make_next_text(tokenizer: Tokenizer, prompt: Sequence[int]) -> NextText:
    """Decodes the tokens that follow ``prompt``, one by one."""
    stream = DecodeStream(ids=choose_context(tokenizer, prompt), skip_special_tokens=True)
    return partial(stream.step, tokenizer)


def choose_context(tokenizer: Tokenizer, prompt: Sequence[int]) -> list[int]:
    """The end of ``prompt`` that the decoder is given, up to its last character that is whole. Pure.

    The decoder waits for the rest of a broken one, and would then give all of its context as new text. A prompt may
    also hold the sign for a broken character as it is, which is the same to the decoder.
    """
    context = list(prompt[-CONTEXT_FOR_DECODING:])
    while context and tokenizer.decode(context, skip_special_tokens=True).endswith(BROKEN_CHARACTER):
        context.pop()
    return context
