"""What follows from what the nodes of a cluster say of themselves: judgements without a cluster, a disk or a clock.

Each check answers in one line that says what must hold, what was found and what to do. `refused` is what would end the
search, lose trials or falsify them; `warning` is what somebody should know before going home.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from search_spaces.display import duration
from search_spaces.estimate import Estimate
from search_spaces.node_facts import Disks, NodeFacts
from search_spaces.schema import Search
from search_spaces.tuning import concurrency
from trainables.settings import Cluster
from trainables.study import StudyError

Result = Literal["ok", "note", "warning", "refused"]
SEVERITY: tuple[Result, ...] = ("ok", "note", "warning", "refused")

MUST_BE_EQUAL = ("our code", "Python", "ray", "torch", "numpy")
"""What decides a trial's numbers, or whether processes can talk at all; a difference elsewhere is only said."""
MAX_CLOCK_ERROR_S = 5.0
FULL_FOR_RAY = 0.95
"""Share of its file system at which Ray refuses to keep objects there (RAY_local_fs_capacity_threshold)."""
TEMPORARY_BYTES = 2**30
"""What Ray's logs and the processes of trials may take of a node's temporary file system over a night."""
MAX_NAMED = 4  # nodes in one line


@dataclass(frozen=True)
class Node:
    """A node as Ray lists it.

    Attributes:
        id: Ray's.
        address: of the machine.
        resources: what it offers in all.
        alive: whether Ray hears of it.
        draining: whether it is about to go.
    """

    id: str
    address: str
    resources: Mapping[str, float] = field(hash=False)
    alive: bool = True
    draining: bool = False

    @property
    def name(self) -> str:
        """How a person finds it: `ray list nodes` shows both."""
        return f"{self.address} (node {self.id[:8]})"

    @property
    def usable(self) -> bool:
        """Whether trials may be placed there."""
        return self.alive and not self.draining


@dataclass(frozen=True)
class Check:
    """One thing that was looked at before the first trial."""

    name: str
    result: Result
    detail: str
    seconds: float = 0.0


Answers = Mapping[Node, NodeFacts]


def judged(name: str, found: Sequence[tuple[Result, str]], otherwise: str) -> Check:
    """The check of what was found: its worst result and all that was said; `otherwise` where nothing was."""
    if not found:
        return Check(name, "ok", otherwise)
    worst = max((result for result, _ in found), key=SEVERITY.index)
    return Check(name, worst, "; ".join(dict.fromkeys(said for _, said in found)))


def named(nodes: Sequence[Node]) -> str:
    """Some nodes in words."""
    shown = ", ".join(node.name for node in nodes[:MAX_NAMED])
    return shown + (f" and {len(nodes) - MAX_NAMED} more" if len(nodes) > MAX_NAMED else "")


def grouped(problems: Mapping[Node, str]) -> list[tuple[list[Node], str]]:
    """The nodes of each problem, so that a hundred nodes with one fault are one line."""
    together: dict[str, list[Node]] = {}
    for node, problem in problems.items():
        together.setdefault(problem, []).append(node)
    return [(nodes, problem) for problem, nodes in together.items()]


# -------- the nodes, and what they hold


def check_nodes(nodes: Sequence[Node], failures: Mapping[Node, str]) -> Check:
    """Who was asked, who is left out, and who did not answer."""
    asked = [node for node in nodes if node.usable]
    found: list[tuple[Result, str]] = [
        (
            "refused",
            f"{named(silent)} must answer, {problem}: take it out of the cluster, or mend it and type the same line",
        )
        for silent, problem in grouped(failures)
    ]
    if draining := [node for node in nodes if node.alive and node.draining]:
        found.append(("note", f"about to go, so no trial is placed there: {named(draining)}"))
    if dead := [node for node in nodes if not node.alive]:
        found.append(("note", f"no longer there: {named(dead)}"))
    answered = len(asked) - len(failures)
    check = judged("nodes", found, "")
    return replace(check, detail="; ".join(filter(None, [f"{answered} of {len(asked)} answered", check.detail])))


