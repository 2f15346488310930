"""CEMA: cloud-edge elastic model adaptation.

What users import stands in ``__init__.pyi`` and is loaded when it is first used: a device never loads torch by it.
"""

import lazy_loader

from cema._util.version import __version__ as __version__

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
