"""What a key costs: for a checkpoint of 100 files whose digests are known, and the reading and hashing before it."""

from __future__ import annotations

import hashlib
import os
import tempfile
import time
from pathlib import Path

from hotstart.engines.key import key_inputs, make_checkpoint_digest, make_key
from hotstart.engines.recipe import EngineRecipe, make_toolchain
from record import median, write

FILES = 100
FILE_BYTES = 10_000_000
RUNS = 7


def main() -> None:
    recipe = EngineRecipe(make_toolchain("tensorrt_llm", "hotstart-mpt"), "float16", "none")
    digests = [hashlib.sha256(str(number).encode()).hexdigest() for number in range(FILES)]
    with tempfile.TemporaryDirectory(prefix="hotstart-key-") as folder:
        paths = [Path(folder) / f"{number}.safetensors" for number in range(FILES)]
        for path in paths:
            path.write_bytes(os.urandom(FILE_BYTES))
        key_ms, hash_seconds = [], []
        for _ in range(RUNS):
            began = time.perf_counter()
            make_key(key_inputs(make_checkpoint_digest(digests), recipe))
            key_ms.append((time.perf_counter() - began) * 1000)
            began = time.perf_counter()
            for path in paths:
                with path.open("rb") as content:
                    hashlib.file_digest(content, "sha256")
            hash_seconds.append(time.perf_counter() - began)
    figures = {"files": FILES, "runs": RUNS, "key_ms": median(key_ms), "hash_seconds": median(hash_seconds)}
    write("key", {**figures, "hash_mb_per_s": median([FILES * FILE_BYTES / 1e6 / s for s in hash_seconds])})


if __name__ == "__main__":
    main()
