"""The token that this user's clusters require: where it is, and that nobody else can read it. Ray is not imported."""

from __future__ import annotations

import os
import secrets
from contextlib import suppress
from pathlib import Path

from orchestrator.errors import ResourceError
from orchestrator.machine import folders


def token_file() -> Path:
    """Where the token of this user's clusters is: Ray's own file, or one in kdctl's folder if that cannot be used."""
    if path := os.environ.get("RAY_AUTH_TOKEN_PATH"):
        return Path(path)
    home = folders.home()
    usual = home / ".ray" / "auth_token" if home else None
    if usual and (os.access(usual, os.R_OK) or folders.can_be_written(usual.parent)):
        return usual
    return folders.own() / "auth_token"


def read_token() -> str | None:
    """The token that this user's clusters require; None if there is none yet."""
    with suppress(OSError, ValueError, ResourceError):
        return os.environ.get("RAY_AUTH_TOKEN", "").strip() or token_file().read_text(encoding="utf-8").strip() or None
    return None


def hide_token() -> None:
    """Makes the token readable by this user alone; Ray creates a file that every user of the machine can read."""
    with suppress(OSError, ResourceError):  # on a read-only file system, its permissions are as they were mounted
        file = token_file()
        if file.stat().st_uid == os.getuid() and file.stat().st_mode & 0o077:
            file.chmod(0o600)


def make_token() -> None:
    """Makes a token for this user alone if there is none, and makes Ray find it.

    Raises ResourceError if no token can be stored.
    """
    check_token()
    if has_tokens() and not read_token():
        file = token_file()
        try:
            folders.make(file.parent, mode=0o700)
            with folders.create_private_file(file) as output:
                output.write(secrets.token_hex(32).encode())
        except OSError as error:
            raise _make_token_error(file, error.strerror) from None
    lend_token()


def check_token() -> None:
    """Checks that there is a token, or that `make_token` can make one; writes nothing. Raises ResourceError."""
    if not has_tokens() or read_token():
        return
    file = token_file()
    if os.path.lexists(file) and not os.access(file, os.W_OK):
        raise _make_token_error(file, "the file exists, but holds no token that you can read")
    if not folders.can_be_written(file.parent):
        raise _make_token_error(file, f"no file can be created in {file.parent}")


def has_tokens() -> bool:
    """Whether clusters that this user starts require a token."""
    return os.environ.get("RAY_AUTH_MODE", "token").lower() == "token"


def _make_token_error(file: Path, reason: str | None) -> ResourceError:
    return ResourceError(
        f"Ray's token cannot be written to {file} ({reason}); name a writable file in RAY_AUTH_TOKEN_PATH, "
        "or put a token into RAY_AUTH_TOKEN"
    )


def lend_token() -> None:
    """Names the token's file to Ray, which by itself looks only in the home directory, and fails without one."""
    with suppress(ResourceError):
        if (file := token_file()) == folders.own() / "auth_token" and file.is_file():
            os.environ.setdefault("RAY_AUTH_TOKEN_PATH", str(file))
