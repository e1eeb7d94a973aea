"""What a row is: one kind of work, done in several ways."""

import dataclasses

from harness import machine
from harness.lab import Lab
from harness.measure import Sample


@dataclasses.dataclass(frozen=True)
class Variant:
    """One way of doing the work. Where several transports are compared, each has its own variant."""

    name: str
    transport: str | None = None

    @property
    def label(self) -> str:
        """Returns its name in tables and in the results."""
        return self.name if self.transport is None else f"{self.name} {self.transport}"


@dataclasses.dataclass(frozen=True)
class Bar:
    """What a row promises: a variant against another (`ratio`, `difference`), or alone (`most`)."""

    variant: str
    limit: float
    against: str | None = None
    kind: str = "ratio"
    metric: str = "seconds"
    cases: tuple[str, ...] = ()


class Row:
    """Base of all rows; a subclass with a name is registered."""

    name = ""
    title = ""
    rounds = 7
    # Whether variants of a round follow from each other, so that none can come first but the first.
    in_order = False
    # Whether a missed bar is a failure: only where the load of the machine does not matter.
    strict = False
    # Which transports are compared where the command line names none.
    transports: tuple[str, ...] = ()
    # How much of a whole run's 40 minutes it may take, set-up included.
    seconds = 60.0
    bars: tuple[Bar, ...] = ()
    # Unit and factor of a metric in tables.
    units: dict[str, tuple[str, float]] = {}
    known: dict[str, type["Row"]] = {}

    def __init_subclass__(cls) -> None:
        if cls.name:
            Row.known[cls.name] = cls

    def __init__(self, lab: Lab):
        self.lab = lab

    def cases(self) -> list[str]:
        """Returns what to measure one after the other, such as sizes."""
        return [""]

    def variants(self, case: str) -> list[Variant]:
        """Returns the ways to measure in turn."""
        raise NotImplementedError

    def setup(self, case: str) -> None:
        """Prepares a case; what it makes on the disk is removed afterwards."""

    def before(self, case: str, variant: Variant) -> None:
        """Prepares one run, outside of the clock."""

    def measure(self, case: str, variant: Variant) -> Sample:
        """Runs once."""
        raise NotImplementedError

    def served(self, name: str) -> list[Variant]:
        """Returns the variants of something that a mount serves: one for each transport."""
        return [Variant(name, transport) for transport in self.per_transport()]

    def per_transport(self) -> list[str | None]:
        """Returns the transports to make projects for; `None` is the one that vout takes by itself."""
        own = [transport for transport in self.transports if transport != "uring" or machine.has_uring()]
        return self.lab.options.transports or own or [None]

    def per_peer(self, *names: str) -> list[Variant]:
        """Returns those peers that are installed."""
        return [Variant(name) for name in names if self.lab.peers.get(name)]
