"""Opens the chosen files of a checkpoint, once they lie in a folder, and checks them: first all that needs no weights.

The weights themselves are looked at as they are downloaded (``scan``), and again by our converters as they read them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

from hotstart.engines.checkpoints.checkpoint import Checkpoint, check_shapes, read_weight
from hotstart.engines.checkpoints.choose import Choice
from hotstart.engines.checkpoints.safetensors_folder import SafetensorsFolder
from hotstart.engines.checkpoints.tokenizer import check_fit, check_markers, parse_tokenizer
from hotstart.engines.checkpoints.trtllm_folder import TrtllmFolder
from hotstart.engines.checkpoints.upstream_config import UpstreamFacts
from hotstart.engines.checkpoints.upstream_shapes import check_upstream_shapes
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
    if choice.format == "torch":
        from hotstart.engines.checkpoints.torch_folder import TorchFolder

        return TorchFolder(folder, tuple(chosen.file.name for chosen in choice.files))
    if choice.format == "tensorrt_llm":
        return TrtllmFolder(folder)
    return SafetensorsFolder(folder)


def check_checkpoint(checkpoint: Checkpoint, serving: ServingOptions) -> None:
    """Shapes, tokenizer and the model's serving options against the checkpoint, without reading weights.

    Raises:
        Terminal: with what does not fit what.
    """
    if isinstance(checkpoint, TrtllmFolder):
        checkpoint.check_ranks()
    elif isinstance(checkpoint.facts, UpstreamFacts):
        check_upstream_shapes(checkpoint.facts, checkpoint.shapes())
    else:
        check_shapes(checkpoint)
    check_serving(checkpoint, serving)


def check_serving(checkpoint: Checkpoint, serving: ServingOptions) -> None:
    """The tokenizer against the vocabulary, the fill-in-the-middle markers, and the context length."""
    tokenizer = parse_tokenizer(checkpoint.tokenizer_json)
    check_fit(tokenizer, checkpoint.facts.vocab)
    check_markers(tokenizer, serving)
    wanted, context = serving.max_input_tokens + serving.max_new_tokens, checkpoint.facts.context_length
    if context and wanted > context:
        raise Terminal(
            Reason.UNSUPPORTED_RECIPE,
            f"inputTokens {serving.max_input_tokens} and maxNewTokens {serving.max_new_tokens} are {wanted} tokens "
            f"together, the checkpoint was trained for {context}: lower engine.limits or serving.maxNewTokens.",
        )


def scan_weights(checkpoint: Checkpoint, progress: Callable[[float], None] = lambda share: None) -> None:
    """Reads every tensor once, one at a time; for checkpoints whose weights pass through no ``read_weight`` later.

    Raises:
        Terminal: CheckpointCorrupt names the first tensor that holds NaN or Inf.
    """
    shapes = checkpoint.shapes()
    total, done = sum(math.prod(shape) for shape in shapes.values()), 0
    for name, shape in shapes.items():
        read_weight(checkpoint, name)
        done += math.prod(shape)
        progress(done / max(total, 1))
