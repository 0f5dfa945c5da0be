"""The first half of a build, which needs no GPU: checkpoint from its source, checked, converted.

Either in the process that builds, or by ``hotstart-builder convert`` in a container before it, which leaves the result
on the scratch disk that both share, with the checkpoint's answers for the verification. Where the conversion turns out
to want the driver of a GPU, it leaves the checkpoint alone, and the process that builds converts it.
"""

from __future__ import annotations

import logging
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from hotstart.engines.build_estimate import BuildEstimate, make_build_estimate
from hotstart.engines.builder.kept import kept_expectation
from hotstart.engines.builder.prepare import Prepared, prepare
from hotstart.engines.builder.receipt import CHECKPOINT, FILES, BadReceipt, Receipt, read_conversion, write_receipt
from hotstart.engines.builder.room import full_disk_errors, needed_bytes, network_sizes
from hotstart.engines.builder.settings import ConversionSettings
from hotstart.engines.builder.state import BuildState
from hotstart.engines.checkpoints.choose import Choice, ChosenFile, FileRole, ListedFile
from hotstart.engines.checkpoints.opening import open_checkpoint
from hotstart.engines.checkpoints.source import check_room
from hotstart.engines.errors import DriverMissing, Reason, Retryable, Terminal
from hotstart.engines.key import key_inputs, make_key
from hotstart.engines.recipe import EngineRecipe
from hotstart.engines.runtimes.runtime import Progress, Runtime, check_toolchain, load_runtime
from hotstart.exchange.messages import BuildPhase

log = logging.getLogger(__name__)
PARTIAL = ".partial-"  # a conversion that is not finished; removed by the next one
CONVERSION_SHARE = 0.6  # of the phase, in a container of its own; the rest are the checkpoint's answers
EXPECTATIONS = "expectations"  # folder in the scratch: what checkpoints answer


@dataclass(frozen=True)
class Conversion:
    """A converted checkpoint: ``files`` is the folder that the runtime wrote, ``prepared`` what it was made of.

    ``source`` is the folder of the checkpoint's own files. Not ``converted``: ``files`` is empty as yet.
    """

    prepared: Prepared
    source: Path
    files: Path
    seconds: float
    converted: bool = True


def convert_only(settings: ConversionSettings, state: BuildState, converted: Path) -> None:
    """Leaves a finished conversion in ``converted``, or one that is there already.

    Raises:
        EngineError: the checkpoint, the recipe or the disk.
    """
    runtime = load_runtime(settings.recipe.toolchain.runtime)
    check_toolchain(runtime, settings.recipe)
    if find_conversion(settings, converted) is not None:
        return
    with _partial(converted) as folder:
        conversion = begin(settings, state, folder)
        if runtime.compiles:
            estimate_build(state, conversion.prepared, settings.recipe)
        try:
            conversion = finish(
                settings, state, runtime, conversion, lambda share: state.set_share(CONVERSION_SHARE * share)
            )
        except DriverMissing as error:
            log.warning("left to the container with the GPU error=%s", error)
            conversion = replace(conversion, converted=False)
            shutil.rmtree(conversion.files)
            conversion.files.mkdir()
        _expect(settings, state, conversion)
        with full_disk_errors(folder, 0):
            receipt = write_receipt(folder, make_receipt(settings, conversion))
        shutil.rmtree(converted, ignore_errors=True)  # one that was not finished, or is another engine's
        folder.rename(converted)
    log.info("checkpoint converted folder=%s files=%d seconds=%.1f", converted, len(receipt.files), receipt.seconds)


def find_conversion(settings: ConversionSettings, converted: Path) -> Conversion | None:
    """A finished conversion for this engine, or None; says why one is not taken over."""
    if not converted.exists():
        return None
    try:
        receipt = read_conversion(converted, settings.engine_key)
        files = tuple(
            ChosenFile(ListedFile(name, size, etag), FileRole(role)) for name, size, etag, role in receipt.checkpoint
        )
        choice = Choice(receipt.checkpoint_format, files)
        checkpoint = open_checkpoint(converted / CHECKPOINT, choice)
        digests = (receipt.checkpoint_digest, receipt.tokenizer_digest)
        prepared = Prepared(checkpoint, choice, *digests, settings.checkpoint.open())
        prepared.check_unchanged()
    except (BadReceipt, Retryable) as error:
        log.warning("conversion not taken over folder=%s error=%s", converted, error)
        return None
    log.info("conversion taken over folder=%s files=%d", converted, len(receipt.files))
    return Conversion(prepared, converted / CHECKPOINT, converted / FILES, receipt.seconds, receipt.converted)


def convert(settings: ConversionSettings, state: BuildState, runtime: Runtime, folder: Path) -> Conversion:
    """Fills ``folder``, which is empty, with the checkpoint and what the runtime makes of it.

    Raises:
        EngineError: the checkpoint, the recipe or the disk; DriverMissing among them.
    """
    return finish(settings, state, runtime, begin(settings, state, folder))


