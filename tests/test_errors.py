from __future__ import annotations

import pytest

from cema import errors


def test_exports_are_complete() -> None:
    public = [name for name in vars(errors) if name[0].isupper() and name not in ("Final",)]
    assert set(public) == set(errors.__all__)


@pytest.mark.parametrize("name", [name for name in errors.__all__ if name != "REJECTION_REASONS"])
def test_every_error_is_in_the_tree_and_in_its_drawing(name: str) -> None:
    assert issubclass(getattr(errors, name), errors.CemaError)
    assert errors.__doc__ is not None
    assert name in errors.__doc__


def test_wrong_arguments_are_value_errors() -> None:
    for type_ in (
        errors.ConfigError,
        errors.ImageError,
        errors.LogitsError,
        errors.FormatError,
        errors.ModelError,
    ):
        assert issubclass(type_, ValueError)
    for type_ in (errors.UpdateRejected, errors.ExportError, errors.StoreError, errors.SpoolError):
        assert not issubclass(type_, ValueError)


def test_a_rejection_says_its_reason() -> None:
    rejection = errors.UpdateRejected("old", "version 3 is not newer than 5")
    assert rejection.reason == "old"
    assert str(rejection) == "update rejected (old): version 3 is not newer than 5"
    assert str(errors.UpdateRejected("expired")) == "update rejected (expired)"


def test_a_rejection_has_a_known_reason() -> None:
    with pytest.raises(ValueError, match="unknown rejection reason 'because'"):
        errors.UpdateRejected("because")
