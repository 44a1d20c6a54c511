"""operator.yaml: what an installation tells its operator."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import yaml
from pydantic import Field, ValidationError

from forkcast_wire.endpoint import Endpoint
from forkcast_wire.fields import Part
from forkcast_wire.manifest import Storage

#: A prefix of object keys: empty, or folders that each end with a slash.
_PREFIX = r"^([A-Za-z0-9][A-Za-z0-9._-]*/)*$"


class ConfigError(ValueError):
    """operator.yaml is wrong; the message names the field."""


class Service(Part):
    """Where a service is and how it is spoken to.

    tls: folder with ca.crt, and tls.crt and tls.key for mutual TLS. tokenFile: a ServiceAccount
    token for it, read anew when it is rotated.
    """

    target: Annotated[str, Field(min_length=1)]
    tls: Path | None = None
    insecure_dev: bool = False
    token_file: Path | None = None


class TrainerDefaults(Part):
    """What runs get that say nothing themselves.

    monitorTlsSecret: a Secret of the run's namespace with a client certificate; empty: a token for
    `tokenAudience`. monitorCaConfigMap: a ConfigMap of the run's namespace with ca.crt; empty: the
    operator's own ca.crt is copied into the run's ConfigMap. runAsUser, runAsGroup, fsGroup: null
    leaves it out, for a cluster that assigns ids itself (OpenShift).
    """

    image: Annotated[str, Field(min_length=1)]
    pull_policy: Literal["IfNotPresent", "Always", "Never"] = "IfNotPresent"
    pull_secrets: list[str] = []
    rollout_priority_class_name: str = ""
    monitor_tls_secret: str = ""
    token_audience: str = "forkcast-monitor"
    monitor_ca_config_map: str = ""
    run_as_user: int | None = 65532
    run_as_group: int | None = 65532
    fs_group: int | None = 65532


class StoreConfig(Part):
    """An object store of this installation, with the operator's own credentials for it.

    endpoint: as pods and operator see it. prefix: of everything this installation stores there; a
    run's records are below ``<prefix><namespace>/<name>-<uid>/``. runSecretName: the Secret with
    credentials that is expected in a run's namespace if the run names none.
    """

    endpoint: Endpoint
    bucket: str
    prefix: Annotated[str, Field(max_length=256, pattern=_PREFIX)] = ""
    region: str = "us-east-1"
    credentials_dir: Path | None = None
    ca_file: Path | None = None
    run_secret_name: str = "forkcast-store"
    conditional_writes: Literal["Auto", "Required", "Off"] = "Auto"

    def storage(self, prefix: str) -> Storage:
        """This store, below a prefix, as the operator opens it."""
        return Storage(
            endpoint=self.endpoint,
            bucket=self.bucket,
            region=self.region,
            prefix=prefix,
            credentials_dir=str(self.credentials_dir) if self.credentials_dir else None,
            ca_file=str(self.ca_file) if self.ca_file else None,
            conditional_writes=self.conditional_writes,
        )


class OperatorConfig(Part):
    """The whole file. The first store is that of runs which name none.

    managedBy: the operator looks after the runs whose spec.managedBy is this.

    reservedAccounts: ServiceAccounts of the installation itself, NAMESPACE/NAME. A run's pods cannot
    have them: the token in such a pod would be the operator's, monitor's or proxy's.
    """

    monitor: Service | None = None
    proxy: Service | None = None
    trainer: TrainerDefaults
    stores: Annotated[list[StoreConfig], Field(max_length=64)] = []
    managed_by: str = ""
    reserved_accounts: Annotated[list[str], Field(max_length=64)] = []


def load_config(path: Path) -> OperatorConfig:
    """Raises ConfigError naming the field that is wrong."""
    try:
        return OperatorConfig.model_validate(yaml.safe_load(path.read_text()))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "document"
        raise ConfigError(f"{path}: {where}: {first['msg']}") from None
    except (OSError, yaml.YAMLError) as error:
        raise ConfigError(f"{path}: {error}") from None
