"""The embedded PostgreSQL under real kills: nothing committed is lost, nothing is left behind."""

import contextlib
import fcntl
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import psycopg
import pytest

from app.errors import CannotStart
from app.storage.datadir import DataDirLock
from app.storage.embedded import MAJOR, SOCKET_PATH_BYTES, EmbeddedPostgres

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="drops privileges, so it must begin as root")


@contextlib.contextmanager
def open_folder() -> Iterator[Path]:
    """An empty folder which, unlike pytest's own, another user may enter."""
    made = Path(tempfile.mkdtemp(prefix="embedded-", dir=os.environ["HEADROOM_TEST_FOLDER"]))
    made.chmod(0o711)
    yield made
    shutil.rmtree(made)


@pytest.fixture
def empty() -> Iterator[Path]:
    with open_folder() as made:
        yield made


@pytest.fixture(scope="module")
def stopped() -> Iterator[Path]:
    """A data folder whose server ran once, and stopped."""
    with open_folder() as made:
        with EmbeddedPostgres(made):
            pass
        yield made


@pytest.fixture
def folder(stopped: Path, empty: Path) -> Path:
    """A copy of its files with the same programs: a cluster need not be made for every test."""
    home = empty / f"pg{MAJOR}"
    home.mkdir(mode=0o711)
    subprocess.run(["cp", "-a", stopped / home.name / "data", home], check=True)
    for programs in (stopped / home.name).glob("binaries-*"):
        (home / programs.name).symlink_to(programs)
    return empty


