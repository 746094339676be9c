"""What follows from what nodes say of themselves: what ends a night's search is refused, what does not is said."""

import functools
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from search_spaces import preflight_checks as checks
from search_spaces.compose import compose_choices
from search_spaces.estimate import Estimate
from search_spaces.node_facts import Disks, NodeFacts
from search_spaces.preflight_checks import Check, Node
from search_spaces.schema import checked

GIB = 2**30
VERSIONS = {"our code": "abc", "Python": "3.11.2", "ray": "2.60.0", "torch": "2.13.0", "numpy": "2.3", "optuna": "5.0"}
STORE = {"manifest.json": "1", "signals.int16": "2", "index.parquet": "3"}
A, B, C = (Node(letter * 56, f"10.0.0.{number}", {"CPU": 4.0}) for number, letter in enumerate("abc", start=1))


def facts(**changes):
    usual = NodeFacts(
        began=100.0,
        ended=101.0,
        storage="same",
        disks=Disks(study_free=10 * GIB, temporary_free=10 * GIB, temporary_used=0.5),
        data=STORE,
        versions=VERSIONS,
        cpus=4,
        gpus=None,
        probes={},
        seconds={},
    )
    return replace(usual, **changes)


@functools.cache
def shipped():
    return checked(compose_choices(["search=stmem_ptbxl"]).tree)


def cluster(**changes):
    return shipped().cluster.model_copy(update=changes)


def says(check, result, *words):
    """Whether a check ended so and says these words, in one line."""
    assert check.result == result, check
    assert "\n" not in check.detail
    for word in words:
        assert word in check.detail, check.detail


# -------- nodes and capacity


def test_who_is_about_to_go_or_gone_is_left_out_and_said():
    leaving, gone = replace(B, draining=True), replace(C, alive=False)
    check = checks.check_nodes([A, leaving, gone], {})
    says(check, "note", "1 of 1 answered", "about to go", "10.0.0.2 (node bbbbbbbb)", "no longer there: 10.0.0.3")
    capacity = checks.check_capacity([A, leaving, gone], cluster())
    says(capacity, "ok", "4 trials at a time (workers: 4 on 10.0.0.1 (node aaaaaaaa))")


def test_a_node_that_does_not_answer_is_named():
    says(checks.check_nodes([A, B], {B: "it has said nothing"}), "refused", "1 of 2", B.name, "it has said nothing")


def test_a_cluster_that_never_holds_a_trial_is_refused_with_what_it_has():
    says(checks.check_capacity([A, B], cluster(cpus_per_worker=8)), "refused", "8 CPU", "4 CPU and 0 GPU")
    says(checks.check_capacity([replace(A, draining=True)], cluster()), "refused", "a trial needs")


def test_a_node_that_can_never_hold_a_worker_is_a_warning_unless_it_was_told_to_hold_none():
    small, head = replace(B, resources={"CPU": 1.0}), replace(C, resources={"CPU": 0.0})
    says(checks.check_capacity([A, small], cluster(cpus_per_worker=2)), "warning", "2 trials at a time", small.name)
    assert checks.check_capacity([A, head], cluster()).result == "ok"


def test_what_others_hold_now_is_a_warning():
    says(checks.check_capacity([A, B], cluster(), {"CPU": 2.0}), "warning", "others hold 6 of 8 CPU now")
    assert checks.check_capacity([A, B], cluster(), {"CPU": 7.99}).result == "ok"  # some driver's hundredth


@given(
    cpus=st.lists(st.integers(0, 9), min_size=1, max_size=6),
    per_worker=st.integers(1, 4),
    workers=st.integers(1, 4),
)
def test_the_workers_of_the_nodes_make_up_the_trials_at_a_time(cpus, per_worker, workers):
    nodes = [Node(f"{number:056x}", f"10.0.1.{number}", {"CPU": float(count)}) for number, count in enumerate(cpus)]
    settings = cluster(cpus_per_worker=per_worker, workers_per_trial=workers)
    held = sum(checks.workers_on(node, settings, 0.0) for node in nodes)
    check = checks.check_capacity(nodes, settings)
    assert (check.result == "refused") == (held < workers)
    if held >= workers:
        assert check.detail.startswith(f"{held // workers} trial")


