"""What a function reads of its notebook is found, and a change of it is seen."""

from collections import Counter

from quik_nb.training.notebook_objects import changed, fingerprints, objects_of, shared

SEEN: list[float] = []
COUNTS: Counter[str] = Counter()
STEPS = 0


def note(loss: float) -> None:
    """A helper that a step calls."""
    COUNTS["steps"] += 1
    SEEN.append(loss)


def step(loss: float) -> None:
    """A step that keeps things by a helper, and counts by itself."""
    global STEPS
    STEPS += 1
    note(loss)


def test_objects_are_found_through_helpers() -> None:
    """Globals of a step and of what it calls, closures, and counters of one number."""
    inner: dict[str, int] = {}

    def closing() -> None:
        inner["x"] = 1

    assert {"STEPS", "SEEN", "COUNTS"} == set(objects_of(step))
    assert {"inner": inner} == objects_of(closing)
    assert {} == objects_of(None, print)


def test_changes_are_seen() -> None:
    """A longer list, another count in a dict, and a number with another value."""
    before = fingerprints(objects_of(step))
    step(0.5)

    assert ["COUNTS", "SEEN", "STEPS"] == sorted(changed(before, fingerprints(objects_of(step))))


def test_what_two_functions_share() -> None:
    """A callback that resets what a step reads shares the very object with it; numbers are never shared."""
    one, same = {"hidden": 1}, [1]
    other = {"hidden": 1}

    assert ["a"] == shared({"a": one, "b": same}, {"x": one, "y": other, "z": 1})
