"""Storage of a study: a journal file that one coordinator owns, or a PostgreSQL database that many machines share."""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout
from optuna.exceptions import DuplicatedStudyError, ExperimentalWarning
from optuna.storages import BaseStorage, JournalStorage, RDBStorage, RetryHeartbeatStaleTrialCallback
from optuna.storages.journal import JournalFileBackend
from sqlalchemy import Engine, NullPool, create_engine, text
from sqlalchemy.exc import SQLAlchemyError

from pipelines.tracking import first_line, without_password
from safemax.errors import InputError

RETRIES = 3
_JOURNAL = b'{"op_code"'  # how every line of Optuna's journals begins
# A machine without a heartbeat for the grace period is dead, and its trials are run again elsewhere.
HEARTBEAT_SECONDS, GRACE_SECONDS = 30, 150


@dataclass(frozen=True)
class Store:
    """An open storage.

    Args:
        storage: Optuna's.
        shared: whether other coordinators may be using it.
        leads: whether this coordinator is the study's first or only one, which evaluates and registers at the end.
    """

    storage: BaseStorage
    shared: bool
    leads: bool

    def alone(self) -> AbstractContextManager[object]:
        """Keep other coordinators from choosing trials inside the block."""
        if not isinstance(self.storage, RDBStorage):
            return contextlib.nullcontext()
        return _exclusive(self.storage.engine, "choosing a trial")


@contextmanager
def opened(address: str, study: str, default: Path) -> Iterator[Store]:
    """Open a storage for a coordinator of a study.

    Args:
        address: auto (the default), the path of a journal file, or postgresql://USER@HOST/DATABASE.
        study: name of the study.
        default: journal file of `auto`.

    Raises:
        InputError: another coordinator owns the journal, or the database cannot be used.
    """
    if "://" not in address:
        with _journal(default if address == "auto" else Path(address)) as journal:
            yield Store(journal, shared=False, leads=True)
        return
    database = _database(address)
    with database.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        # The server releases the lock when the connection ends, for whatever reason; a pooled connection would stay open.
        connection.detach()
        leads = connection.execute(text("SELECT pg_try_advisory_lock(:key)"), {"key": _key(study)}).scalar()
        yield Store(database, shared=True, leads=bool(leads))
    database.engine.dispose()


@contextmanager
def _journal(path: Path) -> Iterator[JournalStorage]:
    """Open a journal as its only owner; the lock file beside it stays, and the kernel releases it when the process dies."""
    owner = FileLock(f"{path}.owner", mode=0o600, timeout=0, fallback_to_soft=False)
    try:
        if path.exists() and not path.is_file():
            raise InputError(f"storage = {path} is not a file; name a journal file, or leave storage = auto")
        path.parent.mkdir(parents=True, exist_ok=True)
        owner.acquire()
    except Timeout:
        raise InputError(
            f"storage = {path} is in use by another process; for several processes use postgresql://..."
        ) from None
    except OSError as error:
        raise _unusable(path, error) from error
    try:
        yield _replayed(path)
    finally:
        owner.release()


def _replayed(path: Path) -> JournalStorage:
    """Return the storage of a journal whose lines are whole."""
    try:
        _repair(path)
        path.open("ab").close()  # fails now, not at the first trial
        return JournalStorage(JournalFileBackend(str(path)))
    except OSError as error:
        raise _unusable(path, error) from error
    # Optuna trusts what it reads: operations that do not fit together raise whatever its own code meets.
    except (ArithmeticError, AssertionError, AttributeError, LookupError, TypeError, DuplicatedStudyError) as error:
        raise _damaged(path, f"its operations do not fit together ({type(error).__name__})") from error
    except ValueError as error:
        if isinstance(error, InputError):
            raise
        raise _damaged(path, f"its operations do not fit together ({type(error).__name__})") from error


def _repair(path: Path) -> None:
    """Undo what a kill or a power cut during a write leaves: an incomplete last line, NULs in its place, or a lock.

    Raises:
        InputError: another line is damaged, or the file is no journal; it was not changed.
    """
    content = path.read_bytes() if path.exists() else b""
    if content and not content.startswith(_JOURNAL[: len(content)]):
        raise InputError(f"storage = {path} is not a journal of Optuna and was not changed; name another file")
    operations = content.rstrip(b"\0\n")  # a power cut may leave NULs
    complete, _, last = operations.rpartition(b"\n")
    whole = b"".join(each + b"\n" for each in (complete, last if _is_operation(last) else b"") if each)
    lines = whole.split(b"\n")[:-1]
    bad = next((number for number, line in enumerate(lines, 1) if not _is_operation(line)), None)
    if bad is not None:
        raise _damaged(path, f"line {bad} of {len(lines)} is not an operation")
    Path(f"{path}.lock").unlink(missing_ok=True)  # costs 30 seconds
    if whole != content:
        with path.open("r+b") as file:
            file.write(whole)
            file.truncate()


def _is_operation(line: bytes) -> bool:
    try:
        operation = json.loads(line)
    except (ValueError, RecursionError):
        return False
    return isinstance(operation, dict) and isinstance(operation.get("op_code"), int)


def _damaged(path: Path, why: str) -> InputError:
    return InputError(
        f"storage = {path} is damaged and was not changed: {why}; restore the file, or name another one to start again"
    )


def _unusable(path: Path, error: OSError) -> InputError:
    return InputError(f"storage = {path} cannot be used: {error.strerror or error}")


def _database(address: str) -> RDBStorage:
    url = re.sub(r"^postgres(ql)?://", "postgresql+psycopg://", address)
    if not url.startswith("postgresql+psycopg://"):
        raise InputError(
            f"storage = {without_password(address)} is not allowed; it is auto, a path or postgresql://..."
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            retry = RetryHeartbeatStaleTrialCallback(max_retry=RETRIES)
            # If two machines make the tables at once, one of them fails.
            with _exclusive(create_engine(url, poolclass=NullPool), "making the tables"):
                return RDBStorage(
                    url,
                    heartbeat_interval=HEARTBEAT_SECONDS,
                    grace_period=GRACE_SECONDS,
                    heartbeat_stale_trial_callback=retry,
                )
    except ImportError as error:
        raise InputError(
            f"storage = {without_password(address)} needs psycopg: pip install 'psycopg[binary]' ({error})"
        ) from error
    except SQLAlchemyError as error:
        raise InputError(f"storage = {without_password(address)} cannot be used: {first_line(error)}") from error
    except ValueError as error:  # its text may hold a part of the password
        raise InputError(
            f"storage = {without_password(address)} is not an address; it is postgresql://USER:PASSWORD@HOST:PORT/DATABASE "
            "with a number as PORT, and %40 for @ and %2F for / in PASSWORD"
        ) from error


@contextmanager
def _exclusive(engine: Engine, what: str) -> Iterator[None]:
    """Keep other coordinators from doing the same inside the block."""
    with engine.begin() as connection:
        connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _key(f"safemax: {what}")})
        yield


def _key(name: str) -> int:
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big", signed=True)
