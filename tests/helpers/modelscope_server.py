"""A small ModelScope on the loopback interface, as far as a client that reads models can tell.

Serves the list of files, the files and the revisions of a model under /api/v1/models. Small files come without a
redirect, and their ranges are ignored. Weight files are redirected to the store of `hub_server`, with all its faults.
The token comes as a Bearer header or as the cookie m_session_id.
"""

import hashlib
import json
import re
from typing import Any
from urllib.parse import parse_qs, urlsplit

from tests.helpers.hub_server import WEIGHTS, Hub, hub_handler

NOT_FOUND = 10010205001


def modelscope_handler(hub: Hub) -> Any:
    """The handler class of a ModelScope; pass it to `running_hub`."""

    class Handler(hub_handler(hub)):  # type: ignore[misc]
        def _route(self) -> None:
            parts = urlsplit(self.path)
            query = {name: values[0] for name, values in parse_qs(parts.query).items()}
            match = re.fullmatch(r"/api/v1/models/([^/]+/[^/]+)/(repo/files|repo|revisions)", parts.path)
            if match is None:
                super()._route()
            elif self._may_read(match[1]):
                answer = {"repo/files": self._files, "repo": self._file, "revisions": self._revisions}[match[2]]
                answer(match[1], query)

        def _may_read(self, repo_id: str) -> bool:
            repo = hub.repos.get(repo_id)
            bearer = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
            cookie = (self.headers.get("Cookie") or "").removeprefix("m_session_id=")
            if bearer == "invalid":
                self._json(401, {"Code": 10010103009, "Message": "AccessToken is invalid", "Success": False})
            elif repo is None or (repo.tokens and (bearer not in repo.tokens or cookie not in repo.tokens)):
                self._json(404, {"Code": NOT_FOUND, "Message": "record not found", "Success": False})
            else:
                return True
            return False

        def _files(self, repo_id: str, query: dict[str, str]) -> None:
            repo = hub.repos[repo_id]
            if query.get("Revision") not in (*repo.revisions, repo.commit):
                self._json(404, {"Code": NOT_FOUND, "Message": "revision not found", "Success": False})
                return
            entries: list[dict[str, Any]] = [
                {
                    "Name": name.rpartition("/")[2],
                    "Path": name,
                    "Type": "blob",
                    "Size": repo.stated_sizes.get(name, len(data)),
                    "Sha256": repo.stated_hashes.get(name, hashlib.sha256(data).hexdigest()),
                    "IsLFS": name.endswith(WEIGHTS),
                }
                for name, data in repo.files.items()
            ]
            folders = {name.rpartition("/")[0] for name in repo.files if "/" in name}
            entries += [{"Name": folder, "Path": folder, "Type": "tree", "Size": 0} for folder in folders]
            committer = {"Id": repo.commit if repo.names_commit else "", "ShortId": repo.commit[:8]}
            data = {"Files": entries, "IsVisual": 0, "LatestCommitter": committer}
            self._json(200, {"Code": 200, "Data": data, "Message": "success", "Success": True})

        def _file(self, repo_id: str, query: dict[str, str]) -> None:
            repo, name = hub.repos[repo_id], query["FilePath"]
            if name not in repo.files:
                self._json(404, {"Code": NOT_FOUND, "Message": "file not found", "Success": False})
            elif name.endswith(WEIGHTS):
                etag = repo.linked_hashes.get(name) or hashlib.sha256(repo.files[name]).hexdigest()
                self._answer(302, b"", {"Location": self._signed(repo_id, name), "X-Linked-Etag": f'"{etag}"'})
            elif self._fails(name) is False:
                self._answer(200, repo.files[name], {}, name)

        def _revisions(self, repo_id: str, query: dict[str, str]) -> None:
            branches = [{"Revision": name} for name in hub.repos[repo_id].revisions]
            self._json(200, {"Code": 200, "Data": {"RevisionMap": {"Branches": branches, "Tags": None}}})

        def _json(self, status: int, document: dict[str, Any]) -> None:
            self._answer(status, json.dumps(document).encode(), {"Content-Type": "application/json"})

    return Handler
