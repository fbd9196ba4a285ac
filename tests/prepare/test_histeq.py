"""histeq by MATLAB's rule."""

from __future__ import annotations

import math
import re
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bonecaffe.prepare.histeq import histeq, histogram, transform, transform_text


def by_the_letter(counts, n):
    """The rule as it is written, one level at a time; slow, and independent of the tested code."""
    total, c0, table = sum(counts), 0, []
    tolerance = total * math.sqrt(np.finfo(float).eps)
    for j, h in enumerate(counts):
        c0 += h
        t = h / 2 if 1 <= j <= 254 else 0
        k = next((k for k in range(1, n + 1) if k * total / n >= c0 - t - tolerance), n)
        table.append(math.floor(255 * (k - 1) / (n - 1) + 0.5))
    return table


def test_worked_examples():
    """By hand from the rule: 100 pixels each of 50, 51, 52 become 40, 125, 215; a constant image of 100 becomes 125."""
    image = np.repeat(np.array([50, 51, 52], np.uint8), 100).reshape(10, 30)
    assert sorted(set(histeq(image).ravel().tolist())) == [40, 125, 215]
    assert set(histeq(np.full((7, 9), 100, np.uint8)).ravel().tolist()) == {125}


@settings(max_examples=150, deadline=None)
@given(
    st.integers(0, 2**32 - 1), st.sampled_from([2, 3, 16, 64, 100, 255, 256]), st.sampled_from(["flat", "few", "steep"])
)
def test_equals_the_rule_as_written(seed, levels, kind):
    """Against the rule, level by level, for many histograms."""
    rng = np.random.default_rng(seed)
    counts = {
        "flat": rng.integers(0, 50, 256),
        "few": rng.integers(0, 900, 256) * (rng.random(256) < 0.04),
        "steep": (10 ** rng.uniform(0, 6, 256)).astype(int),
    }[kind]
    counts[rng.integers(0, 256)] += 1
    table = transform(counts, levels)
    assert table.tolist() == by_the_letter(counts.tolist(), levels)
    assert (np.diff(table.astype(int)) >= 0).all()
    assert len(set(table.tolist())) <= levels


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_places_of_pixels_do_not_matter(seed):
    """A pixel's output depends only on the histogram."""
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 256, (13, 17), np.uint8)
    order = rng.permutation(image.size)
    assert np.array_equal(histeq(image).ravel()[order], histeq(image.ravel()[order].reshape(17, 13)).ravel())


def test_edge_images():
    """All 256 levels, two levels, one pixel."""
    every = np.arange(256, dtype=np.uint8).reshape(16, 16)
    assert len(set(histeq(every).ravel().tolist())) == 64
    assert histeq(every).min() == 0 and histeq(every).max() == 255
    two = np.array([[0, 255]], np.uint8)
    assert histeq(two).tolist() == [[by_the_letter([1] + [0] * 254 + [1], 64)[0], 255]]
    assert histeq(np.array([[7]], np.uint8)).tolist() == [[125]]


def test_histogram_counts_exactly_where_float32_would_not():
    """20 million pixels of one value, an odd number: beyond float32's whole numbers, which are even from 2**24."""
    image = np.full((5001, 4001), 9, np.uint8)
    assert int(np.float32(5001 * 4001)) != 5001 * 4001
    assert histogram(image)[9] == 5001 * 4001
    two_rows = np.full((2, 10_004_501), 9, np.uint8)
    two_rows[1, 7] = 8
    assert histogram(two_rows)[[8, 9]].tolist() == [1, 2 * 10_004_501 - 1]
    wide = np.arange(5_000_000).astype(np.uint8).reshape(1, -1)  # a row of more than is counted at once
    assert histogram(wide)[[0, 63, 64, 255]].tolist() == [19532, 19532, 19531, 19531]  # 5,000,000 = 19531 * 256 + 64


@pytest.mark.parametrize("shape", [(1, 1), (3, 700), (700, 3), (64, 64)])
def test_histogram_against_bincount(shape):
    """Both ends of the scale, every row."""
    image = np.random.default_rng(3).choice([0, 1, 7, 254, 255], shape).astype(np.uint8)
    counts = histogram(image)
    assert counts.dtype == np.int64 and np.array_equal(counts, np.bincount(image.ravel(), minlength=256))


def by_exact_rationals(counts, n):
    """The rule in whole numbers and fractions: the smallest k with k N / n >= c - t, without any tolerance."""
    total, c, table = sum(counts), 0, []
    for j, h in enumerate(counts):
        c += h
        t = Fraction(h, 2) if 1 <= j <= 254 else 0
        k = max(1, math.ceil((c - t) * n / total))
        table.append(math.floor(Fraction(255 * (k - 1), n - 1) + Fraction(1, 2)))
    return table


