"""What a target is: the software that takes the files, and a function that makes them from a plan."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from packaging.version import InvalidVersion, Version

from dualpath_model.deployment import Deployment
from dualpath_model.errors import InputError
from dualpath_model.export.documents import File
from dualpath_model.export.plan_file import PlanFile
from dualpath_model.export.site import Site
from dualpath_model.export.values import Document
from dualpath_model.paths import Resource


@dataclass(frozen=True, slots=True)
class Dropped:
    """Something of the plan that the target cannot express, why, and what that costs."""

    what: str
    why: str
    effect: str


@dataclass(frozen=True, slots=True)
class Bundle:
    """The files of an export, what they leave out, and what an operator should know."""

    files: tuple[File, ...]
    dropped: tuple[Dropped, ...] = ()
    notes: tuple[str, ...] = ()
    wrapped: tuple[Target, Asked] | None = None
    """The target whose files these hold, and what it was asked: its steps follow their own."""


@dataclass(frozen=True, slots=True)
class Asked:
    """What a target is asked to make files of. ``version``: of its software; ``wraps``: name of the
    target whose files it wraps (kubernetes), else None; ``wraps_version``: of that one's software.
    """

    plan: PlanFile
    site: Site
    version: str
    wraps: str | None = None
    wraps_version: str | None = None

    @property
    def deployment(self) -> Deployment:
        """The plan's deployment."""
        return self.plan.deployment

    def since(self, first: str) -> bool:
        """Tell whether the target's version is ``first`` or newer."""
        return Version(self.version) >= Version(first)

    def gated(
        self, document: Mapping[str, Document], since: Mapping[str, str]
    ) -> tuple[dict[str, Document], tuple[str, ...]]:
        """Return the document without the keys that this version lacks, and a note for each left out.

        ``since``: the first version that has a key; keys not named there are in every version.
        """
        lacking = [key for key in document if key in since and not self.since(since[key])]
        notes = tuple(
            f"{key} is left out: it came with version {since[key]}, these files are for {self.version}"
            for key in lacking
        )
        return {key: part for key, part in document.items() if key not in lacking}, notes


@dataclass(frozen=True, slots=True)
class Step:
    """A step for an operator that not every export has. ``when``: whether this one has what it names."""

    text: str
    when: Callable[[Asked], bool] = field(repr=False)


def texts(steps: Sequence[str | Step], asked: Asked | None = None) -> list[str]:
    """Return steps as Markdown sentences: those of one export, or all."""
    return [
        step if isinstance(step, str) else step.text
        for step in steps
        if isinstance(step, str) or asked is None or step.when(asked)
    ]


@dataclass(frozen=True)
class Target:
    """A kind of deployment. One module of ``export/targets`` has one, named ``TARGET``.

    ``versions``: of the software, oldest first, against which fields were checked; the last is the
    default. A version between or after them is taken too. ``parser``: what reads the files in our tests.
    ``apply``, ``check``, ``roll_back``: steps for an operator, Markdown sentences.
    """

    name: str
    software: str
    about: str
    versions: tuple[str, ...]
    expresses: tuple[str, ...]
    cannot: tuple[str, ...]
    parser: str
    apply: tuple[str | Step, ...]
    check: tuple[str | Step, ...]
    roll_back: tuple[str | Step, ...]
    build: Callable[[Asked], Bundle] = field(repr=False)
    wraps: bool = False
    """Whether it takes the files of another target."""

    @property
    def default_version(self) -> str:
        """The version that files are made for unless another is named."""
        return self.versions[-1]

    def checked_version(self, given: str | None) -> str:
        """Return the version to make files for. Raises InputError for none or one that is too old."""
        if given is None:
            return self.default_version
        try:
            found = Version(given)
        except InvalidVersion:
            raise InputError(
                f"target version '{given}' is not a version; give one such as {self.default_version}"
            ) from None
        if found.epoch:
            raise InputError(
                f"target version '{given}' has an epoch, which no version of {self.software} has; give "
                f"one such as {self.default_version}"
            )
        if found < Version(self.versions[0]):
            raise InputError(
                f"target version {given} of {self.name} is older than {self.versions[0]}, the oldest "
                f"whose fields are known; take {self.versions[0]} or newer"
            )
        return str(found)

    def not_looked_at(self, version: str) -> str | None:
        """Return a remark for a version that is newer than those whose fields were checked."""
        if Version(version) <= Version(self.default_version):
            return None
        return (
            f"{self.software} {version} is newer than {self.default_version}, the newest whose fields "
            f"were looked at: read what changed since before you apply these files"
        )


def no_qos(plan: PlanFile) -> Dropped:
    """Return the entry for a target that has no word for the network's priorities."""
    parameters = plan.scheduler_parameters
    used = max(
        (u.dual_path for u in plan.utilisation if u.resource == Resource.CNIC.value), default=0.0
    )
    return Dropped(
        what=f"QoS weights {parameters.qos_collective_weight} (collectives) and "
        f"{parameters.qos_kv_weight} (KV-cache)",
        why="priorities are the network's: targets opensm (InfiniBand) and roce",
        effect=f"KV-cache takes up to {100 * used:.0f} % of a compute NIC at the plan's rate; without "
        f"the network's settings collectives wait behind it",
    )


def no_decode_reads(plan: PlanFile, because: str) -> Dropped:
    """Return the entry for a target that cannot read through the decode nodes."""
    if plan.speedup_over_basic > 1.0 + 1e-6:
        effect = (
            f"without a decode-side read path the plan's {plan.speedup_over_basic:.2f}x over Basic is "
            f"1.00x: {plan.throughput_basic_requests_per_s:.4g} instead of "
            f"{plan.throughput_requests_per_s:.4g} requests/s"
        )
    else:
        effect = f"none: the plan gains nothing by them ({plan.bottleneck} limits)"
    return Dropped(f"split x = {plan.split:.3f}: reads through the decode nodes", because, effect)