# -------- disks and recordings


@pytest.mark.parametrize(
    ("storage", "words"),
    [
        ("absent", "it has no /study: mount the shared file system"),
        ("another folder", "its /study is another folder"),
        ("another content", "reads something else there"),
        ("cannot read: Permission denied", "cannot read: Permission denied"),
        ("cannot write: No space left on device", "cannot write: No space left on device"),
    ],
)
def test_a_node_that_does_not_share_the_folder_is_refused_by_its_address(storage, words):
    answers = {A: facts(), B: facts(storage=storage)}
    says(checks.check_storage(answers, "/study", {A: True, B: True}), "refused", B.name, words)
    assert A.name not in checks.check_storage(answers, "/study", {A: True, B: True}).detail


def test_a_node_whose_file_does_not_arrive_is_refused():
    check = checks.check_storage({A: facts(), B: facts()}, "/study", {A: True, B: False})
    says(check, "refused", B.name, "does not arrive here")
    assert checks.check_storage({A: facts(), B: facts()}, "/study", {A: True, B: True}).result == "ok"


def test_a_hundred_nodes_with_one_fault_are_one_line():
    nodes = [Node(f"{number:056x}", f"10.0.2.{number}", {"CPU": 1.0}) for number in range(100)]
    check = checks.check_storage(dict.fromkeys(nodes, facts(storage="absent")), "/study", {})
    says(check, "refused", "and 96 more")
    assert check.detail.count("mount the shared file system") == 1


def test_space_that_will_not_do_is_a_warning_where_it_is_shortest():
    low = Disks(study_free=GIB, temporary_free=10 * GIB, temporary_used=0.5)
    disks = {A: facts().disks, B: low}
    says(checks.check_space(disks, 5 * GIB), "warning", "needs about 5.0 GiB and has 1.0 GiB", B.name)
    assert checks.check_space(disks, GIB / 2).result == "ok"


