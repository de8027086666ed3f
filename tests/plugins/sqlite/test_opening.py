"""Opening a file: made where it is missing, refused with a reason where it can't work."""

import asyncio
import contextlib
import multiprocessing
import os
import sqlite3
import tempfile
import threading
from collections.abc import Iterator
from multiprocessing.synchronize import Barrier
from pathlib import Path

import pytest

from dispytch import (
    ConnectError,
    EmitRejected,
    Event,
    EventBase,
    EventEmitter,
    EventListener,
    Subscription,
)
from dispytch.url import connect
from dispytch_sqlite import SQLiteConnection, SQLiteConsumer, database, sharing
from dispytch_sqlite import writer as writer_module
from dispytch_sqlite.database import FileIdentity, open_database, open_reader
from dispytch_sqlite.errors import FileChangedError
from dispytch_sqlite.schema import APPLICATION_ID, VERSION

FORKS = "ignore:This process .* is multi-threaded:DeprecationWarning"  # as it says: on purpose


class Noted(EventBase):
    __topic__ = "notes"
    __event_type__ = "noted"

    number: int = 0


def emitter(path: Path, options: str = "", timeout: float = 30) -> EventEmitter:
    return EventEmitter.from_url(f"sqlite:///{path}?{options}", timeout=timeout)


def opened(path: Path) -> None:
    """Open a file as ours, and close it."""
    open_database(path, 4).close()


def refusal(path: Path) -> ConnectError:
    with pytest.raises(ConnectError) as caught:
        opened(path)
    assert str(path) in str(caught.value)
    assert caught.value.backend == "sqlite"
    return caught.value


def fetched(path: Path, query: str) -> list[tuple[object, ...]]:
    with contextlib.closing(sqlite3.connect(path)) as db:
        return db.execute(query).fetchall()


def changed(path: Path, script: str) -> None:
    with contextlib.closing(sqlite3.connect(path)) as db:
        db.executescript(script)


@pytest.fixture
def public_directory() -> Iterator[Path]:
    """A directory that every user may enter; those of pytest are closed."""
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        directory.chmod(0o755)
        yield directory
        directory.chmod(0o755)


@contextlib.contextmanager
def ordinary_user() -> Iterator[None]:
    """What root does meanwhile, it does as a user whom permissions concern."""
    if os.geteuid() != 0:
        yield
        return
    os.setresuid(65534, 65534, 0)
    try:
        yield
    finally:
        os.setresuid(0, 0, 0)


# What works


def test_a_file_is_made_if_it_is_missing(tmp_path: Path) -> None:
    """It says whose it is and in which version, and has a write-ahead log."""
    path = tmp_path / "events.db"
    opened(path)
    assert fetched(path, "PRAGMA application_id") == [(APPLICATION_ID,)]
    assert fetched(path, "PRAGMA user_version") == [(VERSION,)]
    assert fetched(path, "PRAGMA journal_mode") == [("wal",)]
    assert fetched(path, "PRAGMA auto_vacuum") == [(2,)]


def test_a_file_keeps_the_partitions_it_was_made_with(tmp_path: Path) -> None:
    """Who opens it later, with another number, changes nothing: keys would move."""
    path = tmp_path / "events.db"
    open_database(path, 4).close()
    open_database(path, 16).close()
    assert fetched(path, "SELECT partitions FROM settings") == [(4,)]


def test_an_empty_file_becomes_ours(tmp_path: Path) -> None:
    """As `touch`, or who reserves a name with mkstemp, leaves it."""
    path = tmp_path / "events.db"
    path.touch()
    opened(path)
    assert fetched(path, "PRAGMA application_id") == [(APPLICATION_ID,)]


def test_a_file_that_was_taken_off_its_log_gets_it_back(tmp_path: Path) -> None:
    """Tools that copy or repair databases leave them in rollback mode."""
    path = tmp_path / "events.db"
    opened(path)
    changed(path, "PRAGMA journal_mode = DELETE; INSERT INTO topics VALUES (1, 'kept', 0);")
    opened(path)
    assert fetched(path, "PRAGMA journal_mode") == [("wal",)]
    assert fetched(path, "SELECT name FROM topics") == [("kept",)]


