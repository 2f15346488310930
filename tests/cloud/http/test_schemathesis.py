"""schemathesis reads the served document, makes requests of it, and finds no answer that the document does not have.

By hand, with as many examples as there is time for::

    CEMA_SCHEMATHESIS_EXAMPLES=2000 python -m pytest tests/cloud/http/test_schemathesis.py
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx2
import pytest
from cloud_client import Cloud, auth

EXAMPLES = os.environ.get("CEMA_SCHEMATHESIS_EXAMPLES", "5")
HOOKS = Path(__file__).parents[2] / "support" / "schemathesis_frames.py"
PAYLOAD = b"a payload"
# That everything the document allows is taken cannot be asked for: a frame is any bytes to it, a cohort any name.
CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_schema_conformance",
    "response_headers_conformance",
    "allow_header_conformance",
    "unsupported_method",
    "ignored_auth",
)
# Names that exist: any others are unknown, and nothing behind them is reached. Wrong ones are made all the same.
KNOWN = {
    "cohort": {"enum": ["north", "south"]},
    "name": {"enum": ["cam", "ops-north", "nobody"]},
    "digest": {"enum": [hashlib.sha256(PAYLOAD).hexdigest(), "0" * 64]},
}


@pytest.fixture(autouse=True)
def _nothing_waits_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cema.cloud.http.waiting.LONGEST_WAIT", 0.05)


def served_document(cloud: Cloud) -> dict[str, Any]:
    """The document, without "whatever else the server refuses", which would allow every status."""
    document: dict[str, Any] = httpx2.get(f"{cloud.url}/openapi.json").json()
    del document["paths"]["/v1/events"]  # an answer without end; tests/cloud/http/test_live.py reads it
    for operations in document["paths"].values():
        for operation in operations.values():
            assert operation["responses"].pop("default")
            for parameter in operation.get("parameters", []):
                if parameter["name"] in KNOWN:
                    parameter["schema"] = {"type": "string", **KNOWN[parameter["name"]]}
    return document


def run(
    cloud: Cloud, document: dict[str, Any], folder: Path, *options: str
) -> subprocess.CompletedProcess[str]:
    """Run schemathesis against a served cloud; the same requests every time."""
    (folder / "document.json").write_text(json.dumps(document))
    command = [sys.executable, "-m", "schemathesis.cli", "run", "document.json", "--url", cloud.url]
    command += ["--checks", ",".join(CHECKS), "--phases", "examples,coverage,fuzzing", "--no-color"]
    command += ["--max-examples", EXAMPLES, "--generation-deterministic", "--continue-on-failure", *options]
    environment = {**os.environ, "SCHEMATHESIS_HOOKS": str(HOOKS)}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


def answered(cloud: Cloud) -> set[tuple[str, str]]:
    """Return which endpoint has answered with which status, by the cloud's own metrics."""
    text = cloud.get("/metrics", token=cloud.operator).text
    found = re.findall(
        r'^cema_http_request_seconds_count{method="\w+",route="(.*)",status="(\d+)"}', text, re.M
    )
    return {(route.rpartition("/")[2], status) for route, status in found}


DEVICE = {
    ("samples", "200"), ("samples", "400"), ("samples", "403"), ("latest", "200"), ("latest", "403"),
    ("{digest}", "200"), ("{digest}", "404"), ("status", "200"), ("metrics", "403"),
    ("reports", "204"), ("reports", "400"), ("reports", "403"),
}  # fmt: skip
OPERATOR = {
    ("samples", "403"), ("latest", "200"), ("latest", "204"), ("latest", "404"),
    ("{digest}", "200"), ("{digest}", "404"), ("status", "200"), ("status", "404"), ("metrics", "200"),
}  # fmt: skip
ADMIN = {
    ("acts", "202"),
    ("acts", "200"),
    ("acts", "400"),
    ("acts", "409"),
    ("acts", "404"),
    ("versions", "200"),
    ("devices", "200"),
    ("devices", "400"),
    ("data", "200"),
    ("deletions", "200"),
    ("deletions", "202"),
    ("labels", "200"),
}
NOBODY = {(name, "200") for name in ("livez", "readyz", "healthz", "openapi.json")} | {
    (name, "401") for name in ("samples", "latest", "{digest}", "status", "metrics")
}


@pytest.mark.parametrize(
    ("who", "expected"), [("token", DEVICE), ("operator", OPERATOR), ("admin", ADMIN), (None, NOBODY)]
)
def test_every_answer_is_in_the_document(
    cloud: Cloud, tmp_path: Path, who: str | None, expected: set[tuple[str, str]]
) -> None:
    cloud.ready()
    cloud.publish(1, PAYLOAD)
    options: list[str] = []
    if who is not None:  # what anybody may read is read by nobody
        options += ["--header", f"Authorization: {auth(getattr(cloud, who))['Authorization']}"]
        options += ["--include-path-regex", "v1|metrics"]
    result = run(cloud, served_document(cloud), tmp_path, *options)
    assert result.returncode == 0, result.stdout + result.stderr
    missing = expected - answered(cloud)
    assert not missing, result.stdout


def test_an_answer_that_the_document_does_not_have_is_found(cloud: Cloud, tmp_path: Path) -> None:
    document = served_document(cloud)
    responses = document["paths"]["/livez"]["get"]["responses"]
    responses["404"] = responses.pop("200")
    result = run(cloud, document, tmp_path, "--include-path", "/livez")
    assert (result.returncode, "Undocumented status code" in result.stdout) == (1, True), result.stdout
