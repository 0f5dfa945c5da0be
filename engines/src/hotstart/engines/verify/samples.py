"""What an engine is asked: code in several languages, written for this project, and positions in it.

The texts lie in ``samples/`` beside this module, under the project's own licence. A position is a token's index in a
text: the question is which token comes after it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from importlib.resources import files

from tokenizers import Tokenizer

SAMPLES_VERSION = 1  # raised whenever a text, or the choice of positions, changes
TOKENS_A_SAMPLE = 128  # a text is cut here
POSITIONS_A_SAMPLE = 20
FIRST_POSITION = 7  # before it there is too little to go on


@dataclass(frozen=True)
class Sample:
    """One piece of code."""

    name: str
    text: str


@dataclass(frozen=True)
class Question:
    """One text as tokens, and the positions in it that are asked."""

    name: str
    ids: tuple[int, ...]
    positions: tuple[int, ...]


def load_samples() -> tuple[Sample, ...]:
    """All texts, sorted by name."""
    folder = files(__package__).joinpath("samples")
    found = sorted((entry for entry in folder.iterdir() if entry.name.endswith(".txt")), key=lambda entry: entry.name)
    return tuple(Sample(entry.name.removesuffix(".txt"), entry.read_text(encoding="utf-8")) for entry in found)


def make_questions(
    samples: Iterable[Sample], tokenizer: Tokenizer, bos_id: int | None, context_length: int
) -> tuple[Question, ...]:
    """The samples in the checkpoint's own tokens, ``bos_id`` first where it has one; some 200 positions in all.

    ``context_length`` is 0 where the checkpoint does not say it.
    """
    limit = min(TOKENS_A_SAMPLE, context_length or TOKENS_A_SAMPLE)
    head = () if bos_id is None else (bos_id,)
    questions = []
    for sample in samples:
        ids = (*head, *tokenizer.encode(sample.text, add_special_tokens=False).ids)[:limit]
        questions.append(Question(sample.name, ids, choose_positions(len(ids))))
    return tuple(questions)


def choose_positions(length: int) -> tuple[int, ...]:
    """At most ``POSITIONS_A_SAMPLE`` positions of a text of ``length`` tokens, evenly spread, the last one among them.

    A text that is shorter than ``FIRST_POSITION`` is asked at its end only.
    """
    first, last = min(FIRST_POSITION, length - 1), length - 1
    steps = POSITIONS_A_SAMPLE - 1
    return tuple(sorted({first + (last - first) * step // steps for step in range(steps + 1)}))