class Holder:
    """Another process that holds the server, commits one row, and waits to be told to leave, or to be killed."""

    SCRIPT = """
import signal, sys, psycopg
from pathlib import Path
from app.storage.embedded import EmbeddedPostgres

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job begins deaf to it

def commit(url):
    with psycopg.connect(url) as connection:
        connection.execute("CREATE TABLE IF NOT EXISTS kept (note text)")
        connection.execute("INSERT INTO kept VALUES ('committed')")

with EmbeddedPostgres(Path(sys.argv[1])) as server:
    commit(server.url)
    try:
        print(server.url, flush=True)
        sys.stdin.readline()
    except KeyboardInterrupt:
        commit(server.url)
        print("interrupted, the database still answers", flush=True)
"""

    def __init__(self, folder: Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", self.SCRIPT, str(folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self.url = self.line()

    def line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def wait(self) -> int:
        with self.process:
            return self.process.wait(60)

    def leave(self) -> int:
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return self.wait()

    def kill(self, number: int = signal.SIGKILL) -> int:
        self.process.send_signal(number)
        return self.wait()


def postmaster(folder: Path) -> psutil.Process:
    pid = (folder / f"pg{MAJOR}" / "data" / "postmaster.pid").read_text().split()[0]
    return psutil.Process(int(pid))


def server_processes(folder: Path) -> list[psutil.Process]:
    found = postmaster(folder)
    return [found, *found.children(recursive=True)]


def kill(processes: list[psutil.Process]) -> None:
    for process in processes:
        # The children may leave by themselves once the postmaster, the first, is dead.
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()


def gone(processes: list[psutil.Process]) -> bool:
    """Whether all of them end; a zombie has ended, only nobody has asked for its exit code yet."""
    deadline = time.monotonic() + 30
    while not all(ended(process) for process in processes):
        if time.monotonic() > deadline:
            return False
        psutil.wait_procs(processes, timeout=0.05)
    return True


def ended(process: psutil.Process) -> bool:
    try:
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def commit(url: str, note: str) -> None:
    with psycopg.connect(url) as connection:
        connection.execute("CREATE TABLE IF NOT EXISTS kept (note text)")
        connection.execute("INSERT INTO kept VALUES (%s)", (note,))


def notes(url: str) -> list[str]:
    with psycopg.connect(url) as connection:
        return [note for (note,) in connection.execute("SELECT note FROM kept ORDER BY note")]


def shown(url: str, setting: str) -> str:
    with psycopg.connect(url) as connection:
        row = connection.execute("SELECT current_setting(%s)", (setting,)).fetchone()
        assert row is not None
        return str(row[0])


def test_rows_outlive_a_stop_and_a_start(folder: Path) -> None:
    with EmbeddedPostgres(folder) as server:
        first = server.url
        commit(server.url, "before")
        processes = server_processes(folder)
    assert gone(processes)
    with EmbeddedPostgres(folder) as server:
        assert server.url == first
        assert notes(server.url) == ["before"]


def test_only_a_private_socket_and_durable_commits(folder: Path) -> None:
    with EmbeddedPostgres(folder) as server:
        assert shown(server.url, "listen_addresses") == ""
        assert shown(server.url, "fsync") == "on"
        assert shown(server.url, "synchronous_commit") == "on"
        assert shown(server.url, "server_encoding") == "UTF8"
        assert shown(server.url, "TimeZone") == "UTC"
        assert shown(server.url, "server_version").split(".")[0] == str(MAJOR)
        socket = Path(shown(server.url, "unix_socket_directories"))
        assert socket.stat().st_mode & 0o777 == 0o700
        assert postmaster(folder).net_connections("inet") == []


def test_a_killed_postmaster_is_started_again(folder: Path) -> None:
    with EmbeddedPostgres(folder) as server:
        commit(server.url, "before the kill")
        killed = postmaster(folder)
        killed.kill()
        assert gone([killed])
        server.ensure()
        assert notes(server.url) == ["before the kill"]


def test_ensure_leaves_a_living_server_alone(folder: Path) -> None:
    with EmbeddedPostgres(folder) as server:
        before = postmaster(folder)
        server.ensure()
        assert postmaster(folder) == before


def test_a_killed_backend_takes_no_commit_with_it(folder: Path) -> None:
    with EmbeddedPostgres(folder) as server:
        commit(server.url, "before the kill")
        with psycopg.connect(server.url) as victim:
            pid = victim.info.backend_pid
            psutil.Process(pid).kill()
            with pytest.raises(psycopg.OperationalError):
                victim.execute("SELECT 1")
        # The server drops all connections, and refuses new ones, until it has recovered.
        deadline = time.monotonic() + 60
        found = None
        while found is None and time.monotonic() < deadline:
            with contextlib.suppress(psycopg.OperationalError):
                found = notes(server.url)
        assert found == ["before the kill"]


def test_a_killed_holder_is_forgotten(folder: Path) -> None:
    holder = Holder(folder)
    processes = server_processes(folder)
    assert holder.kill() == -signal.SIGKILL
    with EmbeddedPostgres(folder) as server:
        assert postmaster(folder) == processes[0]
        assert notes(server.url) == ["committed"]
    assert gone(processes)


def test_all_killed_at_once(folder: Path) -> None:
    holder = Holder(folder)
    processes = server_processes(folder)
    kill(processes)
    holder.kill()
    assert gone(processes)
    with EmbeddedPostgres(folder) as server:
        assert notes(server.url) == ["committed"]


def test_start_waits_for_the_orphans_of_a_killed_postmaster(folder: Path) -> None:
    """A busy backend does not see its postmaster die, and no second server may touch the files until it is gone."""
    with EmbeddedPostgres(folder) as server:
        commit(server.url, "before the kill")
        with psycopg.connect(server.url) as connection:
            orphan = psutil.Process(connection.info.backend_pid)
            busy = threading.Thread(target=_count_for_ever, args=(connection,))
            busy.start()
            with psycopg.connect(server.url) as watcher:
                running = "SELECT FROM pg_stat_activity WHERE pid = %s AND state = 'active'"
                while not watcher.execute(running, (orphan.pid,)).rowcount:
                    watcher.rollback()
            killed = postmaster(folder)
            killed.kill()
            assert gone([killed])
            restart = threading.Thread(target=server.ensure)
            restart.start()
            while not held(folder / f"pg{MAJOR}" / "start.lock"):
                assert restart.is_alive()
            orphan.kill()
            busy.join(60)
            restart.join(60)
        assert notes(server.url) == ["before the kill"]


def held(lock: Path) -> bool:
    with lock.open() as probe:
        try:
            fcntl.flock(probe, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def _count_for_ever(connection: psycopg.Connection) -> None:
    with pytest.raises(psycopg.OperationalError):
        connection.execute("DO 'BEGIN LOOP END LOOP; END'")


def test_the_last_one_out_stops_the_server(folder: Path) -> None:
    with EmbeddedPostgres(folder) as server:
        second = Holder(folder)
        processes = server_processes(folder)
        assert second.url == server.url
    assert notes(second.url) == ["committed"]
    assert second.leave() == 0
    assert gone(processes)


def test_sigterm_of_the_last_holder_stops_the_server(folder: Path) -> None:
    holder = Holder(folder)
    processes = server_processes(folder)
    assert holder.kill(signal.SIGTERM) == 128 + signal.SIGTERM
    assert gone(processes)


def test_ctrl_c_reaches_the_holder_and_not_the_server(folder: Path) -> None:
    holder = Holder(folder)
    processes = server_processes(folder)
    os.killpg(holder.process.pid, signal.SIGINT)
    assert holder.line() == "interrupted, the database still answers"
    assert holder.wait() == 0
    assert gone(processes)


def test_a_half_made_cluster_is_made_anew(empty: Path) -> None:
    staging = empty / f"pg{MAJOR}" / "data.new"
    staging.mkdir(parents=True)
    staging.parent.chmod(0o711)
    (staging / "PG_VERSION").write_text(f"{MAJOR}\n")
    with EmbeddedPostgres(empty) as server:
        commit(server.url, "whole")
        assert not staging.exists()


def test_a_stale_pid_that_is_somebody_elses_now(folder: Path) -> None:
    with EmbeddedPostgres(folder) as server:
        commit(server.url, "before the kill")
        processes = server_processes(folder)
        kill(processes)
        assert gone(processes)
        pid_file = folder / f"pg{MAJOR}" / "data" / "postmaster.pid"
        pid_file.write_text(pid_file.read_text().replace(str(processes[0].pid), str(os.getpid()), 1))
        server.ensure()
        assert notes(server.url) == ["before the kill"]


def test_a_folder_too_deep_for_a_socket(empty: Path) -> None:
    deep = empty
    while len(os.fsencode(deep)) <= SOCKET_PATH_BYTES:
        deep = deep / "deeper-and-deeper"
        deep.mkdir(mode=0o711)
    with EmbeddedPostgres(deep) as server:
        commit(server.url, "from afar")
        socket = Path(shown(server.url, "unix_socket_directories"))
        assert socket.parent == Path("/tmp")
        with EmbeddedPostgres(deep):
            pass
        assert socket.is_dir(), "it goes with the last holder"
    assert not socket.exists()
    with EmbeddedPostgres(deep) as server:
        assert notes(server.url) == ["from afar"]
    assert not socket.exists()


def test_a_socket_folder_that_others_may_enter_is_refused(empty: Path) -> None:
    run = empty / f"pg{MAJOR}" / "run"
    run.mkdir(parents=True)
    run.parent.chmod(0o711)
    run.chmod(0o777)
    with pytest.raises(CannotStart, match="mode 0700"):
        EmbeddedPostgres(empty).start()


def test_data_of_another_version_is_not_passed_over(empty: Path) -> None:
    other = empty / "pg17" / "data"
    other.mkdir(parents=True)
    (other / "PG_VERSION").write_text("17\n")
    with pytest.raises(CannotStart, match="PostgreSQL 17"):
        EmbeddedPostgres(empty).start()


@as_root
def test_root_hands_the_server_to_an_unprivileged_user(folder: Path) -> None:
    with EmbeddedPostgres(folder) as server:
        commit(server.url, "by root")
        process = postmaster(folder)
        assert 0 not in {*process.uids(), *process.gids()}
        assert process.uids().effective == (folder / f"pg{MAJOR}" / "data").stat().st_uid


@as_root
def test_a_data_folder_that_the_database_cannot_reach(empty: Path) -> None:
    closed = empty / "closed"
    closed.mkdir(mode=0o700)
    with pytest.raises(CannotStart) as refused:
        EmbeddedPostgres(closed / "headroom").start()
    assert f"chmod o+x {closed}" in str(refused.value)
    assert "HEADROOM_DATA_DIR" in str(refused.value)
    assert closed.stat().st_mode & 0o777 == 0o700


def test_a_data_folder_is_run_once(empty: Path) -> None:
    with DataDirLock(empty), pytest.raises(CannotStart) as refused:
        DataDirLock(empty).acquire()
    assert str(empty) in str(refused.value)
    assert f"process {os.getpid()}" in str(refused.value)
    with DataDirLock(empty):
        pass


def test_a_killed_process_holds_no_data_folder(empty: Path) -> None:
    script = (
        "import sys; from pathlib import Path; from app.storage.datadir import DataDirLock\n"
        "with DataDirLock(Path(sys.argv[1])): print('held', flush=True); sys.stdin.readline()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script, str(empty)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        with pytest.raises(CannotStart, match=f"process {process.pid}"):
            DataDirLock(empty).acquire()
        process.kill()
    with DataDirLock(empty):
        pass
