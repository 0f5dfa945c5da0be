"""Writes the CustomResourceDefinitions from the pydantic types: `python -m hotstart.operator.api.generate`.

Run at the root of the repository without folders, it writes crds/ and the CRDs of the Helm chart. The files are
committed. `--check` writes nothing, shows what would change, and exits 1 if anything would.
"""

from __future__ import annotations

import argparse
import difflib
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from hotstart.operator.api.crd import KINDS, make_crd

DEFAULT_OUTPUT = Path("crds")
DEFAULT_HELM = Path("helm/hotstart/templates/crds")

_HEADER = """\
# Generated from the types in hotstart.operator.api; do not edit.
# To change it, change the types and run: python -m hotstart.operator.api.generate
"""
#: Helm deletes what it made when a release is uninstalled; with a CRD, every object of the kind would go as well.
_HELM_ANNOTATIONS = {"helm.sh/resource-policy": "keep"}


class _Dumper(yaml.SafeDumper):
    """Safe YAML without anchors, with lists indented under their key."""

    def ignore_aliases(self, data: Any) -> bool:
        return True

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:
        return super().increase_indent(flow, indentless=False)


def make_files(annotations: Mapping[str, str] | None = None) -> dict[str, str]:
    """File name -> YAML of each CRD, with `annotations` in its metadata. The same input gives the same bytes."""
    files = {}
    for definition in KINDS:
        crd = make_crd(definition)
        if annotations:
            crd["metadata"]["annotations"] = dict(annotations)
        text: str = yaml.dump(crd, Dumper=_Dumper, sort_keys=False, width=120, allow_unicode=True)
        files[definition.file_name] = _HEADER + text
    return files


def diff_files(folder: Path, files: Mapping[str, str]) -> str:
    """Unified diff from what stands in `folder` to `files`; empty when they are equal."""
    parts: list[str] = []
    for name, wanted in sorted(files.items()):
        path = folder / name
        present = path.read_text(encoding="utf-8") if path.exists() else ""
        parts += difflib.unified_diff(
            present.splitlines(keepends=True), wanted.splitlines(keepends=True), str(path), f"{path} (generated)"
        )
    return "".join(parts)


def apply_files(folder: Path, files: Mapping[str, str]) -> None:
    """Write `files` into `folder`, which is made if it is missing."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name).write_text(text, encoding="utf-8")


def _choose_targets(output: Path | None, helm: Path | None) -> list[tuple[Path, dict[str, str]]]:
    """Folders and their files: those that are named, or both defaults where none is."""
    if output is None and helm is None:
        output, helm = DEFAULT_OUTPUT, DEFAULT_HELM
    plain = [(output, make_files())] if output is not None else []
    return plain + ([(helm, make_files(_HELM_ANNOTATIONS))] if helm is not None else [])


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m hotstart.operator.api.generate", description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; show the differences and exit 1 if any")
    parser.add_argument("--output", type=Path, metavar="DIR", help=f"folder of the CRDs ({DEFAULT_OUTPUT})")
    parser.add_argument("--helm", type=Path, metavar="DIR", help=f"folder of a chart's CRDs ({DEFAULT_HELM})")
    options = parser.parse_args(arguments)
    targets = _choose_targets(options.output, options.helm)
    if options.check:
        difference = "".join(diff_files(folder, files) for folder, files in targets)
        sys.stdout.write(difference)
        return 1 if difference else 0
    for folder, files in targets:
        apply_files(folder, files)
    return 0


if __name__ == "__main__":
    sys.exit(main())
