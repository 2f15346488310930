from __future__ import annotations

from pathlib import Path

import pytest
from cloud_support import write_config

from cema.cloud.config import CloudConfig
from cema.errors import ConfigError


def test_paths_are_relative_to_the_file(tmp_path: Path) -> None:
    config = CloudConfig.load(write_config(tmp_path, cohorts='model_weights = "w.safetensors"'))
    assert Path(config.data) == tmp_path / "data"
    assert Path(config.signing_key) == tmp_path / "signing.key"
    (cohort,) = config.cohort
    assert Path(cohort.bundle) == tmp_path / "bundle"
    assert cohort.model_weights == str(tmp_path / "w.safetensors")
    assert cohort.foundation_weights is None


def test_keys_that_sign_are_relative_to_the_file_and_programs_are_not(tmp_path: Path) -> None:
    extra = """
signing_passphrase = "file:secret"
[[signing_keys]]
command = ["kms", "sign", "--key", "a/b"]
public_key = "kms.pub"
[[signing_keys]]
command = ["bin/kms"]
public_key = "kms.pub"
[[signing_keys]]
key = "next.key"
passphrase = "env:NEXT"
"""
    config = CloudConfig.load(write_config(tmp_path, extra=extra))
    first, kms, local, following = config.signers
    assert (first.key, first.passphrase) == (str(tmp_path / "signing.key"), f"file:{tmp_path / 'secret'}")
    assert kms.command == ("kms", "sign", "--key", "a/b")
    assert kms.public_key == str(tmp_path / "kms.pub")
    assert local.command == (str(tmp_path / "bin" / "kms"),)
    assert (following.key, following.passphrase) == (str(tmp_path / "next.key"), "env:NEXT")


def test_a_signing_key_may_be_one_of_the_others_alone(tmp_path: Path) -> None:
    path = write_config(tmp_path, extra='[[signing_keys]]\nkey = "a.key"')
    path.write_text(path.read_text().replace('signing_key = "signing.key"', ""))
    config = CloudConfig.load(path)
    assert config.signing_key is None
    assert [key.key for key in config.signers] == [str(tmp_path / "a.key")]


@pytest.mark.parametrize(
    ("before", "after", "told"),
    [
        ('signing_key = "signing.key"', "", "signing_key: expected a private key's file"),
        ('signing_key = "signing.key"', 'signing_passphrase = "env:X"', "signing_key: expected"),
        (
            'signing_key = "signing.key"',
            'signing_passphrase = "env:X"\nsigning_keys = [{key = "k"}]',
            "no signing_key that it belongs to",
        ),
        ("port = 0", 'signing_passphrase = "secret"', "expected file:PATH"),
        ("port = 0", "[[signing_keys]]", "expected either key or command, got neither"),
        ("port = 0", '[[signing_keys]]\ncommand = ["kms"]', "public_key"),
        ("port = 0", "port = 70000", "0 to 65535"),
        ("port = 0", "prot = 0", "port"),
        ("port = 0", '[worker]\ndtype = "float16"', "float16"),
        ("port = 0", "[worker]\nmax_backlog = 0", "max_backlog"),
        ("port = 0", "[worker]\npoll_seconds = nan", "poll_seconds"),
        (
            "port = 0",
            "[worker]\nmax_backlog = 31",
            r"cohort 'north': adapt.fresh: expected at most worker.max_backlog \(31\), got 32",
        ),
        ("port = 0", "[limits]\nstore_bytes = 1000", "store_bytes"),
        ("port = 0", "[limits]\nbatch_samples = 9\nbacklog_samples = 8", "backlog_samples"),
        (
            "port = 0",
            "[limits]\nstore_bytes = 8_000_000\nbody_bytes = 2_000_001",
            r"body_bytes: expected at most a quarter of store_bytes \(8000000 // 4 = 2000000\), got 2000001",
        ),
        (
            "port = 0",
            "[limits]\nstore_bytes = 4_194_304\nbody_bytes = 1000\nbatch_samples = 456",
            "batch_samples: expected at most 455",
        ),
        ('name = "north"', 'name = "North/1"', "a-z"),
        ('name = "north"', 'nane = "north"', "nane"),
        ("[[cohort]]", "[[cohort]]\n[cohort.publish]\nlifetime_days = 0.0\n[[cohort]]", "lifetime_days"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, before: str, after: str, told: str) -> None:
    path = write_config(tmp_path)
    text = path.read_text()
    assert before in text
    path.write_text(text.replace(before, after))
    with pytest.raises(ConfigError, match=told):
        CloudConfig.load(path)


@pytest.mark.parametrize(
    ("setting", "told"),
    [
        ("fresj = 3", r"fresj.*key `cohort\[0\]\.adapt`.*allowed here.*did you mean `fresh`"),
        ('fresh = "many"', r"key `cohort\[0\]\.adapt\.fresh`"),
        ("fresh = 0", r"fresh: expected .* at least 1, got 0.*key `cohort\[0\]\.adapt`"),
        ('preset = "postre"', r"postre.*key `cohort\[0\]\.adapt\.preset`"),
    ],
)
def test_a_wrong_setting_of_the_algorithm_is_named_with_its_place(
    tmp_path: Path, setting: str, told: str
) -> None:
    path = write_config(tmp_path, cohorts=f"[cohort.adapt]\n{setting}\n")
    with pytest.raises(ConfigError, match=told):
        CloudConfig.load(path)


def test_two_cohorts_of_one_name_are_refused(tmp_path: Path) -> None:
    path = write_config(tmp_path)
    cohort = path.read_text()[path.read_text().index("[[cohort]]") :]
    path.write_text(path.read_text() + cohort)
    with pytest.raises(ConfigError, match="names must differ"):
        CloudConfig.load(path)
