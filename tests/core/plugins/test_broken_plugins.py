"""What can be wrong with a plugin: each has its error, and leaves healthy ones working."""

from typing import Any

import pytest

STILL_GOOD = """
import asyncio
class Ping(EventBase):
    __topic__ = "pings"
    __event_type__ = "ping"
async def emit():
    async with EventEmitter.from_url("good://host") as emitter:
        assert (await emitter.emit(Ping())).topic == "pings"
asyncio.run(emit())
assert plugins.get_backend("good").name == "good"
assert plugins.get_backend("memory").name == "memory"
infos = {(info.name, info.distribution): info for info in plugins.backends(check=True)}
assert infos["good", "dist-good"].error is None
"""

RAISES = """
def raised(call, *args):
    try:
        call(*args)
    except Exception as error:
        return error
    raise AssertionError("nothing raised")
"""

IMPORT_FAILURES = {
    "missing module": ("import a_module_nobody_has", "ModuleNotFoundError"),
    "missing name": ("from dispytch import no_such_name", "ImportError"),
    "syntax error": ("def (:", "SyntaxError"),
    "exception": ("1 / 0", "ZeroDivisionError"),
    "exit": ("import sys; sys.exit(3)", "SystemExit"),
    "error in the hook": (
        "from dispytch import hookimpl\n@hookimpl\ndef dispytch_backend(): return {}['x']",
        "KeyError",
    ),
    "wrong description": (
        (
            "from dispytch import hookimpl, Backend\n@hookimpl\n"
            "def dispytch_backend(): return Backend(name='bad', event_config=3, producer='x:Y')"
        ),
        "ConfigError",
    ),
    "misspelt hook": (
        "from dispytch import hookimpl\n@hookimpl\ndef dispytch_backned(): return None",
        "PluginValidationError",
    ),
    "misspelt argument": (
        "from dispytch import hookimpl\n@hookimpl\ndef dispytch_backend(url): return None",
        "PluginValidationError",
    ),
}


@pytest.mark.parametrize(("source", "cause"), IMPORT_FAILURES.values(), ids=IMPORT_FAILURES.keys())
def test_plugin_that_fails_to_load_is_named_with_its_cause(site: Any, source: str, cause: str):
    """A plugin that can't be loaded: entry point, distribution, version, cause; never not-found."""
    site.plugin("bad", source)
    site.run(
        RAISES
        + f"""
for call, asked in ((plugins.get_backend, "bad"), (plugins.event_config, "bad"),
                    (plugins.connection_schema, "bad"), (plugins.backend_for_url, "bad://host"),
                    (EventEmitter.from_url, "bad://host")):
    error = raised(call, asked)
    assert type(error) is BackendLoadError, repr(error)
    assert (error.name, error.distribution) == ("bad", "dist-bad")
    assert type(error.__cause__).__name__ == {cause!r}, repr(error.__cause__)
    for word in ("'bad'", "bad_plugin", "dist-bad 1.0", {cause!r}):
        assert word in str(error), (word, str(error))
infos = {{info.name: info for info in plugins.backends(check=True)}}
assert isinstance(infos["bad"].error, BackendLoadError)
"""
        + STILL_GOOD
    )


WRONG_RESULTS = {
    "nothing": ("return None", "has no @hookimpl function dispytch_backend that returns a Backend"),
    "dict": ("return {'name': 'bad'}", "describes its backend by a dict; expected Backend"),
    "class": ("return Backend", "describes its backend by a type; expected Backend"),
    "list of strings": ("return ['bad']", "describes its backend by a str; expected Backend"),
    "empty list": ("return []", "its list is empty"),
    "wrong name": (
        "return Backend(name='other', event_config=None, producer='x:Y')",
        "describes no backend named 'bad', but 'other'",
    ),
}


