"""Holds every response of the cloud against its own OpenAPI document."""

from __future__ import annotations

import re
from typing import Any

import httpx2
import jsonschema


class Declared:
    """What an OpenAPI document says that each endpoint answers.

    Parameters
    ----------
    document : dict
        OpenAPI 3.1.
    """

    def __init__(self, document: dict[str, Any]) -> None:
        self._document = document
        self._paths = {
            re.compile(re.sub(r"\{\w+\}", "[^/]+", path)): operations
            for path, operations in document["paths"].items()
        }
        self.seen: set[tuple[str, int]] = set()

    def check(self, response: httpx2.Response) -> None:
        """Fail unless status, content type, headers and body are as the document says."""
        operation = self._operation(response.request.method, response.request.url.path)
        if operation is None:
            return
        answers = operation["responses"]
        status = str(response.status_code)
        assert status in answers, f"{operation['operationId']} answered {status}, which it does not declare"
        declared = answers[status]
        self.seen.add((operation["operationId"], response.status_code))
        for name, told in declared.get("headers", {}).items():
            if not told.get("required", True):
                continue
            assert name in response.headers, f"{operation['operationId']}: {status} came without {name}"
        response.read()
        if not response.content:
            return
        kind = response.headers["content-type"]
        schema = {key.replace(" ", ""): value for key, value in declared["content"].items()}[
            kind.replace(" ", "")
        ]
        if kind == "application/json":
            whole = {**schema["schema"], "components": self._document["components"]}
            jsonschema.Draft202012Validator(whole).validate(response.json())

    def _operation(self, method: str, path: str) -> dict[str, Any] | None:
        for pattern, operations in self._paths.items():
            if pattern.fullmatch(path):
                found: dict[str, Any] | None = operations.get(method.lower())
                return found
        return None
