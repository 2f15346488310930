"""`cema cohort migrate`: what it checks, what it changes, and what it says that is left to do."""

from __future__ import annotations

import json
import shutil
import time
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest
from cloud_support import samples_of
from cloud_tiny_models import edge, network, quadrants
from safetensors.torch import save_file
from torch import nn
from typer.testing import CliRunner

from cema.cli.app import app
from cema.cloud.bundle_folder import BundleFolder
from cema.cloud.config import CloudConfig
from cema.cloud.migration import bundle_line, offer_files
from cema.cloud.store.base import OtherBase
from cema.cloud.store.bases import BaseStore
from cema.cloud.store.control import Pin, control_of
from cema.cloud.store.sqlite import SqliteStore
from cema.cloud.worker.rounds import open_cohort
from cema.cloud.worker.supervisor import LocalEngine
from cema.errors import CemaError, ConfigError, FormatError, LogitsError, StoreError
from cema.export.bundle import export_bundle
from cema.formats.bundle import Bundle
from cema.formats.bundle_notice import list_files, verify_notice
from cema.formats.keys import generate_key
from cema.testing.store_data import numbered_update


@pytest.fixture
def folder(factory: Path, newer: Path, tmp_path: Path) -> Path:
    """A cloud that has published a version and holds samples; a newer bundle beside it."""
    made = tmp_path / "f"
    shutil.copytree(factory, made)
    shutil.copytree(newer / "bundle", made / "newer")
    shutil.copy(newer / "edge.safetensors", made / "newer.safetensors")
    with closing(opened(made)) as store:
        store.open_cohort("north", base=base(made / "bundle"))
        store.devices(["north"]).add("cam", cohort="north")
        store.put("north", samples_of(quadrants(20, 1)[0]), device="cam", now=1.0, max_backlog=99)
        epoch = store.claim("north").epoch
        store.commit_step("north", 20, b"learned", numbered_update(1), epoch=epoch, now=1.0)
    return made


def opened(folder: Path) -> SqliteStore:
    store = CloudConfig.load(folder / "cloud.toml").open_store()
    assert isinstance(store, SqliteStore)
    return store


def base(bundle: Path) -> str:
    return Bundle.load(bundle).manifest.base


def migrate(folder: Path, *options: str, bundle: str = "newer") -> dict[str, Any]:
    command = ["cohort", "migrate", "north", "--bundle", str(folder / bundle), "--json"]
    done = CliRunner().invoke(app, [*command, "--config", str(folder / "cloud.toml"), *options])
    if isinstance(done.exception, CemaError):
        raise done.exception
    assert done.exit_code == 0, done.output
    told: dict[str, Any] = json.loads(done.stdout)
    return told


def state(folder: Path) -> tuple[Any, ...]:
    """What a migration changes."""
    with closing(opened(folder)) as store:
        status = store.status("north")
        files = sorted(file.name for file in (folder / "data").glob("bundles/*"))
        acts = [found.act.name for found in store.newest_audit(9)]
        return status, store.periods("north"), store.bundle_notice("north"), files, acts


def use_newer(folder: Path) -> None:
    """Change the configuration as the command says."""
    path = folder / "cloud.toml"
    text = path.read_text().replace('bundle = "bundle"', 'bundle = "newer"')
    path.write_text(text.replace('"edge.safetensors"', '"newer.safetensors"'))


def exported(folder: Path, name: str, model: Any, **settings: Any) -> str:
    given = {"public_keys": [folder / "signing.pub"]} | settings
    export_bundle(model, folder / name, **given)
    return name


def test_all_is_kept_and_the_line_to_change_is_named(folder: Path) -> None:
    told = migrate(folder)
    old, new = base(folder / "bundle"), base(folder / "newer")
    lines = (folder / "cloud.toml").read_text().splitlines()
    assert lines[told["change"]["line"] - 1] == 'bundle = "bundle"'
    assert (told["change"]["bundle"], told["change"]["file"]) == ("newer", str(folder / "cloud.toml"))
    assert (told["from"], told["to"], told["done"]) == (old, new, True)
    assert (told["devices"], told["samples"], told["version"]) == (1, 20, 1)
    files = list_files(Bundle.load(folder / "newer"))
    assert told["bytes"] == sum(file.bytes for file in files)
    offered = BundleFolder(folder / "data")
    for file in files:
        assert offered.file(file.sha256).read_bytes() == (folder / "newer" / file.name).read_bytes()
    with closing(opened(folder)) as store:
        assert store.latest_update("north") == numbered_update(1)
        assert store.backlog("north").samples == 20  # as many as there are, of those that the gate looks at
        found = store.bundle_notice("north")
        assert found is not None
        trusted = Bundle.load(folder / "bundle").public_keys
        notice = verify_notice(found[1], public_keys=trusted, cohort="north", serial=0, now=told["until"] - 1)
        assert (notice.base, notice.files) == (new, files)
        (act,) = store.newest_audit(1)
        assert (act.act.name, act.act.subject) == ("cohort.migrate", "north")


