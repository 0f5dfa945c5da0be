"""What a network may ask for and CTranslate2 cannot compute: told at inspection, and again at conversion. Pure."""

from __future__ import annotations

from hotstart.engines.checkpoints.checkpoint import Facts
from hotstart.engines.checkpoints.mpt_config import MptFacts
from hotstart.engines.errors import Reason, Terminal

ALIBI_BIAS_MAX = 8.0


def check_network(facts: Facts) -> None:
    """Raises Terminal (UnsupportedArchitecture) where CTranslate2 knows the network but not all that it uses."""
    if isinstance(facts, MptFacts):
        check_mpt(facts)


def check_mpt(facts: MptFacts) -> None:
    """Raises Terminal (UnsupportedArchitecture) for what CTranslate2 cannot compute."""
    if facts.clip_qkv is not None:
        raise _unsupported(f"attn_config.clip_qkv {facts.clip_qkv:g}, and CTranslate2 does not clip")
    if facts.alibi_bias_max != ALIBI_BIAS_MAX:
        raise _unsupported(f"attn_config.alibi_bias_max {facts.alibi_bias_max:g}, and CTranslate2 knows 8 only")


def _unsupported(what: str) -> Terminal:
    return Terminal(
        Reason.UNSUPPORTED_ARCHITECTURE,
        f"The MPT checkpoint uses {what}: set engine.runtime to tensorrt_llm, which does.",
    )
