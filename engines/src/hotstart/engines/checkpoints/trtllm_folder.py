"""A checkpoint that is TensorRT-LLM's already: config.json with ``architecture`` and ``mapping``, rankN.safetensors.

It is taken as it is, without a conversion: so dtype, quantization and parallelism of the recipe must be its own. Names
and shapes are those of TensorRT-LLM 1.2.1; a linear layer is ``[output, input]``. The layout of quantized
weights is the kernels' own, and is not checked.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from hotstart.engines.architectures import TENSORRT_LLM_NAMES
from hotstart.engines.checkpoints.checkpoint import Array, Checkpoint, Shape, decode
from hotstart.engines.checkpoints.choose import RANK
from hotstart.engines.checkpoints.safetensors_folder import DTYPES, Entry, map_entry, read_header
from hotstart.engines.checkpoints.small_files import read_json, read_texts
from hotstart.engines.checkpoints.upstream_config import UpstreamFacts, count_layers
from hotstart.engines.errors import Reason, Terminal
from hotstart.engines.recipe import EngineRecipe

#: Types of quantized weights and their scales, beside those of plain ones.
PACKED = frozenset({"I8", "U8", "I32", "F8_E4M3"})
#: ``quantization.quant_algo`` -> the recipe's quantization.
ALGORITHMS = {None: "none", "W8A16": "int8_weight_only", "W4A16": "int4_weight_only", "FP8": "fp8"}
_LAYER = re.compile(r"^transformer\.layers\.\d+\.(.+)\.weight$")


@dataclass(frozen=True)
class Layout:
    """How the checkpoint was converted; ``quantization`` as in the recipe."""

    tensor_parallel: int
    dtype: str
    quantization: str


class TrtllmFolder:
    """Implements ``Checkpoint``; a tensor's name begins with its rank: ``rank0/transformer.ln_f.weight``."""

    format = "tensorrt_llm"
    folder = None

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        config = self.config = read_json(folder, "config.json")
        self.layout = make_layout(config)
        self.facts = make_trtllm_facts(config)
        self._embedding_split = _embedding_split(config)
        texts = read_texts(folder, self.facts.vocab)
        self.tokenizer_json, self.eos_ids, self.bos_id = texts.tokenizer_json, texts.eos_ids, texts.bos_id
        self._ranks: list[dict[str, Entry]] | None = None
        if any(RANK.match(path.name) for path in folder.iterdir()):
            self.facts = replace(self.facts, parameters=count_rank_parameters(self.facts, self._load()[0]))

    def shapes(self) -> dict[str, Shape]:
        ranks = enumerate(self._load())
        return {f"rank{rank}/{name}": entry.shape for rank, entries in ranks for name, entry in entries.items()}

    def tensor(self, name: str) -> Array:
        """As float32; packed weights as the numbers of their bytes."""
        rank, _, inside = name.partition("/")
        entry = self._load()[int(rank.removeprefix("rank"))][inside]
        if entry.dtype not in PACKED:
            return decode(map_entry(entry))
        kind = np.int32 if entry.dtype == "I32" else np.int8
        return np.array(np.memmap(entry.file, kind, "r", entry.start, entry.shape), dtype=np.float32)

    def check_ranks(self) -> None:
        """All ranks there, of the same tensors, of the shapes that the config says.

        Raises:
            Terminal: CheckpointIncomplete or CheckpointCorrupt, with the file or the tensor.
        """
        ranks = self._load()
        expected = expected_shapes(self.facts, self.layout.tensor_parallel, self._embedding_split)
        for rank, entries in enumerate(ranks):
            differing = sorted(entries.keys() ^ ranks[0].keys())
            if differing:
                raise _corrupt(f"rank{rank} and rank0 differ in the tensor {differing[0]}")
            layers = count_layers(entries)
            if layers != self.facts.layers:
                raise _corrupt(f"rank{rank} has {layers} layers, the config says {self.facts.layers}")
            for name, entry in entries.items():
                wanted = expected.get(_kind(name))
                if wanted is not None and entry.dtype not in PACKED and entry.shape != wanted:
                    raise _corrupt(
                        f"the tensor {name} of rank{rank} has shape {list(entry.shape)}, the config says {list(wanted)}"
                    )

    def _load(self) -> list[dict[str, Entry]]:
        if self._ranks is None:
            paths = self._rank_files()
            self._ranks = [read_header(path, DTYPES.keys() | PACKED) for path in paths]
        return self._ranks

    def _rank_files(self) -> list[Path]:
        found = {int(match[1]): path for path in self._folder.iterdir() if (match := RANK.match(path.name))}
        world = self.layout.tensor_parallel
        missing = [rank for rank in range(world) if rank not in found]
        if missing or len(found) != world:
            wrong = f"rank{missing[0]}.safetensors is missing" if missing else f"there are {len(found)} rank files"
            raise Terminal(
                Reason.CHECKPOINT_INCOMPLETE,
                f"{wrong}; config.json says mapping.world_size {world}: upload the whole checkpoint of one conversion.",
            )
        return [found[rank] for rank in range(world)]


