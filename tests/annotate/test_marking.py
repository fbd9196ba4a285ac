"""The table while it is marked: nothing is lost, half-written or overwritten."""

from __future__ import annotations

import contextlib
import csv
import os
import shutil
import subprocess
import sys
import threading
from dataclasses import replace

import cv2
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bonecaffe import files
from bonecaffe.annotate import marking as marking_module
from bonecaffe.annotate import shared_table
from bonecaffe.annotate.marking import Conflict, Marking, Marks, opened
from bonecaffe.annotate.pictures import Pictures
from bonecaffe.annotate.server import make_app
from bonecaffe.errors import AnnotateError, PointsError
from bonecaffe.hands import standard_view
from bonecaffe.hands.images import read_image
from bonecaffe.hands.provenance import count_accepted, count_unmarked, unmarked
from bonecaffe.hands.reference_points import COLUMNS, POINT_NAMES, read_points, write_points
from bonecaffe.recipe import Recipe

HOST = {"Host": "127.0.0.1:8123"}


@pytest.fixture
def table(tmp_path):
    return tmp_path / "points.csv"


@pytest.fixture
def marking(hands, table):
    with opened(hands / "images", table) as found:
        yield found


@pytest.fixture
def truth(hands):
    return read_points(hands / "points.csv")


def test_partly_marked_is_kept_and_reported(marking, table):
    """Three of seven points are on disk. A program that needs all seven reports which are missing."""
    first = marking.ids[0]
    marks = marking.change(first, Marks(points=((10, 20), (30.04, 20), (50, 60), *[None] * 4)))
    assert marks.version and marks.state == "partial"
    assert table.read_text().splitlines()[1] == f"{first},300,390,10,20,30,20,50,60,,,,,,,,"
    with pytest.raises(PointsError, match=rf"row 2 \(id {first}\): missing phalanx2_x.*annotate"):
        read_points(table)


def test_others_rows_and_columns_stay(hands, table, truth):
    """Rows of hands outside the folder, and columns of other programs, are written back unchanged."""
    lines = [
        ",".join((*COLUMNS, "reader")),
        "zz,100,100,10,90,20,90,60,50,50,20,40,20,30,20,20,20,Ann",
        "1003,300,390" + "," * 14 + ",Bob",
    ]
    table.write_text("\n".join(lines) + "\n")
    with opened(hands / "images", table) as marking:
        marking.change("1003", replace(marking.marks("1003"), points=truth["1003"].points))
        marking.change("1001", Marks(points=truth["1001"].points))
    written = table.read_text().splitlines()
    assert written[:2] == lines[:2]
    assert written[2].startswith("1003,300,390,") and written[2].endswith(",Bob")
    assert written[3].startswith("1001,300,390,") and len(written) == 4
    assert read_points(table)["1003"].points == truth["1003"].points


def test_a_change_elsewhere_is_not_lost(marking, table, truth):
    """Another program's row is read. A change made from an older version is refused; other hands are not affected."""
    before = marking.change("1001", Marks(points=truth["1001"].points))
    moved = replace(truth["1001"], points=((1.0, 2.0), *truth["1001"].points[1:]))
    write_points(table, [moved, truth["1002"]])
    os.utime(table, ns=(1, 1))
    with pytest.raises(Conflict):
        marking.change("1001", replace(before, flagged=True))
    assert marking.marks("1001").points[0] == (1.0, 2.0) and marking.marks("1002").state == "done"
    marking.change("1003", Marks(points=truth["1003"].points))
    assert read_points(table)["1001"].points[0] == (1.0, 2.0)


def test_a_version_is_what_is_on_disk(hands, table, truth):
    """The same state has the same name after a restart, so a page that was open before continues without a question."""
    with opened(hands / "images", table) as marking:
        seen = marking.change("1001", Marks(points=(*truth["1001"].points[:3], *[None] * 4), seconds=3.0))
    with opened(hands / "images", table) as marking:
        assert marking.marks("1001").version == seen.version
        after = marking.change("1001", replace(seen, points=(*truth["1001"].points[:4], *[None] * 3)))
        assert after.version != seen.version
        with pytest.raises(Conflict):
            marking.change("1001", seen)


