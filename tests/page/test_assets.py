"""The files of the page, as the server gets them: whole, named by their content, and few bytes."""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import re
from importlib.resources import files
from pathlib import Path

import pytest

from cema.page.assets import BARE_NAMES, assets, content_security_policy, filled, import_map, index

STATIC = Path(str(files("cema.page"))) / "static"
OWN = sorted(path for path in STATIC.iterdir() if path.suffix in {".js", ".css"})
IMPORT = re.compile(r'^import (?:.+ from )?"([^"]+)"|\bimport\{[^}]*\}from"([^"]+)"', re.MULTILINE)
LARGEST_LOAD = 200_000


def imported(name: str) -> set[str]:
    return {one or other for one, other in IMPORT.findall(assets()[name].body.decode())}


def the_map() -> tuple[str, dict[str, str]]:
    text = index().body.decode().split('<script type="importmap">')[1].split("</script>")[0]
    return text, json.loads(text)["imports"]


def test_every_import_is_in_the_map_and_every_address_is_a_file_with_its_hash() -> None:
    _, imports = the_map()
    for name in assets():
        if name.endswith(".js") and name != "report.js":
            assert imported(name) <= imports.keys(), name
    for address in imports.values():
        name, digest = re.fullmatch(r"\./page/([\w.-]+)\?v=([0-9a-f]{16})", address).groups()
        assert hashlib.sha256(assets()[name].body).hexdigest().startswith(digest)


def test_the_policy_names_the_one_inline_script_and_allows_nothing_else_inline() -> None:
    text, _ = the_map()
    digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
    policy = content_security_policy()
    assert f"script-src 'self' 'sha256-{digest}';" in policy
    assert policy.startswith("default-src 'none'")
    assert "unsafe" not in policy
    page = index().body.decode()
    inline = re.findall(r"<script(?![^>]*\bsrc=)[^>]*>", page)
    assert inline == ['<script type="importmap">']
    assert not re.findall(r"\son\w+=|\sstyle=|<style", page)


def test_gzip_holds_the_same_and_all_that_is_loaded_is_small() -> None:
    page = index().body.decode()
    loaded = [asset for name, asset in assets().items() if f"/page/{name}?v=" in page]
    assert {"main.js", "uplot.js", "views.css", "theme.js", "icon.svg"} <= {asset.name for asset in loaded}
    for asset in [*loaded, index()]:
        assert gzip.decompress(asset.gzipped) == asset.body
    assert sum(len(asset.gzipped) for asset in [*loaded, index()]) < LARGEST_LOAD


def test_vendored_files_are_those_that_were_checked_and_their_licences_are_beside_them() -> None:
    record = json.loads((STATIC / "vendor" / "vendored.json").read_text())
    recorded = {name: digest for package in record.values() for name, digest in package["files"].items()}
    found = {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in (STATIC / "vendor").iterdir()
    }
    del found["vendored.json"]
    assert found == recorded
    for package, told in record.items():
        assert any(name.startswith(f"LICENSE.{package}") for name in told["files"])
    assert {name for name in recorded if name.endswith(".js")} == BARE_NAMES.keys()


@pytest.mark.parametrize("path", OWN, ids=lambda path: path.name)
def test_files_are_short_enough_to_read(path: Path) -> None:
    assert len(path.read_text().splitlines()) < 400


@pytest.mark.parametrize("path", [path for path in OWN if path.suffix == ".js"], ids=lambda path: path.name)
def test_modules_never_turn_text_into_markup_or_code(path: Path) -> None:
    markup = r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|dangerouslySet|setAttribute\(.style"
    forbidden = markup + r"|\beval\b|new Function"
    assert not re.findall(forbidden, path.read_text())


def test_what_a_value_says_is_no_place_of_the_template() -> None:
    assert filled("{{a}} {{b}}", {"a": "{{b}}", "b": "2"}) == b"{{b}} 2"


def test_nothing_in_a_map_ends_its_element() -> None:
    assert "<" not in import_map({"format.js": "</script>"})
