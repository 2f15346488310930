"""Where images come from: data sets by name or path, their corruptions, and the streams made of them."""

from cema.data.corruptions import CORRUPTIONS, VALIDATION_CORRUPTIONS, corrupt_image, corrupt_images
from cema.data.dataset import Dataset, LabelledImages, open_dataset
from cema.data.digits import DigitsData, load_digits
from cema.data.folder import LabelledFolder
from cema.data.streams import (
    DIGITS_STRETCHES,
    PHOTOGRAPH_STRETCHES,
    RandomView,
    Stream,
    StreamBatch,
    Stretch,
)

__all__ = [
    "CORRUPTIONS",
    "DIGITS_STRETCHES",
    "PHOTOGRAPH_STRETCHES",
    "VALIDATION_CORRUPTIONS",
    "Dataset",
    "DigitsData",
    "LabelledFolder",
    "LabelledImages",
    "RandomView",
    "Stream",
    "StreamBatch",
    "Stretch",
    "corrupt_image",
    "corrupt_images",
    "load_digits",
    "open_dataset",
]
