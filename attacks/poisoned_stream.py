"""One device floods its cohort with images that teach the models something wrong.

Three honest devices see digits in a domain, one hostile device sends far more than they do. Everything is the product's
own: selection, guard, store, worker, gate, updates. Time is simulated: in each second every honest device predicts 24
images, the hostile one sends its own, and the worker does as many things as it can on a small machine (four).

Printed is the accuracy of the honest devices, in percent: of the source model, in the last eight seconds before the
attack, and the worst of any eight seconds during and after it (576 predictions: a standard error below one point).
REFUSED: at no time more than two points below the source model, and after it not more than two below before.

    python attacks/poisoned_stream.py            (all streams, some minutes)
    python attacks/poisoned_stream.py inverted --seconds 12
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import torch

from cema.cloud.config import CohortConfig, PublishConfig, WorkerConfig
from cema.cloud.store.base import PublishedUpdate
from cema.cloud.store.sqlite import SqliteStore
from cema.cloud.worker.cohort import CohortWorker
from cema.cloud.worker.publisher import Publisher
from cema.data.corruptions import corrupt_images
from cema.data.digits import load_digits
from cema.export.bundle import export_bundle
from cema.formats.bundle import Bundle
from cema.formats.image import CodecConfig, encode_image
from cema.formats.keys import generate_key, load_private_key
from cema.formats.payload import decode_payload
from cema.formats.sample import Sample, sample_id
from cema.models.norm_state import load_folded
from cema.models.registry import resolve
from cema.ondevice.drift import DriftMonitor, input_statistics
from cema.ondevice.selection.config import SelectionConfig
from cema.ondevice.selection.entropy import softmax_entropy
from cema.ondevice.selection.rules import make_selector

HONEST, IMAGES_A_SECOND, STEPS_A_SECOND, WINDOW = 3, 24, 4, 8
Images = np.ndarray
Attack = Callable[[Images, np.ndarray, np.random.Generator], Images]


def nothing(images: Images, labels: np.ndarray, rng: np.random.Generator) -> Images:
    """Send nothing: what the other streams are compared with."""
    return images


def inverted(images: Images, labels: np.ndarray, rng: np.random.Generator) -> Images:
    return 255 - images


def one_class(images: Images, labels: np.ndarray, rng: np.random.Generator) -> Images:
    noisy = images[labels == 3].astype(np.int16)
    chosen = noisy[rng.integers(0, len(noisy), len(images))]
    return (chosen + rng.integers(-3, 4, chosen.shape)).clip(0, 255).astype(np.uint8)


def random_noise(images: Images, labels: np.ndarray, rng: np.random.Generator) -> Images:
    return rng.integers(0, 256, images.shape, dtype=np.uint8)


def constant(images: Images, labels: np.ndarray, rng: np.random.Generator) -> Images:
    grey = rng.integers(0, 256, (len(images), 1, 1, 1)) + rng.integers(-2, 3, images.shape)
    return grey.clip(0, 255).astype(np.uint8)


def rotated(images: Images, labels: np.ndarray, rng: np.random.Generator) -> Images:
    return np.rot90(images, axes=(1, 2)).copy()


STREAMS: dict[str, tuple[str, int, Attack]] = {
    "inverted": ("gaussian_noise", 100, inverted),
    "inverted-slow": ("gaussian_noise", 24, inverted),
    "one-class": ("gaussian_noise", 100, one_class),
    "random-noise": ("clean", 100, random_noise),
    "constant": ("gaussian_noise", 100, constant),
    "rotated": ("gaussian_noise", 100, rotated),
    "inverted-clean": ("clean", 100, inverted),
    "nothing": ("gaussian_noise", 0, nothing),
    "nothing-clean": ("clean", 0, nothing),
}


class Device:
    """One honest device: predicts with the newest version, or with the source model where its guard says so."""

    def __init__(self, name: str, source: torch.nn.Module, installed: torch.nn.Module) -> None:
        self.name = name
        self.models = installed, source
        self.selector = make_selector(SelectionConfig(), 10)
        self.watch = DriftMonitor(36.0)
        self.right: list[float] = []

    @torch.inference_mode()
    def see(self, images: Images, inputs: np.ndarray, labels: np.ndarray, version: int) -> list[Sample]:
        self.watch.observe(input_statistics(inputs))
        logits = self.models[self.watch.drifted](torch.from_numpy(inputs)).numpy()
        self.right.append(100 * float((logits.argmax(1) == labels).mean()))
        entropy = softmax_entropy(logits)
        chosen = np.flatnonzero(self.selector.select(logits, entropy))
        return [sample(images[i], float(entropy[i]), int(logits[i].argmax()), version) for i in chosen]


def sample(image: Images, entropy: float = 0.5, label: int = 0, version: int = 0) -> Sample:
    encoded = encode_image(image, CodecConfig())
    return Sample(
        id=sample_id(encoded), image=encoded, entropy=entropy, label=label, version=version, captured_at=0.0
    )


class Cohort:
    """A store, a worker and the devices of one cohort, in one process and simulated time."""

    def __init__(self, folder: Path, domain: str, seed: int) -> None:
        edge, foundation = resolve("digits-cnn"), resolve("digits-cnn-foundation")
        generate_key(folder / "key")
        export_bundle(edge, folder / "bundle", public_keys=[folder / "key.pub"])
        bundle = Bundle.load(folder / "bundle")
        settings = CohortConfig(
            name="c", bundle=str(folder / "bundle"), model="digits-cnn", foundation="digits-cnn-foundation"
        )
        settings = msgspec.structs.replace(settings, publish=PublishConfig(min_seconds=1.0))
        self.store = SqliteStore(folder / "cema.db", max_bytes=2**28)
        self.now, self.version = 0.0, 0
        publisher = Publisher(edge, bundle, "c", load_private_key(folder / "key"), settings.publish)
        self.worker = CohortWorker(
            self.store, settings, edge=edge, foundation=foundation, publisher=publisher,
            config=WorkerConfig(device="cpu"), clock=lambda: self.now,
        )  # fmt: skip
        self.edge, self.installed = edge, resolve("digits-cnn").module
        self.devices = [Device(f"honest-{i}", edge.module, self.installed) for i in range(HONEST)]
        # Two, so that honest devices see the same images whatever the hostile one sends.
        self.rng, self.hostile_rng = np.random.default_rng(seed), np.random.default_rng(seed + 1)
        data = load_digits()
        clean = data.test_images
        self.labels = data.test_labels
        self.images = clean if domain == "clean" else corrupt_images(clean, domain, 3, seed=seed)

    def second(self, attack: Attack | None, rate: int) -> None:
        """Let one second pass."""
        self.now += 1.0
        for device in self.devices:
            chosen = self.rng.integers(0, len(self.labels), IMAGES_A_SECOND)
            # No two images are the same, as of a camera: the store keeps each once.
            images = self.images[chosen].astype(np.int16) + self.rng.integers(
                -3, 4, self.images[chosen].shape
            )
            images = images.clip(0, 255).astype(np.uint8)
            inputs = self.edge.preprocessing(images)
            self.put(device.see(images, inputs, self.labels[chosen], self.version), device.name)
        if attack is not None:
            chosen = self.hostile_rng.integers(0, len(self.labels), rate)
            images = attack(self.images[chosen], self.labels[chosen], self.hostile_rng)
            self.put([sample(image) for image in images], "hostile")
        for _ in range(STEPS_A_SECOND):
            self.worker.run_once()
        self.install(self.store.latest_update("c"))

    def put(self, samples: list[Sample], device: str) -> None:
        self.store.put("c", samples, device=device, now=self.now, max_backlog=10**6)

    def install(self, update: PublishedUpdate | None) -> None:
        if update is None or update.version == self.version:
            return
        self.version = update.version
        payload = decode_payload(update.payload)
        load_folded(self.installed, payload.norm_state)
        for device in self.devices:
            device.watch.enter(payload.domain)

    def accuracy(self) -> np.ndarray:
        """Return the honest devices' accuracy by second."""
        return np.mean([device.right for device in self.devices], axis=0)

    @torch.inference_mode()
    def source(self) -> float:
        predicted = self.edge.module(torch.from_numpy(self.edge.preprocessing(self.images))).argmax(1)
        return 100 * float((predicted.numpy() == self.labels).mean())


