"""Every name, label, annotation and port that two programs have to agree on."""

from __future__ import annotations

from enum import StrEnum

GROUP = "hotstart.dev"
VERSION = "v1alpha1"
API_VERSION = f"{GROUP}/{VERSION}"
FIELD_MANAGER = "hotstart-operator"

# Labels of what the operator makes.
LABEL_MANAGED_BY = "app.kubernetes.io/managed-by"
LABEL_COMPONENT = "app.kubernetes.io/component"  # one of the COMPONENT_* values
LABEL_MODEL = f"{GROUP}/model"  # name of the CompletionModel
LABEL_ENGINE = f"{GROUP}/engine"  # name of the Engine (first 40 hex of its key)
LABEL_REVISION = f"{GROUP}/revision"  # revision of the pod template
LABEL_SLOT = f"{GROUP}/slot"  # replica slot, a small integer
LABEL_ROLE = f"{GROUP}/role"  # serving | draining
MANAGED_BY = "hotstart"

COMPONENT_SERVING = "serving"
COMPONENT_INSPECT = "inspect"
COMPONENT_BUILD = "build"
COMPONENT_ROUTER = "router"
COMPONENT_OPERATOR = "operator"

ROLE_SERVING = "serving"
ROLE_DRAINING = "draining"

# Annotations.
ANNOTATION_ASSIGNMENT = f"{GROUP}/assignment"  # the pod's assignment as JSON, without URLs
ANNOTATION_INSPECT_SPEC = f"{GROUP}/inspect-spec"  # hash of the checkpoint spec that a Job inspects

# A builder's Job: the container of a build that needs no GPU, before the one that does, and exit codes.
STEP_CONVERT = "convert"
EXIT_TERMINAL = 64  # another try cannot help until somebody changes something; in the podFailurePolicy
EXIT_KILLED = 137  # SIGKILL: but for a deletion it is the kernel's, for want of memory; another try needs more

# Ports inside pods.
PORT_AGENT = 9700  # exchange, /healthz, /readyz, /metrics of pod agents and builders
PORT_TRITON_HTTP = 8000
PORT_TRITON_GRPC = 8001
PORT_TRITON_METRICS = 8002
PORT_ROUTER = 8080  # OpenAI API, /healthz, /readyz, /metrics
PORT_ROUTER_EXCHANGE = 9700
PORT_OPERATOR_METRICS = 9710  # /metrics, /healthz, /readyz of the operator

EXCHANGE_PATH = "/v1/exchange"
KEYS_CONFIGMAP = "hotstart-exchange-keys"  # public JWKS, one in each namespace that has models
KEYS_FILE = "jwks.json"  # the key in that ConfigMap, and the file's name where it is mounted
KEYS_MOUNT = "/etc/hotstart/exchange"
CHECKPOINT_MOUNT = "/checkpoint"  # where a builder has the claim of a pvc:// checkpoint, read-only
SIGNING_SECRET = "hotstart-exchange-signing"
LEASE = "hotstart-operator"

# Runtimes of engines, as a model's spec, an assignment and HOTSTART_RUNTIME of a pod name them.
CTRANSLATE2 = "ctranslate2"
TENSORRT_LLM = "tensorrt_llm"

# The model's name inside Triton, the same in each pod.
TRITON_MODEL = "completion"


class Kept(StrEnum):
    """What builds leave in the store for later builds of their namespace: the folder there."""

    TIMING_CACHE = "timing-caches"  # measurements of kernels
    EXPECTATION = "expectations"  # what a checkpoint answers, for the verification of its engines
