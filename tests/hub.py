"""A Hub on this machine, for the real huggingface_hub client: repositories of models, kept in memory.

It answers what pushing and loading ask: repositories, commits (plain files and LFS), branches and tags, listings, files
with the headers that fill the client's cache, and the metadata of model cards. Reading is open, writing needs `TOKEN`.
Left out: Xet storage, uploads in parts, pull requests, private and gated repositories, pages of long listings.

`LoopbackHub.requests` records every request, so that a test can say what the client asked for, and that it did not ask.
"""

import base64
import hashlib
import json
import re
import threading
from dataclasses import dataclass, field
from fnmatch import fnmatch
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

import yaml

TOKEN = "hf_loopback"
LFS_PATTERNS = ("*.safetensors", "*.png")  # as the attributes of a new repository on the Hub


@dataclass(frozen=True)
class File:
    content: bytes
    is_lfs: bool

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.content).hexdigest()

    @property
    def oid(self) -> str:
        """That of git; of an LFS file git holds a pointer."""
        text = f"version https://git-lfs.github.com/spec/v1\noid sha256:{self.sha256}\nsize {len(self.content)}\n"
        blob = text.encode() if self.is_lfs else self.content
        return hashlib.sha1(b"blob %d\0" % len(blob) + blob).hexdigest()

    def entry(self, path: str) -> dict:
        """As listings show it."""
        entry = {"type": "file", "path": path, "oid": self.oid, "size": len(self.content)}
        if self.is_lfs:
            entry["lfs"] = {"oid": self.sha256, "size": len(self.content), "pointerSize": 134}
        return entry


@dataclass
class Repository:
    commits: dict[str, dict[str, File]] = field(default_factory=dict)  # commit -> path -> file, oldest first
    titles: dict[str, str] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)

    def commit(self, branch: str, title: str, files: dict[str, File]) -> str:
        tree = sorted((path, file.oid) for path, file in files.items())
        commit = hashlib.sha1(repr((len(self.commits), self.branches.get(branch), tree)).encode()).hexdigest()
        self.commits[commit], self.titles[commit], self.branches[branch] = files, title, commit
        return commit

    def resolve(self, revision: str) -> str:
        commit = self.branches.get(revision) or self.tags.get(revision) or revision
        if commit not in self.commits:
            raise NotFound("RevisionNotFound", f"Invalid rev id: {revision}")
        return commit


class HubError(Exception):
    status, code = 400, None


class NotFound(HubError):
    status = 404

    def __init__(self, code, message):
        super().__init__(message)
        self.code = code


class Unauthorized(HubError):
    status = 401


class Conflict(HubError):
    """Carries the whole answer, as the client reads the address of what is there already."""

    status = 409


class StaleParent(HubError):
    status = 412


