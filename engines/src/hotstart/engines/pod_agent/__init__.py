"""The sidecar of every Triton pod: assignment -> fetch -> verify -> model repository -> load -> warm-up -> Ready.

It hears from the operator by the exchange and works on without it. ``states`` is the machine, ``agent`` walks it,
``fetch``, ``disk``, ``triton_client`` and ``warm_up`` are its effects, ``service`` is what the pod's probes see.
"""
