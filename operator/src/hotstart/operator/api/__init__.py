"""The kinds of Hotstart as pydantic types; the CustomResourceDefinitions in crds/ are generated from them."""

from hotstart.operator.api.completion_model import CompletionModel, CompletionModelSpec
from hotstart.operator.api.conditions import Condition, ConditionStatus, ConditionType, Reason
from hotstart.operator.api.engine import Engine, EngineSpec, EngineStatus, Recipe
from hotstart.operator.api.scalars import Duration
from hotstart.operator.api.status import CompletionModelStatus

__all__ = [
    "CompletionModel",
    "CompletionModelSpec",
    "CompletionModelStatus",
    "Condition",
    "ConditionStatus",
    "ConditionType",
    "Duration",
    "Engine",
    "EngineSpec",
    "EngineStatus",
    "Reason",
    "Recipe",
]
