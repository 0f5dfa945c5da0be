"""The environment of a builder's Job -> typed settings, with errors that name the variable."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from hotstart.engines.checkpoints.places import CheckpointPlace, HubPlace, S3Place, parse_uri
from hotstart.engines.checkpoints.source import HubAccess, Source, open_source
from hotstart.engines.errors import Reason, Retryable, Terminal
from hotstart.engines.recipe import EngineRecipe
from hotstart.engines.s3 import StorePlace
from hotstart.exchange.messages import ServingOptions
from hotstart.exchange.names import KEYS_FILE, KEYS_MOUNT, PORT_AGENT
from pydantic import BaseModel, ConfigDict, Field, ValidationError

CREDENTIALS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
HUB = "https://huggingface.co"
ModelT = TypeVar("ModelT", bound=BaseModel)


class CheckpointSettings(BaseModel):
    """HOTSTART_CHECKPOINT. ``secretName`` is only said in messages."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    uri: str
    revision: str | None = ""
    endpoint: str | None = ""
    secret_name: str | None = Field(default="", alias="secretName")


@dataclass(frozen=True)
class CheckpointAccess:
    """Where the checkpoint is and who reads it; ``store`` is used for s3://, ``hub`` for hf://."""

    place: CheckpointPlace
    store: StorePlace
    hub: HubAccess

    def open(self) -> Source:
        """Raises Terminal (InvalidSpec) where the store cannot be addressed."""
        return open_source(self.place, self.store, self.hub)


@dataclass(frozen=True)
class InspectSettings:
    """What ``inspect`` has to know."""

    checkpoint: CheckpointAccess
    scratch: Path
    serving: ServingOptions
    runtime: str


@dataclass(frozen=True)
class ConversionSettings:
    """What ``convert`` has to know; ``converted`` is the folder where it leaves its result (HOTSTART_CONVERTED)."""

    checkpoint: CheckpointAccess
    scratch: Path
    serving: ServingOptions
    recipe: EngineRecipe
    engine_key: str
    checkpoint_digest: str
    tokenizer_digest: str
    converted: Path | None


@dataclass(frozen=True)
class BuildSettings(ConversionSettings):
    """What ``build`` has to know; ``keys_file`` is the operator's public JWKS."""

    calibrator: Path | None  # the folder through which the container beside is asked to measure
    pod_uid: str
    keys_file: Path
    host: str
    port: int
    bundle: bool = False  # the engine stands in the store: only the files of its tokenizer are made


def make_inspect_settings(environment: Mapping[str, str]) -> InspectSettings:
    """Raises Terminal (InvalidSpec) with the variable's name."""
    return InspectSettings(
        checkpoint=make_checkpoint_access(environment),
        scratch=_scratch(environment),
        serving=_parse(ServingOptions, environment, "HOTSTART_SERVING"),
        runtime=_required(environment, "HOTSTART_RUNTIME"),
    )


def make_conversion_settings(environment: Mapping[str, str]) -> ConversionSettings:
    """Raises Terminal (InvalidSpec) with the variable's name."""
    return ConversionSettings(
        checkpoint=make_checkpoint_access(environment),
        scratch=_scratch(environment),
        serving=_parse(ServingOptions, environment, "HOTSTART_SERVING"),
        recipe=_recipe(environment),
        engine_key=_required(environment, "HOTSTART_ENGINE_KEY"),
        checkpoint_digest=_required(environment, "HOTSTART_CHECKPOINT_DIGEST"),
        tokenizer_digest=_required(environment, "HOTSTART_TOKENIZER_DIGEST"),
        converted=_converted(environment),
    )


def make_build_settings(environment: Mapping[str, str], *, bundle: bool = False) -> BuildSettings:
    """Raises Terminal (InvalidSpec) with the variable's name."""
    keys_folder = Path(environment.get("HOTSTART_KEYS_DIR", KEYS_MOUNT))
    return BuildSettings(
        **vars(make_conversion_settings(environment)),
        calibrator=Path(beside) if (beside := environment.get("HOTSTART_CALIBRATOR", "")) else None,
        pod_uid=_required(environment, "POD_UID"),
        keys_file=keys_folder / KEYS_FILE,
        host=environment.get("HOTSTART_HOST", "0.0.0.0"),
        port=int(environment.get("HOTSTART_PORT", PORT_AGENT)),
        bundle=bundle,
    )


def make_checkpoint_access(environment: Mapping[str, str], *, local: bool = False) -> CheckpointAccess:
    """Place and credentials; with ``local``, on a person's machine, ``file://`` too, and no Secret is spoken of.

    Raises:
        EngineError: InvalidSpec with the variable's name; AccessDenied, half a credential.
    """
    settings = _parse(CheckpointSettings, environment, "HOTSTART_CHECKPOINT")
    place = parse_uri(settings.uri, local=local)
    secret = f"the Secret {settings.secret_name}" if settings.secret_name else "the Secret of checkpoint.secretName"
    held_in = "the environment" if local else secret
    lacking = [name for name in CREDENTIALS if not environment.get(name, "").strip()]
    if isinstance(place, S3Place) and len(lacking) == 1:
        raise Retryable(Reason.ACCESS_DENIED, f"{lacking[0]} is missing in {held_in}: both keys are needed, or none.")
    store = StorePlace(
        bucket=place.bucket if isinstance(place, S3Place) else "",
        endpoint=settings.endpoint or environment.get("AWS_ENDPOINT_URL", ""),
        region=environment.get("AWS_REGION", ""),
        access_key=environment.get("AWS_ACCESS_KEY_ID", "").strip(),
        secret_key=environment.get("AWS_SECRET_ACCESS_KEY", "").strip(),
        session_token=environment.get("AWS_SESSION_TOKEN", "").strip(),
        credentials_from=held_in,
    )
    endpoint = settings.endpoint if isinstance(place, HubPlace) else ""
    hub = HubAccess(
        endpoint or environment.get("HF_ENDPOINT", "") or HUB, environment.get("HF_TOKEN", "").strip(), held_in
    )
    return CheckpointAccess(place, store, hub)


def _recipe(environment: Mapping[str, str]) -> EngineRecipe:
    text = _required(environment, "HOTSTART_RECIPE")
    try:
        value: Any = json.loads(text)
        return EngineRecipe.from_dict(value)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise Terminal(
            Reason.INVALID_SPEC, f"HOTSTART_RECIPE is no recipe ({type(error).__name__}: {error})."
        ) from error


def _scratch(environment: Mapping[str, str]) -> Path:
    path = Path(environment.get("HOTSTART_SCRATCH", "/scratch"))
    if not path.is_dir():
        raise Terminal(Reason.INVALID_SPEC, f"HOTSTART_SCRATCH: {path} is no folder.")
    return path


def _converted(environment: Mapping[str, str]) -> Path | None:
    text = environment.get("HOTSTART_CONVERTED", "")
    if text and not Path(text).parent.is_dir():
        raise Terminal(Reason.INVALID_SPEC, f"HOTSTART_CONVERTED: {Path(text).parent} is no folder.")
    return Path(text) if text else None


def _parse(model: type[ModelT], environment: Mapping[str, str], name: str) -> ModelT:
    try:
        return model.model_validate_json(_required(environment, name))
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"])) or "the whole"
        raise Terminal(Reason.INVALID_SPEC, f"{name}: {field}: {first['msg']}.") from error


def _required(environment: Mapping[str, str], name: str) -> str:
    value = environment.get(name, "")
    if not value:
        raise Terminal(Reason.INVALID_SPEC, f"{name} is not set in the Job's environment.")
    return value
