"""GPUs by their node label: what the key and the memory plan take from them."""

from __future__ import annotations

import pytest
from hotstart.engines.accelerators import (
    GIB,
    MIB,
    find_accelerator,
    find_refusal,
    known_mig_profiles,
    known_products,
    make_platform,
)
from hotstart.engines.recipe import Platform
from hypothesis import given
from hypothesis import strategies as st


def test_an_h100_is_known_before_a_node_with_one_is_seen() -> None:
    found = find_accelerator("NVIDIA-H100-80GB-HBM3")
    assert found is not None
    assert (found.sm, found.memory, found.nominal) == (90, 81559 * MIB, True)
    assert make_platform(found) == Platform("amd64", "NVIDIA-H100-80GB-HBM3", "sm_90", "80GiB")


def test_a_grace_module_has_an_arm_cpu() -> None:
    found = find_accelerator("NVIDIA-GH200-480GB")
    assert found is not None
    assert make_platform(found).cpu_architecture == "arm64"


@pytest.mark.parametrize("mib", [81559, 81920, 81251])
def test_a_driver_that_counts_otherwise_does_not_change_the_key(mib: int) -> None:
    found = find_accelerator("NVIDIA-H100-80GB-HBM3", memory_label_mib=mib)
    assert found is not None
    assert found.memory == mib * MIB
    assert found.key_memory == "80GiB"


#: GiB that ``nvidia-smi mig -lgip`` reports for partitions.
REPORTED = {
    ("NVIDIA-A100-SXM4-40GB", "1g.5gb"): 4.75,
    ("NVIDIA-A100-SXM4-40GB", "3g.20gb"): 19.62,
    ("NVIDIA-H100-80GB-HBM3", "1g.10gb"): 9.62,
    ("NVIDIA-H200", "1g.18gb"): 16.0,
    ("NVIDIA-H200", "2g.35gb"): 32.5,
    ("NVIDIA-H200", "7g.141gb"): 140.0,
}


@pytest.mark.parametrize(("place", "gib"), REPORTED.items(), ids=lambda value: str(value))
def test_a_partition_is_never_thought_larger_than_it_is(place: tuple[str, str], gib: float) -> None:
    found = find_accelerator(*place)
    assert found is not None
    assert 0.85 * gib * GIB < found.memory <= gib * GIB
    assert found.key_memory == place[1]


def test_a_partition_in_the_label_counts_as_one_that_is_asked_for() -> None:
    single = find_accelerator("NVIDIA-A100-SXM4-40GB-MIG-1g.5gb")
    assert single == find_accelerator("NVIDIA-A100-SXM4-40GB", "1g.5gb")
    shared = find_accelerator("NVIDIA-A10-SHARED")
    assert shared == find_accelerator("NVIDIA-A10")


def test_a_partition_that_the_gpu_cannot_be_cut_into_is_unknown() -> None:
    assert find_accelerator("NVIDIA-H100-80GB-HBM3", "1g.5gb") is None
    assert find_accelerator("NVIDIA-L4", "1g.5gb") is None
    assert known_mig_profiles("NVIDIA-A30") == ("1g.6gb", "2g.12gb", "4g.24gb")
    assert known_mig_profiles("NVIDIA-H100-80GB-HBM3-MIG-1g.10gb")[0] == "1g.10gb"
    assert known_mig_profiles("NVIDIA-L4") == ()


def test_an_unknown_gpu_is_what_its_node_says() -> None:
    assert find_accelerator("NVIDIA-X9000") is None
    assert find_accelerator("NVIDIA-X9000", memory_label_mib=1000) is None
    assert find_accelerator("NVIDIA-X9000", compute_label="13.0") is None
    assert find_accelerator("NVIDIA-X9000", memory_label_mib=1000, compute_label="13") is None
    found = find_accelerator("NVIDIA-X9000", memory_label_mib=98304, compute_label="13.1")
    assert found is not None
    assert (found.key_sm, found.key_memory, found.nominal) == ("sm_131", "96GiB", False)


def test_what_tensorrt_llm_cannot_build_for_is_refused_with_a_remedy() -> None:
    def refusal(product: str, quantization: str = "none") -> str:
        found = find_accelerator(product)
        assert found is not None
        return find_refusal(found, quantization)

    assert "SM 80 or later, Tesla-T4 has SM 75" in refusal("Tesla-T4")
    assert "int8_weight_only" in refusal("NVIDIA-A100-SXM4-80GB", "fp8")
    assert not refusal("NVIDIA-A100-SXM4-80GB", "int8_weight_only")
    assert not refusal("NVIDIA-L40S", "fp8")
    assert "no int8 or int4 weights for SM 100 to 119" in refusal("NVIDIA-B200", "int8_weight_only")
    assert not refusal("NVIDIA-B200", "fp8")
    assert not refusal("NVIDIA-GeForce-RTX-5090", "int8_weight_only")


@given(st.sampled_from(known_products()), st.integers(0, 5))
def test_every_partition_is_smaller_than_its_gpu_and_has_its_own_key(product: str, number: int) -> None:
    whole = find_accelerator(product)
    assert whole is not None
    profiles = known_mig_profiles(product)
    parts = [find_accelerator(product, profile) for profile in profiles]
    sizes = [part.memory for part in parts if part is not None]
    assert len(sizes) == len(profiles)
    assert sizes == sorted(sizes)
    assert all(size < whole.memory for size in sizes)
    assert whole.key_memory not in {part.key_memory for part in parts if part is not None}