def make_layout(config: Mapping[str, Any]) -> Layout:
    """How the checkpoint was converted.

    Raises:
        Terminal: UnsupportedArchitecture, pipeline parallelism or an unknown quantization; CheckpointCorrupt.
    """
    mapping, quantization = _mapping(config, "mapping"), _mapping(config, "quantization")
    world, ranks = mapping.get("world_size", 1), mapping.get("tp_size", 1)
    if not isinstance(world, int) or isinstance(world, bool) or world < 1 or not isinstance(ranks, int):
        raise _corrupt(f"config.json: mapping.world_size is {world!r} and tp_size {ranks!r}")
    if world != ranks:
        raise Terminal(
            Reason.UNSUPPORTED_ARCHITECTURE,
            f"The checkpoint was converted for {world} ranks of which {ranks} are tensor parallel: only tensor "
            "parallelism is supported; convert it with pp_size 1 and cp_size 1.",
        )
    algorithm = quantization.get("quant_algo")
    if algorithm not in ALGORITHMS:
        known = ", ".join(filter(None, ALGORITHMS))
        raise Terminal(
            Reason.UNSUPPORTED_ARCHITECTURE,
            f"The checkpoint is quantized with {algorithm}; known are {known} and none.",
        )
    return Layout(world, str(config.get("dtype", "float16")), ALGORITHMS[algorithm])


