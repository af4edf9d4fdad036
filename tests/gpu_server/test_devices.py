"""Device and precision choice: what `auto` means here, and what is refused with a reason."""

from __future__ import annotations

import pytest

from gpu_server.devices import PRECISIONS, cpu_has_bf16, devices, import_torch, pick_bf16, pick_device, pick_precision
from gpu_server.errors import ModelError

torch = import_torch()
GPUS = torch.cuda.device_count()


def test_auto_takes_every_gpu_and_the_cpu_only_where_there_is_none() -> None:
    expected = tuple(f"cuda:{index}" for index in range(GPUS)) or ("cpu",)
    assert devices("auto") == expected
    assert pick_device("auto") == expected[0]


def test_a_named_device_is_that_device_alone() -> None:
    assert devices("cpu") == ("cpu",)
    assert pick_device("cpu") == "cpu"


@pytest.mark.parametrize("wanted", [f"cuda:{GPUS}", "gpu", "cuda:x", ""])
def test_a_device_that_is_not_there_is_refused_with_what_torch_sees(wanted: str) -> None:
    with pytest.raises(ModelError, match=f"torch sees {GPUS} GPUs") as caught:
        pick_device(wanted)
    assert "'auto'" in caught.value.next_step


def test_several_gpus_get_a_worker_each(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    assert devices("auto") == devices("cuda") == ("cuda:0", "cuda:1", "cuda:2")
    assert devices("cuda:1") == ("cuda:1",)
    assert pick_device("cuda") == "cuda:0"


def test_auto_precision_is_bf16_where_the_hardware_has_it() -> None:
    assert pick_precision("cuda:0", "auto") == "bf16"
    assert pick_precision("cpu", "auto") == ("bf16" if cpu_has_bf16() else "fp32")


def test_auto_precision_is_fp32_on_a_cpu_without_bf16(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    assert pick_precision("cpu", "auto") == "fp32"
    assert not pick_bf16("cpu", "auto")


@pytest.mark.parametrize(
    ("device", "wanted", "reason"),
    [("cpu", "fp16", "GPUs only"), ("cuda:0", "int8", "CPUs only"), ("cpu", "fp8", "unknown precision 'fp8'")],
)
def test_a_precision_that_the_device_lacks_is_refused(device: str, wanted: str, reason: str) -> None:
    with pytest.raises(ModelError, match=reason) as caught:
        pick_precision(device, wanted)
    assert "bf16" in caught.value.next_step


def test_every_precision_is_had_somewhere() -> None:
    had = {pick_precision(device, wanted) for device, wanted in (("cpu", "fp32"), ("cpu", "bf16"), ("cpu", "int8"))}
    assert had | {pick_precision("cuda", "fp16")} == set(PRECISIONS)
