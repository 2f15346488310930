"""The agent's configuration, as TOML has it.

::

    bundle = "bundle"
    state = "state"

    [cloud]
    url = "https://cema.example"
    cohort = "north"
    token_file = "token"
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import msgspec

from cema._util.checks import require, require_at_least
from cema._util.logs import Form, Level
from cema._util.toml import load_toml, read_text, resolve_path
from cema.edge.budget_config import BudgetConfig
from cema.edge.spool import MIN_SPOOL_BYTES
from cema.errors import ConfigError
from cema.formats.draw import SMALLEST_SHARE
from cema.formats.image import CodecConfig
from cema.ondevice.adaptation import AdaptationConfig
from cema.ondevice.own_statistics import StatisticsConfig
from cema.ondevice.recentre import RecentreConfig
from cema.ondevice.selection.config import SelectionConfig
from cema.ondevice.unsure import ViewsConfig

__all__ = ["CloudLink", "EdgeConfig", "GuardConfig", "LogConfig", "UpdateConfig", "UploadConfig"]


class CloudLink(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """``[cloud]``: whom the device talks to.

    Attributes
    ----------
    url : str
        ``https://HOST[:PORT][/PREFIX]``.
    cohort : str
        The cohort that the device belongs to.
    token : str or None
        The device's token. Set exactly one of `token` and `token_file`.
    token_file : str or None
        A text file (UTF-8) with the token, read again for every request.
    ca_file : str or None
        A file (PEM) with the certificates of the only authorities that the cloud's own may come from: for a cloud whose
        certificate is signed by yourself. None: those that this machine trusts.
    """

    url: str
    cohort: str
    token: str | None = None
    token_file: str | None = None
    ca_file: str | None = None

    def __post_init__(self) -> None:
        if (self.token is None) == (self.token_file is None):
            raise ValueError("expected exactly one of `token` and `token_file`")
        if not self.cohort:
            raise ValueError("expected a cohort's name, got an empty one")
        if self.ca_file is not None and self.url.lower().startswith("http://"):
            raise ValueError(
                f"ca_file: expected https:// in `url`, got {self.url!r}: nothing is encrypted, and no certificate is "
                "looked at; correct `url`, or remove `ca_file`"
            )

    def read_token(self) -> str:
        """Return the token.

        Raises
        ------
        ConfigError
            When the token file cannot be read, or what is there is no token.
        """
        if self.token_file is None:
            where, token = "cloud.token", self.token or ""
        else:
            where = "cloud.token_file"
            try:
                token = read_text(Path(self.token_file))
            except (OSError, ValueError) as error:
                raise ConfigError(f"{where}: {error}; put the device's token there") from error
        token = token.strip("\ufeff \t\r\n\v\f")
        if not token:
            raise ConfigError(f"{where}: expected the device's token, got none; ask the cloud for one")
        if strange := [(i, c) for i, c in enumerate(token, 1) if not (c.isascii() and c.isprintable())]:
            place, character = strange[0]
            raise ConfigError(
                f"{where}: the text has characters that no token has (U+{ord(character):04X} at place {place}); "
                "expected printable ASCII: put the token alone there, as the cloud printed it"
            )
        return token


class UploadConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """``[upload]``: how samples are encoded, kept and sent.

    Attributes
    ----------
    codec : {"auto", "jpeg", "png", "raw"}
        ``auto`` takes the shorter of PNG and raw for images of fewer than 64 x 64 pixels, and JPEG for all others.
    quality : int
        JPEG quality, 1 to 100.
    subsampling : {"444", "420"}
        JPEG chroma subsampling. ``420`` is smaller, but it removes some of the noise that the cloud should adapt to.
    max_side : int or None
        Images with a longer shorter side are scaled down to it, in pixels. 0: never. None: the bundle's `upload_side`.
    batch_samples : int
        Samples in one request, at most; at least 1.
    batch_bytes : int
        Bytes of encoded images in one request, at most; at least 1.
    linger_seconds : float
        How long after the last one a batch that is not full may wait, and a tenth of it after a silence; at least 0.
    timeout_seconds : float
        For connecting, one write, or one read. A whole answer may take ten times that. At least 0.1.
    spool_bytes : int
        Cap on the spool's files; at least 1,048,576.
    queue_samples : int
        Samples that may wait in memory for the spool; at least 1.
    queue_bytes : int
        Bytes that may wait in memory for the spool; at least 1.
    random_share : float
        The probability with which each prediction is sent whatever the selection says, from 0.000001 to 1; 0 for never.
        From these samples the cloud tells how models do on all that devices see; it does not learn from them.
    """

    codec: Literal["auto", "jpeg", "png", "raw"] = "auto"
    quality: int = 85
    subsampling: Literal["444", "420"] = "444"
    max_side: int | None = None
    batch_samples: int = 32
    batch_bytes: int = 1 << 20
    linger_seconds: float = 2.0
    timeout_seconds: float = 10.0
    spool_bytes: int = 64 << 20
    queue_samples: int = 256
    queue_bytes: int = 64 << 20
    random_share: float = 0.01

    def __post_init__(self) -> None:
        require_at_least(self, 1, "quality", "batch_samples", "batch_bytes", "queue_samples", "queue_bytes")
        require_at_least(self, 0, "linger_seconds", finite=True)
        require_at_least(self, 0.1, "timeout_seconds", finite=True)
        require_at_least(self, MIN_SPOOL_BYTES, "spool_bytes")
        share = self.random_share
        allowed = share == 0 or SMALLEST_SHARE <= share <= 1
        require(allowed, "random_share", f"0, or from {SMALLEST_SHARE:g} to 1", share)
        if self.quality > 100:
            raise ValueError(f"expected `quality` from 1 to 100, got {self.quality}")
        if self.max_side is not None:
            require_at_least(self, 0, "max_side")

    def image_codec(self, upload_side: int | None) -> CodecConfig:
        """Return how images are encoded by a device whose bundle has this `upload_side`."""
        side = upload_side if self.max_side is None else self.max_side
        return CodecConfig(
            codec=self.codec, quality=self.quality, subsampling=self.subsampling, max_side=side or None
        )


class UpdateConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """``[update]``: how updates are asked for.

    Attributes
    ----------
    poll_seconds : float
        Time between two requests for updates, where the cloud does not keep its answer back until there is one; at
        least 0.01. The cloud is asked to do so where this is at most a minute.
    report_seconds : float
        Time between two reports to the cloud, at least, of which version serves and how that does; one goes at once
        when another version serves or was refused. 0: none.
    accept_bundles : bool
        Whether the device takes another bundle, with another base model, when its cohort is brought to one and a key
        that the device trusts has signed that.
    bundle_bytes : int
        The largest such bundle, in bytes; at least 1.
    """

    poll_seconds: float = 30.0
    report_seconds: float = 60.0
    accept_bundles: bool = True
    bundle_bytes: int = 1 << 30

    def __post_init__(self) -> None:
        require_at_least(self, 0.01, "poll_seconds", finite=True)
        require_at_least(self, 0, "report_seconds", finite=True)
        require_at_least(self, 1, "bundle_bytes")


class GuardConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """``[guard]``: how far inputs may be from what an update was made for; see :class:`cema.edge.guard.Guard`.

    Attributes
    ----------
    limit : float
        The squared distance from the update's domain above which the source model predicts; 0 switches the guard off.
    change_limit : float
        The squared distance from the first inputs of a domain above which the domain has changed, and statistics of the
        device's own and its mean logits begin anew (:class:`cema.ondevice.own_domain.OwnDomain`); 0 for never.
    """

    limit: float = 36.0
    change_limit: float = 36.0

    def __post_init__(self) -> None:
        require_at_least(self, 0, "limit", "change_limit", finite=True)


class LogConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """``[log]``: what `cema edge run` logs, to standard error.

    Attributes
    ----------
    format : {"text", "json"}
        Lines for people, or one JSON object a line for programs.
    level : {"debug", "info", "warning", "error"}
        What is logged, at least. ``info`` has every new version. Other packages log warnings and errors only.
    """

    format: Form = "text"
    level: Level = "warning"


class ProbationConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """``[probation]``: when a device goes back from a version by itself; see :mod:`cema.edge.probation`.

    Attributes
    ----------
    images : int
        Images for which a version is on trial after it was swapped in; 0: no trial.
    entropy : float
        How many times as high as before the mean entropy may be; at least 1. 0: as high as it is.
    classes : float
        To which part of before the number of classes that are chosen may fall, from 0 to 1; 0: to any.
    """

    images: int = 256
    entropy: float = 1.5
    classes: float = 0.25

    def __post_init__(self) -> None:
        require_at_least(self, 0, "images", "classes", finite=True)
        if self.entropy != 0:
            require_at_least(self, 1, "entropy", finite=True)
        if self.classes > 1:
            raise ValueError(f"expected `classes` from 0 to 1, got {self.classes}")


class EdgeConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What an agent needs to know.

    Attributes
    ----------
    bundle : str
        Folder of the bundle that the device was provisioned with. It is only read.
    state : str
        Folder where the device may write: spool, selection state, last update, a bundle that it has fetched. It and its
        files are made readable for the device's user only.
    threads : int
        CPU threads that one operator of the model may use; at least 1.
    batch : int
        Images that go through the model at once; at least 1.
    cloud : CloudLink or None
        The cloud that the device talks to. None: it selects and spools, and talks to nobody.
    selection, upload, budget, update, guard, probation, statistics, views, recentre, log
        See the sections' classes.
    """

    bundle: str
    state: str
    threads: int = 1
    batch: int = 32
    cloud: CloudLink | None = None
    selection: SelectionConfig = SelectionConfig()
    upload: UploadConfig = UploadConfig()
    budget: BudgetConfig = BudgetConfig()
    update: UpdateConfig = UpdateConfig()
    guard: GuardConfig = GuardConfig()
    probation: ProbationConfig = ProbationConfig()
    statistics: StatisticsConfig = StatisticsConfig()
    views: ViewsConfig = ViewsConfig()
    recentre: RecentreConfig = RecentreConfig()
    log: LogConfig = LogConfig()

    @property
    def adaptation(self) -> AdaptationConfig:
        """What the device does about a domain by itself."""
        return AdaptationConfig(
            change_limit=self.guard.change_limit,
            statistics=self.statistics,
            views=self.views,
            recentre=self.recentre,
        )

    def __post_init__(self) -> None:
        require_at_least(self, 1, "threads", "batch")

    @classmethod
    def load(cls, path: Path) -> EdgeConfig:
        """Read a TOML file; relative paths in it are relative to the file.

        Raises
        ------
        ConfigError
            When the file is missing, or says something unknown or wrong.
        """
        path = Path(path)
        config = load_toml(path, cls)
        cloud = config.cloud
        if cloud is not None:
            cloud = msgspec.structs.replace(
                cloud,
                token_file=cloud.token_file and str(resolve_path(path, cloud.token_file)),
                ca_file=cloud.ca_file and str(resolve_path(path, cloud.ca_file)),
            )
        return msgspec.structs.replace(
            config,
            bundle=str(resolve_path(path, config.bundle)),
            state=str(resolve_path(path, config.state)),
            cloud=cloud,
        )
