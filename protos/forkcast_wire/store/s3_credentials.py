"""Where the keys of an S3 store come from: files that may change at any time, or the AWS chain."""

from __future__ import annotations

import configparser
import os
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import urllib3
from minio.credentials.credentials import Credentials
from minio.credentials.providers import (
    AWSConfigProvider,
    EnvAWSProvider,
    IamAwsProvider,
    Provider,
)

from forkcast_wire.store.errors import StoreRefused
from forkcast_wire.store.s3_http import AnsweredError, network_words

_PROFILE_ONLY = ("role_arn", "credential_process", "sso_session", "sso_start_url")


class Keys(Provider):
    """The keys as they are now; `renewed` says after a refusal whether they have changed since."""

    def __init__(self, read: Callable[[], Credentials], forget: Callable[[], None]) -> None:
        self._read, self._forget = read, forget
        self._used: tuple[str, str, str | None] | None = None

    def retrieve(self) -> Credentials:
        """The keys for the next request. Raises StoreRefused, with the remedy, if there are none."""
        now = self._read()
        self._used = _parts(now)
        return now

    def renewed(self) -> bool:
        """Whether reading anew gives other keys than those of the last request."""
        self._forget()
        return _parts(self._read()) != self._used


def keys_for(credentials_dir: str | None, http: urllib3.PoolManager) -> Keys:
    """The keys of a storage section. http: carries requests to AWS's own STS."""
    if credentials_dir is not None:
        folder = Path(credentials_dir)
        return Keys(lambda: _from_files(folder), lambda: None)
    chain = _AwsChain(http)
    return Keys(chain.read, chain.forget)


def _parts(given: Credentials) -> tuple[str, str, str | None]:
    return given.access_key, given.secret_key, given.session_token


def _from_files(folder: Path) -> Credentials:
    """Read anew for each request: a rotated Secret is used from its first appearance."""
    try:
        access = (folder / "accessKeyId").read_text().strip()
        secret = (folder / "secretAccessKey").read_text().strip()
        token = folder / "sessionToken"
        session = token.read_text().strip() if token.exists() else None
    except (OSError, UnicodeDecodeError) as error:
        what = f"{error.filename}: {error.strerror}" if isinstance(error, OSError) else "no text"
        raise StoreRefused(
            f"spec.storage.credentialsDir: {what}; put the files accessKeyId and secretAccessKey "
            "there, and sessionToken for temporary keys"
        ) from error
    if not access or not secret:
        raise StoreRefused(
            f"spec.storage.credentialsDir: {folder}: accessKeyId or secretAccessKey is empty; fill it"
        )
    return Credentials(access, secret, session or None)


class _AwsChain:
    """Keys as AWS's own tools look for them: AWS_* variables, web identity (IRSA), the profile in
    the credentials and config files, container and instance roles.
    """

    def __init__(self, http: urllib3.PoolManager) -> None:
        self._http = http
        self._lock = threading.Lock()
        self._roles: Provider | None = None

    def forget(self) -> None:
        """Temporary keys are asked for anew."""
        with self._lock:
            self._roles = None

    def read(self) -> Credentials:
        """The first keys found. Raises StoreRefused if there are none."""
        tried = []
        for name, provider in self._providers():
            try:
                return provider.retrieve()
            except (ValueError, KeyError, OSError, configparser.Error) as error:
                tried.append((name, str(error)))
            except AnsweredError as error:
                tried.append((name, error.said))
            except urllib3.exceptions.HTTPError as error:
                tried.append((name, network_words(error)))
        asked = [f"{name}: {why}" for name, why in tried if name in ("web identity", "container")]
        raise StoreRefused(
            "spec.storage: no credentials"
            + "".join(f" ({one})" for one in asked)
            + (_profile_words() or "")
            + "; set credentialsDir, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or a profile "
            "with keys"
        )

    def _providers(self) -> Sequence[tuple[str, Provider]]:
        found: list[tuple[str, Provider]] = [("environment", EnvAWSProvider())]
        identity = os.environ.get("AWS_WEB_IDENTITY_TOKEN_FILE")
        container = any(
            os.environ.get(f"AWS_CONTAINER_CREDENTIALS_{kind}_URI") for kind in ("RELATIVE", "FULL")
        )
        if identity:
            found.append(("web identity", self._role(self._http)))
        profile = os.environ.get("AWS_PROFILE") or "default"
        section = profile if profile == "default" else f"profile {profile}"
        found.append(("credentials file", AWSConfigProvider(profile=profile)))
        found.append(("config file", AWSConfigProvider(_config_file(), section)))
        if container:
            found.append(("container", self._role(_local_http())))
        elif not identity and os.environ.get("AWS_EC2_METADATA_DISABLED", "").lower() != "true":
            found.append(("instance", self._role(_local_http())))
        return found

    def _role(self, http: urllib3.PoolManager) -> Provider:
        with self._lock:
            if self._roles is None:
                endpoint = os.environ.get("AWS_ENDPOINT_URL_STS")
                identity = os.environ.get("AWS_WEB_IDENTITY_TOKEN_FILE")
                self._roles = IamAwsProvider(
                    custom_endpoint=endpoint if identity else None,
                    http_client=http,
                    region=os.environ.get("AWS_DEFAULT_REGION"),
                )
            return self._roles


def _config_file() -> str:
    return os.environ.get("AWS_CONFIG_FILE") or str(Path.home() / ".aws" / "config")


def _local_http() -> urllib3.PoolManager:
    """For the metadata services of a machine or container: near, or not there at all."""
    return urllib3.PoolManager(timeout=urllib3.Timeout(connect=1, read=2), retries=False)


def _profile_words() -> str | None:
    """What the profile asks for that is not read here, in words."""
    profile = os.environ.get("AWS_PROFILE") or "default"
    parser = configparser.ConfigParser()
    credentials = os.environ.get("AWS_SHARED_CREDENTIALS_FILE") or (
        Path.home() / ".aws" / "credentials"
    )
    try:
        parser.read([credentials, _config_file()])
    except configparser.Error:
        return f" (profile {profile}: the file cannot be read)"
    for section in (profile, f"profile {profile}"):
        for option in _PROFILE_ONLY:
            if parser.has_option(section, option):
                return f" (profile {profile} uses {option}, which is not read; export its keys)"
    return None
