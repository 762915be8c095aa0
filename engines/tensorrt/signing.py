"""Who compiled an engine: a compiled engine is machine code, and deserialising one means running
it.

Every user has a secret key, made when something is compiled for the first time. What it has signed
was compiled by this user; nobody else can sign with it, and no signature says anything about
engines from elsewhere.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import json
import logging
import os
import secrets
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from rbvsr_deploy.bundle import Bundle
from rbvsr_deploy.bundle.engine_sets import EngineSet
from rbvsr_deploy.errors import MissingDependencyError
from rbvsr_deploy.private_files import make_private_folder, read_private

__all__ = ["compiled_by_this_user", "config_folder", "sign", "signature"]

logger = logging.getLogger(__name__)

_KEY_SIZE = 32


def config_folder() -> Path:
    """Where the key is: ``RBVSR_CONFIG``, else the user's configuration folder.

    Raises:
        MissingDependencyError: the variable is not set and platformdirs is not installed.
    """
    if chosen := os.environ.get("RBVSR_CONFIG"):
        return Path(chosen)
    try:
        import platformdirs
    except ImportError:
        raise MissingDependencyError(
            "platformdirs", extra="engines", purpose="finding the user's configuration folder"
        ) from None
    return platformdirs.user_config_path("rbvsr-deploy", appauthor=False)


def sign(
    engine_set: EngineSet, graphs: Mapping[str, bytes], plans: Mapping[str, bytes]
) -> EngineSet:
    """The set with this user's signature over itself, its engines and the graphs they were
    compiled from; without one, and with a warning, where the key cannot be kept.

    Args:
        engine_set: what was compiled.
        graphs, plans: serialised ONNX model and engine by graph.
    """
    sums = {name: [_sum(graphs[name]), _sum(plan)] for name, plan in plans.items()}
    return replace(engine_set, signature=(signature(*_signed(engine_set, sums)) or b"").hex())


def compiled_by_this_user(bundle: Bundle, engine_set: EngineSet) -> bool:
    """Whether one of a bundle's engine sets has this user's signature."""
    if not engine_set.signature:
        return False
    sums = {
        name: [_sum(bundle.graph(name)), _sum(plan)]
        for name, plan in bundle.plans(engine_set).items()
    }
    made = signature(*_signed(engine_set, sums), make_key=False)
    if made is None:
        return False
    return hmac.compare_digest(made.hex().encode(), engine_set.signature.encode())


def signature(purpose: str, content: bytes, *, make_key: bool = True) -> bytes | None:
    """This user's signature, 32 bytes.

    Args:
        purpose: says what is signed: the same content has another signature for another purpose.
        content: what is signed.
        make_key: whether to make a key if there is none.

    Returns:
        The signature; ``None`` if there is no key.

    Raises:
        MissingDependencyError: as :func:`config_folder`.
    """
    key = _read_key()
    if key is None and make_key:
        key = _make_key()
    if key is None:
        return None
    return hmac.digest(key, purpose.encode() + b"\0" + content, "sha256")


def _signed(engine_set: EngineSet, sums: Mapping[str, list[str]]) -> tuple[str, bytes]:
    """Purpose and content of an engine set's signature."""
    values = replace(engine_set, signature="").as_dict()
    return "engine set", json.dumps([values, sums], sort_keys=True).encode()


def _sum(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _key_path() -> Path:
    return config_folder() / "engine-key"


def _read_key() -> bytes | None:
    path = _key_path()
    try:
        key = read_private(path)
    except FileNotFoundError:
        return None
    except OSError as error:
        logger.warning("the key '%s' is not used (%s)", path, error.strerror)
        return None
    if len(key) != _KEY_SIZE:
        logger.warning("the key '%s' is not used (it is damaged: remove it)", path)
        return None
    return key


def _make_key() -> bytes | None:
    """A new key, or the one that another process has made meanwhile."""
    path = _key_path()
    try:
        make_private_folder(path.parent)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=".engine-key.")  # with mode 0600
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(secrets.token_bytes(_KEY_SIZE))
                file.flush()
                os.fsync(file.fileno())
            with contextlib.suppress(FileExistsError):
                os.link(name, path)  # unlike a renamed file, it never replaces a key
        finally:
            os.unlink(name)
    except OSError as error:
        logger.warning(
            "compiled engines are not signed, and will not be trusted: '%s' cannot be written "
            "(%s); set RBVSR_CONFIG to a folder that can",
            path,
            error.strerror,
        )
        return None
    return _read_key()
