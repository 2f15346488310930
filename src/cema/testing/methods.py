"""What every method of the benchmark promises, whatever its formula."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import torch

from cema.formats.image import CodecConfig, encode_image
from cema.methods.base import Adapter, MethodContext
from cema.methods.registry import default_settings, make_adapter
from cema.models.spec import Model
from cema.testing.networks import CLASSES, overflowing_gradients, random_images, small_model

__all__ = ["MethodSuite"]


class MethodSuite:
    """The suite. A stranger runs it on his own class.

    ::

        class TestMine(MethodSuite):
            __test__ = True
            method = "package.module:Mine"
            settings = {"lr": 0.05}

    Attributes
    ----------
    method : str
        As ``cema bench --methods`` takes it.
    settings : mapping
        At which a few images of noise teach something.
    """

    __test__ = False
    method: ClassVar[str]
    settings: ClassVar[Mapping[str, Any]] = {}

    def make(self, edge: Model | None = None, **context: Any) -> Adapter:
        """Return the method at the source model, with a foundation model and clean images to draw on."""
        given: dict[str, Any] = {
            "foundation": small_model(2, width=12, name="small-foundation"),
            "source_images": random_images(9, seed=99),
        }
        return make_adapter(
            self.method, edge or small_model(), self.settings, MethodContext(**given | context)
        )

    def test_default_settings_fit_json(self) -> None:
        settings = default_settings(self.method)
        assert json.loads(json.dumps(settings)) == settings

    def test_the_same_seed_gives_the_same_numbers(self) -> None:
        first, second = (self.make(seed=5) for _ in range(2))
        for seed in range(1, 4):
            a, b = (adapter.step(random_images(7, seed)) for adapter in (first, second))
            np.testing.assert_array_equal(a.logits, b.logits)
            assert (a.uploads, a.bytes_up, a.forwards, a.backwards) == (
                b.uploads,
                b.bytes_up,
                b.forwards,
                b.backwards,
            )

    def test_the_source_model_is_left_alone(self) -> None:
        edge = small_model()
        before = copy.deepcopy(edge.module.state_dict())
        adapter = self.make(edge)
        for seed in range(3):
            adapter.step(random_images(8, seed))
        for key, value in edge.module.state_dict().items():
            assert torch.equal(value, before[key]), f"{self.method} changed {key} of the source model"

    def test_a_last_batch_of_one_image_is_predicted(self) -> None:
        adapter = self.make()
        for count in (8, 1):
            self._check(adapter, count)

    def test_single_images_are_predicted_from_the_first_on(self) -> None:
        adapter = self.make()
        for seed in range(6):
            self._check(adapter, 1, seed)

    def test_gradients_that_are_not_finite_spoil_nothing(self) -> None:
        adapter = self.make()
        with overflowing_gradients():
            for seed in range(3):
                self._check(adapter, 8, seed)
        for seed in range(3, 6):
            self._check(adapter, 8, seed)

    def test_a_caller_may_have_switched_gradients_off(self) -> None:
        with_gradients, without = self.make(), self.make()
        for seed in range(3):
            images = random_images(8, seed)
            expected = with_gradients.step(images).logits
            with torch.no_grad():
                np.testing.assert_array_equal(without.step(images).logits, expected)

    def test_what_is_uploaded_is_counted_in_encoded_bytes(self) -> None:
        codec, images = CodecConfig(codec="raw"), random_images(12)
        result = self.make(codec=codec).step(images)
        sizes = [len(encode_image(image, codec)) for image in images]
        assert 0 <= result.uploads <= len(images)
        assert result.uploads * min(sizes) <= result.bytes_up <= result.uploads * max(sizes)

    @staticmethod
    def _check(adapter: Adapter, count: int, seed: int = 0) -> None:
        result = adapter.step(random_images(count, seed))
        assert result.logits.shape == (count, CLASSES)
        assert result.logits.dtype == np.float32
        assert np.isfinite(result.logits).all()
        assert result.forwards >= count
        assert result.backwards <= result.forwards