@pytest.mark.filterwarnings(FORKS)
def test_ten_processes_make_the_same_file_at_once(tmp_path: Path) -> None:
    """One of them makes it, all of them use it: nobody is told that it is locked."""
    context = multiprocessing.get_context("fork")
    told: multiprocessing.SimpleQueue[str] = context.SimpleQueue()
    barrier = context.Barrier(10)
    children = [
        context.Process(target=_in_child, args=(emitter(tmp_path / "events.db"), told, barrier))
        for _ in range(10)
    ]
    for child in children:
        child.start()
    assert [told.get() for _ in children] == ["emitted"] * 10
    for child in children:
        child.join()
        child.close()
    assert fetched(tmp_path / "events.db", "SELECT count(*) FROM events") == [(10,)]


def test_ten_threads_make_the_same_file_at_once(tmp_path: Path) -> None:
    """The same, closer together than processes come."""
    for turn in range(5):
        path = tmp_path / f"events{turn}.db"
        errors: list[Exception] = []
        barrier = threading.Barrier(10)

        def work(path: Path, barrier: threading.Barrier, errors: list[Exception]) -> None:
            barrier.wait()
            try:
                opened(path)
            except Exception as error:  # noqa: BLE001 - the test tells
                errors.append(error)

        threads = [threading.Thread(target=work, args=(path, barrier, errors)) for _ in range(10)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert errors == []


async def test_two_urls_of_one_file_work_side_by_side(tmp_path: Path) -> None:
    """Options belong to the URL, events to the file."""
    path = tmp_path / "events.db"
    async with emitter(path) as one, emitter(path, "synchronous=normal") as two:
        receipts = [await each.emit(Noted()) for each in (one, two) * 3]
    assert [receipt.details["seq"] for receipt in receipts] == [1, 2, 3, 4, 5, 6]


async def test_paths_to_one_file_share_its_writer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However it is written: relative, absolute or through a link."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "link.db").symlink_to("events.db")
    async with (
        emitter(Path("events.db")),
        emitter(tmp_path / "events.db"),
        emitter(tmp_path / "link.db"),
    ):
        assert len(sharing.writers()) == 1
    assert sharing.writers() == []


# What is refused


def test_a_missing_directory_is_named(tmp_path: Path) -> None:
    """It is not made: a misspelt path would go unnoticed."""
    error = refusal(tmp_path / "missing" / "events.db")
    assert not error.retriable
    assert f"its directory {tmp_path / 'missing'} is not there; make it" in str(error)
    assert list(tmp_path.iterdir()) == []


def test_a_directory_is_no_file(tmp_path: Path) -> None:
    """Neither what is one, nor what lies below a file."""
    (tmp_path / "dir").mkdir()
    (tmp_path / "file").touch()
    assert not refusal(tmp_path / "dir").retriable
    assert not refusal(tmp_path / "file" / "events.db").retriable


def test_a_path_that_leads_nowhere_is_refused(tmp_path: Path) -> None:
    """A loop of links, or a name the system can't have, is a ConnectError like the others."""
    (tmp_path / "loop").symlink_to("loop")
    for path in (tmp_path / "loop" / "events.db", tmp_path / ("x" * 300) / "events.db"):

        async def start(path: Path = path) -> None:
            async with emitter(path):
                pass

        with pytest.raises(ConnectError) as caught:
            asyncio.run(start())
        assert not caught.value.retriable
        assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    "script",
    [
        "CREATE TABLE mine (x); INSERT INTO mine VALUES (1);",
        "PRAGMA application_id = 77;",
        "PRAGMA user_version = 3;",
        "PRAGMA journal_mode = WAL; CREATE TABLE events (x);",
    ],
)
def test_a_database_of_another_program_is_left_alone(tmp_path: Path, script: str) -> None:
    """Nothing in it is changed, not even how its journal is kept."""
    path = tmp_path / "other.db"
    changed(path, script)
    before = path.read_bytes()
    error = refusal(path)
    assert not error.retriable
    assert "another program; name a file of its own" in str(error)
    assert path.read_bytes() == before


