"""The table while it is marked: nothing lost, nothing half-written, nobody written over."""

from __future__ import annotations

import csv
import os
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bonecaffe.annotate import marking as marking_module
from bonecaffe.annotate.marking import Conflict, Marking, Marks, opened
from bonecaffe.annotate.server import make_app
from bonecaffe.errors import AnnotateError, PointsError
from bonecaffe.hands.provenance import count_accepted
from bonecaffe.hands.reference_points import COLUMNS, read_points, write_points
from bonecaffe.recipe import Recipe


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


def test_partly_marked_is_kept_and_said(marking, table):
    """Three of seven points are on disk; whoever prepares with them is told which are missing."""
    first = marking.ids[0]
    marks = marking.change(first, Marks(points=((10, 20), (30.04, 20), (50, 60), *[None] * 4)))
    assert marks.version and marks.state == "begun"
    assert table.read_text().splitlines()[1] == f"{first},300,390,10,20,30,20,50,60,,,,,,,,"
    with pytest.raises(PointsError, match=rf"row 2 \(id {first}\): missing phalanx2_x.*annotate"):
        read_points(table)


def test_others_rows_and_columns_stay(hands, table, truth):
    """Rows of hands that are not in the folder, and columns that are not ours, are written back as they were."""
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


def test_a_change_elsewhere_is_no_ones_loss(marking, table, truth):
    """Another program's row is taken up; a change made from an older version is refused, other hands go on."""
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
    """The same state has the same name after a restart: a page that was open before goes on without being asked."""
    with opened(hands / "images", table) as marking:
        seen = marking.change("1001", Marks(points=(*truth["1001"].points[:3], *[None] * 4), seconds=3.0))
    with opened(hands / "images", table) as marking:
        assert marking.marks("1001").version == seen.version
        after = marking.change("1001", replace(seen, points=(*truth["1001"].points[:4], *[None] * 3)))
        assert after.version != seen.version
        with pytest.raises(Conflict):
            marking.change("1001", seen)


def test_a_skipped_hand_is_in_nobodys_way(hands, table, truth):
    """Skipped half-marked or whole: its row is empty, so that nobody uses it or stumbles over it.

    Taken up again, its points are there.
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
    """Points and notes are two files; whichever is written first, a crash before the second loses no point."""
    with opened(hands / "images", table) as marking:
        marks = marking.change("1001", Marks(points=truth["1001"].points))
        if not skip:
            marks = marking.change("1001", replace(marks, skipped="fracture"))
        write, calls = marking_module.write_text, []

        def once(path, content):
            calls.append(path)
            if len(calls) > 1:
                raise KeyboardInterrupt
            write(path, content)

        monkeypatch.setattr(marking_module, "write_text", once)
        with pytest.raises(KeyboardInterrupt):
            marking.change("1001", replace(marks, skipped="fracture" if skip else ""))
    monkeypatch.undo()
    with opened(hands / "images", table) as marking:
        assert marking.marks("1001").points == truth["1001"].points


def test_accepted_suggestions_are_remembered(hands, table, truth):
    """Accepted as they are: counted, whoever copies the table without locate's own file; moved by hand: not."""
    offered = {case_id: truth[case_id] for case_id in ("1001", "1002")}
    with opened(hands / "images", table, offered) as marking:
        marking.change("1001", Marks(points=truth["1001"].points))
        marking.change("1002", Marks(points=((5.0, 6.0), *truth["1002"].points[1:])))
        marking.change("1003", Marks(points=truth["1003"].points))
    assert count_accepted(table) == 1
    with opened(hands / "images", table) as marking:  # without suggestions now
        marks = marking.change("1001", replace(marking.marks("1001"), flagged=True))
        assert count_accepted(table) == 1
        marking.change("1001", replace(marks, points=((5.0, 6.0), *marks.points[1:])))
    assert count_accepted(table) == 0 and count_accepted(hands / "points.csv") == 0


def test_links_that_lead_out_are_not_shown(hands, table, tmp_path):
    """Nothing outside the folder is served, by a link neither; what is left out is known."""
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


