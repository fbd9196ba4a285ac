"""Caffe's log: lines in, events out, whatever the text."""

from __future__ import annotations

import math
import random
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bonecaffe.caffe.log import Curve, CurvePoint, Event, parse, rmse_months
from bonecaffe.training.alarms import Alarms, Constant
from bonecaffe.training.display import describe
from bonecaffe.training.drive import Standing

# Both forms of the iteration line as Caffe 1.0 and its forks print them, with glog's preamble and without.
LOG = """\
# bonecaffe 2026-11-23T19:53:50+00:00: caffe train --solver solver.prototxt
I1123 19:53:51.123456 10177 solver.cpp:294] Iteration 0, Testing net (#0)
I20261123 19:53:52.123456 10177 solver.cpp:414]     Test net output #0: loss = 2218.53 (* 1 = 2218.53 loss)
I1123 19:53:52.223456 10177 solver.cpp:239] Iteration 0 (-1.4013e-45 iter/s, 0.8s/20 iters), loss = 1965.9
I1123 19:53:52.223456 10177 solver.cpp:258]     Train net output #0: loss = 1965.9 (* 1 = 1965.9 loss)
I1123 19:53:52.223456 10177 sgd_solver.cpp:112] Iteration 0, lr = 3e-06
Iteration 20, loss = 1.5e+02
Iteration 20, lr = 3e-06
I1123 19:54:52.223456 10177 solver.cpp:464] Snapshotting to binary proto file snapshots/SNAPSHOT_iter_20.caffemodel
I1123 19:54:52.223456 10177 solver.cpp:239] Iteration 40 (2.8 iter/s, 7.1s/20 iters), loss = -nan
I1123 19:54:52.223456 10177 solver.cpp:239] Iteration 60, loss = inf
I1123 19:54:53.223456 10177 solver.cpp:327] Optimization stopped early.
I1123 19:54:53.223456 10177 caffe.cpp:259] Optimization Done.
F1123 19:54:54.223456 10177 net.cpp:757] Cannot copy param 0 weights from layer 'fc8'; shape mismatch.
"""


def test_every_kind_of_line_is_read():
    """Kind, iteration and value of each."""
    kinds = [(event.kind, event.iteration) for event in parse(LOG.splitlines())]
    assert kinds == [
        ("attempt", None),
        ("testing", 0),
        ("test_output", 0),
        ("train_loss", 0),
        ("train_output", 0),
        ("lr", 0),
        ("train_loss", 20),
        ("lr", 20),
        ("snapshot", 20),
        ("train_loss", 40),
        ("train_loss", 60),
        ("stopped_early", 60),
        ("done", 60),
        ("fatal", 60),
    ]
    events = list(parse(LOG.splitlines()))
    assert [event.value for event in events if event.kind == "train_loss"][:2] == [1965.9, 150.0]
    assert math.isnan(events[9].value) and math.isinf(events[10].value)
    assert events[5].value == 3e-6
    assert events[8].text == "snapshots/SNAPSHOT_iter_20.caffemodel"
    assert events[-1].text.startswith("Cannot copy param 0")


def test_curve_is_in_months_and_a_resumed_log_replaces():
    """RMSE = sqrt(2 loss); repeated iterations replace the earlier ones."""
    points = Curve([*parse(LOG.splitlines()), Event("train_loss", 20, 200.0)]).points()
    assert [(p.iteration, p.phase) for p in points] == [
        (0, "test"),
        (0, "train"),
        (20, "train"),
        (40, "train"),
        (60, "train"),
    ]
    assert points[2].rmse == 20.0


@settings(max_examples=300, deadline=None)
@given(
    st.lists(
        st.one_of(
            st.text(),
            st.sampled_from(LOG.splitlines()).flatmap(
                lambda line: st.integers(0, len(line)).map(lambda n: line[:n] + line[n + 1 :])
            ),
        )
    )
)
def test_no_text_breaks_it(lines):
    """Any text, and any line of a log with a character missing."""
    for event in parse(lines):
        assert isinstance(event, Event)
    Curve(parse(lines)).csv()


ODD = [
    *(
        "ınf",
        "İnf",
        "ınF",
        "nan(0x8)",
        "+inf",
        "٣",
        "٣.٥",
        "３",
        "²",
        "1e999",
        "1e",
        "1.e+",
        "--1",
        "0x1p3",
        "1_0",
        "1,5",
        "∞",
    ),
    *("Iteratıon", "loſſ", "loss = ", ", lr = ", "Iteration 5", " (", ")", " net output #", "Testing net (#", "F1123 "),
    *(
        "\x00",
        "\r",
        "\x85",
        "\u2028",
        "\ud800",
        "\udcff",
        "\x1b[31m",
        "# bonecaffe ",
        " from ",
        "Snapshotting to HDF5 file ",
    ),
]