@pytest.mark.parametrize("levels", [2, 3, 10, 49, 64, 100, 187, 256])
def test_equals_the_rule_in_exact_rationals(levels):
    """Histograms whose sums meet the steps exactly, where floats fall on either side; few pixels."""
    for step in (1, 3, 7, 90):
        ties = [0] * 256
        for level in range(levels):
            ties[(level * 255) // levels] += 2 * step  # every sum is a step, every half one is midway
        assert transform(ties, levels).tolist() == by_exact_rationals(ties, levels)
        ends = [step, *ties[1:255], step]
        assert transform(ends, levels).tolist() == by_exact_rationals(ends, levels)
    dice = np.random.default_rng(levels)
    for _ in range(20):
        counts = dice.integers(0, 60, 256) * (dice.random(256) < dice.random())
        counts[dice.integers(256)] += 1
        assert transform(counts, levels).tolist() == by_exact_rationals(counts.tolist(), levels)


def test_invalid_histograms_are_refused():
    """No pixels, another number of bins, one level or 257."""
    for counts in (np.zeros(256), np.ones(255), np.ones((256, 1)), -np.ones(256)):
        with pytest.raises(ValueError, match="256 counts"):
            transform(counts)
    for levels in (1, 257):
        with pytest.raises(ValueError, match=f"{levels} levels; 2 to 256 are possible"):
            transform(np.ones(256), levels)
    one = np.eye(1, 256, 7)[0]
    assert transform(one)[7] == 125  # one pixel: c - t is 1/2, k is 32 of 64, floor(255 * 31 / 63 + 0.5)


def test_table_as_text():
    """The worked example, by 64 levels; other levels on request: with two, everything above the half is white."""
    counts = np.zeros(256, int)
    counts[[50, 51, 52]] = 100
    lines = transform_text(counts).splitlines()
    assert lines[0] == "level,pixels,output" and len(lines) == 257
    assert lines[50:55] == ["49,0,0", "50,100,40", "51,100,125", "52,100,215", "53,0,255"]
    assert transform_text(counts, 2).splitlines()[51:54] == ["50,100,0", "51,100,0", "52,100,255"]


@pytest.mark.parametrize(
    "image", [np.zeros((3, 3), np.uint16), np.zeros((3, 3, 3), np.uint8), np.zeros((0, 3), np.uint8)]
)
def test_wrong_arrays_are_refused(image):
    """Only two-dimensional, non-empty uint8 is accepted."""
    with pytest.raises(ValueError, match="uint8"):
        histeq(image)


def test_documented_comparison_is_true():
    """docs/explanation/HISTEQ.md: its table, and its numbers for a large background, computed again."""
    import importlib.util

    import cv2
    from conftest import REPOSITORY
    from skimage.exposure import equalize_hist

    text = (REPOSITORY / "docs" / "explanation" / "HISTEQ.md").read_text()
    spec = importlib.util.spec_from_file_location("pictures", REPOSITORY / "scripts" / "pictures.py")
    pictures = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(pictures)
    hand = pictures.the_hand()
    plain = pictures.crop(hand.image, hand.points.rectangle())
    assert "526 × 572" in text and plain.shape == (572, 526)
    rows = [line for line in text.splitlines() if line.startswith(("| MATLAB", "| cv2", "| skimage"))]
    for written, computed in zip(rows, pictures.comparison(pictures.equalizations(plain)), strict=True):
        assert written.split("|")[1] == computed.split("|")[1]
        stated, found = ([float(cell) for cell in row.split("|")[2:-1]] for row in (written, computed))
        assert found == pytest.approx(stated, abs=3.1)  # another processor may round a phantom's pixels otherwise
    background = np.concatenate(
        [np.full(9000, 10, np.uint8), np.repeat(np.arange(11, 211, dtype=np.uint8), 5)]
    ).reshape(100, 100)
    results = (histeq(background), cv2.equalizeHist(background), np.floor(equalize_hist(background) * 255 + 0.5))
    assert [int(result[0, 0]) for result in results] == [
        int(n)
        for n in re.search(
            r"to (\d+) by MATLAB's rule, to (\d+) by OpenCV's, and to (\d+) by skimage's", text.replace("\n", " ")
        ).groups()
    ]


def by_the_page(counts, n):
    """The sentence of MathWorks' page taken literally: the nearest k that overshoots c(j) by h(j)/2 at most."""
    total, offered = counts.sum(), np.arange(1, n + 1) * counts.sum() / n
    far = offered - np.cumsum(counts)[:, None]
    distance = np.where(far > counts[:, None] / 2 + total * 1e-9, np.inf, np.abs(far))
    return np.floor(255 * distance.argmin(axis=1) / (n - 1) + 0.5).astype(np.uint8)


def test_document_states_both_readings_correctly():
    """docs/explanation/HISTEQ.md: the worked examples, by the rule and by the page alone, and their distance."""
    from conftest import REPOSITORY

    from bonecaffe.hands.phantom import dataset
    from bonecaffe.prepare.crop import crop

    text = " ".join((REPOSITORY / "docs" / "explanation" / "HISTEQ.md").read_text().split())
    three, one = np.zeros(256, int), np.zeros(256, int)
    three[[50, 51, 52]], one[100] = 100, 63
    rule, page = transform(three)[[50, 51, 52]].tolist(), by_the_page(three, 64)[[50, 51, 52]].tolist()
    single, alone = int(transform(one)[100]), int(by_the_page(one, 64)[100])
    for sentence in (
        "become {}, {} and {}, and a constant image of 100 becomes {}.".format(*rule, single),
        "50, 51 and 52 to {}, {} and {}, and the constant image to {}.".format(*page, alone),
        "% the rule: {} {} {}; the page taken literally: {} {} {} ".format(*rule, *page),
        f"% the rule: {single}; the page taken literally: {alone} ",
    ):
        assert sentence in text
    hand = dataset.make(2018, 11, (1000, 1300), age_months=118, male=False)  # scripts/pictures.py: the_hand
    plain = crop(hand.image, hand.points.rectangle())
    counts = histogram(plain)
    difference = np.abs(transform(counts).astype(int) - by_the_page(counts, 64))[plain]
    stated = re.search(r"differs from the rule by (\d+) grey levels at most and ([\d.]+) in the mean", text)
    assert difference.max() == pytest.approx(int(stated[1]), abs=1)  # another processor may round a phantom otherwise
    assert difference.mean() == pytest.approx(float(stated[2]), abs=0.1)


def test_output_is_never_midway_with_64_levels():
    """docs/explanation/HISTEQ.md: how halves are rounded matters for other numbers of levels only."""
    assert not any(255 * k % 63 * 2 == 63 for k in range(64))
    assert any(255 * k % 2 * 2 == 2 for k in range(3))


def test_command_of_the_document_runs(tmp_path):
    """docs/explanation/HISTEQ.md: the line that writes T.csv and J.png for MATLAB, of a sample in the repository."""
    from click.testing import CliRunner
    from conftest import REPOSITORY

    from bonecaffe.cli import main
    from bonecaffe.hands.images import read_image

    text = (REPOSITORY / "docs" / "explanation" / "HISTEQ.md").read_text()
    line = re.search(r"^    \.venv/bin/bonecaffe (histeq (\S+) --table T\.csv --out J\.png)$", text, re.MULTILINE)
    assert f"imread('{line[2]}')" in text
    arguments = [
        {line[2]: str(REPOSITORY / line[2]), "T.csv": str(tmp_path / "T.csv"), "J.png": str(tmp_path / "J.png")}.get(
            word, word
        )
        for word in line[1].split()
    ]
    assert CliRunner().invoke(main, arguments).exit_code == 0
    image = read_image(REPOSITORY / line[2])
    assert (tmp_path / "T.csv").read_text() == transform_text(histogram(image))
    assert np.array_equal(read_image(tmp_path / "J.png"), histeq(image))


def test_table_is_exported(tmp_path):
    """256 rows of level, pixels, output; the command writes table and image."""
    from click.testing import CliRunner

    from bonecaffe.cli import main
    from bonecaffe.hands.images import encode_png, read_image

    image = np.random.default_rng(1).integers(30, 90, (40, 50), np.uint8)
    (tmp_path / "a.png").write_bytes(encode_png(image))
    arguments = [
        "histeq",
        str(tmp_path / "a.png"),
        "--table",
        str(tmp_path / "T.csv"),
        "--out",
        str(tmp_path / "J.png"),
    ]
    assert CliRunner().invoke(main, arguments).exit_code == 0
    rows = [[int(cell) for cell in line.split(",")] for line in (tmp_path / "T.csv").read_text().splitlines()[1:]]
    assert [row[0] for row in rows] == list(range(256)) and sum(row[1] for row in rows) == image.size
    assert np.array_equal(read_image(tmp_path / "J.png"), np.array([row[2] for row in rows], np.uint8)[image])
    assert np.array_equal(read_image(tmp_path / "J.png"), histeq(image))