class LoopbackHub:
    """`with LoopbackHub() as hub`: serves on `hub.endpoint` from threads of this process until the block ends."""

    def __init__(self):
        self.repositories: dict[str, Repository] = {}
        self.lfs_objects: dict[str, bytes] = {}
        self.requests: list[tuple[str, str]] = []
        self.lock = threading.Lock()
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (Handler,), {"hub": self}))
        self.server.daemon_threads = True
        self.endpoint = f"http://127.0.0.1:{self.server.server_port}"

    def __enter__(self):
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_):
        self.server.shutdown()
        self.server.server_close()

    def environment(self, home) -> dict[str, str]:
        """For a process that is to use this Hub, with its cache in the folder `home`."""
        return {
            "HF_ENDPOINT": self.endpoint,
            "HF_TOKEN": TOKEN,
            "HF_HOME": str(home),
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        }

    def repository(self, name: str) -> Repository:
        if name not in self.repositories:
            raise NotFound("RepoNotFound", "Repository not found")
        return self.repositories[name]

    # What follows answers one route each: (match of the path, query, body) -> what goes out as JSON.

    def whoami(self, match, query, body):
        return {"type": "user", "name": "user", "orgs": [], "auth": {"accessToken": {"role": "write"}}}

    def create(self, match, query, body):
        name = f"{body.get('organization') or 'user'}/{body['name']}"
        answer = {"url": f"{self.endpoint}/{name}", "name": name, "id": name}
        if name in self.repositories:
            raise Conflict(json.dumps(answer))
        repository = self.repositories[name] = Repository()
        attributes = "".join(f"{pattern} filter=lfs diff=lfs merge=lfs -text\n" for pattern in LFS_PATTERNS)
        repository.commit("main", "initial commit", {".gitattributes": File(attributes.encode(), is_lfs=False)})
        return answer

    def delete(self, match, query, body):
        name = f"{body.get('organization') or 'user'}/{body['name']}"
        self.repository(name)
        del self.repositories[name]

    def validate_yaml(self, match, query, body):
        front_matter(body["content"])
        return {"errors": [], "warnings": []}

    def preupload(self, match, query, body):
        files = self.repository(match["name"])
        files = files.commits[files.resolve(match["revision"])]
        ignored = [line.rstrip("/") for line in body.get("gitIgnore", "").split() if not line.startswith("#")]

        def answer(path):
            is_lfs = any(fnmatch(path, pattern) for pattern in LFS_PATTERNS)
            is_ignored = any(fnmatch(part, pattern) for part in path.split("/") for pattern in ignored)
            oid = files[path].oid if path in files else None
            return {"path": path, "uploadMode": "lfs" if is_lfs else "regular", "shouldIgnore": is_ignored, "oid": oid}

        return {"files": [answer(file["path"]) for file in body["files"]]}

    def lfs_batch(self, match, query, body):
        self.repository(match["name"])
        objects = []
        for item in body["objects"]:
            actions = {
                "upload": {"href": f"{self.endpoint}/lfs/{item['oid']}"},
                "verify": {"href": f"{self.endpoint}/lfs/{item['oid']}/verify"},
            }
            objects.append(item | ({} if item["oid"] in self.lfs_objects else {"actions": actions}))
        return {"transfer": "basic", "objects": objects}

    def lfs_put(self, match, query, body):
        if hashlib.sha256(body).hexdigest() != match["oid"]:
            raise HubError("the bytes are not those of the oid")
        self.lfs_objects[match["oid"]] = body

    def lfs_verify(self, match, query, body):
        if len(self.lfs_objects[match["oid"]]) != body["size"]:
            raise HubError("another size than announced")

    def commit(self, match, query, body):
        repository, branch = self.repository(match["name"]), match["revision"]
        parent = repository.resolve(branch)
        files = dict(repository.commits[parent])
        title = ""
        for line in body.splitlines():
            kind, value = (item := json.loads(line))["key"], item["value"]
            if kind == "header":
                title = value["summary"]
                if value.get("parentCommit", parent) != parent:
                    raise StaleParent("the branch has moved on")
            elif kind == "file":
                files[value["path"]] = File(base64.b64decode(value["content"]), is_lfs=False)
            elif kind == "lfsFile":
                files[value["path"]] = File(self.lfs_objects[value["oid"]], is_lfs=True)
            elif kind == "deletedFile":
                del files[value["path"]]
            elif kind == "deletedFolder":
                folder = value["path"].rstrip("/") + "/"
                files = {path: file for path, file in files.items() if not path.startswith(folder)}
            else:
                raise HubError(f"unknown operation {kind}")
        commit = repository.commit(branch, title, files)
        return {"success": True, "commitOid": commit, "commitUrl": f"{self.endpoint}/{match['name']}/commit/{commit}"}

    def info(self, match, query, body):
        repository = self.repository(match["name"])
        commit = repository.resolve(match["revision"] or "main")
        files = repository.commits[commit]
        card = front_matter(files["README.md"].content.decode()) if "README.md" in files else {}
        return {
            "id": match["name"],
            "sha": commit,
            "private": False,
            "gated": False,
            "disabled": False,
            "downloads": 0,
            "likes": 0,
            "siblings": [{"rfilename": path} for path in files],
            "tags": [*card.get("tags", []), *([f"license:{card['license']}"] if "license" in card else [])],
            "pipeline_tag": card.get("pipeline_tag"),
            "library_name": card.get("library_name"),
            "cardData": card,
            "model-index": card.get("model-index"),
        }

    def tree(self, match, query, body):
        repository = self.repository(match["name"])
        files = repository.commits[repository.resolve(match["revision"])]
        folder = f"{match['path']}/" if match["path"] else ""
        if query.get("recursive", ["false"])[0].lower() not in ("true", "1"):
            raise HubError("only recursive listings")
        return [file.entry(path) for path, file in files.items() if path.startswith(folder)]

    def paths_info(self, match, query, body):
        repository = self.repository(match["name"])
        files = repository.commits[repository.resolve(match["revision"])]
        return [files[path].entry(path) for path in body["paths"] if path in files]

    def refs(self, match, query, body):
        repository = self.repository(match["name"])

        def listed(kind, refs):
            return [{"name": name, "ref": f"refs/{kind}/{name}", "targetCommit": oid} for name, oid in refs.items()]

        return {
            "branches": listed("heads", repository.branches),
            "tags": listed("tags", repository.tags),
            "converts": [],
        }

    def commits(self, match, query, body):
        titles = self.repository(match["name"]).titles
        return [
            {"id": oid, "title": title, "message": "", "authors": [], "date": "2026-01-01T00:00:00.000Z"}
            for oid, title in reversed(titles.items())
        ]

    def tag(self, match, query, body):
        repository = self.repository(match["name"])
        if body["tag"] in repository.tags:
            raise Conflict("{}")
        repository.tags[body["tag"]] = repository.resolve(match["revision"])

    def branch(self, match, query, body):
        repository = self.repository(match["name"])
        if match["revision"] in repository.branches:
            raise Conflict("{}")
        start = repository.resolve((body or {}).get("startingPoint", "main"))
        repository.branches[match["revision"]] = start

    def resolve(self, match, query, body):
        """(commit, file), which `Handler` sends as it is."""
        repository = self.repository(match["name"])
        commit = repository.resolve(match["revision"])
        if match["path"] not in repository.commits[commit]:
            raise NotFound("EntryNotFound", "Entry not found")
        return commit, repository.commits[commit][match["path"]]