def test_the_row_of_a_skipped_hand_is_empty(hands, table, truth):
    """Whether it was partly or completely marked: no program can use its points or fail because of them.

    When it is no longer skipped, its points come back.
    """
    whole, part = truth["1001"].points, (*truth["1002"].points[:3], *[None] * 4)
    with opened(hands / "images", table) as marking:
        one = marking.change("1001", Marks(points=whole))
        two = marking.change("1002", Marks(points=part))
        marking.change("1003", Marks(points=truth["1003"].points))
        marking.change("1001", replace(one, skipped="fracture"))
        marking.change("1002", replace(two, skipped="cut off"))
        assert set(read_points(table)) == {"1003"}
    with opened(hands / "images", table) as marking:
        one, two = marking.marks("1001"), marking.marks("1002")
        assert (one.points, one.state, two.points, two.state) == (whole, "skipped", part, "skipped")
        marking.change("1001", replace(one, skipped=""))
        assert marking.change("1002", replace(two, skipped="")).points == part
    with pytest.raises(PointsError, match=r"id 1002\): missing phalanx2_x"):
        read_points(table)


@pytest.mark.parametrize("skip", [True, False])
def test_killed_between_the_two_files(hands, table, truth, monkeypatch, skip):
    """Points and notes are two files. A crash between the two writes loses no point, whichever file is first."""
    with opened(hands / "images", table) as marking:
        marks = marking.change("1001", Marks(points=truth["1001"].points))
        if not skip:
            marks = marking.change("1001", replace(marks, skipped="fracture"))
        write, calls = shared_table.write_if_unchanged, []

        def once(path, content, expected):
            calls.append(path)
            if len(calls) > 1:
                raise KeyboardInterrupt
            return write(path, content, expected)

        monkeypatch.setattr(shared_table, "write_if_unchanged", once)
        with pytest.raises(KeyboardInterrupt):
            marking.change("1001", replace(marks, skipped="fracture" if skip else ""))
    monkeypatch.undo()
    with opened(hands / "images", table) as marking:
        assert marking.marks("1001").points == truth["1001"].points


def test_accepted_suggestions_are_remembered_point_by_point(hands, table, truth):
    """A point that was accepted and never moved counts as marked by nobody, even if another point was dragged."""
    offered = {case_id: truth[case_id] for case_id in ("1001", "1002")}
    away = ((5.0, 6.0), *truth["1002"].points[1:])
    with opened(hands / "images", table, offered) as marking:
        assert marking.change("1001", Marks(points=truth["1001"].points)).untouched == (True,) * 7
        assert marking.change("1002", Marks(points=away)).untouched == (False, *[True] * 6)
        assert marking.change("1003", Marks(points=truth["1003"].points)).untouched == (False,) * 7
    assert unmarked(table) == {"1001": POINT_NAMES, "1002": POINT_NAMES[1:]}
    assert count_accepted(table) == count_unmarked(table) == 2
    with opened(hands / "images", table) as marking:  # without suggestions now
        marks = marking.change("1001", replace(marking.marks("1001"), flagged=True))
        marks = marking.change("1001", replace(marks, points=away))
        assert unmarked(table) == {"1002": POINT_NAMES[1:]}
        marks = marking.change("1001", replace(marks, points=truth["1001"].points))  # undone
        assert marks.untouched == (True,) * 7
        ulna, radius, *joints = marks.points
        swapped = marking.change("1001", replace(marks, points=(radius, ulna, *reversed(joints))))
        assert swapped.untouched == (True,) * 7  # under other names, but still at the suggested places
        skipped = marking.change("1001", replace(swapped, skipped="cut off"))
        assert unmarked(table) == {"1002": POINT_NAMES[1:]} and skipped.untouched == (True,) * 7
        marking.change("1001", replace(skipped, skipped=""))
    assert count_accepted(table) == 2 and count_accepted(hands / "points.csv") == 0


