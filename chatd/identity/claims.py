"""What a provider's claims mean here: a mapping from its groups and roles to chatd's, as data.

Without a mapping a token must carry ``roles`` and ``departments`` itself. With one, only what the mapping names gives
anything: a group that nobody has mapped gives nothing.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Final

import msgspec
from msgspec import Meta

from chatd.identity.jwks import TokenConfigError
from protocols.frames import Id

MAX_FILE_BYTES: Final = 262_144
#: As many departments and roles as a token may name by itself.
MAX_VALUES: Final = 64
#: A claim's place: its name, and below it the names in objects, as ["realm_access", "roles"].
ClaimPath = Annotated[tuple[Annotated[str, Meta(min_length=1, max_length=256)], ...], Meta(min_length=1, max_length=8)]


class ClaimError(ValueError):
    """A claim has another form than the mapping expects."""


class Rule(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One claim and what each of its values gives.

    The claim is a string or a list of strings; ``separator`` cuts a string into several (" " for ``scope``). It may
    be missing: then it gives nothing.
    """

    claim: ClaimPath
    values: dict[str, tuple[Id, ...]]
    separator: Annotated[str, Meta(min_length=1, max_length=1)] | None = None


class ClaimRules(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The file of ``CHATD_JWT_CLAIMS_FILE``. ``user``, ``name``, ``device``: where these stand in a token."""

    roles: tuple[Rule, ...]
    departments: tuple[Rule, ...]
    user: ClaimPath = ("sub",)
    name: ClaimPath = ("name",)
    device: ClaimPath = ("device",)


def load(path: Path) -> ClaimRules:
    """The rules of a file. Raises TokenConfigError, naming the file and the place in it."""
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise TokenConfigError(f"{path}: too long for a mapping of claims")
        return msgspec.json.decode(path.read_bytes(), type=ClaimRules)
    except OSError as error:
        raise TokenConfigError(f"{path}: {error.strerror or 'unreadable'}") from None
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise TokenConfigError(f"{path}: {error}") from None


def mapped(rules: ClaimRules, claims: dict[str, Any]) -> dict[str, Any]:
    """``claims`` with ``sub``, ``name``, ``device``, ``roles`` and ``departments`` as the rules give them.

    What a token itself says under these names counts only where a rule names it. Raises ClaimError.
    """
    given = {
        "sub": _at(claims, rules.user),
        "name": _at(claims, rules.name),
        "device": _at(claims, rules.device),
        "roles": _values(claims, rules.roles),
        "departments": _values(claims, rules.departments),
    }
    kept = {name: value for name, value in claims.items() if name not in given}
    return kept | {name: value for name, value in given.items() if value is not None}


def _at(claims: dict[str, Any], path: ClaimPath) -> object:
    """What stands at a path; None where nothing does."""
    found: object = claims
    for name in path:
        if not isinstance(found, dict):
            raise ClaimError
        found = found.get(name)
        if found is None:
            return None
    return found


def _values(claims: dict[str, Any], rules: tuple[Rule, ...]) -> list[str]:
    """What the rules give, each once, in the order of the rules."""
    found: dict[str, None] = {}
    for rule in rules:
        said = _at(claims, rule.claim)
        if isinstance(said, str):
            said = said.split(rule.separator) if rule.separator else [said]
        if said is None:
            continue
        if not isinstance(said, list) or not all(isinstance(each, str) for each in said):
            raise ClaimError
        for value in said:
            found.update(dict.fromkeys(rule.values.get(value, ())))
    return list(found)
