"""A small server that speaks the Hugging Face hub's protocol: the real loading code runs in tests without a
network.

    with HubServer(root) as hub:            # root/datasets/OWNER/NAME/<files>, root/models/OWNER/NAME/<files>
        hub.fail("GET .*parquet", 503)      # the next request like this fails: see `HubServer.fail`
        ...                                 # a process with HF_ENDPOINT=hub.url
        hub.requests                        # what was asked: "GET /api/datasets/OWNER/NAME 200"

In a repository's folder, a file `.gated` makes it gated, `.private` hides it from whoever has no token, and
`.commit` holds its commit (else it is made from the files). What a folder `.converted` holds is offered in
pull request 1 by the hub's converter of weights. By hand: `python tests/helpers/hub_server.py ROOT PORT`.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import json
import re
import socket
import struct
import sys
import threading
import time
import urllib.parse
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

NAME = (
    r"([^/]+(?:/(?!revision/|tree/|paths-info/|resolve/)[^/]+)?)"  # OWNER/NAME, or an old name without owner
)
UPLOAD = re.compile(r"/api/(repos/create|validate-yaml|models/([^/]+/[^/]+)/(preupload|commit)/[^/]+)")
API = re.compile(rf"/api/(models|datasets)/{NAME}(?:/(revision|tree|paths-info)/(refs/pr/1|[^/]+)/?(.*))?")
DISCUSSIONS = re.compile(r"/api/models/([^/]+/[^/]+)/discussions")
RESOLVE = re.compile(rf"/(?:(datasets)/)?{NAME}/resolve/(refs/pr/1|[^/]+)/(.+)")
WHEN = "2026-01-01T00:00:00.000Z"


class Repository:
    """A folder as a repository with one commit."""

    def __init__(self, path: Path):
        self.path = path

    def files(self, below: str = "") -> list[Path]:
        found = ((p, p.relative_to(self.path).parts) for p in (self.path / below).rglob("*") if p.is_file())
        return sorted(p for p, parts in found if not parts[0].startswith("."))

    def marked(self, mark: str) -> bool:
        return (self.path / f".{mark}").exists()

    @property
    def commit(self) -> str:
        if self.marked("commit"):
            return (self.path / ".commit").read_text().strip()
        listing = "".join(f"{p.relative_to(self.path)} {blob_id(p)}\n" for p in self.files())
        return hashlib.sha1(listing.encode()).hexdigest()

    def entry(self, path: Path) -> dict:
        name = path.relative_to(self.path).as_posix()
        if path.is_dir():
            return {"type": "directory", "oid": "0" * 40, "size": 0, "path": name}
        return {"type": "file", "oid": blob_id(path), "size": path.stat().st_size, "path": name}

    def tree(self, below: str, recursive: bool) -> list[dict]:
        base = self.path / below
        children = base.rglob("*") if recursive else base.iterdir()
        shown = (p for p in sorted(children) if not p.relative_to(self.path).parts[0].startswith("."))
        return [self.entry(p) for p in shown]

    def info(self, name: str) -> dict:
        siblings = [{"rfilename": p.relative_to(self.path).as_posix()} for p in self.files()]
        gated = "manual" if self.marked("gated") else False
        return {
            "id": name,
            "sha": self.commit,
            "private": self.marked("private"),
            "gated": gated,
            "disabled": False,
            "tags": [],
            "createdAt": WHEN,
            "lastModified": WHEN,
            "siblings": siblings,
        }


def blob_id(path: Path) -> str:
    """The id git gives a file's content, which the hub uses as the ETag of a small file."""
    stat = path.stat()
    return _blob_id(path, stat.st_mtime_ns, stat.st_size)


@functools.lru_cache(maxsize=1000)
def _blob_id(path: Path, changed: int, size: int) -> str:
    content = path.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