def test_ten_thousand_odd_lines_break_nothing(tmp_path):
    """Neither the reader nor its listeners: curve, standing, alarms, display. A good line among them is read."""
    rng = random.Random(13)
    good = LOG.splitlines()
    lines = []
    for number in range(10_000):
        text = list(rng.choice(good))
        for _ in range(rng.randint(0, 4)):
            at = rng.randrange(len(text) + 1)
            text[at : at + rng.choice((0, 0, 1, 3))] = [rng.choice(ODD)]
        line = "".join(text)
        if number % 3 == 0:
            damaged = bytearray(line.encode("utf-8", "surrogatepass"))
            for _ in range(rng.randint(1, 5)):
                damaged[rng.randrange(len(damaged))] = rng.randrange(256)
            line = bytes(damaged).decode("utf-8", rng.choice(("replace", "surrogateescape", "backslashreplace")))
        lines += [line, f"Iteration {number}, loss = {number / 7}"]
    curve, standing = Curve(), Standing(3000, 0, test_interval=100, images=4)
    alarms = Alarms.of_training(Constant(100.0, 120.0), 50, tmp_path, 10**6)
    read = set()
    for event in parse(lines):
        assert event.iteration is None or event.iteration >= 0
        curve.add(event)
        standing.note(event, float(len(read)))
        list(alarms.hear(event))
        assert describe(standing)
        if event.kind == "train_loss":
            read.add((event.iteration, event.value))
    assert read >= {(number, number / 7) for number in range(10_000)}
    assert curve.csv().encode("utf-8")


@pytest.mark.parametrize("value", ["ınf", "İnf", "٣", "３"])
def test_what_looks_like_a_number_is_none(value):
    """The letters and digits of other scripts: Caffe prints none. float() refuses the first two."""
    assert list(parse([f"Iteration 5, loss = {value}", f"Test net output #0: loss = {value}"])) == []
    assert list(parse([f"Iteration {value}, loss = 1", f"Iteration {value}, Testing net (#0)"])) == []


@pytest.mark.parametrize(
    "piece", ["Iteration 1 (", "Test net output #0: ", "Iteration 1, loss = ", "F1123 19:54:54.2 "]
)
def test_a_line_without_end_takes_no_time(piece):
    """Two megabytes in one line."""
    began = time.monotonic()
    list(parse([piece * (2_000_000 // len(piece))]))
    assert time.monotonic() - began < 2


def test_digits_without_end_are_no_trap():
    """A number of ten thousand digits does not stop the reader."""
    assert list(parse(["Iteration " + "9" * 10000 + ", loss = 1"]))


def test_several_outputs_and_nets_are_distinguished():
    """A test pass with two outputs: only the loss is in the curve; a resumed log starts without an iteration."""
    lines = """\
Iteration 10, Testing net (#0)
    Test net output #0: error = 3.5
    Test net output #1: loss = 8 (* 1 = 8 loss)
# bonecaffe 2026-11-23T20:00:00+00:00: caffe train --snapshot x
    Train net output #0: loss = 9 (* 1 = 9 loss)
Iteration 20 (5 iter/s, 2s/10 iters), loss = 18
""".splitlines()
    assert [(e.kind, e.iteration, e.text) for e in parse(lines)][1:4] == [
        ("test_output", 10, "error"),
        ("test_output", 10, "loss"),
        ("attempt", None, "2026-11-23T20:00:00+00:00: caffe train --snapshot x"),
    ]
    assert [(p.iteration, p.phase, p.rmse) for p in Curve(parse(lines)).points()] == [
        (10, "test", 4.0),
        (20, "train", 6.0),
    ]
    assert Curve(parse(lines)).csv().splitlines()[0] == "iteration,phase,loss,rmse_months"


def test_rmse_at_the_ends():
    """sqrt(2 loss): 0 for 0, a month for half a square month; a negative loss gives nan."""
    assert rmse_months(0.0) == 0.0 and rmse_months(0.5) == 1.0
    assert math.isnan(rmse_months(-0.5)) and math.isnan(rmse_months(math.nan))


def test_a_fatal_line_does_not_end_the_log():
    """The next attempt's lines follow it in the same file."""
    fatal = "F1123 19:54:54.223456 10177 net.cpp:757] Check failed"
    events = list(parse([fatal, "# bonecaffe later: caffe train", fatal, "Iteration 7, loss = 2"]))
    assert [(event.kind, event.iteration) for event in events] == [
        ("fatal", None),
        ("attempt", None),
        ("fatal", None),
        ("train_loss", 7),
    ]


def test_number_without_end_is_cut_to_eighteen_digits():
    """The most digits that fit into every 64-bit number."""
    (event,) = parse(["Iteration 12345678901234567890, loss = 1"])
    assert event.iteration == 123456789012345678


def test_curve_takes_losses_only():
    """Not the training net's own output, no other output of the test pass, nothing before the first iteration."""
    other = [
        Event("train_output", 5, 1.0, "loss"),
        Event("test_output", 5, 1.0, "error"),
        Event("lr", 5, 1.0, "loss"),
        Event("train_loss", None, 1.0),
        Event("test_output", None, 1.0, "loss"),
    ]
    assert Curve(other).points() == []
    assert [(p.iteration, p.phase, p.loss) for p in Curve(other, "error").points()] == [(5, "test", 1.0)]
    curve = Curve([Event("train_loss", 20, 2.0), Event("test_output", 20, 0.123456789123, "loss")])
    assert curve.csv() == "iteration,phase,loss,rmse_months\n20,test,0.123456789,0.496904\n20,train,2,2\n"


def test_events_and_points_are_values():
    """Equal when their fields are, and never changed in place."""
    assert (
        len({Event("lr", 1, 2.0), Event("lr", 1, 2.0)})
        == len({CurvePoint(1, "test", 2.0), CurvePoint(1, "test", 2.0)})
        == 1
    )