def test_notes_of_the_first_version_count_whole_hands(hands, table, truth):
    """Its notes contain ``yes`` for an accepted suggestion. That is kept when one of the points moves."""
    write_points(table, [truth["1001"]])
    table.with_name("points.notes.csv").write_text(
        "id,skipped,flagged,seconds,points,suggested\n1001,,,3.0,,yes\n1002,cut off,,1.0,,\n"
    )
    assert unmarked(table) == {"1001": POINT_NAMES}
    with opened(hands / "images", table) as marking:
        marks = marking.marks("1001")
        marking.change("1001", replace(marks, points=((5.0, 6.0), *marks.points[1:])))
        assert marking.marks("1002").skipped == "cut off"
    assert unmarked(table) == {"1001": POINT_NAMES[1:]}


def test_links_that_lead_out_are_not_shown(hands, table, tmp_path):
    """Nothing outside the folder is served, not even through a link. What is left out is listed."""
    images = tmp_path / "images"
    images.mkdir()
    (images / "in.png").write_bytes((hands / "images" / "1001.png").read_bytes())
    (images / "again.png").symlink_to("in.png")
    (images / "out.png").symlink_to(hands / "images" / "1002.png")
    (images / "folder").symlink_to(hands / "images")
    with opened(images, table) as marking:
        assert marking.ids == ["again", "in"] and "out" in marking.left_out and "1003" in marking.left_out
    (tmp_path / "all").symlink_to(hands / "images")
    with opened(tmp_path / "all", table) as marking:
        assert len(marking.ids) == 12 and not marking.left_out


def test_an_image_swapped_for_a_link_is_not_shown(hands, tmp_path, table):
    """The file is checked when it is served, not only at the start: for a link that leads out, or a pipe."""
    images, outside = tmp_path / "images", tmp_path / "outside"
    shutil.copytree(hands / "images", images / "deep")
    shutil.copytree(hands / "images", outside)
    with opened(images, table) as marking:
        app = make_app(marking, Recipe.load("paper").preparation, "secret", 8123).test_client()
        path = images / "deep" / "1002.png"
        path.unlink()
        path.symlink_to(outside / "1002.png")
        refused = app.get("/secret/images/1002", headers=HOST)
        assert refused.status_code == 422 and "1002.png: a link that leads out" in refused.get_json()["error"]
        assert app.get("/secret/thumbnails/1002?points=9,9;90,90", headers=HOST).status_code == 422
        assert app.get("/secret/hands/1002", headers=HOST).get_json()["width"] == 1
        path.unlink()
        path.symlink_to("1003.png")  # inside
        assert app.get("/secret/images/1002", headers=HOST).status_code == 200
        path.unlink()
        os.mkfifo(path)
        assert app.get("/secret/images/1002", headers=HOST).status_code == 422
        (images / "deep").rename(tmp_path / "away")
        (images / "deep").symlink_to(outside)
        assert app.get("/secret/images/1004", headers=HOST).status_code == 422
        skipped = marking.change("1002", replace(marking.marks("1002"), skipped="a pipe"))
        assert skipped.state == "skipped"


# ---- other programs ---------------------------------------------------------------------------------------------

OTHER = """
import sys, time
table, rest = sys.argv[1:]
for number in range(150):
    with open(table, "a") as file:
        file.write(f"other{number}{rest}\\n")
        file.flush()
        time.sleep(0.002)
    time.sleep(0.001)
"""


@pytest.mark.parametrize("name", ["points.csv", "points.notes.csv"])
def test_rows_that_another_program_appends_are_never_lost(hands, table, truth, name):
    """The program ignores our lock and keeps the file open while it writes. All rows of both programs are kept."""
    write_points(table, [truth["1001"]])
    path, rest = table.with_name(name), "," * 16 if name == "points.csv" else ",theirs,,,,,"
    with opened(hands / "images", table) as marking:
        marking.change("1002", replace(marking.marks("1002"), flagged=True))
        other = subprocess.Popen([sys.executable, "-c", OTHER, str(path), rest])
        number = 0
        while other.poll() is None:
            number += 1
            marks = marking.marks("1003")
            points = ((5.0, number % 100), *truth["1003"].points[1:])
            with contextlib.suppress(AnnotateError):  # on a busy machine it may write between all our attempts
                marking.change("1003", replace(marks, points=points, flagged=bool(number % 2)))
        assert other.returncode == 0 and number > 3
        marking.change("1003", replace(marking.marks("1003"), points=points))
        assert marking.marks("1003").points == points
    with open(path, newline="") as file:
        rows = {row["id"]: row for row in csv.DictReader(file)}
    assert {f"other{number}" for number in range(150)} | {"1003"} <= set(rows)
    if name == "points.notes.csv":
        assert rows["other7"]["skipped"] == "theirs"


