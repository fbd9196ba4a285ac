"""What the locator's nets see, what they learn from, and how they are trained, on the real Caffe."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import cv2
import lmdb
import numpy as np
import pytest
from click.testing import CliRunner
from google.protobuf import text_format
from hypothesis import given, settings
from hypothesis import strategies as st

from bonecaffe.caffe import nets, programs
from bonecaffe.cli import main
from bonecaffe.errors import LocateError
from bonecaffe.hands.images import find_images
from bonecaffe.hands.phantom import dataset
from bonecaffe.hands.reference_points import read_points
from bonecaffe.locate import frames, learn, network, variation
from bonecaffe.locate.frames import SIDE, Frame
from bonecaffe.locate.locator import Locator

TINY = learn.Plan(phantoms=6, variations=3, iterations=(16, 16), tests=16)

number = st.floats(-1000, 1000)


@given(st.builds(Frame, number, number, st.floats(1, 3000), st.floats(-7, 7), st.booleans()), number, number)
def test_to_square_and_back(frame, x, y):
    """A point of the image, converted to the square and back, is unchanged."""
    assert frame.to_image(frame.to_square(np.array([x, y]))) == pytest.approx([x, y], abs=1e-6)


@settings(max_examples=40, deadline=None)
@given(st.floats(-math.pi, math.pi), st.floats(0.2, 4), st.booleans(), number, number)
def test_all_hands_look_alike_from_near(angle, scale, mirror, x, y):
    """In any position on the film, a hand seen from near is upright, of one size, with the thumb on the right."""
    points = np.array(dataset.make(3, 1, (300, 390)).points.points)
    upright = frames.near(points).to_square(points)
    laid = Frame(x, y, 300 * scale, angle, mirror).to_image((points - 150) / 300)
    assert frames.near(laid).to_square(laid) == pytest.approx(upright, abs=1e-6)
    assert upright[2, 0] > 0.1 > abs(upright[4, 0]) and upright[:2, 1].min() > 0.1 > upright[4, 1]


def test_a_frame_of_the_same_size_is_the_image():
    """Cut without turning or scaling, the pixels are the image's; beyond it, its border fades to the film's grey."""
    image = np.random.default_rng(0).integers(1, 255, (SIDE, SIDE), np.uint8)

    def seen(frame):
        return frames.cut(frames.Pyramid(image), [frame])[0]

    assert np.array_equal(seen(Frame((SIDE - 1) / 2, (SIDE - 1) / 2, SIDE)), image)
    moved = seen(Frame((SIDE - 1) / 2 + 10, (SIDE - 1) / 2, SIDE))
    assert np.array_equal(moved[:, :-10], image[:, 10:])
    film = np.median(np.concatenate([image[0], image[-1], image[:, 0], image[:, -1]]))
    left = (moved[:, -10:] - film) / (image[:, -1:] - film + 1e-9)
    kept = image[:, -1] != film
    assert np.allclose(left[kept], np.exp(-np.arange(1, 11) / 8), atol=1e-3)
    quarter = seen(Frame((SIDE - 1) / 2, (SIDE - 1) / 2, SIDE, math.pi / 2))
    assert np.abs(quarter - np.rot90(image)).max() < 0.01


@pytest.mark.parametrize("view", learn.VIEWS)
def test_labels_follow_changes_of_the_picture(view, monkeypatch):
    """However a hand is bent, turned and mirrored, the label is at the bright spot that marked the point."""
    monkeypatch.setattr(variation, "_expose", lambda square, rng: square)
    monkeypatch.setattr(frames, "even", lambda square: square)
    rng, apart = np.random.default_rng(1), []
    points = np.array(dataset.make(3, 2, (300, 390)).points.points)
    for _ in range(40):
        which = int(rng.integers(7))
        image = np.zeros((390, 300), np.uint8)
        cv2.circle(image, tuple(round(v * 16) for v in points[which]), 4 * 16, 255, -1, cv2.LINE_AA, 4)
        square, places = variation.draw(frames.Pyramid(image), points, view, rng)
        if square.max() < 50:
            continue  # out of sight
        y, x = np.unravel_index(np.arange(SIDE * SIDE), (SIDE, SIDE))
        weight = square.ravel() / square.sum()
        centre = (np.array([(weight * x).sum(), (weight * y).sum()]) + 0.5) / SIDE - 0.5
        if np.abs(places[which]).max() < 0.45:
            apart.append(np.hypot(*(centre - places[which])) * SIDE)
    assert len(apart) > 25 and max(apart) < 1.0  # pixels of the square


def test_contrast_is_evened_out():
    """Exposure does not affect what the net sees; structure stays."""
    image = dataset.make(3, 3, (300, 390)).image
    (square,) = frames.cut(frames.Pyramid(image), [frames.whole(image.shape)])
    seen, dark = frames.even(square), frames.even(square * 0.25 + 20)
    assert np.abs(seen - dark).mean() < 3 and seen.std() > 15


def test_nets_are_read_by_caffe():
    """The texts are a net of 14 outputs for Caffe, without a warning of unknown fields."""
    proto = programs.caffe_pb2()
    net = text_format.Parse(network.train_val("near", 32), proto.NetParameter())
    assert [layer.type for layer in net.layer][-1] == "EuclideanLoss"
    solver = text_format.Parse(network.solver(100, 0.001, 5, 1), proto.SolverParameter())
    assert solver.type == "Adam" and solver.max_iter == 100
    deploy = text_format.Parse(network.deploy(), proto.NetParameter())
    assert deploy.layer[-1].inner_product_param.num_output == 14


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A locator that has learnt hardly anything, from phantoms only."""
    out = tmp_path_factory.mktemp("locators") / "tiny"
    learn.prepare(out, TINY)
    for view in learn.VIEWS:
        learn.train_view(out, view, TINY)
    learn.finish(out, TINY, 0)
    return out