def workers_on(node: Node, cluster: Cluster, num_gpus: float) -> int:
    """Workers of trials that a node holds at a time."""
    one = cluster.model_copy(update={"workers_per_trial": 1, "max_concurrent_trials": "auto"})
    try:
        return concurrency(one, [node.resources], num_gpus)
    except StudyError:
        return 0


def check_capacity(nodes: Sequence[Node], cluster: Cluster, free: Mapping[str, float] | None = None) -> Check:
    """How many trials run at a time, and where.

    Args:
        nodes: of the cluster.
        cluster: what a trial needs.
        free: resources of all nodes that nothing holds now; None where it does not matter.
    """
    usable = [node for node in nodes if node.usable]
    num_gpus = cluster.gpus_of_worker(sum(node.resources.get("GPU", 0.0) for node in usable))
    try:
        at_a_time = concurrency(cluster, [node.resources for node in usable], num_gpus)
    except StudyError as error:
        return Check("capacity", "refused", str(error))
    workers = {node: workers_on(node, cluster, num_gpus) for node in usable}
    # a head that offers no CPU is told to hold no trial; that is no mistake
    idle = [node for node, count in workers.items() if count == 0 and node.resources.get("CPU", 0.0) > 0]
    found: list[tuple[Result, str]] = []
    held = ", ".join(f"{count} on {named(those)}" for count, those in _by_count(workers) if count)
    said = f"{at_a_time} trial{'s' if at_a_time > 1 else ''} at a time (workers: {held})"
    if idle:
        needs = f"{cluster.cpus_per_worker} CPU" + (f" and {num_gpus:g} GPU" if num_gpus else "")
        found.append(
            ("warning", f"a worker needs {needs}, which {named(idle)} can never give: they compute nothing for this")
        )
    if free is not None and (taken := _taken(usable, free)):
        found.append(("warning", f"others hold {taken} now: trials wait until these are free"))
    check = judged("capacity", found, said)
    return check if check.result == "ok" else replace(check, detail=f"{said}; {check.detail}")


def _by_count(workers: Mapping[Node, int]) -> list[tuple[int, list[Node]]]:
    counts = sorted(set(workers.values()), reverse=True)
    return [(wanted, [node for node, count in workers.items() if count == wanted]) for wanted in counts]


def _taken(nodes: Sequence[Node], free: Mapping[str, float]) -> str:
    """What of the CPUs and GPUs others hold; a fraction of a CPU is some driver's."""
    total = {kind: sum(node.resources.get(kind, 0.0) for node in nodes) for kind in ("CPU", "GPU")}
    held = {kind: count - free.get(kind, 0.0) for kind, count in total.items()}
    return " and ".join(f"{held[kind]:g} of {total[kind]:g} {kind}" for kind in held if held[kind] >= 0.5)


# -------- disks and recordings


def check_storage(answers: Answers, study_dir: str, seen: Mapping[Node, bool]) -> Check:
    """Whether `study_dir` is one folder that every node reads and writes.

    Args:
        answers: what the nodes found.
        study_dir: the study's folder.
        seen: whether the driver sees what each node wrote.
    """
    cure = "mount the shared file system there under this path, or type study_dir=DIR on one that all nodes share"
    said = {
        "absent": f"it has no {study_dir}: {cure}",
        "another folder": f"its {study_dir} is another folder: {cure}",
        "another content": f"it reads something else there than was written to {study_dir}: {cure}",
    }
    problems: dict[Node, str] = {}
    for node, facts in answers.items():
        if facts.storage != "same":
            problems[node] = said.get(facts.storage, f"{study_dir}: it {facts.storage}: correct its rights or its disk")
        elif not seen.get(node, False):
            problems[node] = f"what it writes to {study_dir} does not arrive here: {cure}"
    found: list[tuple[Result, str]] = [
        ("refused", f"every node must read and write the study's folder; {named(nodes)}: {problem}")
        for nodes, problem in grouped(problems)
    ]
    return judged("storage", found, f"{study_dir} is read and written by {_all(answers)}")