def begin(settings: ConversionSettings, state: BuildState, folder: Path) -> Conversion:
    """Fills ``folder``, which is empty, with the checkpoint.

    Raises:
        EngineError: the checkpoint, the recipe or the disk.
    """
    began = time.monotonic()
    source, files = folder / CHECKPOINT, folder / FILES
    source.mkdir()
    files.mkdir()
    prepared = fetch_checkpoint(settings, state, source)
    return Conversion(prepared, source, files, round(time.monotonic() - began, 1))


def finish(
    settings: ConversionSettings,
    state: BuildState,
    runtime: Runtime,
    begun: Conversion,
    on_share: Progress | None = None,
) -> Conversion:
    """Fills ``begun.files``, which is empty, with what the runtime makes of the checkpoint.

    Raises:
        EngineError: the checkpoint, the recipe or the disk.
        DriverMissing: only a container with a GPU can do it.
    """
    began, prepared, files = time.monotonic(), begun.prepared, begun.files
    needed = needed_bytes(settings.recipe, prepared.checkpoint.facts)
    check_room(files, needed)
    state.enter(BuildPhase.CONVERTING)
    with full_disk_errors(files, needed):
        runtime.convert(prepared.checkpoint, settings.recipe, files, on_share or state.set_share, begun.source)
    prepared.check_unchanged()
    return replace(begun, seconds=round(begun.seconds + time.monotonic() - began, 1), converted=True)


def estimate_build(state: BuildState, prepared: Prepared, recipe: EngineRecipe) -> BuildEstimate:
    """What the build step needs; its share of the whole goes into ``state``."""
    estimate = make_build_estimate(network_sizes(prepared.checkpoint.facts), recipe)
    state.building_seconds = estimate.seconds
    return estimate


def make_receipt(settings: ConversionSettings, conversion: Conversion) -> Receipt:
    """The receipt, still without the digests of the files. Pure."""
    prepared = conversion.prepared
    return Receipt(
        engine_key=settings.engine_key,
        checkpoint_digest=prepared.checkpoint_digest,
        tokenizer_digest=prepared.tokenizer_digest,
        checkpoint_format=prepared.choice.format,
        checkpoint=tuple((c.file.name, c.file.size, c.file.etag, c.role.value) for c in prepared.choice.files),
        seconds=conversion.seconds,
        converted=conversion.converted,
    )


def check_pinned(settings: ConversionSettings, prepared: Prepared) -> None:
    """Raises Terminal where the checkpoint is no longer the inspected one, or the key is not that of the recipe."""
    for what, then, now in (
        ("checkpoint", settings.checkpoint_digest, prepared.checkpoint_digest),
        ("tokenizer of the checkpoint", settings.tokenizer_digest, prepared.tokenizer_digest),
    ):
        if then != now:
            raise Terminal(
                Reason.CHECKPOINT_CHANGED,
                f"The {what} at {settings.checkpoint.place.uri} is no longer the one that was inspected (digest "
                f"{then[:12]} then, {now[:12]} now): set checkpoint.revision to have it inspected again.",
            )
    if make_key(key_inputs(settings.checkpoint_digest, settings.recipe)) != settings.engine_key:
        raise Terminal(
            Reason.INVALID_SPEC,
            "The engine key is not that of checkpoint and recipe: operator and builder image must be of one release.",
        )


def fetch_checkpoint(settings: ConversionSettings, state: BuildState, folder: Path) -> Prepared:
    """Downloads the checkpoint into ``folder``, checks it, and that it is the inspected one.

    Raises:
        EngineError: the store, the checkpoint or the disk; CheckpointChanged.
    """
    state.enter(BuildPhase.DOWNLOADING)
    done = 0

    def on_choice(size: int) -> None:
        state.checkpoint_bytes = size

    def on_bytes(count: int) -> None:  # from several threads: a lost update moves a percent, no more
        nonlocal done
        done += count
        state.set_share(done / max(state.checkpoint_bytes, 1))

    prepared = prepare(
        settings.checkpoint.open(),
        folder,
        settings.serving,
        on_choice=on_choice,
        on_bytes=on_bytes,
        heads_only=False,
        runtime=settings.recipe.toolchain.runtime,
    )
    check_pinned(settings, prepared)
    return prepared


def _expect(settings: ConversionSettings, state: BuildState, conversion: Conversion) -> None:
    """Has the checkpoint answer here, on a CPU, so that the container with the GPU need not wait for it."""
    from hotstart.engines.verify.verify import Subject, expect_only  # only here: the reference network is large

    prepared = conversion.prepared
    subject = Subject(
        *(prepared.checkpoint, prepared.checkpoint_digest, prepared.tokenizer_digest),
        *(settings.recipe, conversion.files, prepared.check_unchanged),
    )
    rest = 1 - CONVERSION_SHARE
    kept = settings.scratch / EXPECTATIONS
    with kept_expectation(state, prepared, kept):
        expect_only(subject, kept, lambda share: state.set_share(CONVERSION_SHARE + rest * share))


@contextmanager
def _partial(converted: Path) -> Iterator[Path]:
    """A new folder beside ``converted``; those of conversions that were killed are removed first."""
    for left in converted.parent.glob(f"{converted.name}{PARTIAL}*"):
        log.warning("unfinished conversion removed folder=%s", left)
        shutil.rmtree(left)
    folder = Path(tempfile.mkdtemp(dir=converted.parent, prefix=f"{converted.name}{PARTIAL}"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
