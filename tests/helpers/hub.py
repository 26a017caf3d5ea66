"""A small Hub on the loopback, for the real client: repositories, commits with LFS, branches, downloads, refusals.

It speaks what huggingface_hub asks for to create, commit, list and download, keeps everything in memory, and refuses
what the Hub refuses: no token, a token that may not write, other names' repositories, content that is not what its
hash says, a commit on an old parent.
"""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from ruamel.yaml import YAML

WRITER, READER, STRANGER = "hf_writer0000", "hf_reader0000", "hf_other0000"
LFS = re.compile(r"\.(safetensors|onnx|parquet|png)$")


class Refusal(Exception):
    """A status, and the Hub's code for it."""

    def __init__(self, status: int, message: str, code: str = "", **more: Any):
        super().__init__(message)
        self.status, self.message, self.code, self.more = status, message, code, more


@dataclass
class Repo:
    """Branches, each a list of commits (sha, message, files)."""

    private: bool
    branches: dict[str, list[tuple[str, str, dict[str, bytes]]]] = field(default_factory=dict)

    def commit(self, revision: str) -> tuple[str, str, dict[str, bytes]]:
        if revision in self.branches:
            return self.branches[revision][-1]
        for commits in self.branches.values():
            for commit in commits:
                if commit[0] == revision:
                    return commit
        raise Refusal(404, f"Invalid rev id: {revision}", "RevisionNotFound")

    def add(self, branch: str, message: str, files: dict[str, bytes]) -> str:
        history = self.branches.setdefault(branch, [])
        text = repr((branch, len(history), message, sorted(files)))
        history.append((hashlib.sha1(text.encode()).hexdigest(), message, files))
        return history[-1][0]


@dataclass
class Fault:
    """What goes wrong once, or `times` times: a status instead of an answer; 0 cuts the connection."""

    method: str
    path: str
    status: int
    times: int = 1


@dataclass
class Hub:
    """The server's memory."""

    url: str = ""
    repos: dict[str, Repo] = field(default_factory=dict)  # models/me/x, datasets/me/y
    objects: dict[str, bytes] = field(default_factory=dict)
    requests: list[tuple[str, str]] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)

    def files(self, name: str, revision: str = "main") -> dict[str, bytes]:
        return self.repos[name].commit(revision)[2]

    def fault(self, method: str, path: str) -> Fault | None:
        for fault in self.faults:
            if fault.times and fault.method == method and re.search(fault.path, path):
                fault.times -= 1
                return fault
        return None

    def environment(self, cache: object, token: str = WRITER) -> dict[str, str]:
        """What a process needs to take this for the Hub."""
        return {
            "HF_ENDPOINT": self.url,
            "HF_HOME": str(cache),
            "HF_TOKEN": token,
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
        }


def is_lfs(path: str, data: bytes) -> bool:
    return bool(LFS.search(path)) or len(data) > 10 * 2**20


def oid_of(path: str, data: bytes) -> str:
    """SHA-256 of an LFS file, git's blob hash of another."""
    if is_lfs(path, data):
        return hashlib.sha256(data).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