def check_space(disks: Mapping[Node, Disks], needed_bytes: float) -> Check:
    """Whether what the search will write fits.

    Args:
        disks: what is left on each node.
        needed_bytes: what states and checkpoints take in the study's folder.
    """
    found: list[tuple[Result, str]] = []
    least = min(disks, key=lambda node: disks[node].study_free, default=None)
    if least is not None and (free := disks[least].study_free) < needed_bytes:
        found.append(
            (
                "warning",
                f"the study's folder needs about {_gib(needed_bytes)} and has {_gib(free)} (seen from {least.name}): "
                "free some, or type search.keep_best=N with a smaller N",
            )
        )
    short = {
        node: f"{_gib(left.temporary_free)} are free, {left.temporary_used:.0%} are taken"
        for node, left in disks.items()
        if left.temporary_free < TEMPORARY_BYTES or left.temporary_used > FULL_FOR_RAY
    }
    found += [
        (
            "warning",
            f"Ray's temporary folder should have {_gib(TEMPORARY_BYTES)} and be at most {FULL_FOR_RAY:.0%} full; "
            f"{named(nodes)}: {problem}: delete old sessions in it",
        )
        for nodes, problem in grouped(short)
    ]
    enough = "" if least is None else f", {_gib(disks[least].study_free)} are free"
    return judged("free space", found, f"about {_gib(needed_bytes)} needed{enough}")


def _gib(count: float) -> str:
    return f"{count / 2**30:.1f} GiB" if count >= 0.1 * 2**30 else f"{count / 2**20:.1f} MiB"


def check_data(answers: Answers, store: str, ours: Mapping[str, str]) -> Check:
    """Whether every node has the prepared recordings, the same ones, at the same path.

    Args:
        answers: each node's fingerprint.
        store: the store's folder.
        ours: the driver's fingerprint.
    """
    problems: dict[Node, str] = {}
    for node, facts in answers.items():
        if "error" in facts.data:
            problems[node] = facts.data["error"]
        elif differing := [name for name in ours if facts.data.get(name) != ours[name]]:
            problems[node] = f"its {', '.join(differing)} in {store} differ from the driver's"
    found: list[tuple[Result, str]] = [
        (
            "refused",
            f"every node must read the same recordings; {named(nodes)}: {problem}: share data.store_dir, or copy "
            f"{store} there",
        )
        for nodes, problem in grouped(problems)
    ]
    return judged("recordings", found, f"{store} is the same on {_all(answers)}")


# -------- what runs there


def check_versions(answers: Answers, ours: Mapping[str, str]) -> Check:
    """Whether every node runs what the driver runs."""
    found: list[tuple[Result, str]] = []
    for what in ours:
        differing = {
            node: f"{what} must be {ours[what]} as here, it is {facts.versions.get(what, 'unknown')}"
            for node, facts in answers.items()
            if facts.versions.get(what) != ours[what]
        }
        result: Result = "refused" if what in MUST_BE_EQUAL else "warning"
        cure = "start Ray there from the same environment" if what != "our code" else "remove the copy installed there"
        found += [(result, f"{named(nodes)}: {problem}: {cure}") for nodes, problem in grouped(differing)]
    return judged("versions", found, f"{len(ours)} equal on {_all(answers)}")


def check_devices(answers: Answers) -> Check:
    """Whether the nodes have what Ray offers of them, and as many GPUs each."""
    found: list[tuple[Result, str]] = []
    for node, facts in answers.items():
        offered = node.resources.get("CPU", 0.0)
        if offered > facts.cpus:
            found.append(
                ("warning", f"{node.name} offers {offered:g} CPU and may use {facts.cpus}: start Ray with --num-cpus")
            )
        if facts.gpus is not None and facts.gpus != node.resources.get("GPU", 0.0):
            offered = node.resources.get("GPU", 0.0)
            found.append(
                ("warning", f"{node.name} has {facts.gpus} GPU and offers {offered:g}: start Ray with --num-gpus")
            )
    counts = {node: node.resources.get("GPU", 0.0) for node in answers}
    usual = max(set(counts.values()), key=list(counts.values()).count, default=0.0)
    # a head without a GPU beside nodes with some is how clusters are built, so this is said and no more
    found += [
        ("note", f"{named([node])} has {count:g} GPU where most have {usual:g}")
        for node, count in counts.items()
        if count != usual
    ]
    kinds = sorted({key for node in answers for key in node.resources if key.startswith("accelerator_type:")})
    if len(kinds) > 1:
        shown = ", ".join(kind.partition(":")[2] for kind in kinds)
        found.append(("note", f"GPUs of different kinds ({shown}): figures differ between them in float rounding"))
    threads = sum(facts.cpus for facts in answers.values())
    return judged("devices", found, f"{threads} CPU and {sum(counts.values()):g} GPU on {len(answers)} nodes")


