"""Phantoms: deterministic, on schedule, with true points."""

from __future__ import annotations

import numpy as np
import pytest

from bonecaffe.hands.cases import read_cases
from bonecaffe.hands.images import find_images, image_size
from bonecaffe.hands.phantom import dataset, skeleton
from bonecaffe.hands.phantom.ossification import CARPALS, EPIPHYSES, carpal_size, epiphysis
from bonecaffe.hands.reference_points import read_points


def still_pose() -> skeleton.Pose:
    """Relaxed, on time, of average build."""
    return skeleton.Pose(1.0, (0.0,) * 5, 0.0, 0.0, np.ones(20), 1.0, 1.0, np.zeros(len(skeleton.CENTRES)))


def bones(age, male=True):
    return {bone.name: bone for bone in skeleton.build(age, male, still_pose()).bones}


def test_same_seed_same_bytes(tmp_path):
    """Two calls write the same files; another seed does not."""
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        dataset.write(tmp_path / name, 3, seed, (240, 300))
    files = {name: [path.read_bytes() for path in sorted((tmp_path / name).rglob("*.*"))] for name in "abc"}
    assert files["a"] == files["b"]
    assert files["a"][2:] != files["c"][2:]


def test_layout_is_rsnas(hands):
    """RSNA's header; every image has its points, inside it; ages within range."""
    assert (hands / "ages.csv").read_text().startswith("id,boneage,male\n")
    cases, points, images = (
        read_cases(hands / "ages.csv"),
        read_points(hands / "points.csv"),
        find_images(hands / "images"),
    )
    assert {case.id for case in cases} == set(points) == set(images)
    for case in cases:
        assert 12 <= case.boneage_months <= 228 and case.boneage_months == int(case.boneage_months)
        assert image_size(images[case.id]) == (points[case.id].width, points[case.id].height)


def test_all_seven_points_are_inside_at_any_pose():
    """Three hundred poses, none of which has a point outside the film."""
    for number in range(300):
        rng = np.random.default_rng([9, number])
        hand = skeleton.build(int(rng.integers(12, 229)), bool(number % 2), dataset._pose(rng))
        view = dataset._view(hand, (1000, 1300), rng)
        xy = view.px(np.array(hand.points))
        assert xy.shape == (7, 2)
        assert (xy > 0).all() and (xy < (999, 1299)).all()


def test_sizes_are_like_rsnas():
    """Sides from 594 to 2970 pixels, upright."""
    sizes = [dataset._size(np.random.default_rng(i)) for i in range(300)]
    assert all(594 <= width <= 2970 and 594 <= height <= 2970 for width, height in sizes)
    assert 1700 < np.median([height for _, height in sizes]) < 2200


@pytest.mark.parametrize("male", [True, False])
def test_centres_appear_on_schedule(male):
    """No centre before its mean age, every one after it; a girl is ahead of a boy."""
    for name, centre in {**CARPALS, **EPIPHYSES}.items():
        appears = centre.appears[0 if male else 1]
        called = name if name in CARPALS else f"{name} epiphysis"
        assert called not in bones(appears - 1, male)
        assert called in bones(appears + 3, male)
        assert centre.appears[1] <= centre.appears[0]


def test_growth_is_monotone_and_plates_close():
    """Carpals and epiphyses only grow; an adult has no open plate; fingers fuse before the forearm."""
    for centre in CARPALS.values():
        sizes = [carpal_size(centre, age, True) for age in range(0, 240)]
        assert (np.diff(sizes) >= 0).all() and sizes[-1] == 1
    for name, centre in EPIPHYSES.items():
        states = [epiphysis(centre, age, False) for age in range(0, 240)]
        assert (np.diff([state.width for state in states]) >= -1e-9).all()
        assert (np.diff([state.fused for state in states]) >= 0).all() and states[-1].fused == 1, name
    assert not any("epiphysis" in name for name in bones(228, False) if not name.startswith(("radius", "ulna")))
    assert EPIPHYSES["distal3"].fuses < EPIPHYSES["proximal3"].fuses < EPIPHYSES["radius"].fuses


def test_points_are_at_the_growth_plates():
    """Between the shaft of a proximal phalanx and its epiphysis, on its axis."""
    hand = skeleton.build(100, True, still_pose())
    parts = {bone.name: bone for bone in hand.bones}
    for finger in range(1, 6):
        shaft, cap = parts[f"proximal{finger}"], parts[f"proximal{finger} epiphysis"]
        point = hand.points[1 + finger]
        between = np.linalg.norm(shaft.start - cap.end)
        assert np.linalg.norm(point - shaft.start) < between + 0.05
        assert np.linalg.norm(point - shaft.start) < 0.06


def test_age_shows_in_the_pixels():
    """The same hand at two ages differs where carpals are, and the same age twice does not."""
    young, old, again = (dataset.make(1, 1, (300, 390), age_months=age, male=True).image for age in (40, 160, 40))
    assert np.array_equal(young, again)
    assert np.abs(young.astype(int) - old).mean() > 4


def test_folder_in_use_is_refused(hands):
    """Nothing is overwritten."""
    from bonecaffe.errors import BonecaffeError

    with pytest.raises(BonecaffeError, match="already contains a data set"):
        dataset.write(hands, 2, 1)


def test_committed_sample_is_what_the_code_makes():
    """data/sample is a dozen phantoms of seed 12; their points and ages are checked for drift, their pixels too."""
    from conftest import SAMPLE

    from bonecaffe.hands.images import read_image

    points, ages = read_points(SAMPLE / "points.csv"), {case.id: case for case in read_cases(SAMPLE / "ages.csv")}
    assert len(points) == 12
    for number in range(12):
        phantom = dataset.make(12, number, (300, 390))
        assert points[phantom.case.id] == phantom.points and ages[phantom.case.id] == phantom.case
        committed = read_image(SAMPLE / "images" / f"{phantom.case.id}.png").astype(int)
        assert np.abs(committed - phantom.image).max() <= 2  # another processor may round otherwise
