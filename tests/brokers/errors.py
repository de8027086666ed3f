"""What can go wrong with a broker of the tests. Imports nothing: brokers come before packages."""


class BrokerError(RuntimeError):
    """A broker did not do what the tests need of it."""


class BrokerMissing(BrokerError):  # noqa: N818 - a state of the machine, not a fault
    """The software of a broker is not on this machine."""