def test_a_file_that_is_no_database_is_left_alone(tmp_path: Path) -> None:
    """Text, or what a disk made of a database."""
    path = tmp_path / "notes.txt"
    path.write_text("Remember the milk.\n" * 100)
    error = refusal(path)
    assert not error.retriable
    assert "no sound SQLite database" in str(error)
    assert "name another file" in str(error)
    assert path.read_text() == "Remember the milk.\n" * 100


def test_a_newer_version_is_not_touched(tmp_path: Path) -> None:
    """Who has the older plugin is told to upgrade it."""
    path = tmp_path / "events.db"
    opened(path)
    changed(path, f"PRAGMA user_version = {VERSION + 1};")
    error = refusal(path)
    assert not error.retriable
    assert "pip install -U dispytch-sqlite" in str(error)
    assert f"its version is {VERSION + 1}, this one knows {VERSION}" in str(error)


def test_a_read_only_file_is_refused(public_directory: Path) -> None:
    """Before the first event is emitted, not with it."""
    path = public_directory / "events.db"
    opened(path)
    path.chmod(0o444)
    public_directory.chmod(0o777)
    with ordinary_user():
        error = refusal(path)
    assert not error.retriable
    assert "can't be written" in str(error)


def test_an_unreadable_file_is_refused(public_directory: Path) -> None:
    """Of another user, who keeps it private."""
    path = public_directory / "events.db"
    opened(path)
    path.chmod(0o000)
    public_directory.chmod(0o777)
    with ordinary_user():
        error = refusal(path)
    assert not error.retriable
    assert "name a file that this user may open" in str(error)


def test_a_read_only_directory_is_refused(public_directory: Path) -> None:
    """The file alone is not enough: SQLite keeps its log beside it."""
    path = public_directory / "events.db"
    opened(path)
    path.chmod(0o666)
    public_directory.chmod(0o555)
    with ordinary_user():
        error = refusal(path)
        missing = refusal(public_directory / "new.db")
    assert not error.retriable
    for told in (error, missing):
        assert f"its directory {public_directory} can't be written" in str(told)


def test_an_old_sqlite_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the version there is and the one that is needed."""
    monkeypatch.setattr("sqlite3.sqlite_version_info", (3, 31, 0))
    error = refusal(tmp_path / "events.db")
    assert not error.retriable
    assert "needed is 3.35.0" in str(error)


def test_a_file_that_another_program_holds_is_refused_for_now(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After waiting for it; trying again may help."""
    monkeypatch.setattr(database, "_OPENING", 0.1)
    path = tmp_path / "events.db"
    opened(path)
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("PRAGMA locking_mode = EXCLUSIVE")
        other.execute("BEGIN EXCLUSIVE")
        error = refusal(path)
    assert error.retriable
    assert "holds the file locked" in str(error)
    assert "end what holds it, or try again" in str(error)
    opened(path)


async def test_giving_up_on_a_locked_file_leaves_nothing_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The start that timed out goes on in its thread; what it opens then is closed."""
    path = tmp_path / "events.db"
    opened(path)
    may_open = threading.Event()
    made: list[sqlite3.Connection] = []

    def slowly(path: Path, partitions: int) -> sqlite3.Connection:
        may_open.wait()
        made.append(open_database(path, partitions))
        return made[0]

    def is_closed() -> bool:
        try:
            made[0].execute("SELECT 1")
        except (IndexError, sqlite3.ProgrammingError) as error:
            return isinstance(error, sqlite3.ProgrammingError)
        return False

    monkeypatch.setattr("dispytch_sqlite.writer.open_database", slowly)
    with pytest.raises(ConnectError, match="within"):
        await emitter(path, timeout=0.05).start()
    may_open.set()
    async with asyncio.timeout(5):
        while not is_closed():  # noqa: ASYNC110 - closing tells nobody
            await asyncio.sleep(0.005)
    assert sharing.writers() == []


# Network file systems

MOUNTS = (
    r"""
22 28 0:21 / /proc rw,nosuid - proc proc rw
28 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw
40 28 0:50 / /mnt/share rw,relatime shared:2 - nfs4 server:/export rw
41 40 8:2 / /mnt/share/local rw - xfs /dev/sdb1 rw
42 28 0:51 / /mnt/two\040words\134and rw - cifs //server/share rw
43 28 0:52 / /mnt/caf"""
    "\u00e9\u00a0\u2028"
    r""" rw - fuse.sshfs me@server: rw
