"""Grafts on the hub, by the hub's own library against a server on this machine."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard, constants

import runs
from runs import TINY, make
from skillgraft import Graft, GraftError
from skillgraft.core.activation import active
from skillgraft.export import hub
from skillgraft.export.hub import load_from_hub, push_to_hub
from skillgraft.runtime.errors import InputError
from skillgraft.runtime.files import read_json
from skillgraft.store import hub_files
from test_graft import META, PRE, Net, assert_same, assert_same_graft, bits
from test_graft import make as small

TOKEN = "hf_neverToBeSeenInAnyOutput"


class Hub(BaseHTTPRequestHandler):
    """As much of a hub as a push and a download of small files want."""

    repositories: dict[str, dict]  # name → private, commits (id → files), refs

    def log_message(self, *args: object) -> None:
        pass

    def answer(self, content: object = b"", status: int = 200, **headers: str) -> None:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.headers["Authorization"] != f"Bearer {TOKEN}":
            return self.answer({"error": "Invalid username or password."}, 401)
        if self.path == "/api/validate-yaml":
            return self.answer({"errors": [], "warnings": []})
        if self.path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked['organization']}/{asked['name']}"
            if name in self.repositories:
                return self.answer({"url": f"http://{self.headers['Host']}/{name}"}, 409)
            private = asked.get("visibility") == "private" or bool(asked.get("private"))
            self.repositories[name] = {"private": private, "commits": {}, "refs": {}}
            return self.answer({"url": f"http://{self.headers['Host']}/{name}"})
        name, action = re.fullmatch(
            r"/api/models/(\w+/\w+)/(preupload|commit)/main", self.path
        ).groups()
        if action == "preupload":
            files = [
                {"path": f["path"], "uploadMode": "regular", "shouldIgnore": False}
                for f in json.loads(body)["files"]
            ]
            return self.answer({"files": files})
        lines = [json.loads(line) for line in body.splitlines()]
        files = {
            line["value"]["path"]: base64.b64decode(line["value"]["content"])
            for line in lines
            if line["key"] == "file"
        }
        commit = hashlib.sha1(body).hexdigest()
        repository = self.repositories[name]
        repository["commits"][commit] = files
        repository["refs"]["main"] = commit
        return self.answer(
            {
                "commitUrl": f"http://{self.headers['Host']}/{name}/commit/{commit}",
                "commitOid": commit,
            }
        )

    def do_GET(self) -> None:
        found = re.fullmatch(r"/(\w+/\w+)/resolve/(\w+)/(.+)", self.path)
        repository = self.repositories.get(found[1]) if found else None
        if found is None or repository is None:
            return self.answer(status=404, X_Error_Code="RepoNotFound")
        commit = repository["refs"].get(found[2], found[2])
        if commit not in repository["commits"]:
            return self.answer(status=404, X_Error_Code="RevisionNotFound")
        content = repository["commits"][commit].get(found[3])
        if content is None:
            return self.answer(status=404, X_Error_Code="EntryNotFound")
        tag = f'"{hashlib.sha1(content).hexdigest()}"'
        return self.answer(content, ETag=tag, X_Repo_Commit=commit)

    do_HEAD = do_GET


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, dict]]:
    """A hub of one test, with somebody logged in; yields its repositories."""
    handler = type("Handler", (Hub,), {"repositories": {}})
    served = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=served.serve_forever)
    thread.start()
    address = f"http://127.0.0.1:{served.server_port}"
    monkeypatch.setattr(constants, "ENDPOINT", address)
    template = f"{address}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    yield handler.repositories
    served.shutdown()
    thread.join()
    served.server_close()


def grafts(*arguments: str) -> tuple[int, str]:
    """Call a command in this process: its exit code and output, which never has the token."""
    code, output = runs.grafts(*arguments)
    assert TOKEN not in output
    return code, output


def test_a_graft_comes_back_to_the_bit(server: dict[str, dict]) -> None:
    graft = small([0, 5, 12, 24], meta=META, head={"weight": torch.ones(2, 3)})
    first = push_to_hub(graft, "me/sums")
    assert set(server["me/sums"]["commits"][first.oid]) == {hub_files.FILE, "README.md"}
    assert_same_graft(load_from_hub("me/sums"), graft)
    other = small([1], meta=META)
    second = push_to_hub(other, "me/sums", private=True)  # the repository is there: it stays public
    assert server["me/sums"]["private"] is False
    assert_same_graft(load_from_hub("me/sums"), other)
    assert_same_graft(load_from_hub("me/sums", revision=first.oid), graft)
    assert (
        hub_files.pinned("hub:me/sums")
        == hub_files.pinned("hub:me/sums@main")
        == f"hub:me/sums@{second.oid}"
    )
    net = Net(PRE)
    with active(net, load_from_hub("me/sums")):
        assert not torch.equal(net.get_parameter("0.weight"), PRE["0.weight"])
    assert_same(bits(net), PRE)


def test_a_private_repository(server: dict[str, dict]) -> None:
    push_to_hub(small([1]), "me/mine", private=True)
    assert server["me/mine"]["private"] is True


def test_what_the_hub_has_is_checked_as_a_local_file(server: dict[str, dict]) -> None:
    commit = push_to_hub(small([0, 5, 24]), "me/cut").oid
    files = server["me/cut"]["commits"][commit]
    whole = files[hub_files.FILE]
    for number, (content, words) in enumerate(
        (
            (whole[:-9], "not a complete safetensors file"),
            (whole[:-1] + bytes([whole[-1] ^ 1]), "was altered"),
            (b"", "not a complete safetensors file"),
        )
    ):
        server[f"me/cut{number}"] = {
            "commits": {"1" * 40: {hub_files.FILE: content}},
            "refs": {"main": "1" * 40},
        }
        with pytest.raises(GraftError, match=words):
            load_from_hub(f"me/cut{number}")
    with pytest.raises(GraftError, match="not those of the graft's base"):
        load_from_hub("me/cut").apply(Net({n: t + 1 for n, t in PRE.items()}))


def test_what_the_hub_does_not_give_or_take(
    server: dict[str, dict], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server["me/empty"] = {"commits": {"1" * 40: {}}, "refs": {"main": "1" * 40}}
    for reference in ("hub:me/none", "hub:me/empty", "hub:me/empty@v9", "hub:", "hub:a/b/c"):
        code, output = grafts("show", reference)
        assert code == 1
        assert output.startswith(f"grafts: {reference}: no graft.safetensors")
        assert output.count("\n") == 1
    file = str(small([1]).save(tmp_path / "g.safetensors"))
    monkeypatch.setenv("HF_TOKEN", "hf_another")
    code, output = grafts("push", file, "me/sums")
    assert code == 1
    assert output.startswith("grafts: me/sums: the hub does not take the graft (")
    assert "401" in output
    assert "hf_another" not in output
    assert output.count("\n") == 1
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match="offline"):
        push_to_hub(small([1]), "me/sums")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")  # nobody listens
    with pytest.raises(InputError, match="me/sums: the hub does not take the graft"):
        push_to_hub(small([1]), "me/sums")
    assert "me/sums" not in server


# ------------------------------------------------------------------------------------- a run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, undrawn: None) -> Path:
    options = (o for o in TINY if o != "task.ood=[]")
    return make(tmp_path_factory.mktemp("push"), *options, "graft=movement", "task.ood=[toy_book]")


def test_a_run_is_pushed_with_its_metrics(server: dict[str, dict], run: Path) -> None:
    code, shown = grafts("push", str(run), "me/film", "--dry-run")
    assert code == 0
    assert not server
    code, output = grafts("push", str(run), "me/film")
    assert code == 0, output
    commit = server["me/film"]["refs"]["main"]
    assert f"hub:me/film@{commit}" in output
    files = server["me/film"]["commits"][commit]
    assert sorted(files) == ["README.md", "graft.safetensors", "metrics.json"]
    assert all(name in shown for name in files)
    assert files["README.md"].decode() in shown
    assert files[hub_files.FILE] == (run / hub_files.FILE).read_bytes()
    assert json.loads(files["metrics.json"]) == read_json(run / "metrics.json")
    for content in files.values():  # nothing of this machine goes along
        assert str(run.parent).encode() not in content


def test_the_card_says_what_the_run_measured(server: dict[str, dict], run: Path) -> None:
    graft, metrics = Graft.load(run / hub_files.FILE), read_json(run / "metrics.json")
    code, shown = grafts("push", str(run), "me/film", "--model", "me/tiny", "--dry-run")
    assert code == 0
    card = ModelCard(shown[shown.index("---") :])
    assert card.data.base_model == "me/tiny"
    assert card.data.library_name == "skillgraft"
    results = {(r.dataset_name, r.metric_type): r.metric_value for r in card.data.eval_results}
    measured = {
        (task, name): metrics["graft"][split][name]
        for task, split in (("toy_film", "test"), ("toy_book", "ood/toy_book"))
        for name in ("accuracy", "ece", "agreement")
    }
    assert results == measured
    for part in (
        graft.base,
        f"{graft.size:,} of {graft.graftable:,}",
        "*text* it was *mask* .",
        "movement",
    ):
        assert part in card.text
    for model in ("pretrained", "finetuned", "graft"):
        assert f"{metrics[model]['test']['ece']:.3f}" in card.text
    # the card's own lines
    commit = push_to_hub(graft, "me/film")
    code = card.text.split("```python\n")[1].split("```")[0]
    from skillgraft.config import packages

    base = packages.package_path("package:skillgraft/embedded/model", "model.path")
    names: dict = {}
    exec(code.replace('"me/tiny"', repr(str(base))), names)
    for name, index in graft.indices.items():
        parameter = names["model"].get_parameter(f"{names['model'].base_model_prefix}.{name}")
        assert torch.equal(parameter.data.take(index), graft.values[name])
    assert commit.oid in server["me/film"]["commits"]


def test_a_hub_model_is_named_and_a_folder_is_not() -> None:
    assert hub.public_id("FacebookAI/roberta-base") == "FacebookAI/roberta-base"
    assert hub.public_id("gpt2") == "gpt2"
    for path in ("/root/models/mine", "package:skillgraft/embedded/model", "~/m", "a/b/c", "./a"):
        assert hub.public_id(path) is None


def test_a_reference_wherever_a_graft_is_an_argument(
    server: dict[str, dict], run: Path, tmp_path: Path
) -> None:
    graft = Graft.load(run / hub_files.FILE)
    push_to_hub(graft, "me/film")
    push_to_hub(small([3], meta=META), "me/sums")
    assert json.loads(grafts("show", "hub:me/film", "--json")[1])["size"] == graft.size
    assert "OK: 1 file matches" in grafts("verify", "hub:me/film@main")[1]
    (line,) = json.loads(grafts("overlap", str(run), "hub:me/film", "--json")[1])
    assert (line["a"], line["b"], line["iou"]) == (run.name, "film", 1.0)
    assert "different base models" in grafts("overlap", str(run), "hub:me/sums")[1]
    out = tmp_path / "both.safetensors"
    assert grafts("combine", str(run), "hub:me/film", "--out", str(out))[0] == 0
    assert Graft.load(out).iou(graft) == 1
    assert "--model" in grafts("apply", "hub:me/film", "--out", str(tmp_path / "x"))[1]


def test_a_run_that_evaluates_a_graft_of_the_hub(
    server: dict[str, dict], run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its record has the commit; with the file in the hub's cache it is found again without the hub."""
    graft = Graft.load(run / hub_files.FILE)
    commit = push_to_hub(graft, "me/film").oid
    options = (*TINY, "graft=file", "task=toy_book")
    folder = make(run.parent, *options, "graft.paths=[hub:me/film]")
    assert f"- hub:me/film@{commit}" in (folder / "config.yaml").read_text()
    assert torch.equal(Graft.load(folder / hub_files.FILE).region(), graft.region())
    local = make(run.parent, *options, f"graft.paths=[{run.name}]")
    assert local == folder  # the same files' digests are the same run
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    again = make(run.parent, *options, f"graft.paths=['hub:me/film@{commit}']")
    assert again == folder
    with pytest.raises(InputError, match=r"hub:me/none: no graft\.safetensors"):
        make(run.parent, *options, "graft.paths=[hub:me/none]")