def check_clocks(answers: Answers, asked: float, answered: Mapping[Node, float]) -> Check:
    """Whether the nodes' clocks go as the driver's.

    Args:
        answers: each node's clock when it began and ended.
        asked: the driver's clock when it asked.
        answered: its clock when each answer was there.
    """
    errors = {node: clock_error(facts.began, facts.ended, asked, answered[node]) for node, facts in answers.items()}
    found: list[tuple[Result, str]] = [
        (
            "warning",
            f"{node.name}: its clock is {abs(error):.0f} s {'fast' if error > 0 else 'slow'}: set up NTP there",
        )
        for node, error in errors.items()
        if abs(error) > MAX_CLOCK_ERROR_S
    ]
    return judged("clocks", found, f"within {MAX_CLOCK_ERROR_S:g} s")


def clock_error(began: float, ended: float, asked: float, answered: float) -> float:
    """Seconds by which a clock is ahead (behind, if negative) at least, of one that saw it asked and answer."""
    return max(0.0, ended - answered) or min(0.0, began - asked)


# -------- who may use the cluster


def check_authentication(beyond: Sequence[str], *, token_here: bool, open_to_all: bool | None) -> Check:
    """Whether strangers are kept out.

    Args:
        beyond: addresses of the cluster's machines other than this one.
        token_here: whether this process shows a token.
        open_to_all: whether the dashboard answers without one; None where it could not be asked.
    """
    name = "authentication"
    if token_here and not open_to_all:
        return Check(name, "ok", "the cluster asks for a token" if open_to_all is False else "a token is shown")
    found = "asks for no token" if open_to_all else "is used without a token"
    cure = "start it with RAY_AUTH_MODE=token and the same token on every node, and export RAY_AUTH_MODE=token here"
    if not beyond:
        return Check(name, "warning", f"the cluster is on this machine alone and {found}; whoever reaches it: {cure}")
    where = ", ".join(beyond[:MAX_NAMED])
    return Check(name, "refused", f"a cluster with other machines ({where}) must ask for a token, it {found}: {cure}")


def check_dashboard(problem: str | None) -> Check:
    """Whether the dashboard answers, which knows what a gang leaves behind."""
    if problem is None:
        return Check("dashboard", "ok", "it answers")
    return Check(
        "dashboard",
        "refused",
        f"trials of several workers need Ray's dashboard, which frees what a stopped one held; {problem}: start the "
        "head without --include-dashboard=false, with ray[default] installed",
    )


def check_probe(name: str, answers: Answers) -> Check:
    """What a further check found on every node."""
    problems = {node: said for node, facts in answers.items() if (said := facts.probes.get(name)) is not None}
    found: list[tuple[Result, str]] = [("refused", f"{named(nodes)}: {said}") for nodes, said in grouped(problems)]
    return judged(name, found, f"from {_all(answers)}")


# -------- what it will cost


def check_estimate(cost: Estimate, search: Search, where: str) -> Check:
    """The study's time and device-hours, held against its budgets."""
    found: list[tuple[Result, str]] = []
    said = (
        f"if no trial is stopped early, {cost.runs}, {cost.at_a_time} at a time, take about "
        f"{duration(cost.search_seconds)} and {cost.device_hours:.3g} device-hours (timed on {where})"
    )
    for key, budget, needed in (
        ("search.max_hours", search.max_hours, cost.search_seconds / 3600),
        ("search.max_device_hours", search.max_device_hours, cost.device_hours),
    ):
        if budget is not None and needed > budget:
            found.append(("note", f"{key}={budget:g} may end it before: it goes on with a larger one"))
    check = judged("estimate", found, said)
    return check if check.result == "ok" else replace(check, detail=f"{said}; {check.detail}")


def _all(answers: Mapping[Node, Any]) -> str:
    return f"{len(answers)} of {len(answers)} nodes"
