"""Golden questions at a load: asked in the completion model, failed loads told apart by the agent."""

from __future__ import annotations

import json
import shutil
import urllib.request
from functools import partial
from pathlib import Path

import aiohttp
import pytest
from hotstart.engines.pod_agent.load_failures import make_load_failure, make_warm_up_failure
from hotstart.engines.triton.completion.engine import (
    NOTHING_MEASURED,
    Cancelled,
    CTranslate2Engine,
    Measured,
    OnToken,
    never,
    read_facts,
)
from hotstart.engines.triton.completion.errors import CompletionError
from hotstart.engines.triton.completion.names import REPLAY_FAILED
from hotstart.engines.triton.completion.options import RequestOptions
from hotstart.engines.triton.completion.replay import ProvenEngine, ReplayFailed, replay
from hotstart.engines.verify.golden import (
    GOLDEN_NAME,
    Candidate,
    Golden,
    choose_goldens,
    make_golden_json,
    read_goldens,
)
from hotstart.exchange.messages import PodRequest, PodState
from tokenizers import Tokenizer

from tests.support.pod import Pod, Store, make_assignment, write_repository
from tests.support.standin_engine import make_backends, write_standin_engine
from tests.support.tiny_checkpoint import make_tokenizer_json
from tests.support.tiny_engine import tamper_with_goldens
from tests.support.triton import start_triton

BEGIN = 7


class Scripted:
    """An engine that answers in order; it remembers what it was asked."""

    def __init__(self, *answers: int | None) -> None:
        self.answers = list(answers)
        self.asked: list[tuple[int, ...]] = []

    def generate(
        self, prompt: tuple[int, ...], options: RequestOptions, on_token: OnToken, cancelled: Cancelled = never
    ) -> Measured:
        assert (options.max_tokens, options.temperature) == (1, 0.0)
        self.asked.append(tuple(prompt))
        answer = self.answers.pop(0)
        if answer is not None:
            on_token(answer)
        return NOTHING_MEASURED

    def close(self) -> None:
        raise AssertionError("nobody closes it here")


def write_golden(folder: Path, *goldens: Golden) -> Path:
    (folder / GOLDEN_NAME).write_text(make_golden_json(goldens))
    return folder


TOKENIZER = Tokenizer.from_str(make_tokenizer_json())


def make_golden(text: str, token: int) -> Golden:
    return Golden(text, tuple(TOKENIZER.encode(text).ids), token)


def test_right_answers_pass_with_the_begin_token_in_front(tmp_path: Path) -> None:
    goldens = make_golden("def add(", 5), make_golden("for x in", 6)
    engine = Scripted(5, 6)
    assert replay(write_golden(tmp_path, *goldens), TOKENIZER, BEGIN, engine) == 2
    assert engine.asked == [(BEGIN, *golden.ids) for golden in goldens]


@pytest.mark.parametrize(("answer", "said"), [(9, "token 9"), (None, "the end of the text")])
def test_another_answer_fails_in_the_fixed_words(tmp_path: Path, answer: int | None, said: str) -> None:
    folder = write_golden(tmp_path, make_golden("def add(", 5), make_golden("for x in", 6))
    with pytest.raises(ReplayFailed) as failure:
        replay(folder, TOKENIZER, None, Scripted(5, answer))
    assert str(failure.value).startswith(f"internal: {REPLAY_FAILED}")
    assert said in str(failure.value) and "question 2 of 2" in str(failure.value)


def test_another_tokenizer_fails_before_the_engine_is_asked(tmp_path: Path) -> None:
    value = json.loads(make_tokenizer_json())
    vocab = value["model"]["vocab"]
    vocab["d"], vocab["e"] = vocab["e"], vocab["d"]
    other = Tokenizer.from_str(json.dumps(value))
    with pytest.raises(ReplayFailed, match="another tokenizer"):
        replay(write_golden(tmp_path, make_golden("d e", 5)), other, None, Scripted())


def test_nobody_is_answered_before_the_questions_and_they_are_asked_once(tmp_path: Path) -> None:
    golden = make_golden("def add(", 5)
    inner = Scripted(5, 8, 8)
    engine = ProvenEngine(inner, partial(replay, write_golden(tmp_path, golden), TOKENIZER, None, inner))
    for _ in range(2):
        engine.generate((1, 2), RequestOptions(max_tokens=1, temperature=0.0), lambda token: True)
    assert inner.asked == [golden.ids, (1, 2), (1, 2)]


def test_an_engine_that_failed_answers_nobody_and_is_not_asked_again(tmp_path: Path) -> None:
    inner = Scripted(9)
    folder = write_golden(tmp_path, make_golden("def add(", 5))
    engine = ProvenEngine(inner, partial(replay, folder, TOKENIZER, None, inner))
    for _ in range(2):
        with pytest.raises(ReplayFailed, match=REPLAY_FAILED):
            engine.generate((1, 2), RequestOptions(max_tokens=1), lambda token: True)
    assert len(inner.asked) == 1


def test_what_is_no_answer_may_pass_with_the_next_request() -> None:
    failures = [CompletionError("the backend is not there yet")]

    def ask() -> None:
        if failures:
            raise failures.pop()

    engine = ProvenEngine(Scripted(8), ask)
    with pytest.raises(CompletionError, match="not there yet"):
        engine.prove()
    engine.prove()


def test_an_engine_of_an_older_builder_is_loaded_as_it_is(tmp_path: Path) -> None:
    assert replay(tmp_path, TOKENIZER, None, Scripted()) == 0


