"""Triton's protobuf messages without the rest of ``tritonclient``: the router's memory is mostly what it imports.

``tritonclient.grpc``'s ``__init__`` pulls in numpy and a second client library, 17 MB that the router never uses (73 MB
instead of 90 MB RSS when measured). The generated modules need nothing but protobuf, so they are loaded with bare
parent packages in place, which are taken away again: whoever imports ``tritonclient`` later gets the whole of it.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from types import ModuleType
from typing import Any

_PACKAGES = ("tritonclient", "tritonclient.grpc")


def _load_generated() -> Any:
    """The module ``service_pb2``.

    Raises:
        ImportError: ``tritonclient`` is not installed.
    """
    if "tritonclient.grpc.service_pb2" in sys.modules:
        return sys.modules["tritonclient.grpc.service_pb2"]
    spec = importlib.util.find_spec("tritonclient")
    if spec is None or not spec.submodule_search_locations:
        raise ImportError("tritonclient is not installed; install the distribution with its extra 'router'")
    root = spec.submodule_search_locations[0]
    before = set(sys.modules)
    for name, path in zip(_PACKAGES, (root, f"{root}/grpc"), strict=True):
        if name not in sys.modules:
            package = ModuleType(name)
            package.__path__ = [path]
            sys.modules[name] = package
    try:
        return importlib.import_module("tritonclient.grpc.service_pb2")
    finally:
        for name in set(sys.modules) - before:
            if name.partition(".")[0] == "tritonclient":
                del sys.modules[name]


service_pb2 = _load_generated()
