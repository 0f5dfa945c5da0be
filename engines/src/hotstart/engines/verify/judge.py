"""Whether an engine answers as its checkpoint does: the decision, and the margin below which it is not asked. Pure.

Rounding moves logits, so that two tokens that are nearly equal may change places; a token far above all others may
not. How far is far depends on number formats: ``DTYPES`` and ``QUANTIZATIONS`` say it in spreads, the standard
deviation of a position's logits (docs/adr/0016 has the measurements behind each line).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from hotstart.engines.verification import Verification
from hotstart.engines.verify.expect import Expectation

#: Spreads, by the number format of activations, and by how weights are stored; an engine's epsilon is the sum of both.
DTYPES: Mapping[str, float] = {"float32": 0.01, "float16": 0.05, "bfloat16": 0.25}
QUANTIZATIONS: Mapping[str, float] = {
    "none": 0.0,
    "float32": 0.0,
    "int8": 0.75,  # CTranslate2 rounds activations to int8 too
    "int8_float32": 0.75,
    "int8_weight_only": 0.3,
    "int4_weight_only": 1.5,
    "fp8": 1.0,
}


@dataclass(frozen=True)
class Difference:
    """One position at which the engine answers otherwise."""

    question: str
    position: int
    expected: int
    found: int
    margin: float


@dataclass(frozen=True)
class Judgement:
    """``failure`` completes "The engine was built, but ..."; it is empty where the engine has passed."""

    verification: Verification
    failure: str = ""


def decide_epsilon(dtype: str, quantization: str, spread: float) -> float:
    """The margin in logits from which the engine must agree.

    Raises:
        KeyError: nobody has measured such an engine.
    """
    return round((DTYPES[dtype] + QUANTIZATIONS[quantization]) * spread, 4)


def judge(
    expectation: Expectation,
    answers: Sequence[Sequence[int | None]],
    *,
    epsilon: float,
    seconds: float,
    say: Callable[[int], str] = str,
) -> Judgement:
    """Compares ``answers``, the engine's top tokens by question and position, with the expectation.

    None is a position that the engine cannot be asked about (a longer text than it is built for). ``say`` puts a token
    into words.
    """
    asked = [
        Difference(question.name, position, expected, found, margin)
        for question, tokens, margins, row in zip(
            expectation.questions, expectation.tokens, expectation.margins, answers, strict=True
        )
        for position, expected, margin, found in zip(question.positions, tokens, margins, row, strict=True)
        if found is not None
    ]
    certain = [answer for answer in asked if answer.margin > epsilon]
    other = [answer for answer in asked if answer.found != answer.expected]
    wrong = [answer for answer in certain if answer.found != answer.expected]
    verification = Verification(
        positions=len(asked),
        compared=len(certain),
        agreed=len(certain) - len(wrong),
        agreed_of_all=len(asked) - len(other),
        epsilon=epsilon,
        worst_margin=max((answer.margin for answer in other), default=0.0),
        reference=expectation.reference,
        seconds=round(expectation.seconds + seconds, 2),
    )
    return Judgement(verification, describe(verification, wrong, say))


def describe(verification: Verification, wrong: Sequence[Difference], say: Callable[[int], str]) -> str:
    """What speaks against the engine; '' where nothing does."""
    if not verification.compared:
        return (
            f"at none of {verification.positions} positions is the checkpoint's first token more than "
            f"{verification.epsilon:g} above its second: too unsure, or too coarse, to tell right from wrong"
        )
    if not wrong:
        return ""
    worst = max(wrong, key=lambda answer: answer.margin)
    return (
        f"its next token is not the checkpoint's at {len(wrong)} of {verification.compared} positions whose margin "
        f"exceeds {verification.epsilon:g}: worst in {worst.question} after token {worst.position}, "
        f"{say(worst.found)} for {say(worst.expected)} against a margin of {worst.margin:g}"
    )
