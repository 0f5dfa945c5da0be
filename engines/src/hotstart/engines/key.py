"""The engine's key: a sha256 over a canonical form of all that changes the engine's bytes or their validity. Pure.

Not in it: names, paths, times, the order of files, images and the tokenizer (a patched image must not rebuild the
fleet). ``diff_inputs`` says in words which part of it differs from another engine.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import Any

from hotstart.engines.recipe import FULL, EngineRecipe

KEY_FORMAT = 1  # raised only if the canonical form itself changes: every key changes with it
NAME_LENGTH = 40


class _Absent:
    def __repr__(self) -> str:
        return "absent"


ABSENT = _Absent()


def canonical_json(value: Any) -> str:
    """JSON with sorted keys, no spaces, ASCII only."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def make_checkpoint_digest(file_digests: Iterable[str]) -> str:
    """One sha256 over the sha256 digests of the checkpoint's weight and config files, whatever their order or names."""
    return hashlib.sha256("\n".join(sorted(file_digests)).encode()).hexdigest()


def key_inputs(checkpoint_digest: str, recipe: EngineRecipe) -> dict[str, Any]:
    """The inputs of the key as plain JSON; it also stands in the manifest, so that a miss can be explained.

    An engine of ctranslate2 is built for no limits: they bound serving only and are left out of its key. ``rebuild``
    stands in it only where it is not the default, so that keys of before stay what they are.
    """
    recipe_inputs = recipe.to_dict()
    recipe_inputs["toolchain"]["libraries"] = sorted(map(list, recipe.toolchain.libraries))
    if recipe.toolchain.runtime == "ctranslate2":
        del recipe_inputs["limits"]
    if recipe.rebuild == FULL:
        del recipe_inputs["rebuild"]
    return {"format": KEY_FORMAT, "checkpoint": checkpoint_digest, "recipe": recipe_inputs}


def make_key(inputs: Mapping[str, Any]) -> str:
    """The key, 64 hex digits, of what ``key_inputs`` gives."""
    return hashlib.sha256(canonical_json(inputs).encode()).hexdigest()


def engine_name(key: str) -> str:
    """The name of the Engine object with this key."""
    return key[:NAME_LENGTH]


def diff_inputs(wanted: Mapping[str, Any], other: Mapping[str, Any], prefix: str = "") -> tuple[str, ...]:
    """What differs, as ``recipe.dtype: float16 -> float32``, sorted by path; empty exactly where the two are equal.

    A part that one side lacks is said as ``absent``.
    """
    found: list[str] = []
    for name in sorted({*wanted, *other}):
        path, left, right = f"{prefix}{name}", other.get(name, ABSENT), wanted.get(name, ABSENT)
        if isinstance(left, Mapping) and isinstance(right, Mapping):
            found.extend(diff_inputs(right, left, f"{path}."))
        elif left != right:
            found.append(f"{path}: {left} -> {right}")
    return tuple(found)
