"""Opens the chosen files of a checkpoint, once they lie in a folder, and checks all that needs no weights."""

from __future__ import annotations

from pathlib import Path

from hotstart.engines.checkpoints.checkpoint import Checkpoint, check_shapes
from hotstart.engines.checkpoints.choose import Choice
from hotstart.engines.checkpoints.safetensors_folder import SafetensorsFolder
from hotstart.engines.checkpoints.tokenizer import check_fit, check_markers, parse_tokenizer
from hotstart.engines.errors import Reason, Terminal
from hotstart.exchange.messages import ServingOptions


def open_checkpoint(folder: Path, choice: Choice) -> Checkpoint:
    """The checkpoint in ``folder``.

    Raises:
        Terminal: it cannot be what it says, or is not supported.
    """
    if choice.format == "gguf":
        from hotstart.engines.checkpoints.gguf_file import GgufFile  # only here: its library takes long to load

        return GgufFile(folder / choice.files[0].file.name)
    return SafetensorsFolder(folder)


def check_checkpoint(checkpoint: Checkpoint, serving: ServingOptions) -> None:
    """Shapes, tokenizer and the model's serving options against the checkpoint, without reading weights.

    Raises:
        Terminal: with what does not fit what.
    """
    check_shapes(checkpoint)
    check_serving(checkpoint, serving)


def check_serving(checkpoint: Checkpoint, serving: ServingOptions) -> None:
    """The tokenizer against the vocabulary, the fill-in-the-middle markers, and the context length."""
    tokenizer = parse_tokenizer(checkpoint.tokenizer_json)
    check_fit(tokenizer, checkpoint.facts.vocab)
    check_markers(tokenizer, serving)
    wanted, context = serving.max_input_tokens + serving.max_new_tokens, checkpoint.facts.context_length
    if wanted > context:
        raise Terminal(
            Reason.UNSUPPORTED_RECIPE,
            f"inputTokens {serving.max_input_tokens} and maxNewTokens {serving.max_new_tokens} are {wanted} tokens "
            f"together, the checkpoint was trained for {context}: lower engine.limits or serving.maxNewTokens.",
        )
