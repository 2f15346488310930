from __future__ import annotations

import codecs
import contextlib
from pathlib import Path
from typing import Annotated, Literal

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cema._util.toml import load_toml, read_text, resolve_path, shown
from cema.errors import ConfigError


class CloudClient(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    url: str
    token: str | None = None


class Cohort(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    name: str
    link: CloudClient | None = None


class Root(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    data: str
    port: Annotated[int, msgspec.Meta(ge=1, le=65535)] = 8000
    mode: Literal["slow", "fast"] = "slow"
    link: CloudClient | None = None
    cohort: tuple[Cohort, ...] = ()
    extra: dict[str, CloudClient] = {}


def write(folder: Path, text: str) -> Path:
    path = folder / "config.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_a_good_file(tmp_path: Path) -> None:
    text = 'data = "d"\nport = 9\n[link]\nurl = "u"\n'
    text += '[[cohort]]\nname = "a"\n[[cohort]]\nname = "b"\nlink.url = "v"\n'
    assert load_toml(write(tmp_path, text), Root) == Root(
        data="d",
        port=9,
        link=CloudClient(url="u"),
        cohort=(Cohort(name="a"), Cohort(name="b", link=CloudClient(url="v"))),
    )


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ('data = "d"\nprot = 1', ["unknown field `prot`", "`cohort`, `data`", "did you mean `port`?"]),
        (
            'data = "d"\n[link]\nurl = "u"\ntokn = "t"',
            ["`tokn`", "key `link`", "`token`, `url`", "mean `token`?"],
        ),
        (
            'data = "d"\n[[cohort]]\nname = "a"\n[[cohort]]\nname = "b"\nlink.ulr = "v"',
            ["`ulr`", "key `cohort[1].link`", "did you mean `url`?"],
        ),
        ('data = "d"\n[extra.one]\nuri = "v"', ["`uri`", "extra", "`token`, `url`"]),
        ('data = "d"\nport = "80"', ["Expected `int`, got `str`", "key `port`"]),
        ('data = "d"\nport = 0', ["`int` >= 1", "key `port`"]),
        ('data = "d"\nmode = "medium"', ["'medium'", "key `mode`"]),
        ("port = 1", ["missing required field `data`"]),
        ('data = "d"\n[[cohort]]\n', ["missing required field `name`", "key `cohort[0]`"]),
        ("data = ", ["is not valid TOML", "Invalid value"]),
        ('data = "d"\ndata = "e"', ["is not valid TOML"]),
    ],
)
def test_a_wrong_file_is_named_with_its_key(tmp_path: Path, text: str, parts: list[str]) -> None:
    path = write(tmp_path, text)
    with pytest.raises(ConfigError) as caught:
        load_toml(path, Root)
    assert str(caught.value).startswith(f"{path}: ")
    for part in parts:
        assert part in str(caught.value)


def test_unreadable_files(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such configuration file"):
        load_toml(tmp_path / "absent.toml", Root)
    with pytest.raises(ConfigError, match="cannot be read"):
        load_toml(tmp_path, Root)
    (tmp_path / "latin.toml").write_bytes(b'data = "\xe9"')
    with pytest.raises(ConfigError, match="cannot be read"):
        load_toml(tmp_path / "latin.toml", Root)


@pytest.mark.parametrize(
    "data",
    [
        codecs.BOM_UTF16_LE + 'data = "d"\r\n'.encode("utf-16-le"),
        codecs.BOM_UTF16_BE + 'data = "d"'.encode("utf-16-be"),
        codecs.BOM_UTF32_LE + 'data = "d"'.encode("utf-32-le"),
        'data = "d"'.encode("utf-16-le"),
        b'data = "\xe9"',
    ],
    ids=["utf-16-le", "utf-16-be", "utf-32", "no mark", "latin-1"],
)
def test_a_file_in_another_encoding_says_how_to_save_it(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "config.toml"
    path.write_bytes(data)
    with pytest.raises(ConfigError, match=r"cannot be read: expected UTF-8.*save it as plain text \(UTF-8\)"):
        load_toml(path, Root)


def test_a_byte_order_mark_and_windows_line_ends_are_read(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_bytes(codecs.BOM_UTF8 + b'data = "d"\r\nport = 9\r\n')
    assert load_toml(path, Root) == Root(data="d", port=9)
    assert read_text(path).startswith("data")


@pytest.mark.parametrize(
    ("text", "key"),
    [
        (r'data = "C:\new\bundle"', "data"),
        (r'data = "d"' + "\n" + r'link.url = "x\u0000"', "link.url"),
        ('data = "d"\n[[cohort]]\nname = "a"\n[[cohort]]\nname = """b\nc"""', "cohort[1].name"),
        ('data = "d"\n[extra.one]\nurl = "a\\u2028b"', "extra.one.url"),
    ],
)
def test_a_control_character_is_refused_with_its_key(tmp_path: Path, text: str, key: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_toml(write(tmp_path, text), Root)
    message = str(caught.value)
    assert f"at key `{key}`" in message
    assert "single quotes, as in 'C:\\new', or is written with /" in message
    assert message.isprintable(), "it stays on one line"


@pytest.mark.parametrize("value", [r"C:\Users\x", r"C:\bundle\state" + "\\", r"\\server\share", r"D:\x41"])
def test_an_escape_that_is_none_gets_the_same_hint(tmp_path: Path, value: str) -> None:
    with pytest.raises(ConfigError, match=r"not valid TOML.*single quotes, as in 'C:\\new', or is written"):
        load_toml(write(tmp_path, f'data = "{value}"\nport = 1\n'), Root)
    assert load_toml(write(tmp_path, f"data = '{value}'"), Root).data == value


def test_other_errors_get_no_hint(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load_toml(write(tmp_path, "data = 'C:\\new'\nport = ]"), Root)
    assert "single quotes" not in str(caught.value)


def test_nesting_without_end_is_a_config_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="not valid TOML"):
        load_toml(write(tmp_path, "data = " + "[" * 100_000), Root)


def test_a_path_stays_on_one_line(tmp_path: Path) -> None:
    assert shown(Path("a b/c.toml")) == "a b/c.toml"
    with pytest.raises(ConfigError) as caught:
        load_toml(tmp_path / "C:\new\bundle.toml", Root)
    assert str(caught.value).isprintable()
    with pytest.raises(ConfigError, match="cannot be read"):
        load_toml(tmp_path / "a\0b", Root)


def test_the_home_of_nobody_is_a_config_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="write the whole path in place of ~"):
        resolve_path(tmp_path, "~no-such-user-here/x")


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.text(alphabet='data=[]{}"\n .#1_e\u00e9', max_size=60))
def test_any_text_is_a_configuration_or_a_config_error(tmp_path: Path, text: str) -> None:
    with contextlib.suppress(ConfigError):
        assert isinstance(load_toml(write(tmp_path, text), Root), Root)


def test_paths_are_relative_to_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path, "")
    assert resolve_path(path, "a/b") == tmp_path / "a" / "b"
    assert resolve_path(tmp_path, "a/b") == tmp_path / "a" / "b"
    assert resolve_path(path, "/etc/x") == Path("/etc/x")
    monkeypatch.setenv("HOME", "/home/somebody")
    assert resolve_path(path, "~/x") == Path("/home/somebody/x")
    monkeypatch.chdir(tmp_path)
    assert resolve_path(Path("sub"), "x") == tmp_path / "sub" / "x"
