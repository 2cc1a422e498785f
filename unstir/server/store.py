"""Store: what survives the end of the process: jobs, finished pictures, uploads.

Knows: SQLite's tables, folders of pictures, in which order things are written so that none is half there.
Does not know: what is going on in memory, who draws, HTTP.

A file is written under another name and then moved, and its row follows: a row never speaks of a file that is not
whole. What writes may be called in any thread; what reads is called in one thread only.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import sqlite3
import threading
import time
import unicodedata
from collections.abc import Generator, Iterable, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from unstir.config import from_dict, to_dict
from unstir.pipeline import Request
from unstir.server.jobs import Job, Picture, State

UNUSED_SECONDS = 7 * 24 * 3600.0
"""How long an upload is kept that no job and no picture needs."""

_VERSION = 1
_SCHEMA = """
create table jobs (
    number integer primary key autoincrement, id text unique not null, model text not null, checksum text not null,
    created real not null, requests text not null, state text not null, error text not null
);
create index unended on jobs (number) where state = 'queued';
create table keys (key text primary key, asked text not null, job text not null);
create index keys_by_job on keys (job);
create table pictures (
    number integer primary key autoincrement, job text not null, place integer not null, request text not null,
    created real not null, seconds real not null, warnings text not null, words text not null, unique (job, place)
);
create table gone (job text not null, place integer not null, number integer not null, primary key (job, place));
create table uses (upload text not null, job text not null, primary key (upload, job)) without rowid;
create index uses_by_job on uses (job);
"""
_JOB = re.compile("[0-9a-f]{32}")
_NAME = re.compile("[0-9a-f]{64}")
_PLACE = re.compile("([0-9a-f]{32})/([0-9]{1,6})")


class Store:
    """What is kept in a folder, by one process at a time.

    Args:
        folder: made if it is not there.

    Raises:
        OSError: if it cannot be written.
        ValueError: if another server uses it, or what lies there is no store or one of a newer unstir.
    """

    def __init__(self, folder: Path) -> None:
        self._pictures, self._uploads = folder / "pictures", folder / "uploads"
        for each in (folder, self._pictures, self._uploads):
            each.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._lock_file = (folder / "lock").open("w")
        try:
            fcntl.flock(self._lock_file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._lock_file.close()
            raise ValueError(f"another server uses {folder}; stop it, or give another folder") from None
        self._writing = threading.Lock()
        connections: list[sqlite3.Connection] = []
        try:
            for _ in range(2):
                connections.append(_connection(folder / "jobs.sqlite"))
        except (ValueError, OSError):
            for each in connections:
                each.close()
            self._lock_file.close()
            raise
        self._write, self._read = connections
        for stale in (*self._pictures.glob(".*.new"), *self._uploads.glob(".*.new")):
            stale.unlink(missing_ok=True)

    def close(self) -> None:
        """Let go of the folder."""
        self._read.close()
        with self._writing:
            self._write.close()
        self._lock_file.close()

    def add(self, job: Job, checksum: str, uses: Iterable[str], key: str = "", asked: str = "") -> None:
        """Keep a job.

        Args:
            job: that was accepted.
            checksum: of its model's weights.
            uses: uploads that it needs.
            key: under which it may be asked for again; empty for none.
            asked: what was asked, for whoever uses the key for something else.

        Raises:
            OSError: if it cannot be written.
        """
        requests = json.dumps([to_dict(request) for request in job.requests], ensure_ascii=False)
        with self._change() as change:
            change.execute(
                "insert into jobs (id, model, checksum, created, requests, state, error) values (?, ?, ?, ?, ?, ?, ?)",
                (job.id, job.model, checksum, job.created, requests, job.state, job.error),
            )
            change.executemany("insert or ignore into uses values (?, ?)", [(upload, job.id) for upload in uses])
            if key:
                change.execute("insert into keys values (?, ?, ?)", (key, asked, job.id))

    def end(self, job: str, state: State, error: str = "") -> None:
        """Keep how a job ended.

        Raises:
            OSError: if it cannot be written.
        """
        with self._change() as change:
            change.execute("update jobs set state = ?, error = ? where id = ?", (state, error, job))
            _forget_if_gone(change, job)  # its pictures may have been deleted while it ran

    def add_picture(self, picture: Picture, data: bytes) -> None:
        """Keep a finished picture, its file first.

        Raises:
            OSError: if it cannot be written.
        """
        request = picture.request
        text = request.prompt if request.blend is None else f"{request.prompt}\n{request.blend.prompt}"
        _write_whole(self._file_of(picture.job, picture.index), data)
        with self._change() as change:
            change.execute(
                "insert or replace into pictures (job, place, request, created, seconds, warnings, words) "
                "values (?, ?, ?, ?, ?, ?, ?)",
                (
                    picture.job,
                    picture.index,
                    json.dumps(to_dict(request), ensure_ascii=False),
                    picture.created,
                    picture.seconds,
                    json.dumps(picture.warnings, ensure_ascii=False),
                    _folded(text),
                ),
            )

    def delete(self, job: str, index: int) -> bool:
        """Forget a picture; and its job, if that has ended and it was the last one.

        Returns:
            Whether there was one.

        Raises:
            OSError: if it cannot be removed.
        """
        if not _is_place(job, index):
            return False
        self._file_of(job, index).unlink(missing_ok=True)
        with self._change() as change:
            change.execute(
                "insert or ignore into gone select job, place, number from pictures where job = ? and place = ?",
                (job, index),
            )
            removed = change.execute("delete from pictures where job = ? and place = ?", (job, index)).rowcount
            _forget_if_gone(change, job)
        return removed > 0

    def job(self, job: str) -> Job | None:
        """A job, if there is one of that id."""
        if not _JOB.fullmatch(job):
            return None
        row = self._read.execute(f"select {_JOB_COLUMNS} from jobs where id = ?", (job,)).fetchone()
        return None if row is None else _job_of(row)

    def job_of(self, key: str) -> tuple[str, str] | None:
        """What was asked under a key, and the job that it became."""
        return self._read.execute("select asked, job from keys where key = ?", (key,)).fetchone()

    def unended(self) -> list[tuple[Job, str]]:
        """The jobs that are not done, in order of arrival, and the checksum of the model of each."""
        rows = self._read.execute(f"select {_JOB_COLUMNS}, checksum from jobs where state = 'queued' order by number")
        return [(_job_of(row[:-1]), row[-1]) for row in rows]

    def drawn(self, job: str) -> tuple[int, ...]:
        """Which pictures of a job there are."""
        rows = self._read.execute("select place from pictures where job = ? order by place", (job,))
        return tuple(row[0] for row in rows)

    def deleted(self, job: str) -> tuple[int, ...]:
        """Which pictures of a job were deleted."""
        rows = self._read.execute("select place from gone where job = ? order by place", (job,))
        return tuple(row[0] for row in rows)

    def picture(self, job: str, index: int) -> Picture | None:
        """A finished picture, if there is one."""
        if not _is_place(job, index):
            return None
        row = self._read.execute(
            f"select {_PICTURE_COLUMNS} from pictures where job = ? and place = ?", (job, index)
        ).fetchone()
        return None if row is None else _picture_of(row)

    def pictures(self, *, search: str = "", before: str = "", limit: int = 50) -> list[Picture]:
        """Finished pictures, newest first.

        Args:
            search: words; all of them occur in the prompt, in whatever case.
            before: ``JOB/INDEX`` of a picture, which may be deleted by now: only older ones; empty for all.
            limit: most of them.

        Raises:
            LookupError: if there never was a picture ``before``.
        """
        wanted: list[str] = ["1"]
        values: list[Any] = []
        if before:
            wanted.append("number < ?")
            values.append(self._number_of(before))
        for word in _folded(search).split():
            wanted.append("instr(words, ?)")
            values.append(word)
        rows = self._read.execute(
            f"select {_PICTURE_COLUMNS} from pictures where {' and '.join(wanted)} order by number desc limit ?",
            (*values, limit),
        )
        return [_picture_of(row) for row in rows]

    def read(self, job: str, index: int) -> bytes | None:
        """The file of a finished picture."""
        return _content(self._file_of(job, index)) if _is_place(job, index) else None

    def keep(self, data: bytes) -> str:
        """Keep what was uploaded.

        Returns:
            Its name, the sha256 of its content.

        Raises:
            OSError: if it cannot be written.
        """
        name = hashlib.sha256(data).hexdigest()
        if not self.touch(name):
            _write_whole(self._uploads / name, data)
        return name

    def touch(self, name: str) -> bool:
        """Have an upload grow old anew, because it is wanted again.

        Returns:
            Whether there is one.
        """
        try:
            if _NAME.fullmatch(name):
                os.utime(self._uploads / name)
                return True
        except FileNotFoundError:
            pass
        return False

    def kept(self, name: str) -> bytes | None:
        """What was uploaded under that name."""
        return _content(self._uploads / name) if _NAME.fullmatch(name) else None

    def prune(self, seconds: float = UNUSED_SECONDS) -> None:
        """Remove uploads that were not asked for in so many seconds, and that nothing needs.

        Raises:
            OSError: if they cannot be removed.
        """
        now = time.time()
        with self._writing:
            used = {row[0] for row in self._write.execute("select distinct upload from uses")}
            for path in list(self._uploads.iterdir()):
                if path.name not in used and now - path.stat().st_mtime > seconds:
                    path.unlink(missing_ok=True)

    def _number_of(self, place: str) -> int:
        found = _PLACE.fullmatch(place)
        if found is not None:
            where = (found[1], int(found[2]))
            for table in ("pictures", "gone"):
                row = self._read.execute(f"select number from {table} where job = ? and place = ?", where).fetchone()
                if row is not None:
                    return row[0]
        raise LookupError(f"there is no picture {place[:80]!r}")

    def _file_of(self, job: str, index: int) -> Path:
        return self._pictures / f"{job}-{index}.png"

    @contextmanager
    def _change(self) -> Generator[sqlite3.Connection]:
        """All that is executed within, or nothing of it."""
        with self._writing:
            try:
                self._write.execute("begin immediate")
                yield self._write
                self._write.execute("commit")
            except sqlite3.Error as error:
                if self._write.in_transaction:
                    self._write.execute("rollback")
                raise OSError(f"the store cannot be written: {error}") from error


_JOB_COLUMNS = "id, model, created, requests, state, error"
_PICTURE_COLUMNS = "job, place, request, created, seconds, warnings"


def _connection(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    try:
        connection.execute("pragma journal_mode = wal")
        # The end of the process loses nothing so; only that of the whole machine may lose the last few changes.
        connection.execute("pragma synchronous = normal")
        connection.execute("pragma secure_delete = on")
        version = connection.execute("pragma user_version").fetchone()[0]
        if version == 0:
            connection.executescript(f"begin; {_SCHEMA} pragma user_version = {_VERSION}; commit;")
        elif version != _VERSION:
            raise ValueError(
                f"{path} is of another unstir (its form is {version}, not {_VERSION}); give another folder"
            )
    except sqlite3.OperationalError as error:
        connection.close()
        raise OSError(f"{path} cannot be used: {error}") from None
    except sqlite3.DatabaseError as error:
        connection.close()
        raise ValueError(f"{path} is damaged ({error}); move it away, or give another folder") from None
    except ValueError:
        connection.close()
        raise
    return connection


def _forget_if_gone(change: sqlite3.Connection, job: str) -> None:
    """Nothing is kept of a job that has ended and whose pictures were deleted, all that it had."""
    row = change.execute(
        "select 1 from jobs where id = ? and state != 'queued' and exists (select 1 from gone where job = ?) "
        "and not exists (select 1 from pictures where job = ?)",
        (job, job, job),
    ).fetchone()
    if row is not None:
        for table, column in (("jobs", "id"), ("keys", "job"), ("uses", "job")):
            change.execute(f"delete from {table} where {column} = ?", (job,))


def _job_of(row: Sequence[Any]) -> Job:
    name, model, created, requests, state, error = row
    return Job(
        id=name,
        model=model,
        created=created,
        requests=tuple(from_dict(Request, each) for each in json.loads(requests)),
        state=state,
        error=error,
    )


def _picture_of(row: Sequence[Any]) -> Picture:
    job, index, request, created, seconds, warnings = row
    return Picture(
        job=job,
        index=index,
        request=from_dict(Request, json.loads(request)),
        created=created,
        seconds=seconds,
        warnings=tuple(json.loads(warnings)),
    )


def _is_place(job: str, index: int) -> bool:
    """Whether there can be such a picture: what is no name of ours never becomes part of a path or a statement."""
    return _JOB.fullmatch(job) is not None and 0 <= index < 10**6


def _folded(text: str) -> str:
    return unicodedata.normalize("NFKC", text).casefold()


def _content(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None


def _write_whole(path: Path, data: bytes) -> None:
    """Write a file, whole or not at all."""
    temporary = path.with_name(f".{path.name}.{threading.get_ident()}.new")
    try:
        temporary.write_bytes(data)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
