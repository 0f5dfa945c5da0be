"""The values that docs/gpus-values.yaml offers are those of the chart, and name the images of GPUs."""

from __future__ import annotations

from pathlib import Path

import yaml

from tests.helm.test_contract import environment, template

VALUES = Path(__file__).resolve().parents[2] / "docs" / "gpus-values.yaml"


def test_the_offered_values_render_with_the_images_of_gpus(chart):
    given = environment(
        template(chart.manifests(yaml.safe_load(VALUES.read_text())), "operator")["spec"]["containers"][0]
    )
    image = "registry.example.com/hotstart/triton-trtllm:0.1.0"
    assert given["HOTSTART_IMAGE_TRITON_TRTLLM"] == given["HOTSTART_IMAGE_BUILDER_TRTLLM"] == image
