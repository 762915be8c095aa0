"""Signs compiled engines with a key of the user, since deserialising an engine runs machine code.

Every user has a secret key, which is created when an engine is first compiled. An engine with a
valid signature was compiled by this user, as nobody else can sign with the key. Signatures of
other users cannot be verified.
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
from rbvsr_deploy.engines.user_folders import config_folder
from rbvsr_deploy.files import make_private_folder, read_private

__all__ = ["compiled_by_this_user", "sign", "signature"]

logger = logging.getLogger(__name__)

_KEY_SIZE = 32


def sign(
    engine_set: EngineSet, graphs: Mapping[str, bytes], plans: Mapping[str, bytes]
) -> EngineSet:
    """Return the set with this user's signature over the set, its engines and their graphs. If the
    key cannot be stored, warn and return the set unsigned.

    Args:
        engine_set: the set that was compiled.
        graphs, plans: serialised ONNX models and engines by graph name.
    """
    sums = {name: [_sum(graphs[name]), _sum(plan)] for name, plan in plans.items()}
    return replace(engine_set, signature=(signature(*_signed(engine_set, sums)) or b"").hex())


def compiled_by_this_user(bundle: Bundle, engine_set: EngineSet) -> bool:
    """Return whether one of a bundle's engine sets has this user's signature."""
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
    """Return this user's signature of a content, 32 bytes.

    Args:
        purpose: kind of content; signatures for different purposes differ.
        content: the bytes to sign.
        make_key: create the key if it does not exist.

    Returns:
        The signature, or ``None`` without a key.

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
    """Return the purpose and content to sign for an engine set."""
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
    """Create a key and return it, or the key of another process that was faster."""
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
            "(%s); set RBVSR_CONFIG to a writable folder",
            path,
            error.strerror,
        )
        return None
    return _read_key()
