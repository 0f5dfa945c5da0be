"""The first requests of a newly loaded model, so that no user waits for what only the first one pays.

Each of the engine's workers gets a short prompt, then one as long as the model takes, all greedy. On CPUs the same
prompt must give the same text each time: an engine that does not is broken. TensorRT-LLM promises no such thing, for
what a request computes depends on those that are batched with it; its engines are held to the golden questions, which
the completion model asks with the first of these requests.
"""

from __future__ import annotations

import asyncio
import logging

from hotstart.engines.pod_agent.failures import WARM_UP_FAILED, BringUpFailed
from hotstart.engines.pod_agent.load_failures import make_warm_up_failure
from hotstart.engines.pod_agent.triton_client import TritonClient, TritonRefused, TritonSlow
from hotstart.engines.triton.completion.errors import Overloaded
from hotstart.engines.triton.completion.names import WARM_UP_ID
from hotstart.exchange.messages import PodAssignment, PromptFormat, ServingOptions
from hotstart.exchange.names import TENSORRT_LLM

log = logging.getLogger(__name__)
SHORT_PROMPT = "def add(a, b):\n    return "
SUFFIX = "\n\nprint(add(1, 2))\n"
TOKENS = 4
AGAIN_SECONDS = 0.25
LINE = "total = total + values[index] * weights[index]\n"  # some 12 tokens
TOKENS_A_LINE = 8  # at least, so that the long prompt is as long as the limit


def make_prompts(serving: ServingOptions) -> tuple[str, ...]:
    """A short prompt, and one that is at least as long as the model's limit. Pure."""
    lines = serving.max_input_tokens // TOKENS_A_LINE + 1
    return (SHORT_PROMPT, LINE * lines + SHORT_PROMPT)


async def warm_up(triton: TritonClient, assignment: PodAssignment) -> None:
    """Sends the warm-up requests.

    Raises:
        TritonGone: it went away meanwhile.
        BringUpFailed: the model refuses, takes too long, or answers the same prompt in two ways.
    """
    serving = assignment.serving
    try:
        for prompt in make_prompts(serving):
            answers = await asyncio.gather(
                *(ask(triton, serving, prompt, TOKENS, worker) for worker in range(max(2, serving.inter_threads)))
            )
            texts = set(answers)
            if len(texts) > 1 and assignment.runtime != TENSORRT_LLM:
                message = f"The engine completes one prompt in {len(texts)} ways: {sorted(texts)}. Build it again."
                raise BringUpFailed(WARM_UP_FAILED, message, retryable=False)
    except TritonRefused as error:
        raise make_warm_up_failure(str(error)) from error
    except TritonSlow as error:
        message = (
            f"The engine's first completions take too long ({error}): raise spec.serving.resources.limits.cpu, or "
            "lower spec.engine.limits.inputTokens."
        )
        raise BringUpFailed(WARM_UP_FAILED, message, retryable=True) from error


async def prove(triton: TritonClient, serving: ServingOptions) -> None:
    """Asks a model that is loaded and may be serving for one token: it answers only if it passed its golden questions.

    Raises:
        TritonGone: it went away meanwhile.
        BringUpFailed: the model refuses for another reason than that it has too much to do.
    """
    while True:
        try:
            await ask(triton, serving, SHORT_PROMPT, 1, 0)
            return
        except TritonRefused as error:
            raise make_warm_up_failure(str(error)) from error
        except TritonSlow as error:
            log.info("model is slow, asking again said=%s", error)
        await asyncio.sleep(AGAIN_SECONDS)


async def ask(triton: TritonClient, serving: ServingOptions, prompt: str, tokens: int, number: int) -> str:
    """The text of one warm-up request; greedy. While the model has too much to do, it is asked again.

    Raises:
        TritonGone, TritonSlow: it went away meanwhile, or takes too long.
        TritonRefused: it refuses for another reason.
    """
    suffix = SUFFIX if serving.prompt_format is PromptFormat.FIM else ""
    options = {"max_tokens": min(tokens, serving.max_new_tokens), "temperature": 0.0, "stop_mode": "none"}
    request_id = f"{WARM_UP_ID}-{number}"
    while True:
        try:
            text, _ = await triton.generate(request_id=request_id, prompt=prompt, suffix=suffix, options=options)
            return text
        except TritonRefused as error:
            if not str(error).startswith(Overloaded.code):
                raise
            log.info("model is busy, asking again said=%s", error)
        await asyncio.sleep(AGAIN_SECONDS)