@pytest.mark.parametrize(("free", "used"), [(GIB // 2, 0.5), (100 * GIB, 0.96)])
def test_a_temporary_folder_in_which_ray_would_stop_is_a_warning(free, used):
    full = Disks(study_free=10 * GIB, temporary_free=free, temporary_used=used)
    says(checks.check_space({A: facts().disks, B: full}, GIB), "warning", B.name, "temporary folder")


@pytest.mark.parametrize("file", STORE)
def test_a_node_with_other_recordings_is_refused_with_the_file_that_differs(file):
    check = checks.check_data({A: facts(), B: facts(data=STORE | {file: "other"})}, "/stores/x", STORE)
    says(check, "refused", B.name, file, "differ from the driver's")


def test_a_node_without_the_recordings_is_refused():
    check = checks.check_data({A: facts(data={"error": "there is no /stores/x"})}, "/stores/x", STORE)
    says(check, "refused", "there is no /stores/x", "data.store_dir")
    assert checks.check_data({A: facts(), B: facts()}, "/stores/x", STORE).result == "ok"


# -------- what runs there


@pytest.mark.parametrize("what", VERSIONS)
def test_another_version_is_named_and_refused_where_it_decides_numbers(what):
    check = checks.check_versions({A: facts(), B: facts(versions=VERSIONS | {what: "other"})}, VERSIONS)
    says(check, "warning" if what == "optuna" else "refused", B.name, f"{what} must be {VERSIONS[what]}", "it is other")


@given(st.dictionaries(st.sampled_from(sorted(VERSIONS)), st.text(min_size=1, max_size=3)))
def test_versions_are_fine_exactly_where_all_are_equal(changed):
    check = checks.check_versions({A: facts(versions=VERSIONS | changed)}, VERSIONS)
    assert (check.result == "ok") == (VERSIONS | changed == VERSIONS)


def test_a_node_that_offers_more_than_it_has_is_named():
    says(checks.check_devices({A: facts(cpus=2)}), "warning", A.name, "offers 4 CPU and may use 2")
    assert checks.check_devices({A: facts(), B: facts()}).result == "ok"


def test_gpus_that_ray_does_not_offer_and_nodes_with_other_counts_are_named():
    two = replace(B, resources={"CPU": 4.0, "GPU": 2.0})
    says(checks.check_devices({A: facts(gpus=2)}), "warning", f"{A.name} has 2 GPU and offers 0")
    says(
        checks.check_devices({A: facts(), C: facts(), two: facts(gpus=2)}), "note", two.name, "2 GPU where most have 0"
    )
    kinds = [
        replace(node, resources={"GPU": 1.0, f"accelerator_type:{kind}": 1.0})
        for node, kind in ((A, "H100"), (B, "T4"))
    ]
    says(checks.check_devices({node: facts() for node in kinds}), "note", "H100, T4")


@pytest.mark.parametrize(("shift", "word"), [(60, "60 s fast"), (-3600, "3600 s slow")])
def test_a_clock_that_is_off_is_a_warning(shift, word):
    answers = {A: facts(), B: facts(began=100.0 + shift, ended=101.0 + shift)}
    says(checks.check_clocks(answers, 100.0, dict.fromkeys(answers, 101.0)), "warning", B.name, word)


@given(
    error=st.floats(-1e6, 1e6),
    asked=st.floats(0, 1e6),
    way=st.floats(0, 100),
    work=st.floats(0, 100),
    back=st.floats(0, 100),
)
def test_the_error_of_a_clock_is_never_overstated_and_at_most_the_way_too_small(error, asked, way, work, back):
    began, ended = asked + way + error, asked + way + work + error
    found = checks.clock_error(began, ended, asked, asked + way + work + back)
    assert abs(found) <= abs(error) + 1e-6
    assert found == pytest.approx(0) or (found > 0) == (error > 0)
    assert abs(error) - abs(found) <= max(way, back) + work + 1e-6


# -------- who may use it, and what it costs


@pytest.mark.parametrize(
    ("beyond", "token_here", "open_to_all", "result"),
    [
        ([], True, False, "ok"),
        ([], True, None, "ok"),
        ([], False, True, "warning"),
        ([], True, True, "warning"),  # a token that nobody asks for
        (["10.0.0.2"], False, None, "refused"),
        (["10.0.0.2"], False, True, "refused"),
        (["10.0.0.2"], True, True, "refused"),
        (["10.0.0.2"], True, False, "ok"),
        (["10.0.0.2"], True, None, "ok"),
    ],
)
def test_only_a_cluster_of_this_machine_may_go_without_a_token(beyond, token_here, open_to_all, result):
    check = checks.check_authentication(beyond, token_here=token_here, open_to_all=open_to_all)
    assert check.result == result
    assert (result == "ok") or "RAY_AUTH_MODE=token" in check.detail


def test_gangs_are_refused_without_a_dashboard():
    assert checks.check_dashboard(None).result == "ok"
    says(checks.check_dashboard("connection refused"), "refused", "connection refused", "ray[default]")


def test_a_further_check_speaks_for_every_node():
    answers = {A: facts(probes={"objects": None}), B: facts(probes={"objects": "403 from the bucket"})}
    says(checks.check_probe("objects", answers), "refused", f"{B.name}: 403 from the bucket")
    assert checks.check_probe("objects", {A: answers[A]}) == Check("objects", "ok", "from 1 of 1 nodes")


def search(**changes):
    return shipped().search.model_copy(update=changes)


def test_the_estimate_says_time_and_device_hours_and_which_budget_ends_it():
    cost = Estimate(100, 600.0, num_trials=10, search_seconds=7200.0, device_hours=1.667, at_a_time=2)
    check = checks.check_estimate(cost, search(), A.name)
    says(check, "ok", "10 trials, 2 at a time, take about 2.0 h and 1.67 device-hours", f"timed on {A.name}")
    says(checks.check_estimate(cost, search(max_hours=1), A.name), "note", "search.max_hours=1 may end it before")
    says(checks.check_estimate(cost, search(max_device_hours=1), A.name), "note", "search.max_device_hours=1")
    assert checks.check_estimate(cost, search(max_hours=3), A.name).result == "ok"
