"""`make demo`: one CompletionModel from a trained checkpoint to measured completions, on a real cluster.

Ends with exit code 0 and build/demo.json, or with the cause of what failed and exit code 1.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from collections.abc import MutableMapping
from typing import Any

from hotstart.cluster.errors import ClusterError
from hotstart.demo import stage
from hotstart.demo.diagnosis import diagnose
from hotstart.demo.figures import HEADLINES
from hotstart.demo.kube import Kube
from hotstart.demo.steps import tell
from hotstart.demo.story import StepFailed, Story

EXIT_FAILED = 1
EXIT_INTERRUPTED = 130
FORESEEN = (
    StepFailed,
    ClusterError,
)  # they say what is wrong; of any other failure its place in the program is told too


def main() -> int:
    """The exit code."""
    spare_proxy(os.environ)
    story, kube = Story(), Kube()
    stage.FIGURES.unlink(missing_ok=True)
    try:
        facts = tell(story, kube)
    except KeyboardInterrupt:
        print(f"\nEnded by Ctrl-C after {story.elapsed():.0f} s. To end the cluster: make down", file=sys.stderr)
        return EXIT_INTERRUPTED
    except Exception as failure:  # noqa: BLE001 - the program's edge: the cluster's word is wanted on any
        print(f"\nThe demo failed after {story.elapsed():.1f} s: {describe(failure)}", file=sys.stderr)
        if kube.ready:
            print(diagnose(kube, stage.NAMESPACE, stage.SYSTEM), file=sys.stderr)
        if not isinstance(failure, FORESEEN):
            traceback.print_exception(failure)
        return EXIT_FAILED
    stage.FIGURES.parent.mkdir(exist_ok=True)
    stage.FIGURES.write_text(json.dumps(facts, indent=2) + "\n")
    print(f"\nDone in {facts['total_seconds']:.0f} s. Figures: {stage.FIGURES.relative_to(stage.ROOT)}")
    for name in HEADLINES:
        print(f"    {name:24} {facts[name]}")
    print(farewell(facts["url"]))
    return 0


def spare_proxy(environ: MutableMapping[str, str]) -> None:
    """The cluster is on this machine's loopback, which no proxy reaches."""
    named = environ.get("no_proxy") or environ.get("NO_PROXY") or ""
    if named != "*":
        named = ",".join(filter(None, (named, "127.0.0.1,localhost")))
    environ.update(no_proxy=named, NO_PROXY=named)


def describe(failure: Exception) -> str:
    """One sentence; of what was not foreseen, with its kind."""
    return str(failure) if isinstance(failure, FORESEEN) else f"{type(failure).__name__}: {failure}"


def farewell(url: str) -> str:
    """How to look around, and how to end it."""
    moved = f"Port {stage.ROUTER_PORT} was taken: where the README says {stage.ROUTER_URL}, it is {url} here.\n"
    model: dict[str, Any] = {"model": stage.MODEL_PATH, "prompt": "def add(a, b):\n    return", "max_tokens": 8}
    return f"""
The cluster is up, and {stage.MODEL_PATH} answers at {url}/v1. {moved if url != stage.ROUTER_URL else ""}To look around:
    . build/cluster/env
    kubectl get completionmodels,engines,pods -n {stage.NAMESPACE}
    kubectl describe completionmodel {stage.MODEL} -n {stage.NAMESPACE}
    curl {url}/v1/completions -H 'Content-Type: application/json' \\
        -d '{json.dumps(model)}'
To end it: make down"""


if __name__ == "__main__":
    sys.exit(main())