@pytest.mark.parametrize("text", ["{", "[]", '{"format": 99}', '{"format": 1, "goldens": []}', '{"format": 1}'])
def test_questions_that_cannot_be_read_fail_the_load(tmp_path: Path, text: str) -> None:
    (tmp_path / GOLDEN_NAME).write_text(text)
    with pytest.raises(ReplayFailed, match="cannot be read"):
        replay(tmp_path, TOKENIZER, None, Scripted())


def test_a_real_engine_answers_its_own_questions(verified: Path) -> None:
    facts = read_facts(verified)
    engine = CTranslate2Engine(verified, facts, inter_threads=1, intra_threads=1)
    tokenizer = Tokenizer.from_file(str(verified / "tokenizer.json"))
    assert replay(verified, tokenizer, facts.bos_id, engine) == len(read_goldens(verified)) > 0


def test_goldens_are_the_clearest_one_of_each_text_first() -> None:
    def candidate(question: str, text: str, margin: float) -> Candidate:
        return Candidate(question, text, tuple(text.encode()), 1, margin)

    candidates = [candidate("a", "x" * n, 9.0 + n) for n in range(1, 9)] + [candidate("b", "y", 2.0)]
    candidates += [candidate("b", "z", 3.0), Candidate("c", "w", (0,), 1, 50.0)]  # the last is not given back
    chosen = choose_goldens(candidates, lambda text: list(text.encode()))
    assert [golden.text for golden in chosen] == ["x" * 8, "z", "x" * 7, "y", *("x" * n for n in range(6, 0, -1))]


def test_tritons_words_become_a_reason() -> None:
    stack = (
        f"load failed: ReplayFailed: {REPLAY_FAILED}: after 'x' it gives token 1 (question 2 of 10).\n\nAt:\n  a.py(1)"
    )
    failure = make_load_failure(stack).failure
    assert (failure.reason, failure.retryable) == ("VerificationFailed", False)
    assert failure.message.startswith(REPLAY_FAILED) and "At:" not in failure.message
    assert make_warm_up_failure(stack).failure == failure
    other = make_load_failure("out of memory").failure
    assert (other.reason, other.retryable) == ("EngineLoadFailed", True)
    assert make_warm_up_failure("out of memory").failure.reason == "WarmUpFailed"


@pytest.mark.parametrize(
    ("said", "reason", "retryable"),
    [
        (
            "expecting library version 10 got 9: not compatible with this version of TensorRT",
            "ToolchainMismatch",
            False,
        ),
        ("generated on an incompatible device, expecting compute 8.6 got compute 8.0", "AcceleratorMismatch", False),
        ("CUDA error: out of memory", "OutOfMemory", True),
        ("Unable to initialize shared memory key 'triton_python_backend_shm_region_1'", "EngineLoadFailed", True),
    ],
)
def test_the_backends_words_become_reasons_too(said: str, reason: str, retryable: bool) -> None:
    failure = make_load_failure(f"load failed\n{said}\nmore").failure
    assert (failure.reason, failure.retryable) == (reason, retryable)
    assert said in failure.message


@pytest.mark.integration
@pytest.mark.parametrize("tampered", [False, True])
def test_a_real_triton_loads_only_what_passes(verified: Path, tmp_path: Path, tampered: bool) -> None:
    folder = shutil.copytree(verified, tmp_path / "engine")
    repository = write_repository(tmp_path / "repository", folder, make_assignment().serving)
    if tampered:
        tamper_with_goldens(folder)
        with pytest.raises(AssertionError, match=f"{REPLAY_FAILED}: after .*question 2 of"):
            start_triton(repository, load=("completion",))
        return
    server = start_triton(repository, load=("completion",))
    try:
        with urllib.request.urlopen(f"http://{server.http}/v2/models/completion/ready", timeout=10) as response:
            assert response.status == 200
    finally:
        server.stop()


@pytest.mark.integration
@pytest.mark.parametrize("tampered", [False, True])
async def test_a_pod_serves_only_what_answers_as_its_checkpoint_does(
    pod: Pod, store: Store, verified: Path, tampered: bool
) -> None:
    for path in verified.iterdir():
        (store.folder / path.name).write_bytes(path.read_bytes())
    if tampered:
        tamper_with_goldens(store.folder)
    request = PodRequest(assignment=make_assignment(), files=store.files())
    pod.start_agent()
    await pod.start_triton()
    report = await pod.reach(request, PodState.FAILED if tampered else PodState.READY)
    if tampered:
        assert report.failure is not None
        assert (report.failure.reason, report.failure.retryable) == ("VerificationFailed", False)
        assert report.failure.message.startswith(REPLAY_FAILED)
        assert not await pod.ready()
    else:
        assert await pod.complete()


@pytest.mark.integration
@pytest.mark.parametrize("tampered", [False, True])
async def test_an_engine_that_is_a_model_of_tritons_is_asked_with_its_first_request(
    verified: Path, tmp_path: Path, tampered: bool
) -> None:
    folder = write_standin_engine(tmp_path / "engine", verified, batch_size=2)
    if tampered:
        tamper_with_goldens(folder)
    repository = write_repository(tmp_path / "repository", folder, make_assignment().serving)
    server = start_triton(
        repository, load=("tensorrt_llm", "completion"), backends=make_backends(tmp_path / "backends")
    )
    body = {"prompt": "def add(a, b):\n", "options": '{"max_tokens": 4}'}
    try:
        async with aiohttp.ClientSession() as session:
            for _ in range(2):
                url = f"http://{server.http}/v2/models/completion/generate"
                async with session.post(url, json=body) as response:
                    answer = await response.json()
                assert (REPLAY_FAILED in answer.get("error", "")) is tampered, answer
                assert ("text" in answer) is not tampered
    finally:
        server.stop()