@pytest.mark.parametrize("name", ["points.csv", "points.notes.csv"])
@pytest.mark.parametrize("how", ["replaced", "written into", "made"])
def test_a_write_between_our_check_and_our_replacement_is_kept(hands, table, truth, monkeypatch, name, how):
    """Another program writes after our last look at the file. This is detected and its row is kept."""
    write_points(table, [truth["1001"]])
    path, rest = table.with_name(name), "," * 16 if name == "points.csv" else ",theirs,,,,,"
    if how == "made":
        path.unlink(missing_ok=True)
    rename, done = files._renameat2, []

    def late(source, target, flags):
        if target == path and not done:
            done.append(path.read_text() if path.exists() else None)
            header = ",".join(COLUMNS if name == "points.csv" else marking_module.NOTE_COLUMNS)
            text = (done[0] or header + "\n") + "other" + rest + "\n"
            if how == "written into" and done[0]:
                path.open("a").write("other" + rest + "\n")
            else:
                path.with_name("new").write_text(text)
                path.with_name("new").replace(path)
        return rename(source, target, flags)

    with opened(hands / "images", table) as marking:
        if how != "made" and name == "points.notes.csv":
            marking.change("1002", replace(marking.marks("1002"), flagged=True))
        monkeypatch.setattr(files, "_renameat2", late)
        marking.change("1003", Marks(points=truth["1003"].points, flagged=True))
        assert done and marking.marks("1003").state == "done" and marking.marks("1003").flagged
    with open(path, newline="") as file:
        assert {"other", "1003"} <= {row["id"] for row in csv.DictReader(file)}
    assert not list(table.parent.glob("*.part")) and not list(table.parent.glob(".*.part"))


def test_a_program_that_keeps_the_file_open_while_it_writes_is_waited_for(hands, table, truth):
    """It opens the file before our change and writes after it. Its row would go into a file that no name leads to."""
    write_points(table, [truth["1001"]])
    with opened(hands / "images", table) as marking, open(table, "a") as file:
        later = threading.Timer(0.3, lambda: (file.write("other" + "," * 16 + "\n"), file.close()))
        later.start()
        marking.change("1002", Marks(points=truth["1002"].points))
        later.join()
        assert marking.marks("1002").state == "done"
    assert [line.split(",")[0] for line in table.read_text().splitlines()[1:]] == ["1001", "other", "1002"]


def test_a_program_that_never_closes_the_file_blocks_nothing(hands, table, truth, monkeypatch):
    """Such as an editor in the background: the change is written after a limited wait."""
    monkeypatch.setattr(files, "_WRITER_S", 0.2)
    write_points(table, [truth["1001"]])
    with opened(hands / "images", table) as marking, open(table, "a"):
        assert marking.change("1002", Marks(points=truth["1002"].points)).state == "done"
    assert set(read_points(table)) == {"1001", "1002"}


def test_a_file_system_that_cannot_exchange_files(hands, table, truth, monkeypatch):
    """The content is compared just before the replacement instead."""
    monkeypatch.setattr(files, "_renameat2", lambda source, target, flags: False)
    with opened(hands / "images", table) as marking:
        marking.change("1001", Marks(points=truth["1001"].points))
        marking.change("1002", Marks(points=truth["1002"].points))
    assert read_points(table) == {case_id: truth[case_id] for case_id in ("1001", "1002")}
    assert not files.write_if_unchanged(table, "x", b"y") and not files.write_if_unchanged(table, "x", None)