def test_trained_on_the_real_caffe(tiny):
    """The result is two nets, a deploy file and a record; they are usable; the databases are removed."""
    files = {"deploy.prototxt", "locator.json", "near.caffemodel", "whole.caffemodel"}
    assert {path.name for path in tiny.iterdir()} == files
    facts = json.loads((tiny / "locator.json").read_text())
    assert facts["learnt from"] == {"phantoms": 6, "own hands": 0}
    found = Locator(tiny).find(dataset.make(3, 4, (300, 390)).image)
    assert found.points.shape == (7, 2) and np.isfinite(found.points).all()


def test_databases_hold_hand_and_label_together(tmp_path):
    """Square and label of one key belong together, in random order; a second call reuses them."""
    out, messages = tmp_path / "out", []
    learn.prepare(out, TINY)
    Datum = programs.caffe_pb2().Datum
    folder = out / learn.WORK / "near"

    def read(name):
        with lmdb.open(str(folder / name), readonly=True) as store, store.begin() as reader:
            return dict(reader.cursor())

    pixels, places = read("train_lmdb"), read("train_labels_lmdb")
    assert list(pixels) == list(places) and len(pixels) == 18
    expected = [made for i in range(6) for made in zip(*learn._vary((1, i, 3, None))[1], strict=True)]
    seen = {Datum.FromString(pixels[key]).data: Datum.FromString(places[key]).float_data for key in pixels}
    for square, label in expected:
        assert seen[square.tobytes()] == pytest.approx(label, abs=1e-4)
    learn.prepare(out, TINY, say=messages.append)
    assert messages == ["the training data already exists"]


def test_interrupted_training_continues_from_a_snapshot(tmp_path, monkeypatch):
    """Interrupted in the second net, it does not start from the beginning."""
    out, messages = tmp_path / "out", []
    learn.prepare(out, TINY)
    learn.train_view(out, "whole", TINY)
    learn.train_view(out, "near", replace(TINY, iterations=(16, 8)))
    learn.train_view(out, "whole", TINY, say=messages.append)
    learn.train_view(out, "near", TINY, say=messages.append)
    assert messages == ["near: continues from iteration 8"]
    log = (out / learn.WORK / "near" / "caffe.log").read_text()
    assert "--snapshot snapshots/SNAPSHOT_iter_8.solverstate" in log and "Iteration 16" in log


