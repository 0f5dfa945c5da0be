"""A real Kubernetes on one machine, for the demo, the tests and people: one set of Linux namespaces with one init.

`lifecycle` starts and ends it, `keeper` stands outside and mends what an end leaves, `node_init` is process 1 inside.
What is run is decided in `argv` and `settings` (pure); what is done to the machine stands in `mounts`, `links` and
`cgroups`.
"""

from __future__ import annotations
