"""What counts as already applied."""

import pytest

from medley.kube.apply import covers, digest, stamped

LIVE = {
    "metadata": {"name": "x", "uid": "1", "annotations": {"a": "1", "theirs": "2"}},
    "spec": {
        "replicas": 2,
        "containers": [{"name": "side", "image": "s"}, {"name": "main", "image": "m", "imagePullPolicy": "Always"}],
        "args": ["--a", "--b"],
        "ports": [{"port": 80, "protocol": "TCP", "targetPort": "http"}],
    },
}


@pytest.mark.parametrize(
    ("desired", "covered"),
    [
        pytest.param({"spec": {"replicas": 2}}, True, id="same"),
        pytest.param({"spec": {"replicas": 3}}, False, id="other-value"),
        pytest.param({"spec": {"paused": False}}, False, id="missing"),
        pytest.param({"spec": {"volumes": []}}, True, id="empty-list-is-dropped-by-the-server"),
        pytest.param({"spec": {"args": ["--a"]}}, False, id="plain-lists-are-compared-whole"),
        pytest.param({"spec": {"args": ["--a", "--b"]}}, True, id="plain-list"),
        pytest.param({"spec": {"containers": [{"name": "main", "image": "m"}]}}, True, id="keyed-list-in-any-order"),
        pytest.param({"spec": {"containers": [{"name": "main", "image": "n"}]}}, False, id="keyed-list-other-value"),
        pytest.param({"spec": {"containers": [{"name": "new", "image": "m"}]}}, False, id="keyed-list-new-item"),
        pytest.param({"spec": {"ports": [{"port": 80}]}}, True, id="ports"),
        pytest.param({"metadata": {"annotations": {"a": "1"}}}, True, id="others-annotations-do-not-matter"),
    ],
)
def test_covers(desired, covered):
    assert covers(LIVE, desired) is covered


def test_the_stamp_changes_with_what_is_wanted_and_only_with_that():
    here = {"metadata": {"name": "x"}, "spec": {"a": 1, "b": 2}}
    reordered = {"spec": {"b": 2, "a": 1}, "metadata": {"name": "x"}}
    fewer = {"metadata": {"name": "x"}, "spec": {"a": 1}}
    assert stamped(here) == stamped(reordered)
    assert digest(here) != digest(fewer)
    assert not covers(stamped(here), stamped(fewer))
    assert here["metadata"] == {"name": "x"}