def test_another_plan_does_not_end_an_unfinished_training(tmp_path, hands):
    """Another call while there are snapshots: refused. The user's own files and a second process are left alone."""
    out = tmp_path / "out"
    (out / "work").mkdir(parents=True)
    (out / "work" / "thesis.txt").write_text("mine")
    learn.prepare(out, TINY)
    learn.train_view(out, "whole", TINY)
    with pytest.raises(LocateError, match="unfinished training"):
        learn.prepare(out, replace(TINY, phantoms=5))
    assert (out / learn.WORK / "whole" / "snapshots").is_dir()
    with learn.at_work(out):
        done = CliRunner().invoke(main, ["train-locator", str(out), "--phantoms", "6"])
    assert done.exit_code == 1 and "in use by bonecaffe train-locator" in done.output
    learn.train_view(out, "near", TINY)
    learn.finish(out, TINY, 0)
    assert (out / "work" / "thesis.txt").read_text() == "mine" and not (out / learn.WORK).exists()


def test_improved_with_own_hands_by_one_command(hands, tiny, tmp_path):
    """`train-locator` with marked hands starts from a locator, learns from them too, and records that."""
    out = tmp_path / "mine"
    marked = ["--images", hands / "images", "--points", hands / "points.csv"]
    arguments = [*marked, "--from", tiny, "--phantoms", "4", "--iterations", "48"]
    done = CliRunner().invoke(main, ["train-locator", str(out), *map(str, arguments)])
    assert done.exit_code == 0, done.output
    facts = json.loads((out / "locator.json").read_text())
    assert facts["learnt from"] == {"phantoms": 4, "own hands": 12}
    image, points = find_images(hands / "images")["1003"], read_points(hands / "points.csv")["1003"].points
    squares, places = learn._vary((9, 10**6, 8, (str(image), points)))[1]
    inputs = (squares[:, None].astype(np.float32) - 128) / 64

    def error(model):
        net = nets.make("caffe", model / "deploy.prototxt", model / "near.caffemodel")
        return np.abs(net.forward(inputs) - places).mean()

    assert error(out) < 0.95 * error(tiny)
    again = CliRunner().invoke(main, ["train-locator", str(out), *map(str, arguments)])
    assert again.exit_code == 1 and "already contains a locator" in again.output


def test_own_hands_are_read_from_their_files(hands):
    """A hand of the user's is varied like a phantom: squares of its image, its points as labels."""
    points, files = read_points(hands / "points.csv"), find_images(hands / "images")
    hand = points["1003"]
    (_, _), (squares, labels) = learn._vary((1, 10**6, 5, (str(files["1003"]), hand.points)))
    assert squares.shape == (5, SIDE, SIDE) and squares.std() > 10 and labels.shape == (5, 14)
    assert not np.array_equal(squares[0], squares[1])


def test_wrong_calls_are_errors(hands, tiny, tmp_path):
    """Points without images, no image for a marked hand, a start that is not a locator."""
    runner = CliRunner()
    assert runner.invoke(main, ["train-locator", "x", "--points", str(hands / "points.csv")]).exit_code == 2
    with pytest.raises(LocateError, match="no locator here"):
        learn.prepare(tmp_path / "new", TINY, start=tmp_path)
    (tmp_path / "none").mkdir()
    cv2.imwrite(str(tmp_path / "none" / "7.png"), np.zeros((9, 9), np.uint8))
    marked = ["--images", str(tmp_path / "none"), "--points", str(hands / "points.csv")]
    done = runner.invoke(main, ["train-locator", str(tmp_path / "o"), *marked])
    assert done.exit_code == 1 and "no image of 1001" in done.output
