"""What the checkpoint answers: the top token at each position, and how far it stands above the second.

Computed once a checkpoint by the reference network, and kept in a file under a name that changes with checkpoint,
tokenizer, questions and reference.
"""

from __future__ import annotations

import hashlib
import json
import logging
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from hotstart.engines.checkpoints.checkpoint import Array
from hotstart.engines.key import canonical_json
from hotstart.engines.reference.network import Reference
from hotstart.engines.verify.samples import SAMPLES_VERSION, Question

log = logging.getLogger(__name__)
REFERENCE_VERSION = 1  # raised whenever a reference's answers change


@dataclass(frozen=True)
class Expectation:
    """``tokens`` and ``margins`` (top-1 logit less top-2) belong to the questions' positions, question by question.

    ``spread`` is the median over all positions of the standard deviation of a position's logits: the unit in which
    rounding is measured, for models differ in the scale of their logits. ``seconds`` is what the reference took.
    """

    questions: tuple[Question, ...]
    tokens: tuple[tuple[int, ...], ...]
    margins: tuple[tuple[float, ...], ...]
    spread: float
    reference: str
    seconds: float

    def to_json(self) -> str:
        """The expectation as text, with a digest of itself: it may lie for months in a store."""
        value = asdict(self)
        return canonical_json(value | {"sha256": _digest(value)})

    @classmethod
    def from_json(cls, text: str) -> Expectation:
        """The inverse of ``to_json``. Raises ValueError, TypeError or KeyError where it is not one."""
        value: dict[str, Any] = json.loads(text)
        if value.pop("sha256") != _digest(value):
            raise ValueError("it is not what was written: its sha256 differs")
        questions = tuple(
            Question(entry["name"], tuple(entry["ids"]), tuple(entry["positions"])) for entry in value["questions"]
        )
        tokens, margins = (tuple(tuple(row) for row in value[name]) for name in ("tokens", "margins"))
        found = cls(questions, tokens, margins, value["spread"], value["reference"], value["seconds"])
        asked = [len(question.positions) for question in questions]
        if asked != [len(row) for row in tokens] or asked != [len(row) for row in margins]:
            raise ValueError("positions, tokens and margins differ in number")
        return found


def compute_expectation(reference: Reference, questions: Sequence[Question]) -> Expectation:
    """Runs the reference over all questions; each layer's weights are read once.

    Raises:
        Terminal: CheckpointCorrupt, a weight is not finite.
    """
    began = time.monotonic()
    logits = reference.logits_of_all([q.ids for q in questions], [q.positions for q in questions])
    tops = [find_tops(rows) for rows in logits]
    spreads = np.concatenate([rows.std(axis=-1) for rows in logits])
    return Expectation(
        questions=tuple(questions),
        tokens=tuple(tokens for tokens, _ in tops),
        margins=tuple(margins for _, margins in tops),
        spread=round(float(np.median(spreads)), 4),
        reference=reference.name,
        seconds=round(time.monotonic() - began, 2),
    )


def find_tops(logits: Array) -> tuple[tuple[int, ...], tuple[float, ...]]:
    """Top-1 token of each row of ``logits`` [positions, vocab], and its margin over the second. Pure."""
    tokens = logits.argmax(axis=-1)
    two = np.partition(logits, -2, axis=-1)[:, -2:]
    margins = two[:, 1] - two[:, 0]
    return tuple(int(token) for token in tokens), tuple(round(float(margin), 4) for margin in margins)


def make_name(checkpoint_digest: str, tokenizer_digest: str) -> str:
    """The file name of an expectation: all that it depends on, as one digest, 64 hex. Pure."""
    return _digest([checkpoint_digest, tokenizer_digest, SAMPLES_VERSION, REFERENCE_VERSION])


def _digest(value: Any) -> str:
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


def recall_or_compute(
    folder: Path, checkpoint_digest: str, tokenizer_digest: str, compute: Callable[[], Expectation]
) -> Expectation:
    """The expectation that is kept in ``folder``, else a new one, which is kept. A damaged file is computed anew.

    Raises:
        OSError: the folder cannot be written.
    """
    path = folder / make_name(checkpoint_digest, tokenizer_digest)
    try:
        found = Expectation.from_json(path.read_text())
        log.info("expectation recalled path=%s positions=%d", path, sum(map(len, found.tokens)))
        return found
    except FileNotFoundError:
        log.debug("no expectation kept path=%s", path)
    except (ValueError, TypeError, KeyError) as error:
        log.warning("expectation unreadable, computing it anew path=%s error=%s", path, error)
    made = compute()
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile("w", dir=folder, prefix=path.name, delete=False) as file:
        file.write(made.to_json())
    Path(file.name).replace(path)
    log.info("expectation computed positions=%d seconds=%.1f", sum(map(len, made.tokens)), made.seconds)
    return made
