"""The engine of synthetic sets, with items that are a few bytes."""

from types import SimpleNamespace

import pytest

from tfmammo.data.runners import HERE
from tfmammo.errors import DataError
from tfmammo.mammogram import Skipped
from tfmammo.synthesis import sets
from tfmammo.synthesis.config import PatchSynthesisConfig
from tfmammo.synthesis.recipe import PatchRecipe

NAMES = [f"mass/{number:06d}" for number in range(5)]


@pytest.fixture
def errors():
    """What drawing an item raises, by its name."""
    return {}


@pytest.fixture
def drawn():
    """The items that were drawn."""
    return []


@pytest.fixture
def synthesize(errors, drawn, tmp_path):
    """A function (names of mammograms, wanted=3, retry=False, **facts of the plan) -> recipes."""

    def open_networks(job):
        def draw(recipe):
            drawn.append(recipe.name)
            if recipe.name in errors:
                raise errors[recipe.name]
            content = f"{recipe.name} of {job.mammogram.image_id}".encode()
            return recipe, {f"images/{recipe.name}.png": content}

        return draw

    def make(names, wanted=3, retry=False, **facts):
        config = PatchSynthesisConfig(name="set", generators={"mass": "x"}, count=wanted)
        first = sets.make_first(PatchRecipe, {"a": 1}, config, {}, target="mass")
        mammograms = [SimpleNamespace(image_id=name) for name in names]
        plan = sets.Plan(first, mammograms, open_networks, None, **facts)
        work = ([plan], {"a": 1}, "identity.json", Skipped(), tmp_path, HERE, retry)
        return sets.synthesize(*work, lambda recipes: {"README.md": str(len(recipes))})

    return make


@pytest.mark.parametrize("error", [OSError("no disk"), DataError("no tissue")])
def test_what_can_not_be_made_is_left_out_and_costs_no_other_item(
    synthesize, errors, drawn, error, tmp_path
):
    errors[NAMES[1]] = error
    recipes = synthesize("m", grouped=True)
    assert [recipe.name for recipe in recipes] == NAMES[:3] == drawn
    assert [bool(recipe.left_out) for recipe in recipes] == [False, True, False]
    assert str(error) in recipes[1].left_out and not recipes[1].files
    assert (tmp_path / "images" / f"{NAMES[2]}.png").read_text() == f"{NAMES[2]} of m"


@pytest.mark.parametrize("grouped", [False, True])
def test_only_missing_items_are_made_and_those_left_out_on_demand(
    synthesize, errors, drawn, grouped, tmp_path
):
    errors[NAMES[0]] = DataError("no tissue")
    first = synthesize("m", grouped=grouped)
    drawn.clear()
    assert synthesize("m", grouped=grouped) == first and not drawn
    (tmp_path / "images" / f"{NAMES[2]}.png").write_bytes(b"")
    assert synthesize("m", grouped=grouped) == first and drawn == [NAMES[2]]
    drawn.clear()
    errors.clear()
    again = synthesize("m", retry=True, grouped=grouped)
    assert drawn == [NAMES[0]] and not any(recipe.left_out for recipe in again)
    drawn.clear()
    more = synthesize("m", wanted=5, grouped=grouped)
    assert drawn == NAMES[3:] and more[:3] == again


def test_a_bug_stops_the_work(synthesize, errors, drawn, tmp_path):
    errors[NAMES[1]] = TypeError("of ours")
    with pytest.raises(DataError, match="m: TypeError: of ours"):
        synthesize("m")
    assert drawn == NAMES[:2] and not list(tmp_path.rglob("*.part"))


@pytest.mark.parametrize("grouped", [False, True])
def test_others_replace_what_can_not_be_made(synthesize, errors, drawn, grouped, tmp_path):
    """Of two mammograms in turn: items that fail are named, and `spare` x 3 numbers are tried."""
    errors[NAMES[1]] = errors[NAMES[3]] = DataError("no tissue")
    recipes = synthesize("ab", grouped=grouped, spare=3)
    assert [recipe.number for recipe in recipes if not recipe.left_out] == [0, 2, 4]
    assert [recipe.repeat for recipe in recipes] == [0, 0, 1, 1, 2]
    assert (tmp_path / "images" / f"{NAMES[4]}.png").read_text() == f"{NAMES[4]} of a"
    letters = (tmp_path / "failures.csv").read_text().splitlines()
    assert letters[1:] == [f"item {name} of b,no tissue" for name in (NAMES[1], NAMES[3])]
    assert (tmp_path / "README.md").read_text() == "5" and len(drawn) == 5
    assert len(synthesize("ab", wanted=2, grouped=grouped, spare=2)) == 3
    errors.update({name: DataError("none") for name in NAMES})
    for path in (tmp_path / "recipes/mass").iterdir():
        path.unlink()
    with pytest.raises(DataError, match="no item could be made.*: none"):
        synthesize("ab", wanted=1, grouped=grouped)
    assert not (tmp_path / "README.md").exists(), "it says that the set is finished"