44 28 0:53 / /mnt/over rw - nfs server:/old rw
45 44 8:3 / /mnt/over rw master:3 propagate_from:2 - ext4 /dev/sdc1 rw
""".lstrip("\n")
)


@pytest.mark.parametrize(
    ("directory", "kind"),
    [
        ("/", None),
        ("/var/lib", None),
        ("/mnt", None),
        ("/mnt/share", "nfs4"),
        ("/mnt/share/deep/er", "nfs4"),
        ("/mnt/shared", None),
        ("/mnt/share/local", None),
        ("/mnt/share/local/deeper", None),
        ("/mnt/two words\\and/x", "cifs"),
        ("/mnt/caf\u00e9\u00a0\u2028/x", "fuse.sshfs"),
        ("/mnt/over/x", None),
    ],
)
def test_a_network_file_system_is_found(directory: str, kind: str | None) -> None:
    """By the nearest mount point, the later of two at one place, whatever its name has in it."""
    assert database._filesystem_of(Path(directory), MOUNTS) == kind


def test_a_file_on_a_network_file_system_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SQLite's locks don't hold there, and it would lose events silently."""
    mounts = f"1 0 8:1 / / rw - ext4 a rw\n2 1 0:5 / {tmp_path} rw - nfs server:/ rw\n"
    kind = database._filesystem_of(tmp_path, mounts)
    monkeypatch.setattr(database, "network_filesystem", lambda _: kind)
    error = refusal(tmp_path / "events.db")
    assert not error.retriable
    assert "network file system (nfs)" in str(error)
    assert "use a local disk" in str(error)


def test_this_machine_s_mounts_can_be_read(tmp_path: Path) -> None:
    """Whatever is mounted here; where tests run is no network file system."""
    assert database.network_filesystem(tmp_path.resolve()) is None


# A file that goes away


@pytest.mark.parametrize("is_replaced", [False, True], ids=["removed", "replaced"])
async def test_an_emit_to_a_file_that_went_away_is_rejected(
    tmp_path: Path, *, is_replaced: bool
) -> None:
    """It would be confirmed and never read; and the message says what to do."""
    path = tmp_path / "events.db"
    async with emitter(path) as emitting:
        await emitting.emit(Noted())
        path.rename(tmp_path / "moved.db")
        if is_replaced:
            opened(path)
        with pytest.raises(EmitRejected, match="removed or replaced") as caught:
            await emitting.emit(Noted())
        assert not caught.value.retriable
        assert "start them again" in str(caught.value)
        with pytest.raises(ConnectError, match=r"removed or replaced") as unreachable:
            await emitting.ping()
        assert not unreachable.value.retriable
        with pytest.raises(ConnectError, match=r"removed or replaced"):
            await emitter(path).start()  # shares the writer of the one that went away
    async with emitter(path) as again:
        assert (await again.emit(Noted())).details["seq"] == 1


async def test_a_listener_whose_file_went_away_ends(tmp_path: Path) -> None:
    """It could read the old file for ever, in which nobody writes any more."""
    path = tmp_path / "events.db"
    listener = EventListener.from_url(f"sqlite:///{path}?lease=0.5", group="g")

    @listener.handler(Noted)
    async def note(event: Event[Noted]) -> None: ...

    await listener.start()
    assert listener.health()
    path.unlink()
    with pytest.raises(ConnectError, match="removed or replaced") as caught:
        async with asyncio.timeout(5):
            await listener.run()
    assert not caught.value.retriable