def test_another_programs_change_of_the_same_hand_is_a_conflict(hands, table, truth, monkeypatch):
    """The hand changed between our look and our write: it stays as the other program wrote it."""
    write_points(table, [truth["1001"]])
    theirs = replace(truth["1001"], points=((1.0, 2.0), *truth["1001"].points[1:]))
    with opened(hands / "images", table) as marking:
        put = shared_table.write_if_unchanged

        def late(path, content, expected):
            write_points(table, [theirs])
            return put(path, content, expected)

        monkeypatch.setattr(shared_table, "write_if_unchanged", late)
        with pytest.raises(Conflict):
            marking.change("1001", replace(marking.marks("1001"), points=((7.0, 8.0), *truth["1001"].points[1:])))
    assert read_points(table)["1001"].points == theirs.points


def test_a_table_that_is_a_link_keeps_its_target(hands, tmp_path, truth):
    """The file that it leads to is locked, read and replaced. Both names give the same content."""
    (tmp_path / "study").mkdir()
    (tmp_path / "share").mkdir()
    link, target = tmp_path / "study" / "points.csv", tmp_path / "share" / "all.csv"
    write_points(target, [truth["1001"]])
    os.chmod(target, 0o640)
    link.symlink_to("../share/all.csv")
    with opened(hands / "images", link, {"1002": truth["1002"]}) as marking:
        marking.change("1002", Marks(points=truth["1002"].points))
        for name in (link, target):
            with pytest.raises(AnnotateError, match=f"process {os.getpid()}"):
                Marking(hands / "images", name)
        assert link.is_symlink() and set(read_points(target)) == {"1001", "1002"}
        assert target.stat().st_mode & 0o777 == 0o640
        write_points(tmp_path / "other.csv", [])
        link.unlink()
        link.symlink_to("../other.csv")
        with pytest.raises(PointsError, match="leads to another file than before"):
            marking.marks("1001")
    assert unmarked(target) == {"1002": POINT_NAMES}
    link.unlink()
    link.symlink_to(target)
    assert unmarked(link) == {"1002": POINT_NAMES}
    link.unlink()
    link.symlink_to("nowhere.csv")
    with pytest.raises(PointsError, match=r"a link to .*nowhere.csv, which does not exist"):
        Marking(hands / "images", link)


# ---- remarks ----------------------------------------------------------------------------------------------------


def test_implausible_hands_are_in_doubt_until_confirmed(hands, table, truth):
    """By the rules of `points check`, or with the points of another hand. A confirmation is for these points only."""
    ulna, radius, *joints = truth["1001"].points
    crossed = (ulna, radius, joints[1], joints[0], *joints[2:])
    with opened(hands / "images", table) as marking:
        fine = marking.change("1002", Marks(points=truth["1002"].points))
        assert not marking.remarks("1002", fine.points) and not marking.in_doubt("1002", fine)
        assert not marking.remarks("1002", (*fine.points[:6], None))
        marks = marking.change("1001", Marks(points=crossed, confirmed=True))  # the remark has not been shown yet
        assert marking.in_doubt("1001", marks)
        assert marking.remarks("1001", crossed) == [
            "The fingers are not in order from thumb to little finger, seen from the wrist."
        ]
        marks = marking.change("1001", replace(marks, confirmed=True))
        assert marks.confirmed and not marking.in_doubt("1001", marks)
        marks = marking.change("1001", replace(marks, confirmed=False, flagged=True))  # another tab
        assert marks.confirmed
    with opened(hands / "images", table) as marking:
        assert not marking.in_doubt("1001", marking.marks("1001"))
        moved = (ulna, radius, joints[1], joints[0], *joints[2:-1], (joints[-1][0] + 1, joints[-1][1]))
        assert marking.in_doubt("1001", marking.change("1001", replace(marks, points=moved)))
        twin = marking.change("1003", Marks(points=fine.points))
        assert marking.remarks("1003", twin.points) == ["The points are exactly those of 1002."]
        same = marking.change("1004", Marks(points=(fine.points[0],) * 7))
        assert "too small to be a hand" in marking.remarks("1004", same.points)[0]


