"""The tables of a file, and which version of them it has."""

__all__ = ["APPLICATION_ID", "TABLES", "VERSION"]

APPLICATION_ID = 0x44535079
"""`DSPy` in the file's header: it is ours."""

VERSION = 1
"""Of the tables, in the file's `user_version`."""

TABLES = """
CREATE TABLE settings (partitions INTEGER NOT NULL);

CREATE TABLE topics (id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, is_dead INTEGER NOT NULL);

-- The log. AUTOINCREMENT, as plain rowids are given again after the last rows are deleted, and a
-- group that was there already would never see the new event.
CREATE TABLE events (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    topic INTEGER NOT NULL,
    partition INTEGER NOT NULL,
    at_ms INTEGER NOT NULL,     -- when it was appended, milliseconds since 1970 UTC
    expires_ms INTEGER,         -- not delivered from then on
    key BLOB,
    headers TEXT,               -- JSON: [name, value] pairs
    payload BLOB NOT NULL
);
CREATE INDEX expiring ON events (expires_ms) WHERE expires_ms IS NOT NULL;

-- Events that are held back; when they are due they are appended to the log.
CREATE TABLE delayed (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    due_ms INTEGER NOT NULL,
    topic INTEGER NOT NULL,
    partition INTEGER NOT NULL,
    expires_ms INTEGER,
    key BLOB,
    headers TEXT,
    payload BLOB NOT NULL
);
CREATE INDEX delayed_due ON delayed (due_ms);
CREATE INDEX delayed_expiring ON delayed (expires_ms) WHERE expires_ms IS NOT NULL;

-- How far a group is, for each topic or pattern and each partition: all up to `position` is done,
-- but for what is in `open`. Its owner alone may move it, and only while it has the same epoch.
CREATE TABLE cursors (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    group_name TEXT NOT NULL,
    topic TEXT NOT NULL,
    partition INTEGER NOT NULL,
    position INTEGER NOT NULL,
    open TEXT NOT NULL DEFAULT '[]',  -- JSON: [seq, attempt] pairs
    owner INTEGER,
    epoch INTEGER NOT NULL DEFAULT 0,
    UNIQUE (group_name, topic, partition)
);

-- Who receives for a group; one that did not renew its lease in time is dead to the others.
CREATE TABLE members (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    group_name TEXT NOT NULL,
    topics TEXT NOT NULL,       -- JSON
    lease REAL NOT NULL,        -- seconds
    until REAL NOT NULL,        -- on the machine's monotonic clock
    since REAL NOT NULL         -- the same: when it joined, or renewed its lease too late
);

-- What was given back to come again later.
CREATE TABLE retries (
    cursor INTEGER NOT NULL,
    seq INTEGER NOT NULL,
    attempt INTEGER NOT NULL,
    visible_ms INTEGER NOT NULL,
    headers TEXT,
    PRIMARY KEY (cursor, seq)
) WITHOUT ROWID;
CREATE INDEX retries_due ON retries (cursor, visible_ms);
"""
