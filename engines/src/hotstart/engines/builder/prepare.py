"""Checkpoint at its source -> checkpoint opened on disk, with its digests: the part that both Jobs share.

Small files come first, so that a bad config, tokenizer or marker is found before the first gigabyte.
"""

from __future__ import annotations

import hashlib
import logging
from dataclasses import dataclass
from pathlib import Path

from hotstart.engines.architectures import CTRANSLATE2, OURS, TENSORRT_LLM, check_buildable, require_architecture
from hotstart.engines.checkpoints.checkpoint import Checkpoint
from hotstart.engines.checkpoints.choose import (
    SINGLE_FILES,
    Choice,
    ChosenFile,
    FileRole,
    choose_files,
    narrow_to_index,
    parse_json,
)
from hotstart.engines.checkpoints.mpt_config import MptFacts
from hotstart.engines.checkpoints.opening import (
    check_checkpoint,
    check_serving,
    open_checkpoint,
    scan_weights,
)
from hotstart.engines.checkpoints.source import OnBytes, Source, download
from hotstart.engines.checkpoints.tokenizer import first_id, parse_tokenizer
from hotstart.engines.checkpoints.torch_folder import TorchFolder, require_torch
from hotstart.engines.checkpoints.trtllm_folder import TrtllmFolder, check_verifiable
from hotstart.engines.errors import Reason, Terminal
from hotstart.engines.key import make_checkpoint_digest
from hotstart.engines.runtimes.ctranslate2_limits import check_network
from hotstart.engines.runtimes.tensorrt_llm.checkpoint_config import check_mpt_network
from hotstart.exchange.messages import ServingOptions

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Prepared:
    """A checkpoint on disk that fits the serving options, and the digests of what was read from ``source``."""

    checkpoint: Checkpoint
    choice: Choice
    checkpoint_digest: str
    tokenizer_digest: str
    source: Source

    def check_unchanged(self) -> None:
        """To be called when all weights have been read: files that are used where they lie may have been replaced.

        Raises:
            Retryable: CheckpointChanged.
        """
        for chosen in self.choice.files:
            self.source.check_unchanged(chosen.file)


def choose(source: Source, folder: Path, digests: dict[str, str]) -> Choice:
    """Lists the checkpoint, downloads its small files into ``folder`` and returns all of its files."""
    choice = choose_files(source.list_files(), where=source.where)
    small = tuple(chosen for chosen in choice.files if chosen.role is not FileRole.WEIGHTS)
    digests |= download(source, small, folder, on_bytes=lambda count: None, heads_only=False)
    if choice.index:
        index = parse_json((folder / choice.index).read_bytes(), choice.index)
        choice = narrow_to_index(choice, index, where=source.where)
    count = len(choice.files)
    log.info("checkpoint found uri=%s format=%s files=%d bytes=%d", source.where, choice.format, count, choice.size)
    return choice


def prepare(
    source: Source,
    folder: Path,
    serving: ServingOptions,
    *,
    on_choice: OnBytes,
    on_bytes: OnBytes,
    heads_only: bool,
    runtime: str = "",
) -> Prepared:
    """Downloads and checks the checkpoint. ``on_choice`` hears its size, ``on_bytes`` each block.

    With ``runtime`` it must be one that the runtime builds. No tensor may hold NaN or Inf.

    Raises:
        EngineError: whatever is wrong with store or checkpoint.
    """
    digests: dict[str, str] = {}
    choice = choose(source, folder, digests)
    on_choice(choice.size)
    if choice.format != "gguf":
        checkpoint = open_checkpoint(folder, choice)  # reads the small files only
        check_runtime_builds(checkpoint, runtime)
        if is_read_by_upstream(checkpoint, runtime):
            check_usual_names(choice)
        if choice.format == "torch" and (runtime == CTRANSLATE2 or not heads_only):
            require_torch(choice.files[-1].file.name)  # the image that inspects for CTranslate2 is the one that builds
        check_serving(checkpoint, serving)
    weights = tuple(chosen for chosen in choice.files if chosen.file.name not in digests)
    digests |= download(source, weights, folder, on_bytes=on_bytes, heads_only=heads_only)
    checkpoint = open_checkpoint(folder, choice)
    check_runtime_builds(checkpoint, runtime)
    check_checkpoint(checkpoint, serving)
    if isinstance(checkpoint, TorchFolder) and is_read_by_upstream(checkpoint, runtime):
        checkpoint.check_plain()
        if not heads_only:
            scan_weights(checkpoint)  # what passed in an order that no scan understands is found here
    return Prepared(
        checkpoint=checkpoint,
        choice=choice,
        checkpoint_digest=digest_of(choice.files, digests),
        tokenizer_digest=make_tokenizer_digest(checkpoint),
        source=source,
    )


def check_runtime_builds(checkpoint: Checkpoint, runtime: str) -> None:
    """Raises Terminal (UnsupportedArchitecture) where ``runtime`` is named and does not build this network."""
    facts = checkpoint.facts
    if runtime:
        check_buildable(facts.architecture, checkpoint.format, runtime)
    if runtime == CTRANSLATE2:
        check_network(facts)
    if runtime == TENSORRT_LLM and isinstance(facts, MptFacts):
        check_mpt_network(facts)
    if isinstance(checkpoint, TrtllmFolder):
        check_verifiable(facts.architecture, checkpoint.layout.quantization)


def is_read_by_upstream(checkpoint: Checkpoint, runtime: str) -> bool:
    """Whether a script of TensorRT-LLM reads the checkpoint's own files."""
    if runtime != TENSORRT_LLM or checkpoint.format == TENSORRT_LLM:
        return False
    return require_architecture(checkpoint.facts.architecture).converters[runtime] not in OURS


def check_usual_names(choice: Choice) -> None:
    """Raises Terminal (UnsupportedArchitecture) where the weights go by a name that transformers does not look for."""
    weights = [chosen.file.name for chosen in choice.files if chosen.role is FileRole.WEIGHTS]
    if not choice.index and weights != [SINGLE_FILES[choice.format]]:
        raise Terminal(
            Reason.UNSUPPORTED_ARCHITECTURE,
            f"TensorRT-LLM's converter for this network finds weights by their usual name only, not as {weights[0]}: "
            f"call the file {SINGLE_FILES[choice.format]}, or save the checkpoint with save_pretrained.",
        )


def make_tokenizer_digest(checkpoint: Checkpoint) -> str:
    """Over tokenizer.json, and over the token that begins a text where tokenizer.json does not say it."""
    digest = hashlib.sha256(checkpoint.tokenizer_json)
    if checkpoint.bos_id != first_id(parse_tokenizer(checkpoint.tokenizer_json)):
        digest.update(f"bos_id={checkpoint.bos_id}".encode())
    return digest.hexdigest()


def digest_of(files: tuple[ChosenFile, ...], digests: dict[str, str]) -> str:
    """The checkpoint's digest: over weights and config files, not over tokenizer files."""
    return make_checkpoint_digest(digests[chosen.file.name] for chosen in files if chosen.in_digest)
