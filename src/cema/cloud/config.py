"""The cloud's configuration file."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal

import msgspec

from cema._util.checks import require, require_at_least
from cema._util.logs import Form, Level
from cema._util.toml import load_toml, resolve_path
from cema.adapt.config import AdaptConfig
from cema.cloud.rollout_config import RolloutConfig
from cema.cloud.signing.config import SigningKeyConfig, check_passphrase
from cema.cloud.store.base import Store
from cema.cloud.store.open import absolute_url, check_store, open_store

__all__ = [
    "CloudConfig",
    "CohortConfig",
    "LimitsConfig",
    "LogConfig",
    "PublishConfig",
    "TrafficConfig",
    "WorkerConfig",
]

NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
# The smallest store that holds a few batches of uploads beside checkpoints and updates.
SMALLEST_STORE = 4 * 2**20


class LimitsConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the cloud takes.

    Attributes
    ----------
    store_bytes : int
        Cap of the store (of its database file), at least 4,194,304. Old samples leave when it is reached. Samples leave
        an eighth free, which must hold, of every cohort together, the worker's checkpoint (statistics, parameters and
        momenta of the normalisation layers of both models, and some 10 bytes for each sample that may be replayed) and
        the 16 newest updates; a worker that finds no room for a checkpoint ends.
    body_bytes : int
        Largest request body; a larger one is answered 413. At most a quarter of `store_bytes`, so that an empty store
        takes every request.
    batch_samples : int
        Most samples in one request; more are answered 413. What the store needs for each beside its image may be half
        of `store_bytes`, at most: how many that allows depends on the store.
    backlog_samples : int
        Samples of one cohort that may wait for its worker; beyond them uploads are answered 429. At least
        `batch_samples`.
    device_samples : float
        Samples per second of one device, over half a minute; beyond them its uploads are answered 429. 0: no limit.
    device_samples_per_hour, device_samples_per_day : int
        Samples of one device; beyond them its uploads are answered 429 until some of that time has passed. 0: no limit.
        `cema device limit` says otherwise for one device.
    device_bytes_per_hour, device_bytes_per_day : int
        The same for the bytes of its uploads' bodies.
    image_pixels : int
        Most pixels of one image; a sample with more is rejected. A request may hold four times as many in all. Set the
        devices' ``upload.max_side`` below it. At least 1.
    image_aspect : float
        How many times longer than wide, or wider than long, an image may be; a sample past that is rejected. At least
        1.
    retry_after_seconds : int
        What a 429 or 503 asks the device to wait; at least 1.
    """

    store_bytes: int = 8 * 2**30
    body_bytes: int = 16 * 2**20
    batch_samples: int = 256
    backlog_samples: int = 20_000
    device_samples: float = 100.0
    device_samples_per_hour: int = 0
    device_samples_per_day: int = 0
    device_bytes_per_hour: int = 0
    device_bytes_per_day: int = 0
    image_pixels: int = 16_000_000
    image_aspect: float = 16.0
    retry_after_seconds: int = 5

    def __post_init__(self) -> None:
        """Refuse values outside their range."""
        require_at_least(self, SMALLEST_STORE, "store_bytes")
        require_at_least(self, 1, "body_bytes", "batch_samples", "backlog_samples", "retry_after_seconds")
        require_at_least(self, 1, "image_pixels", "image_aspect")
        require_at_least(self, 0, "device_samples", finite=True)
        require_at_least(self, 0, "device_samples_per_hour", "device_samples_per_day")
        require_at_least(self, 0, "device_bytes_per_hour", "device_bytes_per_day")
        if self.body_bytes > self.store_bytes // 4:
            raise ValueError(
                f"body_bytes: expected at most a quarter of store_bytes ({self.store_bytes} // 4 = "
                f"{self.store_bytes // 4}), got {self.body_bytes}; the store could not take every request: lower "
                "body_bytes or raise store_bytes"
            )
        if self.backlog_samples < self.batch_samples:
            raise ValueError(
                f"backlog_samples: expected at least batch_samples ({self.batch_samples}), got "
                f"{self.backlog_samples}; a full request could never be taken"
            )


class WorkerConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How the worker process runs.

    Attributes
    ----------
    device : str
        A torch device such as ``cpu`` or ``cuda:0``; ``auto`` takes a GPU when there is one.
    dtype : {"float32", "bfloat16"}
        Arithmetic of the models on the device.
    threads : int
        torch's CPU threads; 0 leaves the choice to torch.
    poll_seconds : float
        How often it looks for new samples when it has none; at least 0.01.
    linger_seconds : float
        How long samples wait for a batch to fill before a smaller one is taken; at least 0.
    idle_steps : int
        Replay-only steps, at most, after a full batch of new samples, and their share after a smaller one; at least 0.
        None is made while samples wait.
    max_backlog : int
        Waiting samples above which the oldest go to the replay buffer without a step of their own: a worker that is
        slower than the stream must learn what devices see now, not what they saw long ago. At least 1, and at least
        every cohort's ``adapt.fresh``.
    """

    device: str = "auto"
    dtype: Literal["float32", "bfloat16"] = "float32"
    threads: int = 0
    poll_seconds: float = 0.25
    linger_seconds: float = 60.0
    idle_steps: int = 8
    max_backlog: int = 64

    def __post_init__(self) -> None:
        """Refuse values outside their range."""
        require_at_least(self, 0, "threads", "linger_seconds", "idle_steps")
        require_at_least(self, 1, "max_backlog")
        require_at_least(self, 0.01, "poll_seconds")


class PublishConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """When a new version goes to the devices.

    Attributes
    ----------
    every_steps : int
        Steps between two candidates; at least 1.
    min_seconds : float
        Time between two versions, at least. Above 0, `cema cloud restore` can tell how many versions may have been
        published since a backup.
    lifetime_days : float
        How long a version may be installed; above 0. Half of it later the version is signed anew, changed or not.
    gate : float
        How much smaller the adapted model's agreement with the foundation model may be, as a share of the window, than
        that of the version that devices run. It may never be smaller than the source model's. 1 publishes everything
        finite.
    window : int
        The newest samples on which they are compared, each before it was learned from, none from before a change of the
        environment; at least 1.
    evidence : int
        Samples that it takes to publish, 1 to `window`. Fewer may bring the source model back, when it is far better
        than what devices run.
    first_version : int
        The next version has at least this number. Raise it after the store was restored by other means than `cema cloud
        restore`: devices refuse numbers that they have seen.
    statistics : bool
        Whether updates carry the statistics that they were learned with, where devices have statistics of their own:
        they are the prior of those, and serve on devices that are to use the update's instead.
    """

    every_steps: int = 1
    min_seconds: float = 1.0
    lifetime_days: float = 30.0
    gate: float = 0.02
    window: int = 128
    evidence: int = 64
    first_version: int = 1
    statistics: bool = True

    def __post_init__(self) -> None:
        """Refuse values outside their range."""
        require_at_least(self, 1, "every_steps", "window", "evidence", "first_version")
        require(self.first_version < 2**53, "first_version", "a number below 2**53", self.first_version)
        require_at_least(self, 0, "min_seconds", "gate")
        if self.evidence > self.window:
            raise ValueError(
                f"evidence: expected at most the window of {self.window}, got {self.evidence}; nothing could ever be "
                "published"
            )
        if not self.lifetime_days > 0:
            raise ValueError(f"lifetime_days: expected a number above 0, got {self.lifetime_days}")


class LogConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the server and its worker log, to standard error.

    Attributes
    ----------
    format : {"text", "json"}
        Lines for people, or one JSON object a line for programs.
    level : {"debug", "info", "warning", "error"}
        What is logged, at least. ``info`` has every upload and every error of a request; ``debug`` has the polls of
        devices, too.
    """

    format: Form = "text"
    level: Level = "info"


class TrafficConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What traffic costs, for the page and `cema top`.

    Attributes
    ----------
    price : float
        Of a GB (10^9 bytes) that is sent or received; 0: no money is shown.
    currency : str
        Its name, such as ``EUR``; up to 8 characters.
    """

    price: float = 0.0
    currency: str = "USD"

    def __post_init__(self) -> None:
        """Refuse values outside their range."""
        require_at_least(self, 0, "price", finite=True)
        require(1 <= len(self.currency) <= 8, "currency", "1 to 8 characters", self.currency)


class CohortConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One cohort: the devices that share an edge model and an environment.

    Attributes
    ----------
    name : str
        In the URLs: 1 to 64 lower-case letters, digits, ``.``, ``_`` and ``-``, beginning with a letter or digit. Names
        must differ.
    bundle : str
        The bundle its devices were provisioned with, or were brought to by `cema cohort migrate`, relative to the
        configuration file.
    model : str
        The edge model that the bundle was exported from: built in, ``timm:``, ``torchvision:``, ``hf:``,
        ``package.module:function``.
    foundation : str
        The foundation model, named in the same way.
    model_weights, foundation_weights : str, optional
        Weight files (safetensors), relative to the configuration file.
    adapt : AdaptConfig
        Settings of the algorithm.
    publish : PublishConfig
        When a new version goes out.
    rollout : RolloutConfig
        To which devices first.
    retention_days : float
        How long samples are kept after they arrived, by the cloud's clock; 0: until the store needs their room. What is
        older is deleted within an hour (within a 24th of the time, where that is less): the images from the store, and
        what the worker keeps of them.
    private : bool
        Whether nobody may look at the cohort's images: the API shows none, and the operators' page has none. Whoever
        may read the store's files can.
    """

    name: str
    bundle: str
    model: str
    foundation: str
    model_weights: str | None = None
    foundation_weights: str | None = None
    adapt: AdaptConfig = AdaptConfig()
    publish: PublishConfig = PublishConfig()
    rollout: RolloutConfig = RolloutConfig()
    retention_days: float = 0.0
    private: bool = False

    def __post_init__(self) -> None:
        """Refuse a name that is no URL segment, and a time below 0."""
        require_at_least(self, 0, "retention_days", finite=True)
        if not NAME.fullmatch(self.name):
            raise ValueError(
                f"name: expected 1 to 64 of a-z, 0-9, '.', '_', '-', starting with a letter or digit, "
                f"got {self.name!r}"
            )


class CloudConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The whole configuration. Relative paths in the file are relative to it.

    Attributes
    ----------
    data : str
        Folder of what this machine keeps: the lock of the server and, unless `store` names another, the store.
    store : str, optional
        URL of the store: ``sqlite:PATH``, or ``package.module:Class:ADDRESS`` for one of your own
        (`cema.cloud.store.open.open_store`). None stands for ``cema.db`` in `data`. A relative path in it, too, is
        relative to the file.
    signing_key : str, optional
        Private key (ed25519, PEM) that signs updates; ``cema keys new`` makes one. Required unless there are
        `signing_keys`.
    signing_passphrase : str, optional
        Where the passphrase of an encrypted `signing_key` is: ``file:PATH``, ``env:NAME`` or ``fd:NUMBER``.
    signing_keys : tuple of SigningKeyConfig, default ()
        Further keys. Every update is signed with all of them, `signing_key` first.
    host : str
        Address to listen on.
    port : int
        Port to listen on, for plain HTTP, 0 to 65,535; 0 takes a free one. TLS is the business of a proxy in front.
    limits : LimitsConfig
        What the cloud takes.
    worker : WorkerConfig
        How the worker process runs.
    log : LogConfig
        What is logged, and how.
    traffic : TrafficConfig
        What traffic costs.
    cohort : tuple of CohortConfig
        At least one.
    """

    data: str
    cohort: tuple[CohortConfig, ...]
    signing_key: str | None = None
    signing_passphrase: str | None = None
    host: str = "127.0.0.1"
    port: int = 8080
    store: str | None = None
    signing_keys: tuple[SigningKeyConfig, ...] = ()
    limits: LimitsConfig = LimitsConfig()
    worker: WorkerConfig = WorkerConfig()
    log: LogConfig = LogConfig()
    traffic: TrafficConfig = TrafficConfig()

    def __post_init__(self) -> None:
        """Refuse no keys, no cohorts, two of one name, batches that could never fill, ports that do not exist.

        And limits that the store cannot keep: which those are, its back end knows.
        """
        if not self.signers:
            raise ValueError(
                "signing_key: expected a private key's file, or [[signing_keys]], got none; nothing could be published"
            )
        if self.signing_passphrase is not None:
            if self.signing_key is None:
                raise ValueError("signing_passphrase: there is no signing_key that it belongs to; remove it")
            check_passphrase(self.signing_passphrase)
        if not 0 <= self.port <= 65_535:
            raise ValueError(f"port: expected 0 to 65535, got {self.port}")
        names = [cohort.name for cohort in self.cohort]
        if not names:
            raise ValueError("cohort: expected at least one [[cohort]] table, got none; add one")
        if len(set(names)) < len(names):
            raise ValueError(f"cohort: names must differ, got {names}; rename one")
        for cohort in self.cohort:
            if cohort.adapt.fresh > self.worker.max_backlog:
                raise ValueError(
                    f"cohort {cohort.name!r}: adapt.fresh: expected at most worker.max_backlog "
                    f"({self.worker.max_backlog}), got {cohort.adapt.fresh}; a full batch could never wait: lower "
                    "adapt.fresh or raise worker.max_backlog"
                )
        check_store(self.store_url, self.limits)

    @classmethod
    def load(cls, path: Path) -> CloudConfig:
        """Read a configuration file and make its paths absolute.

        Raises
        ------
        ConfigError
            The file is missing, is no TOML, or holds an unknown key, a wrong type or value.
        """
        config = load_toml(path, cls)
        base = path.resolve().parent

        def absolute(value: str) -> str:
            return str(resolve_path(base, value))

        cohorts = tuple(
            msgspec.structs.replace(
                cohort,
                bundle=absolute(cohort.bundle),
                model_weights=cohort.model_weights and absolute(cohort.model_weights),
                foundation_weights=cohort.foundation_weights and absolute(cohort.foundation_weights),
            )
            for cohort in config.cohort
        )
        first = None if config.signing_key is None else config.signers[0].absolute(base)
        return msgspec.structs.replace(
            config,
            data=absolute(config.data),
            signing_key=first and first.key,
            signing_passphrase=first and first.passphrase,
            signing_keys=tuple(key.absolute(base) for key in config.signing_keys),
            store=config.store and absolute_url(config.store, base),
            cohort=cohorts,
        )

    @property
    def signers(self) -> tuple[SigningKeyConfig, ...]:
        """All keys that sign, in their order."""
        if self.signing_key is None:
            return self.signing_keys
        return (
            SigningKeyConfig(key=self.signing_key, passphrase=self.signing_passphrase),
            *self.signing_keys,
        )

    @property
    def store_url(self) -> str:
        """The store's URL, also when it is not set."""
        return self.store or f"sqlite://{(Path(self.data) / 'cema.db').absolute()}"

    def open_store(self) -> Store:
        """Open the store, for the caller to close.

        Raises
        ------
        ConfigError, StoreError
            See `cema.cloud.store.open.open_store`.
        """
        return open_store(self.store_url, max_bytes=self.limits.store_bytes)