class Handler(BaseHTTPRequestHandler):
    """One request."""

    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def handle_one(self) -> None:
        self.target = unquote(urlsplit(self.path).path)
        self.query = parse_qs(urlsplit(self.path).query)
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.headers.get("Transfer-Encoding") == "chunked":
            while size := int(self.rfile.readline(), 16):
                self.body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
        self.hub.requests.append((self.command, self.target))
        if fault := self.hub.fault(self.command, self.target):
            if not fault.status:
                self.close_connection = True
                self.connection.shutdown(2)
                return
            return self.answer(fault.status, json.dumps({"error": "as it was told"}).encode())
        try:
            for pattern, method in ROUTES:
                if actual := re.fullmatch(pattern, f"{self.command} {self.target}"):
                    return method(self, *actual.groups())
            raise Refusal(404, f"no such endpoint: {self.command} {self.target}")
        except Refusal as refusal:
            headers = {"X-Error-Code": refusal.code, "X-Error-Message": refusal.message}
            self.answer(refusal.status, json.dumps({"error": refusal.message} | refusal.more).encode(), headers)

    do_GET = do_POST = do_PUT = do_HEAD = do_DELETE = handle_one

    def answer(self, status: int, body: bytes = b"", headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in ({"Content-Type": "application/json"} | (headers or {})).items():
            self.send_header(name, value)
        if "Content-Length" not in (headers or {}):
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def say(self, value: Any) -> None:
        self.answer(200, json.dumps(value).encode())

    def user(self, write: bool = False, owner: str | None = None) -> str | None:
        """Who asks; raises Refusal where the Hub would."""
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        name = {WRITER: "me", READER: "me", STRANGER: "other"}.get(token)
        if write and name is None:
            raise Refusal(401, "Invalid username or password.")
        if write and (token == READER or name != owner):
            raise Refusal(403, "You don't have the rights to create or change this under this namespace")
        return name

    def repo(self, kind: str, name: str, write: bool = False) -> Repo:
        owner = name.partition("/")[0]
        who = self.user(write, owner)
        repo = self.hub.repos.get(f"{kind}/{name}")
        if repo is None or (repo.private and who != owner):
            raise Refusal(404 if who else 401, "Repository not found", "RepoNotFound")
        return repo

    def whoami(self) -> None:
        if not (name := self.user()):
            raise Refusal(401, "Invalid username or password.")
        role = "read" if READER in self.headers["Authorization"] else "write"
        self.say({"type": "user", "name": name, "auth": {"accessToken": {"role": role}}, "orgs": []})

    def create(self) -> None:
        asked = json.loads(self.body)
        owner = asked.get("organization") or "me"
        self.user(True, owner)
        kind = f"{asked.get('type') or 'model'}s"
        key = f"{kind}/{owner}/{asked['name']}"
        if key in self.hub.repos:
            url = f"{self.hub.url}/{key.removeprefix('models/')}"
            raise Refusal(409, "You already created this model repo", url=url)
        self.hub.repos[key] = repo = Repo(asked.get("visibility") == "private" or bool(asked.get("private")))
        repo.add("main", "initial commit", {".gitattributes": b"*.safetensors filter=lfs\n"})
        self.say({"url": f"{self.hub.url}/{key.removeprefix('models/')}", "name": f"{owner}/{asked['name']}"})

    def info(self, kind: str, name: str, revision: str | None = None) -> None:
        repo = self.repo(kind, name)
        sha, _, files = repo.commit(revision or "main")
        siblings = [{"rfilename": path} for path in sorted(files)]
        who = {"id": name, "modelId": name, "author": name.partition("/")[0], "private": repo.private}
        self.say({**who, "sha": sha, "siblings": siblings, "tags": [], "downloads": 0, "likes": 0, "gated": False})

    def refs(self, kind: str, name: str) -> None:
        branches = self.repo(kind, name).branches
        listed = [{"name": b, "ref": f"refs/heads/{b}", "targetCommit": c[-1][0]} for b, c in branches.items()]
        self.say({"branches": listed, "converts": [], "tags": []})

    def branch(self, kind: str, name: str, branch: str) -> None:
        repo = self.repo(kind, name, write=True)
        if branch in repo.branches:
            raise Refusal(409, "Reference already exists")
        start = json.loads(self.body or b"{}").get("startingPoint") or "main"
        repo.branches[branch] = [repo.commit(start)]
        self.say({})

    def validate(self) -> None:
        front = YAML(typ="safe").load(json.loads(self.body)["content"].split("---")[1])
        if front.get("license") not in ("apache-2.0", "mit", "cc-by-4.0", "cc-by-nc-4.0", "other"):
            raise Refusal(
                400, "invalid", errors=[{"message": f'"license" must be a known one: {front.get("license")}'}]
            )
        self.say({"errors": [], "warnings": []})

    def preupload(self, kind: str, name: str, revision: str) -> None:
        repo = self.repo(kind, name, write=True)
        there = repo.commit(revision)[2]
        files = []
        for asked in json.loads(self.body)["files"]:
            path = asked["path"]
            large = bool(LFS.search(path)) or asked["size"] > 10 * 2**20
            actual = {"path": path, "uploadMode": "lfs" if large else "regular", "shouldIgnore": False}
            files.append({**actual, "oid": oid_of(path, there[path]) if path in there else None})
        self.say({"files": files})

    def batch(self, kind: str | None, name: str) -> None:
        self.repo((kind or "models/").rstrip("/"), name, write=True)
        objects = []
        for asked in json.loads(self.body)["objects"]:
            entry: dict[str, Any] = {"oid": asked["oid"], "size": asked["size"]}
            if asked["oid"] not in self.hub.objects:
                href = f"{self.hub.url}/lfs/{asked['oid']}/{asked['size']}"
                entry["actions"] = {"upload": {"href": href, "header": {}}}
            objects.append(entry)
        self.say({"transfer": "basic", "objects": objects})

    def upload(self, oid: str, size: str) -> None:
        if hashlib.sha256(self.body).hexdigest() != oid or len(self.body) != int(size):
            raise Refusal(400, "The content is not what its hash and size say")
        self.hub.objects[oid] = self.body
        self.answer(200)

    def commit(self, kind: str, name: str, revision: str) -> None:
        repo = self.repo(kind, name, write=True)
        head, *operations = [json.loads(line) for line in self.body.splitlines()]
        sha, _, before = repo.commit(revision)
        if head["value"].get("parentCommit", sha) != sha:
            raise Refusal(412, "A commit has happened since. Please refresh and try again.")
        files = dict(before)
        for operation in operations:
            value = operation["value"]
            if operation["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif operation["key"] == "lfsFile":
                data = self.hub.objects.get(value["oid"])
                if data is None or len(data) != value["size"]:
                    raise Refusal(400, f"LFS pointer points to a file that does not exist: {value['path']}")
                files[value["path"]] = data
            elif operation["key"] == "deletedFile" and files.pop(value["path"], None) is None:
                raise Refusal(404, "A file with this name doesn't exist", "EntryNotFound")
        done = repo.add(revision, head["value"]["summary"], files)
        self.say({"success": True, "commitOid": done, "commitUrl": f"{self.hub.url}/{name}/commit/{done}"})

    def tree(self, kind: str, name: str, revision: str, folder: str | None = None) -> None:
        files = self.repo(kind, name).commit(revision)[2]
        prefix = f"{folder.strip('/')}/" if folder and folder.strip("/") else ""
        inside = {path: data for path, data in files.items() if path.startswith(prefix)}
        if prefix and not inside:
            raise Refusal(404, f"{folder} does not exist on {revision}", "EntryNotFound")
        deep = self.query.get("recursive", ["false"])[0].lower() in ("true", "1")
        shown = [p for p in inside if deep or "/" not in p[len(prefix) :]]
        parents = {"/".join(p.split("/")[:k]) for p in inside for k in range(1, p.count("/") + 1)}
        folders = sorted(p for p in parents if p.startswith(prefix) and (deep or "/" not in p[len(prefix) :]))
        listed = [{"type": "directory", "path": path, "size": 0, "oid": "0" * 40} for path in folders]
        self.say(listed + [entry(path, files[path]) for path in shown])

    def paths(self, kind: str, name: str, revision: str) -> None:
        files = self.repo(kind, name).commit(revision)[2]
        if "json" in (self.headers.get("Content-Type") or ""):
            asked = json.loads(self.body)["paths"]
        else:
            asked = parse_qs(self.body.decode()).get("paths", [])
        actual = [entry(path, files[path]) for path in asked if path in files]
        folders = [path for path in asked if path not in files and any(p.startswith(f"{path}/") for p in files)]
        self.say(actual + [{"type": "directory", "path": path, "oid": "0" * 40, "size": 0} for path in folders])

    def resolve(self, kind: str | None, name: str, revision: str, path: str) -> None:
        sha, _, files = self.repo((kind or "models/").rstrip("/"), name).commit(revision)
        headers = {"X-Repo-Commit": sha, "Accept-Ranges": "bytes", "Content-Type": "application/octet-stream"}
        if path not in files:
            headers |= {"X-Error-Code": "EntryNotFound", "X-Error-Message": "Entry not found"}
            return self.answer(404, b"{}", headers)
        data = files[path]
        headers |= {"ETag": f'"{oid_of(path, data)}"'}
        if is_lfs(path, data):
            headers |= {"X-Linked-Size": str(len(data)), "X-Linked-Etag": f'"{oid_of(path, data)}"'}
        if self.command == "HEAD":
            return self.answer(200, b"", headers | {"Content-Length": str(len(data))})
        if asked := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or ""):
            first, last = int(asked[1]), min(int(asked[2] or len(data)), len(data) - 1)
            headers |= {"Content-Range": f"bytes {first}-{last}/{len(data)}"}
            return self.answer(206, data[first : last + 1], headers)
        self.answer(200, data, headers)


def entry(path: str, data: bytes) -> dict[str, Any]:
    """A file as listings have it."""
    actual: dict[str, Any] = {"type": "file", "path": path, "size": len(data), "oid": oid_of(path, data)}
    if is_lfs(path, data):
        actual |= {"lfs": {"oid": oid_of(path, data), "size": len(data), "pointerSize": 130}}
    return actual


KIND, NAME = r"(models|datasets)", r"([^/]+/[^/]+)"
ROUTES = [
    (r"GET /api/whoami-v2", Handler.whoami),
    (r"POST /api/repos/create", Handler.create),
    (r"POST /api/validate-yaml", Handler.validate),
    (rf"POST /api/{KIND}/{NAME}/branch/(.+)", Handler.branch),
    (rf"POST /api/{KIND}/{NAME}/preupload/(.+)", Handler.preupload),
    (rf"POST /api/{KIND}/{NAME}/commit/(.+)", Handler.commit),
    (rf"POST /api/{KIND}/{NAME}/paths-info/(.+)", Handler.paths),
    (rf"GET /api/{KIND}/{NAME}/refs", Handler.refs),
    (rf"GET /api/{KIND}/{NAME}/tree/([^/]+)(/.*)?", Handler.tree),
    (rf"GET /api/{KIND}/{NAME}/revision/(.+)", Handler.info),
    (rf"GET /api/{KIND}/{NAME}", Handler.info),
    (rf"POST /(datasets/)?{NAME}\.git/info/lfs/objects/batch", Handler.batch),
    (r"PUT /lfs/([0-9a-f]{64})/(\d+)", Handler.upload),
    (rf"(?:GET|HEAD) /(datasets/)?{NAME}/resolve/([^/]+)/(.+)", Handler.resolve),
]


@contextmanager
def serve() -> Iterator[Hub]:
    """A Hub that listens until the block is left."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (Handler,), {"hub": hub}))
    server.daemon_threads = True
    hub.url = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
