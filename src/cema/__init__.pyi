from ._version import __version__ as __version__
from .edge.agent import EdgeAgent as EdgeAgent
from .edge.config import EdgeConfig as EdgeConfig
from .edge.status import EdgeStatus as EdgeStatus
from .edge.status import Prediction as Prediction
from .export.bundle import export_bundle as export_bundle
from .models.spec import Model as Model
from .ondevice.preprocess import Preprocessing as Preprocessing
