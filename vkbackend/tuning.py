"""What was measured to be the best way to launch a kernel on a device, looked up where launches are made.

The table is a JSON file of the user's: entries by device, driver version and purpose, for another driver's compiler may
want other constants. What cannot be used in it is passed over with a warning, and the built-in choice serves.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import platformdirs

from vkbackend.errors import InputError
from vkbackend.physical import DeviceInfo

SCHEMA, VERSION = "latentvk.tuning", 2  # 2: products of other forms and layouts than in 1
VARIABLE, OFF = "LATENTVK_TUNING", "off"
_WORD = 2**32  # a specialization constant is a u32


@dataclass(frozen=True)
class Entry:
    """For one purpose the kernel's file and the specialization constants that were best."""

    kernel: str
    constants: Mapping[str, int]


@dataclass(frozen=True)
class Tuning:
    """Entries by purpose: words that whoever launches chooses, such as "linear q4_k token"."""

    entries: dict[str, Entry] = field(default_factory=dict)

    def find(self, purpose: str) -> Entry | None:
        """The entry for ``purpose``; None where nothing was measured."""
        return self.entries.get(purpose)

    def reject(self, purpose: str, reason: str) -> None:
        """Warn of an entry that cannot be used, once, and forget it."""
        del self.entries[purpose]
        _pass_over(purpose, reason)


def tuning_file() -> Path | None:
    """The table's place: LATENTVK_TUNING, or in the user's data folder; None where that variable is "off"."""
    named = os.environ.get(VARIABLE)
    if named == OFF:
        return None
    return Path(named) if named else Path(platformdirs.user_data_dir("latentvk")) / "tuning.json"


def load_tuning(info: DeviceInfo) -> Tuning:
    """What the table says of the device under its driver's version; nothing where there is no table."""
    entries: dict[str, Entry] = {}
    try:
        table = read_table()
    except InputError as error:
        _warn(f"{error}; built-in choices serve")
        return Tuning()
    for purpose, found in of_device(table, info).items():
        try:
            entries[purpose] = _entry(found)
        except (AttributeError, KeyError, TypeError, ValueError):
            _pass_over(purpose, f"is {json.dumps(found)[:80]}, expected a kernel and its constants")
    return Tuning(entries)


def read_table() -> dict[str, Any]:
    """The table as it is, or an empty one where there is none. InputError for a file that is no such table."""
    empty: dict[str, Any] = {"schema": SCHEMA, "schema_version": VERSION, "devices": []}
    path = tuning_file()
    if path is None:
        return empty
    remedy = f"remove it, or name another with {VARIABLE}"
    try:
        table = json.loads(path.read_text())
    except FileNotFoundError:
        return empty
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}), expected a tuning table; {remedy}") from None
    except ValueError as error:
        raise InputError(f"{path}: is not JSON ({error}), expected a tuning table; {remedy}") from None
    found = (table.get("schema"), table.get("schema_version")) if isinstance(table, dict) else (None, None)
    if found != (SCHEMA, VERSION) or not isinstance(table.get("devices"), list):
        raise InputError(
            f"{path}: schema {found[0]!r} version {found[1]!r}, expected {SCHEMA!r} version {VERSION} with devices; "
            f"{remedy}"
        )
    return dict(table)


def of_device(table: Mapping[str, Any], info: DeviceInfo) -> dict[str, Any]:
    """The table's entries of a device, by purpose; changing them changes the table only where it had some."""
    for device in table["devices"]:
        if isinstance(device, dict) and (device.get("device"), device.get("driver")) == _key(info):
            entries = device.get("entries")
            return entries if isinstance(entries, dict) else {}
    return {}


def with_entries(table: Mapping[str, Any], info: DeviceInfo, entries: Mapping[str, Any]) -> dict[str, Any]:
    """The table with these entries added to the device's, or put in the place of those for the same purposes."""
    name, driver = _key(info)
    mine = {"device": name, "driver": driver, "entries": {**of_device(table, info), **entries}}
    others = [
        d for d in table["devices"] if not isinstance(d, dict) or (d.get("device"), d.get("driver")) != _key(info)
    ]
    return {**table, "devices": [*others, mine]}


def _key(info: DeviceInfo) -> tuple[str, str]:
    return info.name, f"{info.driver} {info.driver_version}"


def _entry(found: Any) -> Entry:
    kernel, constants = found["kernel"], found["constants"]
    if not isinstance(kernel, str) or not all(type(v) is int and 0 <= v < _WORD for v in constants.values()):
        raise ValueError
    return Entry(kernel, dict(constants))


def _pass_over(purpose: str, reason: str) -> None:
    _warn(
        f"{tuning_file()}: the entry '{purpose}' {reason}; passed over: sweep again with --store, or set "
        f"{VARIABLE}={OFF}"
    )


def _warn(line: str) -> None:
    logging.getLogger("latentvk").warning("latentvk: %s", line)