def make_trtllm_facts(config: Mapping[str, Any]) -> UpstreamFacts:
    """The sizes in a TensorRT-LLM config.json.

    Raises:
        Terminal: UnsupportedArchitecture, or CheckpointCorrupt where a field is missing or nonsense.
    """
    name = str(config.get("architecture", "none"))
    if name not in TENSORRT_LLM_NAMES:
        known = ", ".join(sorted(TENSORRT_LLM_NAMES))
        raise Terminal(Reason.UNSUPPORTED_ARCHITECTURE, f"The checkpoint's architecture is {name}; known are {known}.")
    hidden, heads = _size(config, "hidden_size"), _size(config, "num_attention_heads")
    return UpstreamFacts(
        architecture=name,
        layers=_size(config, "num_hidden_layers"),
        hidden=hidden,
        intermediate=_size(config, "intermediate_size", 4 * hidden),
        heads=heads,
        kv_heads=_size(config, "num_key_value_heads", heads),
        head_dim=_size(config, "head_size", hidden // heads),
        vocab=_size(config, "vocab_size"),
        context_length=_size(config, "max_position_embeddings", 0, least=0),  # an MPT's has none
    )


def expected_shapes(facts: UpstreamFacts, ranks: int, embedding_split: int | None) -> dict[str, Shape]:
    """Shapes of one rank's plain tensors by their names, those of a layer without its number. Pure.

    ``embedding_split`` is the dimension along which the input embedding is split, or None.
    """
    hidden, wide = facts.hidden, facts.intermediate // ranks
    kv_heads = max(facts.kv_heads // ranks, 1)
    queries = facts.heads // ranks * facts.head_dim
    rows = -(-facts.vocab // ranks)
    embedding = {None: (facts.vocab, hidden), 0: (rows, hidden), 1: (facts.vocab, hidden // ranks)}[embedding_split]
    return {
        "transformer.vocab_embedding.weight": embedding,
        "lm_head.weight": (rows, hidden),
        "transformer.ln_f.weight": (hidden,),
        "input_layernorm": (hidden,),
        "post_layernorm": (hidden,),
        "attention.qkv": (queries + 2 * kv_heads * facts.head_dim, hidden),
        "attention.dense": (hidden, queries),
        "mlp.fc": (wide, hidden),
        "mlp.gate": (wide, hidden),
        "mlp.proj": (hidden, wide),
    }


def count_rank_parameters(facts: UpstreamFacts, entries: Mapping[str, Entry]) -> int:
    """Weights of the whole network by the tensors of one rank: those that are split count whole, scales do not."""
    whole = expected_shapes(facts, 1, None)
    weights = {name: entry.shape for name, entry in entries.items() if name.endswith((".weight", ".bias"))}
    return sum(math.prod(whole.get(_kind(name), shape)) for name, shape in weights.items())


def check_as_it_is(checkpoint: Checkpoint, recipe: EngineRecipe) -> None:
    """Raises Terminal (UnsupportedRecipe) where the checkpoint is not what the recipe takes without a conversion."""
    if not isinstance(checkpoint, TrtllmFolder):
        raise Terminal(
            Reason.UNSUPPORTED_RECIPE,
            f"The recipe takes a TensorRT-LLM checkpoint as it is, and this one is of the format {checkpoint.format}: "
            "set checkpoint.revision to have it inspected again.",
        )
    check_recipe_is_layout(checkpoint.layout, recipe)


def check_recipe_is_layout(layout: Layout, recipe: EngineRecipe) -> None:
    """Raises Terminal (UnsupportedRecipe) where the recipe asks for another conversion than the checkpoint's."""
    asked = Layout(recipe.tensor_parallel, recipe.dtype, recipe.quantization)
    if asked != layout:
        raise Terminal(
            Reason.UNSUPPORTED_RECIPE,
            f"The checkpoint is already converted, for tensorParallel {layout.tensor_parallel}, dtype {layout.dtype} "
            f"and quantization {layout.quantization}; engine asks for {asked.tensor_parallel}, {asked.dtype} and "
            f"{asked.quantization}: ask for the same, or use the original checkpoint.",
        )


def check_verifiable(architecture: str, quantization: str) -> None:
    """Raises Terminal (UnsupportedArchitecture) where nobody knows what the network should compute."""
    if architecture != "MPTForCausalLM" or quantization != "none":
        raise Terminal(
            Reason.UNSUPPORTED_ARCHITECTURE,
            f"An engine of this TensorRT-LLM checkpoint ({architecture}, quantization {quantization}) cannot be "
            "verified: what it should compute is known of MPT without quantization only. Give the original checkpoint.",
        )


def _kind(name: str) -> str:
    layer = _LAYER.match(name)
    return layer[1] if layer else name


def _embedding_split(config: Mapping[str, Any]) -> int | None:
    if not config.get("use_parallel_embedding"):
        return None
    return 1 if config.get("embedding_sharding_dim") == 1 else 0


def _mapping(config: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    value = config.get(name) or {}
    if not isinstance(value, Mapping):
        raise _corrupt(f"config.json: {name} is no object")
    return value


def _size(config: Mapping[str, Any], name: str, default: int | None = None, *, least: int = 1) -> int:
    value = config.get(name)
    value = default if value is None else value
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise _corrupt(f"config.json: {name} is {value!r}, it must be a whole number of at least {least}")
    return value


def _corrupt(what: str) -> Terminal:
    return Terminal(Reason.CHECKPOINT_CORRUPT, f"The TensorRT-LLM checkpoint is not of one piece: {what}.")
