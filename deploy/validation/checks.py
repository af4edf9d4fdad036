"""All checks in their order: what stands nearest to the wire first, what rests on it later."""

from __future__ import annotations

from collections.abc import Sequence

from deploy.validation import access, endpoints, gpus, identity, incidents_code, incidents_models, offline, path, resources
from deploy.validation.types import Check
from rag.errors import RagError

INCIDENTS = (
    incidents_code.R0_1,
    incidents_models.R0_2,
    incidents_models.R0_3,
    incidents_models.R0_4,
    incidents_code.R0_5,
    incidents_code.R0_6,
    incidents_code.R0_7,
    gpus.R4_1,
    offline.R4_2,
    gpus.R4_3,
)
CHECKS: tuple[Check, ...] = (
    *endpoints.CHECKS,
    *identity.CHECKS,
    *resources.CHECKS,
    access.T_1,
    *access.CHECKS,
    *offline.CHECKS,
    resources.D_4,
    *path.CHECKS,
    *INCIDENTS,
)
CODES = tuple(check.code for check in CHECKS)


def chosen(codes: Sequence[str]) -> tuple[Check, ...]:
    """The checks of these codes, in our order; all of them without any. Raises RagError bad_input for a code that is none."""
    wanted = {code.upper() for code in codes}
    unknown = sorted(wanted - set(CODES))
    if unknown:
        raise RagError(f"there is no check {', '.join(unknown)}", kind="bad_input", next_step=f"Choose of {', '.join(CODES)}.")
    return tuple(check for check in CHECKS if not wanted or check.code in wanted)
