"""What all tests share: the brokers, which start only for the tests that ask for one."""

pytest_plugins = ["brokers.fixtures"]