def test_wrong_tables_are_refused(hands, table, truth):
    """Another size, half a point, a duplicate id, no header: the error names the row, and the file is not changed."""
    whole = ",".join(COLUMNS) + "\n"
    wrong = {
        "id 1001: marked in 600 x 780, but the image is 300 x 390": whole + "1001,600,780" + ",50" * 14,
        r"row 2 .*ulna has only one coordinate": whole + "1001,300,390,5" + "," * 13,
        r"row 3 .*an earlier row has the same id": whole + ("1001,300,390" + ",50" * 14 + "\n") * 2,
        "no column height": "id,width\n1,2",
        "is not a number": whole + "1001,300,390,a,b" + ",5" * 12,
    }
    for message, content in wrong.items():
        table.write_text(content)
        with pytest.raises(PointsError, match=message):
            Marking(hands / "images", table)
        assert table.read_text() == content


def test_one_program_at_a_time(marking, hands, table):
    """The error for the second one names the process of the first."""
    with pytest.raises(AnnotateError, match=f"process {os.getpid()}"):
        Marking(hands / "images", table)


def test_a_full_disk_loses_nothing(marking, table, truth, monkeypatch):
    """A failed write changes nothing; the next attempt with the same version succeeds."""
    marking.change("1001", Marks(points=truth["1001"].points))
    before = table.read_bytes()

    def full(path, content, expected):
        raise OSError(28, "No space left on device", str(path))

    with monkeypatch.context() as patched:
        patched.setattr(shared_table, "write_if_unchanged", full)
        with pytest.raises(OSError):
            marking.change("1002", Marks(points=truth["1002"].points))
    assert table.read_bytes() == before and marking.marks("1002").state == "unmarked"
    assert marking.change("1002", Marks(points=truth["1002"].points)).state == "done"


place = st.one_of(st.none(), st.tuples(st.floats(0, 299), st.floats(0, 389)))
change = st.tuples(
    st.sampled_from(["1001", "1002", "1003"]), st.tuples(*[place] * 7), st.text(max_size=9), st.booleans()
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(change, max_size=6))
def test_what_was_written_is_what_is_read(hands, tmp_path_factory, changes):
    """After any sequence of changes, a new program reads the last one of each hand."""
    table = tmp_path_factory.mktemp("any") / "points.csv"
    last: dict[str, Marks] = {}
    with opened(hands / "images", table) as marking:
        for case_id, points, reason, flagged in changes:
            version = marking.marks(case_id).version
            last[case_id] = marking.change(case_id, Marks(points, reason, flagged, 1.5, version))
            assert last[case_id].skipped.split() == "".join(c if c.isprintable() else " " for c in reason).split()
    with opened(hands / "images", table) as marking:
        for case_id, marks in last.items():
            again = marking.marks(case_id)
            assert again.points == marks.points
            assert again.skipped == marks.skipped and again.flagged == marks.flagged
    if table.exists():
        with open(table, newline="") as file:
            ids = [row["id"] for row in csv.DictReader(file)]
        assert len(set(ids)) == len(ids)


# ---- the server's answers ------------------------------------------------------------------------------------


@pytest.fixture
def client(marking):
    return make_app(marking, Recipe.load("paper").preparation, "secret", 8123).test_client()


def test_only_this_machine_with_the_token(client):
    """Another Host (rebinding), another Origin, another site's request, a wrong token: refused."""
    assert client.get("/secret/hands", headers=HOST).status_code == 200
    assert client.get("/secret/hands", headers={"Host": "localhost:8123"}).status_code == 200
    refused = [
        ("/secret/hands", {"Host": "evil.example:8123"}, 403),
        ("/secret/hands", {"Host": "127.0.0.1:80"}, 403),
        ("/secret/hands", {**HOST, "Origin": "http://evil.example"}, 403),
        ("/secret/hands", {**HOST, "Origin": "null"}, 403),
        ("/secret/hands", {**HOST, "Sec-Fetch-Site": "cross-site"}, 403),
        ("/Secret/hands", HOST, 404),
        ("/hands", HOST, 404),
        ("/", HOST, 404),
    ]
    for path, headers, status in refused:
        assert client.get(path, headers=headers).status_code == status, (path, headers)
    marks = {"points": [None] * 7, "skipped": "", "flagged": True, "seconds": 0, "version": ""}
    bad = client.put("/secret/hands/1001", json=marks, headers={**HOST, "Origin": "http://evil.example"})
    assert bad.status_code == 403


