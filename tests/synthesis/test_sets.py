"""The engine of synthetic sets, with items that are a few bytes."""

from types import SimpleNamespace

import pytest

from tfmammo.data.runners import HERE
from tfmammo.errors import DataError
from tfmammo.synthesis import sets
from tfmammo.synthesis.config import PatchSynthesisConfig
from tfmammo.synthesis.patch_set import PatchRecipe

NAMES = [f"mass/{number:06d}" for number in range(3)]


@pytest.fixture
def work(tmp_path):
    """Three items of one mammogram, the names of those that were drawn, and what drawing one of
    them raises.
    """
    drawn = []
    errors = {}

    def open_networks(job):
        def draw(recipe):
            drawn.append(recipe.name)
            if recipe.name in errors:
                raise errors[recipe.name]
            content = recipe.name.encode()
            return recipe, {f"images/{recipe.name}.png": sets.bytes_writer(content)}

        return draw

    config = PatchSynthesisConfig(name="set", generators={"mass": "x"})
    recipes = tuple(
        PatchRecipe(
            identity="i", target="mass", number=number, config=config, versions={}, generator={}
        )
        for number in range(3)
    )
    mammogram = SimpleNamespace(image_id="m")
    return sets.Job(tmp_path, mammogram, recipes, open_networks, None), drawn, errors


@pytest.mark.parametrize("error", [OSError("no disk"), DataError("no tissue")])
def test_what_can_not_be_made_is_left_out_and_costs_no_other_item(work, error):
    job, drawn, errors = work
    errors[NAMES[1]] = error
    recipes = sets.complete([job], HERE)
    assert [recipe.name for recipe in recipes] == NAMES == drawn
    assert [bool(recipe.left_out) for recipe in recipes] == [False, True, False]
    assert str(error) in recipes[1].left_out and not recipes[1].files
    assert (job.folder / "images" / f"{NAMES[2]}.png").read_bytes() == NAMES[2].encode()


def test_only_missing_items_are_made_and_those_left_out_on_demand(work):
    job, drawn, errors = work
    errors[NAMES[0]] = DataError("no tissue")
    first = sets.complete([job], HERE)
    drawn.clear()
    assert sets.complete([job], HERE) == first and not drawn
    (job.folder / "images" / f"{NAMES[2]}.png").write_bytes(b"")
    assert sets.complete([job], HERE) == first and drawn == [NAMES[2]]
    drawn.clear()
    errors.clear()
    again = sets.complete([job], HERE, retry=True)
    assert drawn == [NAMES[0]] and not any(recipe.left_out for recipe in again)


def test_a_bug_stops_the_work(work):
    job, drawn, errors = work
    errors[NAMES[1]] = TypeError("of ours")
    with pytest.raises(DataError, match="m: TypeError: of ours"):
        sets.complete([job], HERE)
    assert drawn == NAMES[:2]


def test_a_file_leads_nowhere(tmp_path):
    with pytest.raises(DataError, match="leads out of"):
        sets.write_files({"../evil": sets.bytes_writer(b"")}, tmp_path / "set")
    assert not list(tmp_path.iterdir())
