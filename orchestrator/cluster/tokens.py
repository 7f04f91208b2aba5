"""The token that clusters of this user ask for: where it is, and that nobody else can read it. Ray is not loaded."""

from __future__ import annotations

import os
import secrets
from contextlib import suppress
from pathlib import Path

from orchestrator.errors import ResourceError
from orchestrator.machine import folders


def token_file() -> Path:
    """Where the token of this user's clusters is: Ray's own place, or kdctl's folder where that cannot be used."""
    if named := os.environ.get("RAY_AUTH_TOKEN_PATH"):
        return Path(named)
    home = folders.home()
    usual = home / ".ray" / "auth_token" if home else None
    if usual and (os.access(usual, os.R_OK) or folders.can_be_written(usual.parent)):
        return usual
    return folders.own() / "auth_token"


def read_token() -> str | None:
    """The token that this user's clusters ask for; None where there is none yet."""
    with suppress(OSError, ValueError, ResourceError):
        return os.environ.get("RAY_AUTH_TOKEN", "").strip() or token_file().read_text(encoding="utf-8").strip() or None
    return None


def hide_token() -> None:
    """Ray leaves the token of its clusters readable by every user of the machine."""
    with suppress(OSError, ResourceError):  # on a read-only file system, whoever mounted it has seen to its rights
        file = token_file()
        if file.stat().st_uid == os.getuid() and file.stat().st_mode & 0o077:
            file.chmod(0o600)


def make_token() -> None:
    """Makes a token where there is none, for this user alone, and lets Ray find it.

    Raises ResourceError where none can be kept.
    """
    check_token()
    if has_tokens() and not read_token():
        file = token_file()
        try:
            folders.make(file.parent, mode=0o700)
            with folders.create_private_file(file) as written:
                written.write(secrets.token_hex(32).encode())
        except OSError as error:
            raise _no_place_for_token(file, error.strerror) from None
    lend_token()


def check_token() -> None:
    """Looks whether there is a token, or `make_token` can make one; writes nothing. Raises ResourceError."""
    if not has_tokens() or read_token():
        return
    file = token_file()
    if os.path.lexists(file) and not os.access(file, os.W_OK):
        raise _no_place_for_token(file, "it is there, but holds no token that you may read")
    if not folders.can_be_written(file.parent):
        raise _no_place_for_token(file, f"files cannot be made in {file.parent}")


def has_tokens() -> bool:
    """Whether clusters that this user starts ask for a token."""
    return os.environ.get("RAY_AUTH_MODE", "token").lower() == "token"


def _no_place_for_token(file: Path, reason: str | None) -> ResourceError:
    return ResourceError(
        f"Ray's token cannot be written to {file} ({reason}); name a file that can be written in RAY_AUTH_TOKEN_PATH, "
        "or put a token into RAY_AUTH_TOKEN"
    )


def lend_token() -> None:
    """Names the token's file to Ray, which looks in the home directory alone, and fails where there is none."""
    with suppress(ResourceError):
        if (file := token_file()) == folders.own() / "auth_token" and file.is_file():
            os.environ.setdefault("RAY_AUTH_TOKEN_PATH", str(file))
