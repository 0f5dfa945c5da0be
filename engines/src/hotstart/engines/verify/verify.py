"""Verification from end to end: expectation, the engine's answers, the judgement, and golden.json beside the engine.

Called by the builder once the engine's files stand, and by the command line; blocking.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hotstart.engines.checkpoints.checkpoint import Array, Checkpoint, expected_shapes
from hotstart.engines.checkpoints.tokenizer import parse_tokenizer
from hotstart.engines.errors import Reason, Terminal
from hotstart.engines.recipe import EngineRecipe
from hotstart.engines.reference.opening import make_reference
from hotstart.engines.verification import Verification
from hotstart.engines.verify.expect import Expectation, compute_expectation, recall_or_compute
from hotstart.engines.verify.golden import (
    GOLDEN_NAME,
    LONGEST_GOLDEN,
    Candidate,
    Golden,
    choose_goldens,
    make_golden_json,
)
from hotstart.engines.verify.judge import Judgement, decide_epsilon, judge
from hotstart.engines.verify.samples import Sample, load_samples, make_questions
from hotstart.engines.verify.scorer import BrokenEngine, Scorer, ScorerFactory
from tokenizers import Tokenizer

log = logging.getLogger(__name__)
REFERENCE_SHARE = 0.7  # of the time that a verification takes, by measurement

#: Called with the share that is done, 0 to 1.
Progress = Callable[[float], None]


@dataclass(frozen=True)
class Subject:
    """What is verified: a checkpoint with its digests, and the engine that was made of it by ``recipe``.

    ``check_unchanged`` raises Retryable (CheckpointChanged) where the checkpoint is no longer the one of the digests.
    """

    checkpoint: Checkpoint
    checkpoint_digest: str
    tokenizer_digest: str
    recipe: EngineRecipe
    folder: Path
    check_unchanged: Callable[[], None] = lambda: None


def verify_engine(
    runtime: ScorerFactory, subject: Subject, kept: Path, progress: Progress = lambda share: None
) -> Verification:
    """Verifies the engine and writes golden.json into its folder. Expectations are kept in the folder ``kept``.

    Raises:
        Terminal: VerificationFailed with what was seen; CheckpointCorrupt.
        Retryable: CheckpointChanged, or the machine stood in the way; of the engine nothing is known.
    """
    tokenizer = parse_tokenizer(subject.checkpoint.tokenizer_json)
    samples = load_samples()
    expectation = expect(subject, samples, tokenizer, kept, lambda share: progress(share * REFERENCE_SHARE))
    began = time.monotonic()
    rest = 1 - REFERENCE_SHARE
    try:
        answers = ask(
            runtime.open_scorer(subject.folder, subject.recipe),
            expectation,
            subject.recipe,
            lambda share: progress(REFERENCE_SHARE + rest * share),
        )
    except BrokenEngine as error:
        raise make_failure(str(error)) from error
    judgement = conclude(subject.recipe, expectation, answers, tokenizer, time.monotonic() - began)
    verification = judgement.verification
    log.info(
        "engine compared positions=%d compared=%d agreed=%d of_all=%d epsilon=%.3f worst_margin=%.3f seconds=%.1f",
        *(verification.positions, verification.compared, verification.agreed, verification.agreed_of_all),
        *(verification.epsilon, verification.worst_margin, verification.seconds),
    )
    if judgement.failure:
        raise make_failure(judgement.failure)
    goldens = choose(subject, samples, expectation, verification.epsilon)
    check_second_load(runtime, subject, goldens)
    (subject.folder / GOLDEN_NAME).write_text(make_golden_json(goldens), encoding="utf-8")
    log.info("golden questions written count=%d", len(goldens))
    return verification


def expect(
    subject: Subject, samples: Sequence[Sample], tokenizer: Tokenizer, kept: Path, progress: Progress
) -> Expectation:
    """The checkpoint's answers, from ``kept`` where they stand there; those of a changed one are not kept.

    Raises:
        Retryable: CheckpointChanged, also in the place of what a changed checkpoint led to.
    """
    checkpoint = subject.checkpoint
    questions = make_questions(samples, tokenizer, checkpoint.bos_id, checkpoint.facts.context_length)

    def compute() -> Expectation:
        try:
            return compute_expectation(make_reference(Watched(checkpoint, progress)), questions)
        finally:
            subject.check_unchanged()

    return recall_or_compute(kept, subject.checkpoint_digest, subject.tokenizer_digest, compute)


def expect_only(subject: Subject, kept: Path, progress: Progress) -> None:
    """Computes the checkpoint's answers into ``kept`` and nothing more; ``subject.folder`` is not looked at.

    Raises:
        Terminal: CheckpointCorrupt.
    """
    expect(subject, load_samples(), parse_tokenizer(subject.checkpoint.tokenizer_json), kept, progress)


def write_goldens(subject: Subject, kept: Path, progress: Progress) -> None:
    """Writes golden.json beside the tokenizer in ``subject.folder``, by the checkpoint alone: no engine is asked.

    Raises:
        Terminal: VerificationFailed, CheckpointCorrupt.
    """
    samples = load_samples()
    expectation = expect(subject, samples, parse_tokenizer(subject.checkpoint.tokenizer_json), kept, progress)
    epsilon = decide_epsilon(subject.recipe.dtype, subject.recipe.quantization, expectation.spread)
    goldens = choose(subject, samples, expectation, epsilon)
    (subject.folder / GOLDEN_NAME).write_text(make_golden_json(goldens), encoding="utf-8")
    log.info("golden questions written by the checkpoint count=%d", len(goldens))


def ask(
    scorer: Scorer, expectation: Expectation, recipe: EngineRecipe, progress: Progress
) -> list[tuple[int | None, ...]]:
    """The engine's answers by question and position; None where a text is longer than the engine is built for."""
    limit = find_limit(recipe)
    answers: list[tuple[int | None, ...]] = []
    for number, question in enumerate(expectation.questions, start=1):
        asked = [position for position in question.positions if limit is None or position < limit]
        found = tuple(scorer.top_tokens(question.ids[:limit], asked)) if asked else ()
        answers.append((*found, *[None] * (len(question.positions) - len(asked))))
        progress(number / len(expectation.questions))
    return answers


