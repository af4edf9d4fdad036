"""`rag serve` with a sign-in configured: it has no page to sign in on."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from access.tokens import TokenStore
from tests.ports import free_port
from tests.test_app import PATIENCE, ROOT, SETTINGS, App, status, wait_for

ONLY_OIDC = """[api]
port = {port}
[models]
preload = false
[access.oidc]
metadata_url = "https://id.example/.well-known/openid-configuration"
client_id = "rag"
client_secret = "hunter2-oidc-client"
redirect_uri = "https://rag.example/oauth2callback"
"""


def serving(folder: Path, host: str, settings: str) -> subprocess.Popen[str]:
    (folder / "dashboard.toml").write_text(SETTINGS + settings)
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("RAGDECK_", "STREAMLIT_"))}
    given = {**kept, "RAGDECK_DATA": str(folder / "data"), "RAGDECK_CONFIG": str(folder / "dashboard.toml")}
    command = [sys.executable, "-m", "rag", "serve", "--host", host]
    return subprocess.Popen(command, cwd=ROOT, env=given, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


@pytest.mark.parametrize("host", ["0.0.0.0", "127.0.0.1"])
def test_rag_serve_is_refused_where_nobody_could_come_in(tmp_path: Path, host: str) -> None:
    ended = serving(tmp_path, host, ONLY_OIDC.format(port=free_port()))
    said, _ = ended.communicate(timeout=PATIENCE)
    assert ended.returncode == 2 and f"refused to serve on {host}" in said and "Traceback" not in said
    assert "python -m access token create" in said and "[access.proxy]" in said and "hunter2" not in said


def test_rag_serve_takes_tokens_beside_a_sign_in_and_nobody_else(tmp_path: Path) -> None:
    secret, _ = TokenStore(tmp_path / "data" / "access.db").create("program", ["read"], created_by="test")
    port = free_port()
    server = serving(tmp_path, "127.0.0.1", ONLY_OIDC.format(port=port))
    app = App(port, server, tmp_path / "log", tmp_path / "dashboard.toml")  # type: ignore[arg-type]
    try:
        app.log.write_text("")
        wait_for(lambda: server.poll() is not None or status(f"{app.url}/api/health"), app.log)
        assert server.poll() is None
        me = app.call("GET", "/api/v1/whoami", headers={"authorization": f"Bearer {secret}"})
        assert me.status_code == 200 and me.json()["name"] == "program"
        assert app.call("GET", "/api/v1/queries").status_code == 401
    finally:
        server.terminate()
        server.communicate(timeout=PATIENCE)