@pytest.mark.parametrize(("body", "reason"), WRONG_RESULTS.values(), ids=WRONG_RESULTS.keys())
def test_plugin_that_describes_no_such_backend_is_told(site: Any, body: str, reason: str):
    """A hook that returns something else than the backend asked for is a broken plugin."""
    site.plugin(
        "bad",
        f"from dispytch import Backend, hookimpl\n@hookimpl\ndef dispytch_backend(): {body}",
    )
    site.run(
        RAISES
        + f"""
error = raised(plugins.get_backend, "bad")
assert type(error) is BackendLoadError
assert (error.name, error.distribution) == ("bad", "dist-bad")
assert {reason!r} in str(error), str(error)
assert "dist-bad 1.0" in str(error)
infos = {{info.name: info for info in plugins.backends(check=True)}}
assert str(infos["bad"].error) == str(error)
"""
        + STILL_GOOD
    )


def test_plugin_without_any_hook_is_told(site: Any):
    """A module without a hookimpl describes no backend."""
    site.plugin("bad", "x = 1")
    site.run(
        RAISES
        + """
error = raised(plugins.get_backend, "bad")
assert type(error) is BackendLoadError and "has no @hookimpl" in str(error)
"""
        + STILL_GOOD
    )


@pytest.mark.parametrize(
    ("api", "advice"), [("2", "upgrade dispytch"), ("0", "upgrade the plugin"), ("'x'", "upgrade")]
)
def test_plugin_for_another_api_is_incompatible(site: Any, api: str, advice: str):
    """A plugin written for another plugin API says which, and what to upgrade."""
    site.plugin(
        "bad",
        "from dispytch import Backend, hookimpl\n@hookimpl\ndef dispytch_backend():"
        f" return Backend(name='bad', event_config=None, producer='x:Y', api={api})",
    )
    site.run(
        RAISES
        + f"""
for call, asked in ((plugins.get_backend, "bad"), (EventEmitter.from_url, "bad://h")):
    error = raised(call, asked)
    assert type(error) is IncompatiblePluginError and error.name == "bad"
    assert {advice!r} in str(error) and "dist-bad 1.0" in str(error), str(error)
"""
        + STILL_GOOD
    )


def test_two_distributions_with_one_name_are_both_named(site: Any):
    """Two distributions that offer one backend: neither wins silently, both are named."""
    site.plugin("twin")
    site.distribution(
        "dist-other",
        "2.5",
        groups={
            "dispytch.backends": {"twin": "twin_plugin"},
            "dispytch.schemes": {"twin": "twin_plugin"},
        },
    )
    site.run(
        RAISES
        + """
for call, asked in ((plugins.get_backend, "twin"), (plugins.backend_for_url, "twin://h")):
    error = raised(call, asked)
    assert type(error) is DuplicateBackendError and error.name == "twin"
    assert "dist-twin 1.0" in str(error) and "dist-other 2.5" in str(error), str(error)
twins = [info for info in plugins.backends(check=True) if info.name == "twin"]
assert {info.distribution for info in twins} == {"dist-twin", "dist-other"}
assert all(isinstance(info.error, DuplicateBackendError) for info in twins)
"""
        + STILL_GOOD
    )


def test_missing_backend_says_what_is_installed_and_what_to_do(site: Any):
    """A name nobody offers: what is installed, did you mean, which package ours is in."""
    site.run(
        RAISES
        + """
error = raised(plugins.get_backend, "goood")
assert type(error) is BackendNotFoundError and error.name == "goood"
assert {"good", "memory"} <= set(error.installed)
assert "did you mean 'good'?" in str(error) and "memory" in str(error)
assert type(raised(plugins.backend_for_url, "godo://user:s3cret@h")) is BackendNotFoundError
assert "s3cret" not in str(raised(plugins.backend_for_url, "godo://user:s3cret@h"))
error = raised(plugins.get_backend, "zzz")
assert "install the package that offers it" in str(error)
"""
        + STILL_GOOD
    )


