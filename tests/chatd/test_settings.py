"""Settings: typed, named, documented, contradictions refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chatd.settings import Settings, SettingsError, from_environment, unknown_names


def test_from_environment_converts_by_type() -> None:
    """Strings of the environment become values of the setting's type."""
    settings = from_environment({"CHATD_PORT": "9000", "CHATD_DEMO": "true", "CHATD_RUN_LEASE_S": "0.5", "HOME": "x"})
    assert (settings.port, settings.demo, settings.run_lease_s) == (9000, True, 0.5)


def test_from_environment_argument_wins() -> None:
    """What is given on the command line wins over the environment; what is not given does not."""
    settings = from_environment({"CHATD_PORT": "9000", "CHATD_HOST": "::1"}, port=9001, host=None)
    assert (settings.port, settings.host) == (9001, "::1")


@pytest.mark.parametrize(
    "environ",
    [
        {"CHATD_PORT": "ninety"},
        {"CHATD_PORT": "70000"},
        {"CHATD_MESSAGES_PER_MINUTE": "0"},
        {"CHATD_ENGINE": "gpt"},
        {"CHATD_OUTBOX_BYTES": "1000"},
        {"CHATD_DEMO": "true", "CHATD_JWT_JWKS_FILE": "jwks.json"},
        {"CHATD_DRAIN_TIMEOUT_S": "-1"},
    ],
)
def test_from_environment_refuses(environ: dict[str, str]) -> None:
    """A value of the wrong form and a contradiction are refused with the setting's name."""
    with pytest.raises(SettingsError, match="CHATD_"):
        from_environment(environ)


@given(st.text(min_size=4))
def test_from_environment_error_never_echoes(value: str) -> None:
    """The error names the setting and not the value, which may be a key."""
    with pytest.raises(SettingsError) as refused:
        from_environment({"CHATD_PORT": f"secret-{value}"})
    assert "secret-" not in str(refused.value)


def test_unknown_names_are_told() -> None:
    """A misspelt setting is named; the tests' own variables are not."""
    assert unknown_names({"CHATD_PROT": "1", "CHATD_PORT": "1", "CHATD_TEST_X": "1"}) == ("CHATD_PROT",)


def test_settings_defaults_hold_together() -> None:
    """The defaults are a legal set."""
    assert Settings().messages_per_minute == 10
    assert Settings().max_connections == 5_000
