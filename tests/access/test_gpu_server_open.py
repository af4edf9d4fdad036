"""The GPU server does not listen beyond this machine without a key."""

from __future__ import annotations

import pytest

from gpu_server.__main__ import main


@pytest.mark.parametrize("host", ["0.0.0.0", "::"])
def test_it_is_refused_with_what_to_do(host: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.delenv("GPU_SERVER_TOKEN", raising=False)
    assert main(["--host", host, "--port", "0"]) == 2
    said = capsys.readouterr().err
    assert "refused to listen" in said and "GPU_SERVER_TOKEN" in said and "127.0.0.1" in said
