"""What all tests share: their tiers, and the servers that are started once."""

pytest_plugins = ("tests.tiers", "tests.servers")