def find_limit(recipe: EngineRecipe) -> int | None:
    """Most tokens of a text that the engine takes; an engine of ctranslate2 is built for no limit of its own."""
    return None if recipe.toolchain.runtime == "ctranslate2" else recipe.limits.input_tokens


def conclude(
    recipe: EngineRecipe,
    expectation: Expectation,
    answers: Sequence[Sequence[int | None]],
    tokenizer: Tokenizer,
    took: float,
) -> Judgement:
    """The judgement, with tokens in words."""
    epsilon = decide_epsilon(recipe.dtype, recipe.quantization, expectation.spread)
    return judge(
        expectation,
        answers,
        epsilon=epsilon,
        seconds=took,
        say=lambda token: repr(tokenizer.decode([token], skip_special_tokens=False)),
    )


def choose(subject: Subject, samples: Sequence[Sample], expectation: Expectation, epsilon: float) -> tuple[Golden, ...]:
    """The golden questions: the clearest positions, in the tokens of the tokenizer that stands beside the engine.

    Raises:
        Terminal: VerificationFailed, it is another tokenizer than the checkpoint's, or no position is fit.
    """
    tokenizer = parse_tokenizer((subject.folder / "tokenizer.json").read_bytes())

    def encode(text: str) -> list[int]:
        return list(tokenizer.encode(text, add_special_tokens=False).ids)

    head = 0 if subject.checkpoint.bos_id is None else 1
    for sample, question in zip(samples, expectation.questions, strict=True):
        if tuple(encode(sample.text)[: len(question.ids) - head]) != question.ids[head:]:
            raise make_failure(f"tokenizer.json beside it gives other tokens for {sample.name} than the checkpoint's")
    candidates = find_candidates(subject, samples, expectation, tokenizer, epsilon)
    short = [candidate for candidate in candidates if len(candidate.ids) + head <= LONGEST_GOLDEN]
    goldens = choose_goldens(short, encode) or choose_goldens(candidates, encode)
    if not goldens:
        raise make_failure("no position is clear enough to be asked again at each load")
    return goldens


def check_second_load(runtime: ScorerFactory, subject: Subject, goldens: Sequence[Golden]) -> None:
    """Loaded a second time, and generating, the engine must answer the golden questions too (``Scorer.next_token``).

    Raises:
        Terminal: VerificationFailed.
    """
    head = () if subject.checkpoint.bos_id is None else (subject.checkpoint.bos_id,)
    try:
        scorer = runtime.open_scorer(subject.folder, subject.recipe)
        found = [scorer.next_token((*head, *golden.ids)) for golden in goldens]
    except BrokenEngine as error:
        raise make_failure(f"the second time {error}") from error
    wrong = [(golden, token) for golden, token in zip(goldens, found, strict=True) if token != golden.token]
    if wrong:
        golden, token = wrong[0]
        raise make_failure(
            f"loaded again it generates another token at {len(wrong)} of {len(goldens)} positions: {token} for "
            f"{golden.token} after {golden.text[-20:]!r}"
        )


def find_candidates(
    subject: Subject, samples: Sequence[Sample], expectation: Expectation, tokenizer: Tokenizer, epsilon: float
) -> list[Candidate]:
    """Positions that may become golden: above epsilon, and not before the end of a text, which no engine hands on."""
    head = 0 if subject.checkpoint.bos_id is None else 1
    limit = find_limit(subject.recipe)
    found = []
    for sample, question, tokens, margins in zip(
        samples, expectation.questions, expectation.tokens, expectation.margins, strict=True
    ):
        ends = [end for _, end in tokenizer.encode(sample.text, add_special_tokens=False).offsets]
        for position, token, margin in zip(question.positions, tokens, margins, strict=True):
            last = position - head
            if (
                margin > epsilon
                and last >= 0
                and (limit is None or position < limit)
                and token not in subject.checkpoint.eos_ids
            ):
                ids = question.ids[head : position + 1]
                found.append(Candidate(question.name, sample.text[: ends[last]], ids, token, margin))
    return found


def make_failure(what: str) -> Terminal:
    """VerificationFailed, in a sentence with its remedy."""
    return Terminal(
        Reason.VERIFICATION_FAILED,
        f"The engine was built, but {what}. Take a finer quantization; if it fails with the finest one too, report it.",
    )


class Watched:
    """A checkpoint that tells how much of it was read."""

    def __init__(self, checkpoint: Checkpoint, progress: Progress) -> None:
        self._checkpoint = checkpoint
        self._progress = progress
        shapes = expected_shapes(checkpoint.facts) or checkpoint.shapes()
        self._sizes = {name: _size(shape) for name, shape in shapes.items()}
        self._left = dict(self._sizes)
        self._total = sum(self._sizes.values())

    def tensor(self, name: str) -> Array:
        """Reads a tensor and reports."""
        value = self._checkpoint.tensor(name)
        self._left.pop(name, None)
        self._progress(1 - sum(self._left.values()) / self._total)
        return value

    def __getattr__(self, name: str) -> Any:
        return getattr(self._checkpoint, name)


def _size(shape: Sequence[int]) -> int:
    size = 1
    for length in shape:
        size *= length
    return size
