"""A completion model with the real one's tensors and no engine: it answers at once. For tests and benchmarks.

Options: {"echo": TEXT} gives the text of the answer, {"steps": N, "step_ms": M} makes it take N steps of M ms, of which
each sends one delta when "stream" is true. A cancel message ends the request with that id at its next step.
"""

import json
import threading
import time

import numpy as np
import triton_python_backend_utils as pb_utils

FINAL = pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL
TEXT = "    return x\n"


def _read(request, name):
    tensor = pb_utils.get_input_tensor_by_name(request, name)
    return tensor.as_numpy().reshape(-1)[0] if tensor is not None else b""


def _response(text, details=b""):
    return pb_utils.InferenceResponse(
        [
            pb_utils.Tensor("text", np.array([text], dtype=object)),
            pb_utils.Tensor("details", np.array([details], dtype=object)),
        ]
    )


class TritonPythonModel:
    def initialize(self, args):
        self._cancelled = {}

    def execute(self, requests):
        for request in requests:
            self._start(request)

    def _start(self, request):
        sender = request.get_response_sender()
        cancel = _read(request, "cancel")
        if cancel:
            for flag in self._cancelled.get(cancel.decode(), ()):
                flag.set()
            sender.send(_response(b""), flags=FINAL)
            return
        options = json.loads(_read(request, "options") or b"{}")
        if not options.get("steps"):
            sender.send(_response(options.get("echo", TEXT).encode(), _details("stop", 1)), flags=FINAL)
            return
        flag = threading.Event()
        self._cancelled.setdefault(request.request_id(), []).append(flag)
        threading.Thread(target=self._generate, args=(request, sender, options, flag)).start()

    def _generate(self, request, sender, options, flag):
        steps, seconds = int(options["steps"]), float(options.get("step_ms", 1)) / 1000
        done = 0
        while done < steps and not flag.is_set() and not request.is_cancelled():
            time.sleep(seconds)
            done += 1
            if options.get("stream") and done < steps:
                sender.send(_response(b"x"))
        flags = self._cancelled[request.request_id()]
        flags.remove(flag)
        if not flags:
            del self._cancelled[request.request_id()]
        reason = "stop" if done == steps else "cancelled"
        text = b"x" if options.get("stream") else b"x" * done
        sender.send(_response(text, _details(reason, done)), flags=FINAL)


def _details(reason, tokens):
    return json.dumps(
        {
            "finish_reason": reason,
            "prompt_tokens": 1,
            "trimmed_tokens": 0,
            "completion_tokens": tokens,
            "queue_ms": 0.0,
            "prefill_ms": 0.0,
            "decode_ms": 0.0,
        }
    ).encode()
