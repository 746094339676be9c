"""What Ray keeps for processes that are gone, and what is given back."""

import tempfile

import pytest
import ray
from ray.util import placement_group, placement_group_table, remove_placement_group

from search_spaces.connection import let_ray_see_the_token
from trainables.nodes import free_orphaned_groups, placement_groups


@ray.remote(num_cpus=0)
class Maker:
    """An actor that reserves a CPU, as Train's controller does for its workers."""

    def reserve(self):
        """The id of a placement group that is ready."""
        group = placement_group([{"CPU": 1}])
        ray.get(group.ready())
        return group.id.hex()


@pytest.fixture(scope="module")
def cluster():
    with (
        pytest.MonkeyPatch.context() as patch,
        tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as folder,
    ):  # Ray may still write its logs
        patch.setenv("RAY_AUTH_MODE", "token")
        let_ray_see_the_token()  # tests before this one may have shown Ray another, which it remembers
        ray.init(address="local", num_cpus=3, include_dashboard=False, _temp_dir=folder, log_to_driver=False)
        yield
        ray.shutdown()


def until(holds):
    """Wait until the cluster has taken note of something."""
    for _ in range(300):
        if holds():
            return True
        ray.wait([ray.remote(num_cpus=0)(lambda: None).remote()])  # the cluster's own pace, not a clock's
    return False


@pytest.mark.cluster
def test_what_a_dead_actor_had_reserved_is_freed_and_what_living_ones_hold_is_not(cluster):
    dies, lives = Maker.remote(), Maker.remote()
    of_dead, of_living = ray.get([dies.reserve.remote(), lives.reserve.remote()])
    ours = placement_group([{"CPU": 1}])
    assert free_orphaned_groups() == set()
    ray.kill(dies)
    freed = set()
    assert until(lambda: freed.update(free_orphaned_groups()) or freed)
    assert freed == {of_dead}
    assert until(lambda: placement_group_table()[of_dead]["state"] == "REMOVED")
    assert placement_groups() == {of_living, ours.id.hex()}
    assert free_orphaned_groups() == set()
    remove_placement_group(ours)
