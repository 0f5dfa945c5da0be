"""An engine folder as the tensorrt_llm runtime leaves it, for ``standin_tensorrt_llm``: but for its ``rank0.engine``.

``rank0.engine`` is a tar of a CTranslate2 model; ``config.json`` has the fields of trtllm-build's that serving reads.
The golden questions of a verified engine go with it.
"""

from __future__ import annotations

import json
import tarfile
from pathlib import Path

from hotstart.engines.verify.golden import GOLDEN_NAME

from tests.support import triton

STANDIN = Path(__file__).resolve().parent / "standin_tensorrt_llm"
MODEL_FILES = ("config.json", "model.bin", "vocabulary.json")


def write_standin_engine(folder: Path, ctranslate2_engine: Path, *, batch_size: int = 4, ranks: int = 1) -> Path:
    """Writes the engine into ``folder`` (made if need be) and returns it."""
    folder.mkdir(parents=True, exist_ok=True)
    with tarfile.open(folder / "rank0.engine", "w") as archive:
        for name in MODEL_FILES:
            archive.add(ctranslate2_engine / name, name)
    facts = json.loads((ctranslate2_engine / "engine.json").read_text())
    (folder / "engine.json").write_text(json.dumps({**facts, "runtime": "tensorrt_llm"}))
    (folder / "config.json").write_text(
        json.dumps(
            {
                "version": "1.2.1",
                "pretrained_config": {
                    "architecture": "MPTForCausalLM",
                    "position_embedding_type": "alibi",
                    "mapping": {"world_size": ranks, "tp_size": ranks, "pp_size": 1},
                },
                "build_config": {"max_batch_size": batch_size, "max_seq_len": facts["context_length"]},
            }
        )
    )
    for name in ("tokenizer.json", GOLDEN_NAME):
        if (ctranslate2_engine / name).exists():
            (folder / name).write_bytes((ctranslate2_engine / name).read_bytes())
    return folder


def make_backends(folder: Path) -> Path:
    """A folder of backends with Triton's own and the stand-in as ``tensorrtllm``."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "python").symlink_to(triton.installation().root / "backends" / "python")
    (folder / "tensorrtllm").symlink_to(STANDIN)
    return folder