def test_it_is_said_in_words_too(folder: Path) -> None:
    command = ["cohort", "migrate", "north", "--bundle", str(folder / "newer"), "--config"]
    said = CliRunner().invoke(app, [*command, str(folder / "cloud.toml"), "--dry-run"]).stdout
    assert "Nothing was changed" in said
    said = CliRunner().invoke(app, [*command, str(folder / "cloud.toml")]).stdout
    line = bundle_line(folder / "cloud.toml", "north")
    assert f'change {folder / "cloud.toml"}, line {line} to: bundle = "newer"' in said
    assert "1 devices with their tokens, versions up to 1, and 20 samples" in said


def test_the_base_models_are_listed(folder: Path) -> None:
    migrate(folder)
    command = ["cohort", "bases", "--config", str(folder / "cloud.toml")]
    printed = CliRunner().invoke(app, command, env={"COLUMNS": "180"}).stdout
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in printed.splitlines()]
    assert [base(folder / "bundle")[:12], "", "1", "0", ""] in rows
    assert ["never said", "", "", "1", "cam"] in rows
    told = json.loads(CliRunner().invoke(app, [*command, "--json"]).stdout)
    assert (told["base"], told["unknown"]) == (base(folder / "newer"), ["cam"])


def test_a_dry_run_changes_nothing(folder: Path) -> None:
    before = state(folder)
    told = migrate(folder, "--dry-run")
    assert (told["done"], told["to"]) == (False, base(folder / "newer"))
    assert state(folder) == before


def test_a_cloud_starts_with_the_new_bundle_alone_from_then_on(folder: Path) -> None:
    migrate(folder)
    path = folder / "cloud.toml"
    line = bundle_line(path, "north")
    with pytest.raises(OtherBase, match=rf"cloud\.toml, line {line}: .*set `bundle` .*newer"):
        LocalEngine(CloudConfig.load(path), path)
    use_newer(folder)
    engine = LocalEngine(CloudConfig.load(path), path)
    engine.store.close()
    engine._lock.close()
    config = CloudConfig.load(path)
    with closing(opened(folder)) as store:
        worker = open_cohort(store, config, config.cohort[0])
        assert (worker.publisher.version, worker.publisher.next_version) == (0, 2)


def test_devices_can_be_told_anew_also_before_the_configuration_is_changed(folder: Path) -> None:
    first = migrate(folder)
    again = migrate(folder)
    assert again["from"] == again["to"] == base(folder / "newer")
    assert again["change"] is not None
    use_newer(folder)
    third = migrate(folder)
    assert time.time() - 600 < first["serial"] < again["serial"] < third["serial"]
    with closing(opened(folder)) as store:
        assert [period.base for period in store.periods("north")] == [
            base(folder / b) for b in ("bundle", "newer")
        ]


def test_the_way_back_is_a_migration_too(folder: Path) -> None:
    migrate(folder)
    use_newer(folder)
    told = migrate(folder, bundle="bundle")
    assert told["to"] == base(folder / "bundle")
    files = {file.sha256 for file in list_files(Bundle.load(folder / "bundle"))}
    assert {file.name for file in (folder / "data" / "bundles").iterdir()} == files
    with closing(opened(folder)) as store:  # what was published for it before can be had again
        act = control_of(store).act("north", Pin(to=1), actor="ann", now=1.0)
        assert act.content == numbered_update(1).digest


def refusals() -> list[Any]:
    def other_classes(folder: Path) -> str:
        module = network(4)
        module[-1] = nn.Linear(64, 3)
        return exported(folder, "three", replace(edge(), module=module.eval(), classes=3))

    def other_keys(folder: Path) -> str:
        generate_key(folder / "other.key")
        return exported(folder, "keys", edge(), public_keys=[folder / "other.pub"])

    def damaged(folder: Path) -> str:
        (folder / "newer" / "model.onnx").write_bytes(b"damaged")
        return "newer"

    def wrong_answers(folder: Path) -> str:
        norm = bytearray((folder / "newer" / "norm.bin").read_bytes())
        norm[:4] = b"\0\0\x80\x41"
        (folder / "newer" / "norm.bin").write_bytes(bytes(norm))
        return "newer"

    def the_same(_: Path) -> str:
        return "bundle"

    def configured_first(folder: Path) -> str:
        use_newer(folder)
        return "newer"

    def third(folder: Path) -> str:
        exported(folder, "third", edge())
        path = folder / "cloud.toml"
        path.write_text(path.read_text().replace('bundle = "bundle"', 'bundle = "third"'))
        return "newer"

    def pinned(folder: Path) -> str:
        with closing(opened(folder)) as store:
            act = control_of(store).act("north", Pin(to=1), actor="ann", now=1.0)
            done = msgspec.structs.replace(act, state="done", done_at=1.0)
            epoch = store.claim("north").epoch
            store.commit_step("north", 20, b"", epoch=epoch, now=1.0, acted=done)
        return "newer"

    def untrusted(folder: Path) -> str:
        for name in ("signing.key", "signing.pub"):
            (folder / name).unlink()
        generate_key(folder / "signing.key")
        return "newer"

    return [
        pytest.param(other_classes, ConfigError, "3 classes", id="classes"),
        pytest.param(other_keys, ConfigError, "a migration changes no keys", id="keys"),
        pytest.param(damaged, FormatError, "hashes to", id="damaged"),
        pytest.param(wrong_answers, LogitsError, "golden images differ", id="golden"),
        pytest.param(the_same, ConfigError, "nothing to migrate", id="the same"),
        pytest.param(configured_first, OtherBase, "back to the bundle of before", id="configured first"),
        pytest.param(third, OtherBase, "back to the bundle of before", id="a third one"),
        pytest.param(pinned, StoreError, "resume it first", id="pinned"),
        pytest.param(untrusted, ConfigError, "devices trust", id="untrusted"),
    ]


