"""A process that makes the cookies' secret in one folder after the other, at the same moments as others. See test_sign_in.py."""

from __future__ import annotations

import sys
from pathlib import Path

from access.oidc import write_secrets


def main(folders: list[str]) -> None:
    """Says it is ready, waits for a line on standard input before each folder, and says the secret that it got."""
    print("ready", flush=True)
    for folder in folders:
        sys.stdin.readline()
        _, secret = write_secrets(
            Path(folder), metadata_url="https://id", client_id="c", client_secret="s", redirect_uri="https://rag/oauth2callback"
        )
        print(secret, flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
