"""Backends that differ from the healthy twin by one fault each, and some that can only do less.

A broken one is the twin with one method overridden, or with one thing declared that is not so: one
twin is enough for all, and another one for what only it can do.
"""

from dataclasses import dataclass, field, replace
from typing import Any

from core.conformance import broken_receiving as receiving
from core.conformance import broken_sending as sending
from core.conformance.timed import TIMED
from core.conformance.twin import TWIN
from dispytch import plugins
from dispytch.backend import Backend

__all__ = ["FAULTS", "HEALTHY", "Fault", "register"]


@dataclass(frozen=True)
class Fault:
    """What a backend has in the place of the twin's.

    Attributes:
        name: of the fault, and of the backend that has it.
        parts: by the name of an attribute of `Backend`, what stands there.
        declared: by the name of a capability, what is declared of it.
        twin: what it is otherwise.
    """

    name: str
    parts: dict[str, Any] = field(default_factory=dict[str, Any])
    declared: dict[str, Any] = field(default_factory=dict[str, Any])
    twin: Backend = TWIN

    @property
    def suite(self) -> str:
        """The name of its test class."""
        return "Test" + "".join(part.capitalize() for part in self.name.split("-"))

    def backend(self) -> Backend:
        """The twin with this fault."""
        capabilities = replace(self.twin.capabilities, **self.declared)
        return replace(self.twin, name=self.name, capabilities=capabilities, **self.parts)


_LACKING: dict[str, dict[str, Any]] = {
    "ordering": {"consumer": receiving.NoOrder},
    "groups": {"consumer": receiving.OneQueue},
    "manual_ack": {"consumer": receiving.AcksOnReceive},
    "delayed_redelivery": {"consumer": receiving.IgnoresDelay},
    "headers": {"producer": sending.DropsHeaders},
    "keys": {"consumer": receiving.DropsKey},
    "patterns": {"consumer": receiving.NoPatterns},
    "replay": {"consumer": receiving.BeginsNow},
    "ttl": {"consumer": receiving.IgnoresTtl},
    "priority": {"consumer": receiving.IgnoresPriority},
}
"""By the name of a capability, what has it not."""


def _able(capability: str) -> Backend:
    """The twin that has this."""
    return TWIN if getattr(TWIN.capabilities, capability) else TIMED


def _words(capability: str) -> str:
    return capability.replace("_", "-")


def _undeclared(capability: str) -> dict[str, Any]:
    return {capability: "none" if capability == "ordering" else False}


def _modest(capability: str) -> dict[str, Any]:
    """What a backend without this can declare: order among members needs acknowledgements."""
    rest = {"ordering": "consumer"} if capability == "manual_ack" else {}
    return {**_undeclared(capability), **rest}


FAULTS: tuple[Fault, ...] = (
    Fault("loses-every-100th", {"producer": sending.LosesEvery100th}),
    Fault("duplicates-every-100th", {"producer": sending.DuplicatesEvery100th}),
    Fault("confirms-before-storing", {"producer": sending.ConfirmsBeforeStoring}),
    Fault("stop-loses-pending", {"producer": sending.StopLosesPending}),
    Fault("changes-headers", {"producer": sending.ChangesHeaders}),
    Fault("payload-as-text", {"producer": sending.PayloadAsText}),
    Fault("payload-as-json", {"producer": sending.PayloadAsJson}),
    Fault("takes-oversize", {"producer": sending.TakesOversize}),
    Fault("batches-backwards", {"producer": sending.BatchesBackwards}),
    Fault("batches-shuffle-outcomes", {"producer": sending.BatchesShuffleOutcomes}),
    Fault("batches-go-on", {"producer": sending.BatchesGoOn}),
    Fault("batches-raise", {"producer": sending.BatchesRaise}),
    Fault("second-stop-hangs", {"producer": sending.SecondStopHangs}),
    Fault("starts-once", {"producer": sending.StartsOnce}),
    Fault("shows-password", {"producer": sending.ShowsPassword}),
    Fault("logs-password", {"producer": sending.LogsPassword}),
    Fault("cause-tells-password", {"producer": sending.CauseTellsPassword}),
    Fault("plain-password", {"connection": sending.PlainPassword}),
    Fault("takes-any-config", {"producer": sending.TakesAnyConfig}),
    Fault("loose-config", {"event_config": sending.LooseConfig}),
    Fault("cuts-payload", {"consumer": receiving.CutsPayload}),
    Fault("changes-key", {"consumer": receiving.ChangesKey}),
    Fault("reorders-key", {"consumer": receiving.ReordersKey}),
    Fault("exceeds-limit", {"consumer": receiving.ExceedsLimit}),
    Fault("returns-nothing", {"consumer": receiving.ReturnsNothing}),
    Fault("cancelled-receive-loses", {"consumer": receiving.CancelledReceiveLoses}),
    Fault("stop-acks-held", {"consumer": receiving.StopAcksHeld}),
    Fault("swallows-nacks", {"consumer": receiving.SwallowsNacks}),
    Fault("swallows-acks", {"consumer": receiving.SwallowsAcks}),
    Fault("attempt-never-rises", {"consumer": receiving.AttemptNeverRises}),
    Fault("nack-changes-payload", {"consumer": receiving.NackChangesPayload}),
    Fault("comes-early", {"consumer": receiving.ComesEarly}),
    Fault("both-members-get", {"consumer": receiving.BothMembersGet}),
    Fault("alone-gets-earlier", {"consumer": receiving.AloneGetsEarlier}),
    Fault("patterns-overmatch", {"consumer": receiving.PatternsOvermatch}),
    Fault("patterns-match-dead-letters", {"consumer": receiving.PatternsMatchDeadLetters}),
    Fault("rest-is-one-segment", {"consumer": receiving.RestIsOneSegment}),
    Fault("stop-waits-for-receive", {"consumer": receiving.StopWaitsForReceive}),
    Fault("ack-settles-earlier", {"consumer": receiving.AckSettlesEarlier}),
    Fault("stop-keeps-held", {"consumer": receiving.StopKeepsHeld}),
    Fault("ack-after-stop-breaks", {"consumer": receiving.AckAfterStopBreaks}),
    Fault("holds-nothing-back", {"producer": sending.HoldsNothingBack}, twin=TIMED),
    Fault("declares-total-order", {}, {"ordering": "total"}),
    *(Fault(f"declares-{name}", {}, {name: True}) for name in ("durable", "ttl", "priority")),
    *(Fault(f"lacks-{_words(name)}", parts, {}, _able(name)) for name, parts in _LACKING.items()),
    *(Fault(f"hides-{_words(name)}", {}, _undeclared(name), _able(name)) for name in _LACKING),
)
"""The twin with one thing wrong."""

HEALTHY: tuple[Fault, ...] = (
    Fault("twin"),
    Fault("timed-twin", twin=TIMED),
    Fault("only-sends", {"consumer": None}),
    *(
        Fault(f"honest-about-{_words(name)}", parts, _modest(name), _able(name))
        for name, parts in _LACKING.items()
    ),
)
"""The twin, and what can do less and says so: less is no fault."""


def register() -> None:
    """Register all of them."""
    for each in (*HEALTHY, *FAULTS):
        plugins.register(each.backend())