@pytest.mark.parametrize(("spoil", "error", "told"), refusals())
def test_what_does_not_fit_is_refused_before_anything_changes(
    folder: Path, spoil: Any, error: type[Exception], told: str
) -> None:
    bundle = spoil(folder)
    before = state(folder)
    with pytest.raises(error, match=told):
        migrate(folder, bundle=bundle)
    assert state(folder)[:3] == before[:3]


def test_other_class_names_need_words_of_the_operator(folder: Path) -> None:
    names = ("a", "b", "c", "d")
    exported(folder, "named", replace(edge(), labels=names))
    migrate(folder, bundle="named")  # names where there were none are no other classes
    path = folder / "cloud.toml"
    path.write_text(path.read_text().replace('bundle = "bundle"', 'bundle = "named"'))
    exported(folder, "turned", replace(edge(), labels=names[::-1]))
    with pytest.raises(
        ConfigError, match=r"class 0 is 'a' in the model of now, and 'd' in the new one.*--force"
    ):
        migrate(folder, bundle="turned")
    assert "class 0" in migrate(folder, "--force", bundle="turned")["notes"][0]


def test_a_foundation_model_of_other_classes_is_told(folder: Path) -> None:
    path = folder / "cloud.toml"
    text = path.read_text().replace("cloud_tiny_models:foundation", "migration_models:of_three")
    path.write_text(text.replace('foundation_weights = "foundation.safetensors"', ""))
    with pytest.raises(ConfigError, match="could not teach it"):
        migrate(folder)


def test_files_that_a_restored_cloud_lacks_are_copied_again(folder: Path, newer: Path) -> None:
    migrate(folder)
    use_newer(folder)
    shutil.rmtree(folder / "data" / "bundles")
    config = CloudConfig.load(folder / "cloud.toml")
    with closing(config.open_store()) as store:
        assert isinstance(store, BaseStore)
        assert offer_files(config, store) == {}
        assert len(list((folder / "data" / "bundles").iterdir())) == len(
            list_files(Bundle.load(folder / "newer"))
        )
        shutil.rmtree(folder / "data" / "bundles")
        golden = folder / "newer" / "golden.safetensors"
        golden.write_bytes(golden.read_bytes() + b" ")
        with pytest.raises(FormatError):
            offer_files(config, store)
        shutil.rmtree(folder / "newer")
        exported(folder, "newer", edge(), tolerance=0.002)
        assert list(offer_files(config, store)) == ["north"]
        # Nor is a folder that cannot be written a reason not to start.
        shutil.rmtree(folder / "newer")
        shutil.copytree(newer / "bundle", folder / "newer")
        shutil.rmtree(folder / "data" / "bundles", ignore_errors=True)
        (folder / "data" / "bundles").write_text("in the way")
        assert "cannot be copied" in offer_files(config, store)["north"]


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ('[[cohort]]\nname = "north"\nbundle = "b"\n', 3),
        ("[[ cohort ]] # ours\nbundle='b'\nname='north'\n[cohort.adapt]\n", 2),
        ('[[cohort]]\nname="south"\nbundle="x"\n\n[[cohort]]\nname="north"\nbundle="y"\n', 7),
        ('[[cohort]]\nname = "north"\n[cohort.publish]\nbundle = "no"\n', None),
        ('cohort = [{name = "north", bundle = "b"}]\n', None),
    ],
)
def test_the_line_of_a_bundle_is_found(tmp_path: Path, text: str, line: int | None) -> None:
    (tmp_path / "cloud.toml").write_text(text)
    assert bundle_line(tmp_path / "cloud.toml", "north") == line


def test_weights_beside_the_new_bundle_are_no_part_of_it(folder: Path) -> None:
    (folder / "newer" / "notes.txt").write_text("ours")
    save_file(edge().module.state_dict(), folder / "newer" / "weights.safetensors")
    assert {Path(name).suffix for name in migrate(folder)["files"]} <= {
        ".json",
        ".onnx",
        ".bin",
        ".safetensors",
    }
    assert "notes.txt" not in migrate(folder)["files"]
