"""Every cause that the laboratory knows."""

from __future__ import annotations

from tests.faults import causes_llm, causes_machine, causes_models, causes_store
from tests.faults.laboratory import Fault

FAULTS: tuple[Fault, ...] = (*causes_models.FAULTS, *causes_store.FAULTS, *causes_llm.FAULTS, *causes_machine.FAULTS)
BY_NAME = {fault.name: fault for fault in FAULTS}