def test_no_path_outside(client):
    """Ids are looked up, never joined into paths. Apart from images, only the page's own files are served."""
    for path in (
        "images/../ages",
        "images/..%2fages.csv",
        "images/%2fetc%2fpasswd",
        "page/..%2fserver.py",
        "page/../server.py",
        "thumbnails/..%2f1001?points=1,1;50,50",
        "hands/nobody",
        "images/..",
        "images/points",
        "images/1001.png",
    ):
        assert client.get(f"/secret/{path}", headers=HOST).status_code == 404, path


def test_headers(client):
    """The page loads nothing from other sites and reveals nothing to them."""
    answer = client.get("/secret/", headers=HOST)
    assert answer.status_code == 200
    policy = answer.headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy and "script-src 'self'" in policy and "http" not in policy
    assert answer.headers["Referrer-Policy"] == "no-referrer"


def test_nonsense_is_refused(client, marking):
    """Any invalid message gets an error with an explanation, and nothing is written."""
    good = {"points": [None] * 7, "skipped": "", "flagged": False, "seconds": 0, "version": ""}
    for spoiled in (
        {},
        [],
        7,
        {**good, "points": [1]},
        {**good, "points": [[1, "x"]] * 7},
        {**good, "flagged": {}, "seconds": "x"},
        {**good, "seconds": -1},
        {**good, "seconds": True},
        {**good, "points": [["1", "2"]] * 7},
        {**good, "points": [[float("nan"), 5], *[None] * 6]},
    ):
        answer = client.put("/secret/hands/1001", json=spoiled, headers=HOST)
        assert answer.status_code == 400 and answer.get_json()["error"], spoiled
    outside = client.put("/secret/hands/1001", json={**good, "points": [[999, 5], *[None] * 6]}, headers=HOST)
    assert outside.status_code == 422 and "ulna is outside the image" in outside.get_json()["error"]
    for asked in ("", "points=1,2", "points=a,b;c,d", "points=1,1;900,900", "points=" + "5,5;" * 7 + "6,6"):
        assert client.get(f"/secret/thumbnails/1001?{asked}", headers=HOST).status_code == 422, asked
    assert not marking.table.exists()


def test_a_conflict_shows_what_is_on_disk(client):
    """The second of two changes from the same version is answered with the result of the first."""
    marks = {"points": [[5, 6], *[None] * 6], "skipped": "", "flagged": False, "seconds": 2.5, "version": ""}
    assert client.put("/secret/hands/1001", json=marks, headers=HOST).get_json()["version"]
    answer = client.put("/secret/hands/1001", json={**marks, "points": [None] * 7}, headers=HOST)
    assert answer.status_code == 409
    assert answer.get_json()["hand"]["points"][0] == [5, 6]


def test_dark_bones_and_turned_hands_are_remarked(hands, tmp_path):
    """The page shows the same remarks as `points check --images`, and a crop that is corrected for both."""
    images = tmp_path / "images"
    images.mkdir()
    marked = read_points(hands / "points.csv")["1003"]
    upright = read_image(hands / "images" / "1003.png")
    cv2.imwrite(str(images / "1.png"), 255 - upright)
    cv2.imwrite(str(images / "2.png"), upright[::-1, ::-1])
    cv2.imwrite(str(images / "3.png"), upright)
    preparation = Recipe.load("paper").preparation
    with opened(images, tmp_path / "points.csv") as marking:
        pictures = Pictures(marking, preparation)
        other = standard_view.turned(marked, 2).points
        assert pictures.remarks("1", marked.points) == ["Bones are dark; the image is inverted for the crop."]
        assert pictures.remarks("2", other) == pictures.remarks("3", marked.points) == []
        assert marking.remarks("2", other) == ["The hand is turned by 180 degrees; it is set upright for the crop."]
        assert pictures.remarks("1", (*marked.points[:6], None)) == []
        crops = [pictures.thumbnail("1", marked.points), pictures.thumbnail("2", other)]
        assert crops == [pictures.thumbnail("3", marked.points)] * 2