class Handler(BaseHTTPRequestHandler):
    """Answers one request; `self.server` is the HubServer's."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *args) -> None:
        pass

    def do_GET(self) -> None:
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0)).decode()
        self.cut = False
        url = urllib.parse.urlsplit(self.path)
        self.route, self.query = urllib.parse.unquote(url.path), urllib.parse.parse_qs(url.query)
        fault = self.server.hub.next_fault(f"{self.command} {self.route}")
        if fault is None or not self.misbehave(fault):
            self.answer_route()

    do_HEAD = do_POST = do_GET

    def misbehave(self, fault) -> bool:
        """Carry out a fault; False if the request is still to be answered (with half of its body)."""
        if isinstance(fault, tuple):
            self.server.hub.stopped.wait(fault[1])
            fault = "reset"
        if fault == "reset":
            self.hang_up(reset=True)
        elif fault == "truncate":
            self.cut = True
            return False
        else:
            self.answer(int(fault), {"error": "made to fail"})
        return True

    def answer_upload(self, what: str, name: str | None, step: str | None) -> None:
        """A repository is made, or files are committed to it; only with the token that `HubServer.token`
        says.
        """
        hub = self.server.hub
        if what != "validate-yaml" and self.headers.get("Authorization") != f"Bearer {hub.token}":
            return self.refuse(401, "", "Invalid username or password.")
        if what == "repos/create":
            asked = json.loads(self.body)
            folder = hub.root / "models" / asked.get("organization", "") / asked["name"]
            folder.mkdir(parents=True, exist_ok=True)
            if asked.get("private") or asked.get("visibility") == "private":
                (folder / ".private").touch()
            return self.answer(
                200, {"url": f"{hub.url}/{folder.relative_to(hub.root / 'models')}", "id": asked["name"]}
            )
        if step == "preupload":
            files = [
                {**f, "uploadMode": "regular", "shouldIgnore": False} for f in json.loads(self.body)["files"]
            ]
            return self.answer(200, {"files": files})
        if step == "commit":
            return self.answer_commit(name, [json.loads(line) for line in self.body.splitlines()])
        self.answer(200, {"errors": [], "warnings": []})

    def answer_commit(self, name: str, lines: list[dict]) -> None:
        """Files come and go in one step, if the commit is made on the newest one (or names none)."""
        hub, folder = self.server.hub, self.server.hub.root / "models" / name
        repository = Repository(folder)
        with hub.committing:
            wanted = lines[0]["value"].get("parentCommit")
            if wanted not in (None, repository.commit):
                return self.refuse(412, "", "A commit has happened since. Please refresh and try again.")
            for line in lines[1:]:
                path = folder / line["value"]["path"]
                if line["key"] == "deletedFile":
                    path.unlink()
                elif line["key"] == "file":
                    path.parent.mkdir(parents=True, exist_ok=True)
                    path.write_bytes(base64.b64decode(line["value"]["content"]))
            commit = repository.commit
        self.answer(200, {"commitUrl": f"{hub.url}/{name}/commit/1", "commitOid": commit, "success": True})

    def answer_route(self) -> None:
        if upload := UPLOAD.fullmatch(self.route):
            return self.answer_upload(upload[1], upload[2], upload[3])
        if asked := DISCUSSIONS.fullmatch(self.route):
            return self.answer_discussions(self.server.hub.root / "models" / asked[1])
        api, resolve = API.fullmatch(self.route), RESOLVE.fullmatch(self.route)
        if not (api or resolve):
            return self.refuse(404, "", "Not found")
        kind, name, revision = (
            (api[1], api[2], api[4]) if api else (resolve[1] or "models", resolve[2], resolve[3])
        )
        repository = Repository(self.server.hub.root / kind / name)
        token = self.headers.get("Authorization")
        if not repository.path.is_dir() or (repository.marked("private") and not token):
            return self.refuse(404 if token else 401, "RepoNotFound", "Repository not found")
        converted = Repository(repository.path / ".converted")
        if revision in ("refs/pr/1", converted.commit) and converted.path.is_dir():
            repository = converted
        elif revision not in (None, "main", repository.commit):
            return self.refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        if resolve:
            if repository.marked("gated") and not token:
                return self.refuse(401, "GatedRepo", f"Access to dataset {name} is restricted.")
            return self.answer_file(repository, resolve[4])
        self.answer_api(repository, name, api[3], api[5] or "")

    def answer_discussions(self, repository: Path) -> None:
        offer = {
            "num": 1,
            "title": "Adding `safetensors` variant of this model",
            "author": {"name": "SFconvertbot"},
            "status": "open",
            "isPullRequest": True,
            "createdAt": WHEN,
            "repo": {"name": "x", "type": "model"},
        }
        found = [offer] if (repository / ".converted").is_dir() else []
        self.answer(200, {"discussions": found, "count": len(found), "start": 0})

    def answer_api(self, repository: Repository, name: str, call: str | None, below: str) -> None:
        commit = {"X-Repo-Commit": repository.commit}
        if call == "tree":
            if not (repository.path / below).is_dir():
                return self.refuse(404, "EntryNotFound", f"{below} does not exist", commit)
            recursive = self.query.get("recursive", ["false"])[0].lower() == "true"
            return self.answer(200, repository.tree(below, recursive), commit)
        if call == "paths-info":
            is_json = self.body.startswith("{")
            paths = (
                json.loads(self.body)["paths"]
                if is_json
                else urllib.parse.parse_qs(self.body).get("paths", [])
            )
            found = [repository.path / p for p in paths if (repository.path / p).exists()]
            return self.answer(200, [repository.entry(p) for p in found], commit)
        self.answer(200, repository.info(name), commit)

    def answer_file(self, repository: Repository, name: str) -> None:
        path = repository.path / name
        commit = {"X-Repo-Commit": repository.commit}
        if not path.is_file():
            return self.refuse(404, "EntryNotFound", "Entry not found", commit)
        size = path.stat().st_size
        headers = {**commit, "ETag": f'"{blob_id(path)}"', "Accept-Ranges": "bytes", "Content-Type": "x/x"}
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        if not wanted:
            return self.answer(200, path.read_bytes(), headers)
        first, last = int(wanted[1]), min(int(wanted[2] or size - 1), size - 1)
        if first > last:
            return self.answer(416, b"", {**headers, "Content-Range": f"bytes */{size}"})
        headers["Content-Range"] = f"bytes {first}-{last}/{size}"
        with open(path, "rb") as file:
            file.seek(first)
            self.answer(206, file.read(last + 1 - first), headers)

    def refuse(self, status: int, code: str, message: str, headers: dict | None = None) -> None:
        self.answer(
            status, {"error": message}, {"X-Error-Code": code, "X-Error-Message": message, **(headers or {})}
        )

    def answer(self, status: int, body, headers: dict | None = None) -> None:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.server.hub.requests.append(f"{self.command} {self.route} {status}")
        self.send_response(status)
        standard = {"Content-Type": "application/json", "Content-Length": len(content)}
        for key, value in {**standard, **(headers or {})}.items():
            self.send_header(key, str(value))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content[: len(content) // 2] if self.cut else content)
        if self.cut:
            self.hang_up(reset=False)

    def hang_up(self, reset: bool) -> None:
        """End the connection as a broken network does (reset) or as a dying server does."""
        if reset:
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        else:
            self.wfile.flush()
            self.connection.shutdown(socket.SHUT_RDWR)
        self.close_connection = True
        self.connection.close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request, client_address) -> None:
        if not isinstance(sys.exc_info()[1], ConnectionError):  # a client that hangs up is no event
            super().handle_error(request, client_address)


class HubServer:
    """Serves a folder until the with-statement ends."""

    def __init__(self, root: Path, port: int = 0):
        self.root = Path(root).resolve()
        self.requests: list[str] = []
        self.token = ""  # whoever has it may upload
        self.stopped = threading.Event()
        self._faults: list[list] = []
        self._lock, self.committing = threading.Lock(), threading.Lock()
        self._server = _Server(("127.0.0.1", port), Handler)
        self._server.hub = self
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def fail(self, match: str, what, times: int = 1) -> None:
        """Make the next `times` requests whose "METHOD path" has the regular expression `match` fail.

        what: an HTTP status, "reset" (the connection breaks), "truncate" (half of the body, then the end) or
        ("hang", seconds).
        """
        with self._lock:
            self._faults.append([re.compile(match), what, times])

    def forgive(self) -> None:
        """Forget all faults and requests."""
        with self._lock:
            self._faults.clear()
        self.requests.clear()

    def next_fault(self, request: str):
        with self._lock:
            for fault in self._faults:
                if fault[2] > 0 and fault[0].search(request):
                    fault[2] -= 1
                    return fault[1]
        return None

    def start(self) -> HubServer:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def stop(self) -> None:
        self.stopped.set()
        self._server.shutdown()
        self._server.server_close()

    def __enter__(self) -> HubServer:
        return self.start()

    def __exit__(self, *exception) -> None:
        self.stop()


if __name__ == "__main__":
    with HubServer(Path(sys.argv[1]), int(sys.argv[2])) as server:
        print(server.url, flush=True)
        while True:
            time.sleep(3600)