async def test_a_consumer_without_a_group_notices_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It renews nothing and writes nothing: the writer looks by itself."""
    monkeypatch.setattr(writer_module, "_SWEEP_EVERY", 0.02)
    path = tmp_path / "events.db"
    consumer = SQLiteConsumer(connect(f"sqlite:///{path}", SQLiteConnection))
    await consumer.start()
    await consumer.subscribe([Subscription("notes")])
    path.unlink()
    with pytest.raises(ConnectError, match="removed or replaced"):
        async with asyncio.timeout(5):
            await consumer.receive(1)
    await consumer.stop()


async def test_a_file_that_went_away_is_not_opened_with_other_options(tmp_path: Path) -> None:
    """One part of a process would emit to what another part never reads."""
    path = tmp_path / "events.db"
    async with emitter(path):
        path.unlink()
        with pytest.raises(ConnectError, match="removed or replaced"):
            await emitter(path, "lease=9").start()


async def test_a_locked_file_keeps_no_other_from_being_opened(tmp_path: Path) -> None:
    """Opening waits for the lock of its own file only."""
    locked, free = tmp_path / "locked.db", tmp_path / "free.db"
    opened(locked)
    with contextlib.closing(sqlite3.connect(locked, isolation_level=None)) as db:
        db.execute("BEGIN IMMEDIATE")
        waiting = asyncio.create_task(emitter(locked).start())
        async with emitter(free):
            assert not waiting.done()
        db.execute("ROLLBACK")
        await waiting
    for writer in sharing.writers():
        await asyncio.to_thread(sharing.release, writer)


def test_a_file_that_comes_back_is_the_same(tmp_path: Path) -> None:
    """Moved away and back again it has lost nothing."""
    path = tmp_path / "events.db"
    path.touch()
    file = FileIdentity(path)
    path.rename(tmp_path / "moved.db")
    with pytest.raises(FileChangedError):
        file.check()
    (tmp_path / "moved.db").rename(path)
    file.check()


def test_a_reader_of_what_is_no_database_is_refused(tmp_path: Path) -> None:
    """The second connection of a consumer has the errors of the first."""
    with pytest.raises(ConnectError, match="can't open"):
        open_reader(tmp_path / "missing" / "events.db")


# Forks


def _in_child(
    emitting: EventEmitter,
    told: "multiprocessing.SimpleQueue[str]",
    barrier: Barrier | None = None,
) -> None:
    async def emit() -> None:
        async with emitting:
            await emitting.emit(Noted())

    if barrier is not None:
        barrier.wait()
    try:
        asyncio.run(emit())
        told.put("emitted")
    except Exception as error:  # noqa: BLE001 - the parent tells
        told.put(f"{type(error).__name__}: {error}")


async def _told_by_child(emitting: EventEmitter) -> str:
    context = multiprocessing.get_context("fork")
    told: multiprocessing.SimpleQueue[str] = context.SimpleQueue()
    child = context.Process(target=_in_child_of_its_own, args=(emitting, told))
    child.start()
    try:
        return await asyncio.to_thread(told.get)
    finally:
        await asyncio.to_thread(child.join)
        child.close()


def _in_child_of_its_own(emitting: EventEmitter, told: "multiprocessing.SimpleQueue[str]") -> None:
    # The parent's loop runs in this thread, as far as asyncio knows.
    thread = threading.Thread(target=_in_child, args=(emitting, told))
    thread.start()
    thread.join()


@pytest.mark.filterwarnings(FORKS)
async def test_a_process_forked_while_the_file_is_open_is_refused(tmp_path: Path) -> None:
    """SQLite would take the parent's locks for its own, and confirm what then is lost."""
    path = tmp_path / "events.db"
    async with emitter(path) as emitting:
        for tried in (emitter(path), emitting):
            told = await _told_by_child(tried)
            assert told.startswith(f"ConnectError: sqlite: can't use {path}: this process was for")
            assert "spawn" in told
        await emitting.emit(Noted())  # the parent goes on
        other = await _told_by_child(emitter(tmp_path / "other.db"))
    assert other == "emitted"
    assert fetched(path, "SELECT count(*) FROM events") == [(1,)]


@pytest.mark.filterwarnings(FORKS)
async def test_a_process_forked_before_or_after_the_file_is_open_can_use_it(
    tmp_path: Path,
) -> None:
    """As servers do that load the application first and fork their workers then."""
    path = tmp_path / "events.db"
    assert await _told_by_child(emitter(path)) == "emitted"
    async with emitter(path) as emitting:
        await emitting.emit(Noted())
    assert await _told_by_child(emitter(path)) == "emitted"
    assert fetched(path, "SELECT count(*) FROM events") == [(3,)]
