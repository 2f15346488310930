"""Which samples of an upload were drawn at random."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import pytest
from cloud_client import Cloud, refused
from cloud_support import make_samples
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from edge_support import make_bundle

from cema._util.proportion import Weighted
from cema.cloud.store.draws import RandomCount, draws_of
from cema.edge.agent import EdgeAgent
from cema.edge.config import CloudLink, EdgeConfig, UploadConfig
from cema.formats.draw import HEADER, MAX_BYTES, Draw, encode_draws
from cema.formats.sample import encode_samples
from cema.ondevice.selection.config import SelectionConfig

ALONE, BOTH = Draw(0.01, False), Draw(0.5, True)


def drawn(cloud: Cloud) -> list[tuple[bytes, float]]:
    keeps = draws_of(cloud.store)
    assert keeps is not None
    return [(found.image, found.share) for found in keeps.take_draws("north", 99)]


def test_the_header_says_what_was_drawn_and_what_was_selected_too(cloud: Cloud) -> None:
    samples = make_samples(6)
    samples[1] = msgspec.structs.replace(samples[1], image=b"no image")
    response = cloud.post(
        encode_samples(samples), **{HEADER: encode_draws({0: ALONE, 1: ALONE, 3: BOTH, 5: ALONE})}
    )
    verdicts = [each["verdict"] for each in response.json()["verdicts"]]
    assert verdicts == ["stored", "rejected", "stored", "stored", "stored", "stored"]
    waiting = cloud.store.fresh("north", after=0, limit=9)
    assert [found.id for found in waiting] == [samples[i].id for i in (2, 3, 4)]
    assert drawn(cloud) == [(samples[0].image, 0.01), (samples[3].image, 0.5), (samples[5].image, 0.01)]


def test_a_back_end_that_keeps_no_draws_takes_them_for_selected_ones(
    cloud: Cloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a cloud from before, which ignores the header."""
    monkeypatch.setattr("cema.cloud.http.uploads.draws_of", lambda _store: None)
    response = cloud.post(encode_samples(make_samples(2)), **{HEADER: encode_draws({0: ALONE, 1: BOTH})})
    assert [each["verdict"] for each in response.json()["verdicts"]] == ["stored", "stored"]
    assert len(cloud.store.fresh("north", after=0, limit=9)) == 2
    assert drawn(cloud) == []


def test_without_the_header_all_samples_are_selected_ones(cloud: Cloud) -> None:
    samples = make_samples(3)
    cloud.send(samples)
    assert len(cloud.store.fresh("north", after=0, limit=9)) == 3
    assert drawn(cloud) == []


@pytest.mark.parametrize(
    "value",
    ["[", "0.01", '[{"share":2}]', '[{"share":0.5,"only":[2]}]', "[" + " " * MAX_BYTES + "]", "\u00e9"],
)
def test_a_header_that_makes_no_sense_is_refused_and_nothing_is_stored(cloud: Cloud, value: str) -> None:
    sent = {HEADER: value.encode("latin-1")}
    error = refused(cloud.post(encode_samples(make_samples(2)), **sent), 400, "malformed")  # type: ignore[arg-type]
    assert "CEMA-Drawn" in error["message"]
    assert cloud.store.backlog("north").samples == 0


def test_status_and_metrics_tell_the_agreement_on_all_that_devices_see(cloud: Cloud) -> None:
    keeps = draws_of(cloud.store)
    assert keeps is not None
    assert cloud.get("/v1/cohorts/north/status").json()["random_agreement"] == {}
    cloud.post(encode_samples(make_samples(1)), **{HEADER: encode_draws({0: BOTH})})
    (found,) = keeps.take_draws("north", 9)
    sums = Weighted.of([(0.01, i % 10 != 0) for i in range(400)])
    keeps.measured_draws("north", [found.number], [RandomCount(1, "running", sums)], now=60.0)
    told = cloud.get("/v1/cohorts/north/status").json()["random_agreement"]
    assert list(told) == ["running"]
    assert (told["running"]["share"], told["running"]["samples"]) == (pytest.approx(0.9), 400)
    assert told["running"]["low"] < 0.9 < told["running"]["high"]
    text = cloud.get("/metrics", token=cloud.operator).text
    for name in ("samples", "share", "standard_error", "low", "high"):
        line = f'cema_random_agreement_{name}{{cohort="north",model="running"}} '
        assert f"{line}{float(told['running'][name])}" in text
    assert 'cema_drawn_samples_total{cohort="north",event="stored"} 1.0' in text
    assert 'cema_drawn_samples_total{cohort="north",event="measured"} 1.0' in text


def test_a_device_and_a_cloud_agree_on_what_was_drawn(cloud: Cloud, tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "small", Ed25519PrivateKey.generate())
    config = EdgeConfig(
        bundle=str(bundle.path),
        state=str(tmp_path / "state"),
        cloud=CloudLink(url=cloud.url, cohort="north", token=cloud.token),
        selection=SelectionConfig(rule="budget", options={"share": 0.3}),
        upload=UploadConfig(linger_seconds=0.0, random_share=0.4, batch_samples=5),
    )
    rng = np.random.default_rng(0)
    with EdgeAgent(config) as agent:
        found = [agent.predict(rng.integers(0, 256, (8, 12, 12, 3), dtype=np.uint8)) for _ in range(2)]
        assert agent.flush(20)
        status = agent.status()
    selected, random = (np.concatenate([getattr(f, name) for f in found]) for name in ("selected", "drawn"))
    counters = cloud.store.counters("north")
    assert random.sum() == status.drawn == status.drawn_uploaded == counters.get("drawn.stored", 0)
    assert cloud.store.backlog("north").samples == selected.sum()
    assert counters["samples.stored"] == (selected | random).sum() == status.uploaded
    assert len(drawn(cloud)) == random.sum()
