"""A hub on loopback: as much of the Hugging Face hub's interface as pushing and loading need, in memory."""

import base64
import hashlib
import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlparse

import huggingface_hub
import pytest
from huggingface_hub import constants, hf_api

TOKEN = "hf_" + "t" * 34


class Hub(ThreadingHTTPServer):
    """Repositories by name: {"private": ..., "branches": {branch: {file: content}}}; `seen` has all requests."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.repos, self.seen = {}, []

    @property
    def address(self):
        return f"http://127.0.0.1:{self.server_address[1]}"

    def put(self, name, files=(), private=False, branch="main"):
        repo = self.repos.setdefault(name, {"private": private, "branches": {"main": {}}})
        repo["branches"].setdefault(branch, {}).update(files)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_HEAD(self):
        self.resolve(body=False)

    def do_GET(self):
        path = urlparse(self.path).path
        if not path.startswith("/api/"):
            self.resolve(body=True)
        elif "/resolve" not in path and path.startswith("/api/models/"):
            name = "/".join(path.split("/")[3:5])
            repo = self.server.repos.get(name)
            if repo is None:
                self.refuse(404, "RepoNotFound")
            else:
                self.answer(200, {"id": name, "private": repo["private"], "sha": "0" * 40, "siblings": []})
        else:
            self.refuse(404, "EntryNotFound")

    def do_POST(self):
        content = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.server.seen.append((self.path, dict(self.headers), content))
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self.refuse(401, "", "Invalid credentials in Authorization header")
            return
        path = urlparse(self.path).path
        if path == "/api/repos/create":
            wanted = json.loads(content)
            if wanted.get("organization") == "others":
                self.refuse(403, "", "You have no rights there")
                return
            name = f"{wanted['organization']}/{wanted['name']}"
            if name in self.server.repos:
                self.answer(
                    409, {"error": "You already created this model repo", "url": f"{self.server.address}/{name}"}
                )
                return
            self.server.put(name, private=wanted.get("visibility") == "private")
            self.answer(200, {"url": f"{self.server.address}/{name}", "name": name, "id": name})
            return
        if path == "/api/validate-yaml":
            self.answer(200, {"errors": [], "warnings": []})
            return
        _, _, _, user, repo, what, *revision = path.split("/")
        branches, branch = self.server.repos[f"{user}/{repo}"]["branches"], "/".join(revision)
        if what == "branch":
            branches.setdefault(branch, {})
            self.answer(200, {})
        elif what == "preupload":
            files = [file["path"] for file in json.loads(content)["files"]]
            modes = [{"path": path, "uploadMode": "regular", "shouldIgnore": False, "oid": None} for path in files]
            self.answer(200, {"files": modes})
        else:
            for line in map(json.loads, content.splitlines()):
                if line["key"] == "file":
                    branches[branch][line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            url = f"{self.server.address}/{user}/{repo}/commit/{'0' * 40}"
            self.answer(200, {"success": True, "commitUrl": url, "commitOid": "0" * 40, "hookOutput": ""})

    def resolve(self, body):
        _, user, repo, _, branch, file = urlparse(self.path).path.split("/")
        found = self.server.repos.get(f"{user}/{repo}")
        if found is None or (found["private"] and self.headers.get("Authorization") != f"Bearer {TOKEN}"):
            self.refuse(401 if self.headers.get("Authorization") is None else 404, "RepoNotFound")
        elif branch not in found["branches"]:
            self.refuse(404, "RevisionNotFound")
        elif file not in found["branches"][branch]:
            self.refuse(404, "EntryNotFound")
        else:
            content = found["branches"][branch][file]
            digest = hashlib.sha256(content).hexdigest()
            headers = {"ETag": f'"{digest}"', "X-Repo-Commit": hashlib.sha1(branch.encode() + content).hexdigest()}
            self.answer(200, content, headers, body)

    def refuse(self, status, code, message="Not found"):
        self.answer(status, {"error": message}, {"X-Error-Code": code, "X-Error-Message": message} if code else {})

    def answer(self, status, content, headers=(), body=True):
        content = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for key, value in dict(headers).items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if body and self.command != "HEAD":
            self.wfile.write(content)


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A hub that the library talks to, with a cache and no token of its own."""
    hub = Hub()
    thread = threading.Thread(target=hub.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    use(hub.address, monkeypatch)
    for key in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(key, raising=False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(time, "sleep", lambda _: None)  # the library waits longer after every failed attempt
    yield hub
    hub.shutdown()
    thread.join()
    hub.server_close()
    huggingface_hub.close_session()


def use(address, monkeypatch):
    """Let the library, which reads its settings when it is imported, talk to an address."""
    monkeypatch.setattr(constants, "ENDPOINT", address)
    template = address + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(hf_api.api, "endpoint", address)