def worst(accuracy: np.ndarray) -> float:
    return float(np.convolve(accuracy, np.ones(WINDOW) / WINDOW, "valid").min())


def run(name: str, seconds: int, seed: int = 0) -> dict[str, float]:
    """Run one stream and return the accuracies, in percent."""
    domain, rate, attack = STREAMS[name]
    with tempfile.TemporaryDirectory() as folder:
        cohort = Cohort(Path(folder), domain, seed)
        for _ in range(seconds):
            cohort.second(None, 0)
        for _ in range(seconds):
            cohort.second(attack, rate)
        for _ in range(seconds):
            cohort.second(None, 0)
        accuracy = cohort.accuracy()
        result = {
            "source": cohort.source(),
            "before": float(accuracy[seconds - WINDOW : seconds].mean()),
            "during": worst(accuracy[seconds : 2 * seconds]),
            "after": worst(accuracy[2 * seconds :]),
        }
        cohort.store.close()
    return result


def refused(result: dict[str, float]) -> bool:
    """Tell whether the honest devices are as well off as promised."""
    floor = result["source"] - 2
    return min(result["during"], result["after"]) >= floor and result["after"] >= result["before"] - 2


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("streams", nargs="*", metavar="STREAM", help=", ".join(STREAMS))
    parser.add_argument("--seconds", type=int, default=24, help="of each of the three parts")
    options = parser.parse_args()
    torch.set_num_threads(1)
    outcomes = []
    print(f"{'stream':16s} source before during  after")
    for name in options.streams or STREAMS:
        result = run(name, options.seconds)
        outcomes.append(refused(result))
        told = "REFUSED" if outcomes[-1] else "DAMAGE"
        print(f"{name:16s} {' '.join(f'{value:6.1f}' for value in result.values())}  {told}", flush=True)
    return 0 if all(outcomes) else 1


if __name__ == "__main__":
    sys.exit(main())
