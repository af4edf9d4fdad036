"""The process's runtime for tests of pages, in a folder of their own: no setting of this machine reaches it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import runtime
from settings import reference


@contextmanager
def only_settings_of(folder: Path, config: str = "") -> Iterator[None]:
    """Settings are the TOML text `config` and the defaults, data goes to `folder`/data. A runtime from before has ended, and the
    one that is made inside ends at the end."""
    (folder / "own.toml").write_text(config)
    with pytest.MonkeyPatch.context() as patch:
        for name in [row.variable for row in reference() if row.variable] + ["MILVUS_HOST", "OPENAI_API_KEY"]:
            patch.delenv(name, raising=False)
        patch.setenv("RAGDECK_DATA", str(folder / "data"))
        patch.setenv("RAGDECK_CONFIG", str(folder / "own.toml"))
        runtime.shut_down()
        try:
            yield
        finally:
            runtime.shut_down()
