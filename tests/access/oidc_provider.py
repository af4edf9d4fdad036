"""A small OpenID provider on loopback: real discovery, real codes, really signed tokens; it signs in whoever comes as `claims`."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlencode, urlsplit

from joserfc import jwt
from joserfc.jwk import RSAKey

CLIENT, SECRET = "rag-deck", "hunter2-oidc-client"


class Provider(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.key = RSAKey.generate_key(2048, {"kid": "k1", "alg": "RS256", "use": "sig"})
        self.claims: dict[str, Any] = {
            "sub": "42",
            "email": "anna@example.org",
            "email_verified": True,
            "groups": ["rag-admins"],
        }
        self.codes: dict[str, dict[str, str]] = {}
        self.wrong_nonce = False


class _Handler(BaseHTTPRequestHandler):
    server: Provider

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        here, asked = self.server, urlsplit(self.path)
        given = {name: values[0] for name, values in parse_qs(asked.query).items()}
        if asked.path == "/.well-known/openid-configuration":
            self._json(
                {
                    "issuer": here.url,
                    "authorization_endpoint": f"{here.url}/authorize",
                    "token_endpoint": f"{here.url}/token",
                    "jwks_uri": f"{here.url}/keys",
                    "id_token_signing_alg_values_supported": ["RS256"],
                    "code_challenge_methods_supported": ["S256"],
                }
            )
        elif asked.path == "/keys":
            self._json({"keys": [here.key.as_dict(private=False)]})
        elif asked.path == "/authorize" and given.get("client_id") == CLIENT:
            here.codes["the-code"] = given
            self.send_response(302)
            self.send_header("location", f"{given['redirect_uri']}?{urlencode({'code': 'the-code', 'state': given['state']})}")
            self.end_headers()
        else:
            self.send_error(404)

    def do_POST(self) -> None:
        here = self.server
        body = self.rfile.read(int(self.headers["content-length"])).decode()
        given = {name: values[0] for name, values in parse_qs(body).items()}
        asked = here.codes.pop(given.get("code", ""), None)
        proof = base64.urlsafe_b64encode(hashlib.sha256(given.get("code_verifier", "").encode()).digest()).rstrip(b"=").decode()
        login = base64.b64encode(f"{CLIENT}:{SECRET}".encode()).decode()
        if asked is None or proof != asked.get("code_challenge") or self.headers.get("authorization") != f"Basic {login}":
            self.send_error(400)
            return
        nonce = "another" if here.wrong_nonce else asked.get("nonce")
        claims = {"iss": here.url, "aud": CLIENT, "iat": int(time.time()), "exp": int(time.time()) + 300, "nonce": nonce}
        token = jwt.encode({"alg": "RS256", "kid": "k1"}, {**claims, **here.claims}, here.key)
        self._json({"access_token": "a", "token_type": "Bearer", "expires_in": 300, "id_token": token})

    def _json(self, data: Any) -> None:
        body = json.dumps(data).encode()
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@contextmanager
def provider() -> Iterator[Provider]:
    with Provider() as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join(5)
