"""A store's URL: what it may be, whose it is, and what is wrong with it."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import pytest
from cloud_support import write_config

from cema.cloud.config import CloudConfig
from cema.cloud.store.open import absolute_url, open_store
from cema.errors import ConfigError

OWN = '''
from pathlib import Path

from cema.cloud.store.sqlite import SqliteStore
from cema.errors import ConfigError


class OwnStore(SqliteStore):
    """A stranger's back end: its address is a folder, and it takes few samples at once."""

    @classmethod
    def open(cls, address, *, max_bytes):
        return cls(Path(address) / "own.db", max_bytes=max_bytes)

    @classmethod
    def absolute(cls, address, folder):
        return str(folder / address)

    @classmethod
    def check_limits(cls, limits):
        if limits.batch_samples > 300:
            raise ConfigError(f"batch_samples: expected at most 300, got {limits.batch_samples}")
'''


@pytest.fixture(autouse=True)
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_store.py").write_text(OWN)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("url", "file"),
    [
        ("sqlite:a.db", "a.db"),
        ("sqlite:deep/er/a.db", "deep/er/a.db"),
        ("sqlite:{here}/a.db", "a.db"),
        ("sqlite://{here}/a.db", "a.db"),
        ("sqlite:///{here}/a.db", "a.db"),
        ("own_store:OwnStore:{here}", "own.db"),
        ("own_store.py:OwnStore:sub", "sub/own.db"),
        ("own_store:OwnStore", "own.db"),
    ],
)
def test_a_url_names_a_file(tmp_path: Path, url: str, file: str) -> None:
    with closing(open_store(url.format(here=tmp_path), max_bytes=2**20)) as store:
        store.open_cohort("north", base="0" * 64)
    assert (tmp_path / file).is_file()


@pytest.mark.parametrize(
    ("url", "told"),
    [
        (
            "cema.db",
            "expected sqlite:PATH or package.module:Class:ADDRESS, got a URL that begins with 'cema.db'",
        ),
        ("", "got a URL that begins with ''"),
        ("sqllite:cema.db", r"did you mean sqlite\?"),
        ("postgresql://me:secret@host/db", "got a URL that begins with 'postgresql'$"),
        ("no_such_package:Store:x", "no_such_package cannot be imported"),
        ("own_store:Lost:x", "has no 'Lost'"),
        ("own_store:Path:x", "is no back end, it lacks check_limits"),
        ("sqlite:", "expected sqlite:PATH with a relative path"),
        ("sqlite://host/cema.db", "got 'sqlite://host/cema.db'"),
        ("sqlite::memory:", "got 'sqlite::memory:'"),
    ],
)
def test_what_is_wrong_with_a_url_is_told(url: str, told: str) -> None:
    with pytest.raises(ConfigError, match=told) as caught:
        open_store(url, max_bytes=2**20)
    assert "secret" not in str(caught.value)


def test_relative_paths_can_be_taken_from_a_folder(tmp_path: Path) -> None:
    assert absolute_url("sqlite:a.db", tmp_path) == f"sqlite:{tmp_path / 'a.db'}"
    assert absolute_url("sqlite:///srv/a.db", tmp_path) == "sqlite:/srv/a.db"
    assert absolute_url("own_store:OwnStore:sub", tmp_path) == f"own_store:OwnStore:{tmp_path / 'sub'}"


@pytest.mark.parametrize(
    ("setting", "file"),
    [
        ("", "data/cema.db"),
        ('store = "sqlite:elsewhere/own.db"', "elsewhere/own.db"),
        ('store = "own_store:OwnStore:sub"', "sub/own.db"),
    ],
)
def test_a_cloud_keeps_its_store_in_its_data_folder_or_where_it_is_told(
    tmp_path: Path, setting: str, file: str
) -> None:
    folder = tmp_path / "cloud"
    folder.mkdir()
    config = CloudConfig.load(write_config(folder, extra=setting))
    with closing(config.open_store()) as store:
        store.open_cohort("north", base="0" * 64)
    assert [path.relative_to(folder) for path in folder.rglob("*.db")] == [Path(file)]


@pytest.mark.parametrize(
    ("url", "told"),
    [
        (
            "own_store:OwnStore:x",
            r"cloud\.toml: batch_samples: expected at most 300, got 301 \(at key `limits`\)",
        ),
        ("sqlite:", r"cloud\.toml: store: expected sqlite:PATH with"),
        ("sqlit:x.y", r"cloud\.toml: store: expected .*did you mean sqlite"),
    ],
)
def test_the_back_end_checks_the_configuration(tmp_path: Path, url: str, told: str) -> None:
    path = write_config(tmp_path, extra="[limits]\nbatch_samples = 301\n")
    assert CloudConfig.load(path).limits.batch_samples == 301
    path.write_text(f'store = "{url}"\n' + path.read_text())
    with pytest.raises(ConfigError, match=told):
        CloudConfig.load(path)
