"""A stand-in for W&B's server: takes what a client of one run sends, and keeps it."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

PROJECT = {"id": "P", "name": "skillgraft", "entity": {"id": "E", "name": "me"}}


class Server(ThreadingHTTPServer):
    """Keeps every GraphQL operation, every file that was put, and of each run what W&B would show.

    As W&B does: a value that is null in a later upsert leaves what was there, a configuration
    replaces the one before, and so does a summary.
    """

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.operations: list[tuple[str, dict[str, Any]]] = []
        self.files: dict[str, bytes] = {}
        self.runs: dict[str, dict[str, Any]] = {}

    def handle_error(self, *_: object) -> None:
        """Say nothing of a client that goes away."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def answer(self, name: str, given: dict[str, Any]) -> dict[str, Any]:
        """Return the data of a GraphQL operation, with all fields that any client asked for."""
        self.operations.append((name, given))
        given = given.get("input", given)
        match name:
            case "UpsertBucket":
                known = self.runs.setdefault(given["name"], {"summary": {}, "history": []})
                known |= {name: value for name, value in given.items() if value is not None}
                run = {"id": given["name"], "name": given["name"], "project": PROJECT}
                return {"upsertBucket": {"bucket": run, "inserted": True}}
            case "RunResumeStatus":
                if (known := self.runs.get(given["name"])) is None:
                    return {"model": None}
                bucket = {"id": given["name"], "name": given["name"], "notes": None}
                bucket |= {name: known.get(name) for name in ("displayName", "config", "tags")}
                bucket |= {"summaryMetrics": json.dumps(known["summary"]), "logLineCount": 0}
                bucket |= {"historyLineCount": len(known["history"]), "eventsLineCount": 0}
                bucket |= {"historyTail": json.dumps(known["history"][-1:]), "eventsTail": "[]"}
                bucket |= {"wandbConfig": json.dumps({"t": 1})}  # that it has begun
                return {"model": {**PROJECT, "bucket": bucket}}
            case "ArtifactType":  # of an artifact of this name, if there is one
                return {"project": {"artifact": None}}
            case "ArtifactByID":
                return {"artifact": artifact_of(given["id"])}
            case "CreateRunFiles":
                files = [{"name": f, "uploadUrl": f"{self.url}/run/{f}"} for f in given["files"]]
                return {"createRunFiles": {"runID": "r", "uploadHeaders": [], "files": files}}
            case "CreateArtifact":
                artifact = {"id": given["artifactCollectionName"], "state": "PENDING"}
                artifact["artifactSequence"] = {"latestArtifact": None}
                return {"createArtifact": {"artifact": artifact}}
            case "CreateArtifactManifest" | "UpdateArtifactManifest":
                file = {"id": "F", "uploadUrl": f"{self.url}/manifest", "uploadHeaders": []}
                key = name[0].lower() + name[1:]
                return {key: {"artifactManifest": {"id": "M", "file": file}}}
            case "CreateArtifactFiles":
                nodes = [
                    {
                        "uploadUrl": f"{self.url}/artifact/{file['artifactID']}/{file['name']}",
                        "uploadHeaders": [],
                        "artifact": {"id": file["artifactID"]},
                    }
                    for file in given["artifactFiles"]
                ]
                edges = [{"node": node} for node in nodes]
                return {"createArtifactFiles": {"files": {"edges": edges}}}
            case "CommitArtifact":
                return {"commitArtifact": {"artifact": {"id": given["artifactID"], "digest": "d"}}}
            case "Viewer":
                return {"viewer": {"id": "V", "entity": "me", "username": "me", "teams": None}}
            case "GetProjects":
                project = {"id": "P", "name": "skillgraft", "entityName": "me", "user": None}
                project |= {"createdAt": "2026-01-01T00:00:00Z", "isBenchmark": False}
                page = {"endCursor": None, "hasNextPage": False}
                return {"models": {"edges": [{"node": project}], "pageInfo": page}}
            case "UpsertView2" | "upsertView":  # a workspace, a report
                view = {
                    name: given[name] for name in ("name", "displayName", "description", "spec")
                }
                view |= {"id": f"view{len(self.operations)}", "type": given["type"]}
                project = {"id": "P", "name": given["projectName"], "entityName": "me"}
                return {"upsertView": {"view": view | {"project": project}, "inserted": True}}
            case "ServerFeaturesQuery":
                return {"serverInfo": {"features": []}}
        return {}

    def stream(self, name: str, content: dict[str, Any]) -> None:
        """Keep what a client streams of a run: its summary, and the lines of its history."""
        known = self.runs.setdefault(name, {"summary": {}, "history": []})
        files = content.get("files", {})
        if "wandb-summary.json" in files:
            known["summary"] = json.loads(files["wandb-summary.json"]["content"][-1])
        if (lines := files.get("wandb-history.jsonl")) is not None:
            known["history"][lines["offset"] :] = lines["content"]
        if "exitcode" in content:
            known["exitcode"] = content["exitcode"]


def artifact_of(name: str) -> dict[str, Any]:
    """Return a committed artifact, with all fields that a client asked for."""
    project = {**PROJECT, "internalId": "P"}
    sequence = {"id": "S", "name": name, "project": project, "__typename": "ArtifactSequence"}
    return {
        "__typename": "Artifact", "id": name, "artifactSequence": sequence, "versionIndex": 0,
        "artifactType": {"name": "graft"}, "description": None, "metadata": "{}",
        "ttlDurationSeconds": -2, "ttlIsInherited": True, "tags": [], "historyStep": None,
        "state": "COMMITTED", "size": 1, "digest": "d", "digestAlgorithm": "MANIFEST_MD5",
        "commitHash": "c", "fileCount": 1, "createdAt": "2026-01-01T00:00:00Z",
        "updatedAt": None, "aliases": [],
    }  # fmt: skip


class Handler(BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"

    def body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def reply(self, content: dict[str, Any]) -> None:
        text = json.dumps(content).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def do_POST(self) -> None:
        body = self.body()
        if self.path != "/graphql":  # a run's curves, as they come
            if found := re.fullmatch(r"/files/[^/]+/[^/]+/([^/]+)/file_stream", self.path):
                self.server.stream(found.group(1), json.loads(body))
            return self.reply({})
        asked = json.loads(body)
        found = re.search(r"(?:query|mutation)\s+(\w+)", asked["query"])
        name = found.group(1) if found else ""
        return self.reply({"data": self.server.answer(name, asked.get("variables") or {})})

    def do_PUT(self) -> None:
        self.server.files[self.path] = self.body()
        self.reply({})

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@contextmanager
def serving() -> Iterator[Server]:
    """Serve on a free port of this machine."""
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()
