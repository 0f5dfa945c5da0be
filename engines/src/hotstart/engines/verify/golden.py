"""golden.json: a few questions with their answers, in the engine's folder, asked again at each load before Ready.

They go with the engine to every pod, as text: so a wrong tokenizer is found as well as a wrong engine, or a machine on
which the right one computes something else. Standard library only, for the completion model reads it too.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

GOLDEN_NAME = "golden.json"
GOLDEN_FORMAT = 1
MOST_GOLDENS = 10
LONGEST_GOLDEN = 64  # tokens of a prompt, the first one of a text included: a load must stay quick, where it can

#: Text -> tokens, without the tokens that a tokenizer adds by itself.
Encode = Callable[[str], Sequence[int]]


@dataclass(frozen=True)
class Golden:
    """``text`` gives ``ids`` (without the begin-of-text token), and after them the engine's top token is ``token``."""

    text: str
    ids: tuple[int, ...]
    token: int


@dataclass(frozen=True)
class Candidate:
    """A position that may become golden: the text that ends there."""

    question: str
    text: str
    ids: tuple[int, ...]
    token: int
    margin: float


def choose_goldens(candidates: Iterable[Candidate], encode: Encode) -> tuple[Golden, ...]:
    """The ``MOST_GOLDENS`` clearest, one of each text first, then the next of each; only such as ``encode`` gives back.

    A text that is cut at a token need not give the same tokens again; such a position is left out.
    """
    rounds: dict[str, int] = {}
    ranked = []
    for candidate in sorted(candidates, key=lambda c: (-c.margin, c.question, len(c.ids))):
        if tuple(encode(candidate.text)) != candidate.ids:
            continue
        turn = rounds[candidate.question] = rounds.get(candidate.question, -1) + 1
        ranked.append((turn, -candidate.margin, candidate.question, len(candidate.ids), candidate))
    ranked.sort(key=lambda entry: entry[:4])
    return tuple(Golden(entry[4].text, entry[4].ids, entry[4].token) for entry in ranked[:MOST_GOLDENS])


def make_golden_json(goldens: Sequence[Golden]) -> str:
    """The file's text. No figure that may differ from one machine to another stands in it. Pure."""
    value = {"format": GOLDEN_FORMAT, "goldens": [asdict(golden) for golden in goldens]}
    return json.dumps(value, indent=1, sort_keys=True) + "\n"


def read_goldens(folder: Path) -> tuple[Golden, ...]:
    """The questions that stand in an engine's folder; none where its builder knew of none yet.

    Raises:
        ValueError, KeyError, TypeError: the file is of another form, or holds no question.
    """
    try:
        value = json.loads((folder / GOLDEN_NAME).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return ()
    if value["format"] != GOLDEN_FORMAT:
        raise ValueError(f"{GOLDEN_NAME} has the format {value['format']}, this image knows {GOLDEN_FORMAT}")
    goldens = tuple(Golden(str(g["text"]), tuple(map(int, g["ids"])), int(g["token"])) for g in value["goldens"])
    if not goldens:
        raise ValueError(f"{GOLDEN_NAME} holds no question")
    return goldens
