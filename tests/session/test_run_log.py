"""What the table of a session's runs tells of each."""

from harness.plain import regression


def test_what_changes_no_numbers_and_no_place_is_not_compared() -> None:
    """`runs` names settings that change what is learned or where, not those of the view and the files."""
    session = regression(epochs=1)
    session.train()
    session.train(name="second", output="all", keep=3)
    session.train(lr=0.5, timeout=60)

    assert ["", "", "lr=0.5, timeout=60"] == [changed.split(", optimizer")[0] for changed in session.runs["changed"]]
