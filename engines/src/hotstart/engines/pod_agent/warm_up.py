"""The first requests of a newly loaded model, so that no user waits for what only the first one pays.

Each of the engine's workers gets a short prompt, then one as long as the model takes, all greedy. The same prompt must
give the same text each time: an engine that does not is broken.
"""

from __future__ import annotations

import asyncio

from hotstart.engines.pod_agent.failures import WARM_UP_FAILED, BringUpFailed
from hotstart.engines.pod_agent.load_failures import make_warm_up_failure
from hotstart.engines.pod_agent.triton_client import TritonClient, TritonRefused, TritonSlow
from hotstart.engines.triton.completion.names import WARM_UP_ID
from hotstart.exchange.messages import PromptFormat, ServingOptions

SHORT_PROMPT = "def add(a, b):\n    return "
SUFFIX = "\n\nprint(add(1, 2))\n"
TOKENS = 4
LINE = "total = total + values[index] * weights[index]\n"  # some 12 tokens
TOKENS_A_LINE = 8  # at least, so that the long prompt is as long as the limit


def make_prompts(serving: ServingOptions) -> tuple[str, ...]:
    """A short prompt, and one that is at least as long as the model's limit. Pure."""
    lines = serving.max_input_tokens // TOKENS_A_LINE + 1
    return (SHORT_PROMPT, LINE * lines + SHORT_PROMPT)


async def warm_up(triton: TritonClient, serving: ServingOptions) -> None:
    """Sends the warm-up requests.

    Raises:
        TritonGone: it went away meanwhile.
        BringUpFailed: the model refuses, takes too long, or answers the same prompt in two ways.
    """
    suffix = SUFFIX if serving.prompt_format is PromptFormat.FIM else ""
    tokens = min(TOKENS, serving.max_new_tokens)
    options = {"max_tokens": tokens, "temperature": 0.0, "stop_mode": "none"}
    try:
        for prompt in make_prompts(serving):
            answers = await asyncio.gather(
                *(
                    triton.generate(request_id=f"{WARM_UP_ID}-{worker}", prompt=prompt, suffix=suffix, options=options)
                    for worker in range(max(2, serving.inter_threads))
                )
            )
            texts = {text for text, _ in answers}
            if len(texts) > 1:
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
