"""A Hub on this machine: the few addresses by which huggingface_hub makes, fills and loads a repository."""

import base64
import contextlib
import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from huggingface_hub import constants, hf_api


@contextlib.contextmanager
def toy_hub(monkeypatch, cache):
    """Serve repositories from memory as the only Hub there is -> {"OWNER/NAME": {path: bytes}}, what was asked."""
    repositories, asked = {}, []

    handler = type("Handler", (_Handler,), {"repositories": repositories, "asked": asked})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    endpoint = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    )
    monkeypatch.setattr(hf_api.api, "endpoint", endpoint)  # of functions such as `model_info`
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    try:
        yield repositories, asked
    finally:
        server.shutdown()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    def log_message(self, *told):
        pass

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        path = self.path.partition("?")[0]
        self.asked.append((self.command, path))
        if path == "/api/repos/create":
            wanted = json.loads(body)
            name = f"{wanted['organization']}/{wanted['name']}"
            if wanted["organization"] == "stranger":
                return self._answer(b'{"error": "You may not write here."}', 403)
            self.repositories.setdefault(name, {})
            self.asked.append(("visibility", wanted.get("visibility")))
            return self._show_progress({"url": f"{constants.ENDPOINT}/{name}"})
        if path == "/api/validate-yaml":
            return self._show_progress({"errors": [], "warnings": []})
        name, verb = "/".join(path.split("/")[3:5]), path.split("/")[5]
        if verb == "preupload":
            files = [{"path": each["path"], "uploadMode": "regular", "shouldIgnore": False}
                     for each in json.loads(body)["files"]]  # fmt: skip
            return self._show_progress({"files": files})
        for line in map(json.loads, body.splitlines()):
            if line["key"] == "file":
                self.repositories[name][line["value"]["path"]] = base64.b64decode(line["value"]["content"])
        return self._show_progress({"commitUrl": f"{constants.ENDPOINT}/{name}/commit/main", "commitOid": "0" * 40})

    def do_GET(self):
        path = self.path.partition("?")[0]
        self.asked.append((self.command, path))
        if path.startswith("/api/models/"):
            name = "/".join(path.split("/")[3:5])
            if name not in self.repositories:
                return self._answer(b"", 404, {"X-Error-Code": "RepoNotFound"})
            files = [{"type": "file", "path": file, "rfilename": file, "size": len(data), "oid": "0"}
                     for file, data in self.repositories[name].items()]  # fmt: skip
            return self._show_progress(files if "/tree/" in path else {"id": name, "sha": "0" * 40, "siblings": files})
        name, file = "/".join(path.split("/")[1:3]), "/".join(path.split("/")[5:])
        if file not in self.repositories.get(name, {}):
            return self._answer(b"", 404, {"X-Error-Code": "EntryNotFound"})
        data = self.repositories[name][file]
        digest = hashlib.sha256(data).hexdigest()
        return self._answer(data, 200, {"ETag": f'"{digest}"', "X-Repo-Commit": "0" * 40})

    do_HEAD = do_GET

    def _show_progress(self, told):
        self._answer(json.dumps(told).encode())

    def _answer(self, body, code=200, headers=None):
        self.send_response(code)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)