def test_wrong_tables_are_refused(hands, table, truth):
    """Another size, a half point, a double id, no header: said with the row, and the file stays as it is."""
    whole = ",".join(COLUMNS) + "\n"
    wrong = {
        "id 1001: marked in 600 x 780, but the image is 300 x 390": whole + "1001,600,780" + ",50" * 14,
        r"row 2 .*ulna has only one coordinate": whole + "1001,300,390,5" + "," * 13,
        r"row 3 .*stands there twice": whole + ("1001,300,390" + ",50" * 14 + "\n") * 2,
        "no column height": "id,width\n1,2",
        "is no number": whole + "1001,300,390,a,b" + ",5" * 12,
    }
    for said, content in wrong.items():
        table.write_text(content)
        with pytest.raises(PointsError, match=said):
            Marking(hands / "images", table)
        assert table.read_text() == content


def test_one_program_at_a_time(marking, hands, table):
    """A second one is told who marks."""
    with pytest.raises(AnnotateError, match=f"process {os.getpid()}"):
        Marking(hands / "images", table)


def test_a_full_disk_loses_nothing(marking, table, truth, monkeypatch):
    """What could not be written is not believed; the next try with the same version writes it."""
    marking.change("1001", Marks(points=truth["1001"].points))
    before = table.read_bytes()

    def full(path, content):
        raise OSError(28, "No space left on device", str(path))

    with monkeypatch.context() as patched:
        patched.setattr(marking_module, "write_text", full)
        with pytest.raises(OSError):
            marking.change("1002", Marks(points=truth["1002"].points))
    assert table.read_bytes() == before and marking.marks("1002").state == "open"
    assert marking.change("1002", Marks(points=truth["1002"].points)).state == "done"


place = st.one_of(st.none(), st.tuples(st.floats(0, 299), st.floats(0, 389)))
change = st.tuples(
    st.sampled_from(["1001", "1002", "1003"]), st.tuples(*[place] * 7), st.text(max_size=9), st.booleans()
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(change, max_size=6))
def test_what_was_said_is_what_is_read(hands, tmp_path_factory, changes):
    """Any course of changes, read again by a new program, gives the last of them."""
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


# ---- what the server answers ------------------------------------------------------------------------------------


@pytest.fixture
def client(marking):
    return make_app(marking, Recipe.load("paper").preparation, "secret", 8123).test_client()


HOST = {"Host": "127.0.0.1:8123"}


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
    """Ids are looked up, never joined into paths; the page's own files are all that is served besides."""
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
    """Nothing from elsewhere may run or be asked; nothing is told to others."""
    answer = client.get("/secret/", headers=HOST)
    assert answer.status_code == 200
    policy = answer.headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy and "script-src 'self'" in policy and "http" not in policy
    assert answer.headers["Referrer-Policy"] == "no-referrer"


def test_nonsense_is_refused(client, marking):
    """Whatever is sent: an answer with words, and nothing written."""
    good = {"points": [None] * 7, "skipped": "", "flagged": False, "seconds": 0, "version": ""}
    for spoiled in (
        {},
        [],
        7,
        {**good, "points": [1]},
        {**good, "points": [[1, "x"]] * 7},
        {**good, "flagged": {}, "seconds": "x"},
        {**good, "seconds": -1},
        {**good, "points": [[999, 5], *[None] * 6]},
        {**good, "points": [[float("nan"), 5], *[None] * 6]},
    ):
        answer = client.put("/secret/hands/1001", json=spoiled, headers=HOST)
        assert answer.status_code == 422 and answer.get_json()["error"], spoiled
    for asked in ("", "points=1,2", "points=a,b;c,d", "points=1,1;900,900", "points=" + "5,5;" * 7 + "6,6"):
        assert client.get(f"/secret/thumbnails/1001?{asked}", headers=HOST).status_code == 422, asked
    assert not marking.table.exists()


def test_conflict_shows_what_is_there(client):
    """The second of two changes from the same version gets what the first made of it."""
    marks = {"points": [[5, 6], *[None] * 6], "skipped": "", "flagged": False, "seconds": 2.5, "version": ""}
    assert client.put("/secret/hands/1001", json=marks, headers=HOST).get_json()["version"]
    answer = client.put("/secret/hands/1001", json={**marks, "points": [None] * 7}, headers=HOST)
    assert answer.status_code == 409
    assert answer.get_json()["hand"]["points"][0] == [5, 6]