def front_matter(text: str) -> dict:
    """The YAML at the top of a model card."""
    match = re.match(r"---\n(.*?)\n---", text, flags=re.DOTALL)
    return (match and yaml.safe_load(match[1])) or {}


NAME = r"(?P<name>[\w.-]+/[\w.-]+)"
MODEL = f"/api/models/{NAME}"
REVISION = r"(?P<revision>[^/]+)"
ROUTES = [
    ("GET", "/api/whoami-v2", LoopbackHub.whoami),
    ("POST", "/api/repos/create", LoopbackHub.create),
    ("DELETE", "/api/repos/delete", LoopbackHub.delete),
    ("POST", "/api/validate-yaml", LoopbackHub.validate_yaml),
    ("POST", f"{MODEL}/preupload/{REVISION}", LoopbackHub.preupload),
    ("POST", f"/{NAME}.git/info/lfs/objects/batch", LoopbackHub.lfs_batch),
    ("PUT", "/lfs/(?P<oid>[0-9a-f]{64})", LoopbackHub.lfs_put),
    ("POST", "/lfs/(?P<oid>[0-9a-f]{64})/verify", LoopbackHub.lfs_verify),
    ("POST", f"{MODEL}/commit/{REVISION}", LoopbackHub.commit),
    ("GET", f"{MODEL}(/revision/{REVISION})?", LoopbackHub.info),
    ("GET", f"{MODEL}/tree/{REVISION}(/(?P<path>.+))?", LoopbackHub.tree),
    ("POST", f"{MODEL}/paths-info/{REVISION}", LoopbackHub.paths_info),
    ("GET", f"{MODEL}/refs", LoopbackHub.refs),
    ("GET", f"{MODEL}/commits/{REVISION}", LoopbackHub.commits),
    ("POST", f"{MODEL}/tag/{REVISION}", LoopbackHub.tag),
    ("POST", f"{MODEL}/branch/{REVISION}", LoopbackHub.branch),
    ("GET", f"/{NAME}/resolve/{REVISION}/(?P<path>.+)", LoopbackHub.resolve),
]
OPEN_POSTS = (LoopbackHub.validate_yaml, LoopbackHub.paths_info, LoopbackHub.lfs_put)  # the last has a signed address


class Handler(BaseHTTPRequestHandler):
    hub: LoopbackHub
    protocol_version = "HTTP/1.1"

    def answer(self):
        address = urlsplit(self.path)
        method = "GET" if self.command == "HEAD" else self.command
        raw = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        with self.hub.lock:
            self.hub.requests.append((self.command, unquote(address.path)))
            # Matched before it is unquoted: a revision may have slashes.
            matches = (
                (function, re.fullmatch(pattern, address.path)) for verb, pattern, function in ROUTES if verb == method
            )
            function, match = next(((function, match) for function, match in matches if match), (None, None))
            if function is None:
                return self.send(404, {"error": f"this Hub does not serve {self.command} {self.path}"})
            parts = {name: value and unquote(value) for name, value in match.groupdict().items()}
            try:
                if method != "GET" and function not in OPEN_POSTS:
                    if self.headers.get("Authorization") != f"Bearer {TOKEN}":
                        raise Unauthorized("writing needs the token")
                content_type = self.headers.get("Content-Type", "")
                is_json = content_type.endswith("json") and not content_type.endswith("ndjson")
                body = json.loads(raw) if is_json and raw else raw
                result = function(self.hub, parts, parse_qs(address.query), body)
            except Conflict as conflict:
                return self.send(conflict.status, json.loads(str(conflict)))
            except HubError as error:
                headers = {"X-Error-Code": error.code, "X-Error-Message": error}
                return self.send(error.status, {"error": str(error)}, headers)
            except Exception as error:  # the client repeats what gets no answer; a bad request fails at once
                return self.send(400, {"error": f"{type(error).__name__} in this Hub: {error}"})
        if function is LoopbackHub.resolve:
            commit, file = result
            headers = {"X-Repo-Commit": commit, "ETag": f'"{file.oid}"', "Content-Type": "application/octet-stream"}
            if file.is_lfs:
                headers |= {"X-Linked-Etag": f'"{file.sha256}"', "X-Linked-Size": len(file.content)}
            return self.send(200, file.content, headers)
        return self.send(200, result)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = answer

    def send(self, status, body, headers=None):
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        headers = {"Content-Type": "application/json", "Content-Length": len(content)} | (headers or {})
        for name, value in headers.items():
            if value is not None:
                self.send_header(name, str(value))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, *_):
        pass  # `LoopbackHub.requests` is the log
