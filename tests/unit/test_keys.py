"""Keys of the gateway: made, found, revoked; what is in the file, and what is not."""

from __future__ import annotations

import json
import os
import stat
import threading
from hashlib import sha256
from pathlib import Path

import pytest

from broker_faas.errors import ConfigError, TopicInvalid
from broker_faas.gateway.keys import PREFIX, KeyFile, Keys


@pytest.fixture
def file(tmp_path: Path) -> KeyFile:
    return KeyFile(tmp_path / "state" / "keys.json")


def test_a_key_is_found_by_its_secret_and_by_nothing_else(file: KeyFile) -> None:
    secret, other = file.add("shop", ("orders.*",)), file.add("all")
    keys = Keys(file)

    assert secret.startswith(PREFIX)
    assert len(secret) >= len(PREFIX) + 43  # 32 bytes
    assert "shop" == getattr(keys.find(secret), "name", None)
    assert "all" == getattr(keys.find(other), "name", None)
    wrong = ["", PREFIX, secret[:-1], secret + "a", secret.upper(), sha256(secret.encode()).hexdigest(), "ä\udcff"]
    assert [None] * 7 == [keys.find(one) for one in wrong]


def test_a_key_covers_what_its_patterns_match(file: KeyFile) -> None:
    keys = Keys(file)
    one, every = keys.find(file.add("one", ("orders.*", "mails.>"))), keys.find(file.add("every"))
    topics = ["orders.new", "mails.a.b", "orders", "orders.a.b", "mails", "x"]

    assert one
    assert every
    assert [True, True, False, False, False, False] == [one.covers(topic) for topic in topics]
    assert all(every.covers(topic) for topic in topics)


def test_the_file_has_no_secrets_and_is_its_owners_alone(file: KeyFile) -> None:
    secret = file.add("shop")
    text = file.path.read_text()

    assert secret not in text
    assert secret.removeprefix(PREFIX) not in text
    assert [sha256(secret.encode()).hexdigest()] == [key["sha256"] for key in json.loads(text)]
    assert 0o600 == stat.S_IMODE(file.path.stat().st_mode)
    assert ["keys.json", "keys.json.lock"] == sorted(path.name for path in file.path.parent.iterdir())


def test_changes_are_seen_by_whoever_reads_along(file: KeyFile) -> None:
    keys = Keys(file)
    assert not keys.wanted

    secret = file.add("shop")
    assert keys.wanted
    assert keys.find(secret)

    assert file.revoke("shop")
    assert keys.find(secret) is None
    assert keys.wanted


def test_keys_that_were_there_are_wanted_when_the_file_is_gone(file: KeyFile) -> None:
    secret = file.add("shop")
    keys = Keys(file)
    assert keys.find(secret)

    file.path.unlink()

    assert keys.find(secret) is None
    assert keys.wanted


def test_one_that_is_not_there_cannot_be_revoked(file: KeyFile) -> None:
    file.add("shop")

    assert not file.revoke("mails")
    assert ["shop"] == [key.name for key in file.read() or ()]


@pytest.mark.parametrize("name", ["", "a b", "a/b", "é", "a" * 61, "a\n", "-\x1b[2J"])
def test_names_are_plain(name: str, file: KeyFile) -> None:
    with pytest.raises(ConfigError, match="is no name of a key"):
        file.add(name)


def test_a_name_is_given_once(file: KeyFile) -> None:
    file.add("shop")
    with pytest.raises(ConfigError, match="there is a key 'shop' already"):
        file.add("shop")


@pytest.mark.parametrize("pattern", ["", "a..b", ">.a", "a b", "$SYS.>"])
def test_patterns_are_checked(pattern: str, file: KeyFile) -> None:
    with pytest.raises(TopicInvalid):
        file.add("shop", (pattern,))
    assert file.read() is None


@pytest.mark.parametrize("text", ["", "[", "{}", "[{}]", '[{"name":"a","sha256":"b","topics":[],"created":"c","admin":true}]', "\xff"])
def test_a_damaged_file_lets_nobody_in_and_is_not_written_over(text: str, file: KeyFile) -> None:
    secret = file.add("shop")
    keys = Keys(file)
    assert keys.find(secret)

    file.path.write_text(text, "latin-1")

    with pytest.raises(ConfigError, match="holds no keys"):
        keys.find(secret)
    with pytest.raises(ConfigError, match="holds no keys"):
        assert keys.wanted
    with pytest.raises(ConfigError, match="holds no keys"):
        file.add("another")
    assert text == file.path.read_text("latin-1")


def test_a_file_that_others_may_write_is_refused(file: KeyFile) -> None:
    file.add("shop")
    file.path.chmod(0o622)
    with pytest.raises(ConfigError, match="can be written by others"):
        file.read()


def test_a_fifo_or_a_folder_in_its_place_is_refused(file: KeyFile) -> None:
    file.path.parent.mkdir()
    os.mkfifo(file.path, 0o600)
    with pytest.raises(ConfigError):
        file.read()
    file.path.unlink()
    file.path.mkdir()
    with pytest.raises(ConfigError):
        file.read()


def test_keys_that_are_made_at_once_are_all_kept(file: KeyFile) -> None:
    threads = [threading.Thread(target=file.add, args=(f"key-{n}",)) for n in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert {f"key-{n}" for n in range(20)} == {key.name for key in file.read() or ()}