def test_missing_backend_of_ours_says_which_package(site: Any):
    """One of ours that is not installed, or misspelt, comes with its pip command."""
    site.run(
        RAISES
        + """
assert "pip install dispytch-kafka" in str(raised(plugins.get_backend, "kafka"))
assert "pip install dispytch-kafka" in str(raised(plugins.backend_for_url, "kafka+ssl://h"))
assert "pip install dispytch-rabbitmq" in str(raised(plugins.backend_for_url, "amqp://h"))
assert "pip install dispytch-redis" in str(raised(plugins.get_backend, "redis+pubsub"))
for scheme in ("redis", "rediss", "redis+pubsub", "rediss+pubsub"):
    assert "pip install dispytch-redis" in str(raised(plugins.backend_for_url, scheme + "://h"))
error = str(raised(plugins.get_backend, "kafak"))
assert "did you mean 'kafka'? (pip install dispytch-kafka)" in error, error
""",
        DISPYTCH_PLUGINS="",
    )


def test_url_by_a_backends_name_tells_its_schemes(site: Any):
    """A backend's name that is none of its schemes: not 'install it', but what to write."""
    site.distribution(
        "dist-named",
        groups={
            "dispytch.backends": {"named": "good_plugin"},
            "dispytch.schemes": {"sch": "good_plugin", "sch+ssl": "good_plugin"},
        },
    )
    site.run(
        RAISES
        + """
error = raised(plugins.backend_for_url, "named://h")
assert type(error) is BackendNotFoundError
assert "its schemes are: sch://, sch+ssl://" in str(error), str(error)
"""
    )


def test_metadata_of_a_removed_package_is_a_broken_plugin(site: Any):
    """A dist-info left behind by a package that is gone: load error with its name, no crash."""
    site.distribution("dist-ghost", groups={"dispytch.backends": {"ghost": "ghost_plugin"}})
    site.run(
        RAISES
        + """
error = raised(plugins.get_backend, "ghost")
assert type(error) is BackendLoadError and error.distribution == "dist-ghost"
assert type(error.__cause__) is ModuleNotFoundError
assert "ghost_plugin" in str(error) and "dist-ghost 1.0" in str(error)
"""
        + STILL_GOOD
    )


def test_empty_metadata_left_behind_does_not_hide_the_valid(site: Any):
    """An empty dist-info of an older version beside the valid one changes nothing."""
    site.distribution("dist-good", "0.5", metadata=False)
    site.distribution("dist-gone", "0.5", metadata=False)
    site.run(
        STILL_GOOD
        + """
(info,) = [info for info in plugins.backends() if info.name == "good"]
assert (info.distribution, info.version) == ("dist-good", "1.0")
"""
    )


def test_entry_points_without_metadata_disturb_nobody(site: Any):
    """A dist-info that lost its METADATA is a plugin of an unknown distribution."""
    site.distribution(
        "dist-lost", groups={"dispytch.backends": {"lost": "lost_plugin"}}, metadata=False
    )
    site.run(
        RAISES
        + """
error = raised(plugins.get_backend, "lost")
assert type(error) is BackendLoadError and error.distribution is None
assert "an unknown distribution" in str(error)
"""
        + STILL_GOOD
    )


@pytest.mark.parametrize(
    ("client", "reason"),
    [
        ("import a_client_nobody_has", "No module named 'a_client_nobody_has'"),
        ("import sys; sys.exit(1)", "SystemExit"),
        ("Producer = object", "is no Producer"),
        ("x = 1", "has no attribute 'Producer'"),
    ],
)
def test_producer_that_fails_to_load_is_a_broken_backend(site: Any, client: str, reason: str):
    """A plugin whose client is missing: its schema can be looked up, emitting names the cause."""
    site.plugin("bad")
    site.module("bad_client", client)
    site.run(
        RAISES
        + f"""
assert plugins.event_config("bad").model_fields.keys() == {{"level"}}
error = raised(EventEmitter.from_url, "bad://host")
assert type(error) is BackendLoadError and error.name == "bad"
assert {reason!r} in str(error), str(error)
infos = {{info.name: info for info in plugins.backends(check=True)}}
assert str(infos["bad"].error) == str(error)
"""
        + STILL_GOOD
    )
