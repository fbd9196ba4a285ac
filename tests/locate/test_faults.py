"""`locate` on folders with unusable files: the other files are not affected, and each hand is stored when done."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time

import cv2
import pytest
from click.testing import CliRunner

from bonecaffe.cli import main
from bonecaffe.errors import ImageError, LocateError
from bonecaffe.hands.images import find_images
from bonecaffe.hands.phantom import dataset
from bonecaffe.hands.provenance import found_file, read_found, write_found
from bonecaffe.hands.reference_points import COLUMNS, read_points
from bonecaffe.locate import locate as finding
from bonecaffe.locate.locator import MODEL
from bonecaffe.progress import unseen


def locate(images, table, *options):
    return CliRunner().invoke(main, ["locate", str(images), "--points", str(table), *map(str, options)])


def test_badly_named_and_missing_files_affect_no_others(own_hands, tmp_path):
    """Names that a table would change, two images of one id, a broken link: listed, and the others are found."""
    images, table = own_hands / "images", tmp_path / "points.csv"
    some = (images / "1003.png").read_bytes()
    for name in (b" lead.png", b"\xff.png", b"tab\tstop.png", b"twice.png"):
        with open(os.path.join(os.fsencode(images), name), "wb") as file:
            file.write(some)
    cut = dataset.make(6, 3, (300, 390))
    cv2.imwrite(str(images / "cut.png"), cut.image[: int(min(y for _, y in cut.points.points[:2])) - 12])
    (images / "deep").mkdir()
    (images / "deep" / "twice.jpg").write_bytes(some)
    (images / "dangling.png").symlink_to(tmp_path / "nowhere.png")
    done = locate(images, table, "--sheet", tmp_path / "sheet.png")
    assert done.exit_code == 0 and (tmp_path / "sheet.png").stat().st_size > 1000, done.output
    for words in (
        " lead.png: unreadable: ",
        "it begins or ends with a space",
        "not UTF-8",
        "control character",
        "two images have the id twice",
        "dangling: unreadable: ",
    ):
        assert words in done.output, done.output
    found = read_points(table)
    assert len(found) >= 10 and set(found) <= {str(number) for number in range(1001, 1013)}
    assert "nothing changed" in locate(images, table).output
    (tmp_path / "nowhere.png").write_bytes(some)
    assert "1 processed" in locate(images, table).output and "dangling" in read_points(table)
    with pytest.raises(ImageError, match="two images have the id"):
        find_images(images)
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / " lead.png").write_bytes(some)
    for _ in range(2):
        refused = locate(tmp_path / "bad", tmp_path / "new.csv")
        assert refused.exit_code == 1 and "begins or ends with a space" in refused.output


def test_killed_before_the_first_hand(own_hands, tmp_path):
    """With another model, there are no results yet: the empty table still counts as written by locate."""
    images, table = own_hands / "images", tmp_path / "points.csv"
    table.write_text(",".join(COLUMNS) + "\n1001" + "," * 16 + "\n")
    with pytest.raises(LocateError, match="not as locate wrote it"):  # as annotate starts one
        finding.locate(images, table, MODEL, unseen, jobs=1)
    write_found(table, {})
    assert finding.locate(images, table, MODEL, unseen, jobs=1)[1] == 12


@pytest.mark.parametrize("again", [False, True], ids=["first time", "changed images"])
def test_killed_locate_continues_after_the_last_hand(own_hands, tmp_path, again):
    """SIGKILL after some hands: their results are stored, and the next call looks only at the others.

    The existing table is still recognized as written by locate.
    """
    images, table = own_hands / "images", tmp_path / "points.csv"
    if again:
        finding.locate(images, table, MODEL, unseen, jobs=1)
        for path in images.iterdir():
            os.utime(path, ns=(0, path.stat().st_mtime_ns + 1_000_000))
    command = [sys.executable, "-m", "bonecaffe", "locate", str(images), "--points", str(table), "--jobs", "1"]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60

    def stored() -> int:
        return found_file(table).read_bytes().count(b"\n") - 1 if found_file(table).exists() else 0

    while not 3 <= stored() < 12 and time.monotonic() < deadline:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    count = len(read_found(table))
    assert 3 <= count < 12 and table.exists() == again
    results, new = finding.locate(images, table, MODEL, unseen, jobs=1)
    assert new == 12 - count and len(results) == 12 and set(read_found(table)) == {each.id for each in results}
    lines = found_file(table).read_text().splitlines()
    assert len(lines) == 13 and lines[1:] == sorted(lines[1:])


def test_the_hand_of_an_incomplete_row_is_found_again(own_hands, tmp_path):
    """As after a full disk, within quotation marks or not."""
    images, table = own_hands / "images", tmp_path / "points.csv"
    finding.locate(images, table, MODEL, unseen, jobs=1)
    whole = found_file(table).read_text()
    for end in ('1013,300,390,"unsu', whole.splitlines()[12][:30]):
        table.unlink()
        found_file(table).write_text(whole[: whole[:-1].rindex("\n") + 1] + end)
        results, new = finding.locate(images, table, MODEL, unseen, jobs=1)
        assert new == 1 and len(results) == 12 and found_file(table).read_text() == whole


def dies(task):
    if task.id == "1005":
        os.kill(os.getpid(), signal.SIGKILL)
    if task.id == "1004":
        time.sleep(1.5)  # it is not done yet when another worker dies, and must not be blamed
    return finding._work(task)


def dies_always(task):
    os.kill(os.getpid(), signal.SIGKILL)


def fails(task):
    with pytest.MonkeyPatch.context() as patched:
        if task.id == "1005":
            patched.setattr(finding.Locator, "find", lambda *given: 1 / 0)
        return finding._work(task)


@pytest.mark.parametrize("jobs", [1, 2])
def test_an_image_that_kills_a_worker_affects_no_others(own_hands, tmp_path, monkeypatch, jobs):
    """As a bug in a decoder would; it is tried again next time. If every worker dies, it is an error."""
    images, table = own_hands / "images", tmp_path / "points.csv"
    with monkeypatch.context() as patched:
        patched.setattr(finding, "_work", dies)
        results, new = finding.locate(images, table, MODEL, unseen, jobs)
    assert new == len(results) == 12
    assert [each.id for each in results if each.verdict.startswith("unreadable: the process")] == ["1005"]
    assert len(read_points(table)) >= 10
    results, new = finding.locate(images, table, MODEL, unseen, jobs)
    assert new == 1 and all(each.confident for each in results if each.id == "1005")
    with monkeypatch.context() as patched, pytest.raises(LocateError, match="a worker process was killed"):
        patched.setattr(finding, "_work", dies_always)
        finding.locate(images, tmp_path / "other.csv", MODEL, unseen, jobs)


def test_a_bug_at_one_image_affects_no_others_and_is_reported(own_hands, tmp_path, monkeypatch):
    """The others are stored first."""
    images, table = own_hands / "images", tmp_path / "points.csv"
    with monkeypatch.context() as patched, pytest.raises(RuntimeError, match=r"1005\.png: ZeroDivisionError"):
        patched.setattr(finding, "_work", fails)
        finding.locate(images, table, MODEL, unseen, 1)
    assert len(read_points(table)) >= 10 and "1005" not in read_found(table)
    assert finding.locate(images, table, MODEL, unseen, 1)[1] == 1


def test_ignored_files_are_counted(hands, tmp_path):
    """Files that by their names are not images are counted by suffix; a folder of only such files is refused."""
    images = tmp_path / "images"
    shutil.copytree(hands / "images", images)
    for name in ("a.nii", "b.NII", "notes", "Thumbs.db", "@eaDir/1001.png"):
        (images / name).parent.mkdir(exist_ok=True)
        (images / name).write_bytes(b"x")
    for path in sorted(images.glob("10*.png"))[1:]:
        path.unlink()
    done = CliRunner().invoke(main, ["locate", str(images), "--points", str(tmp_path / "points.csv")])
    assert done.exit_code == 0 and f"{images}: not images, ignored: 2 .nii, 1 without suffix\n" in done.output
    next(images.glob("10*.png")).unlink()
    done = CliRunner().invoke(main, ["locate", str(images), "--points", str(tmp_path / "points.csv")])
    assert done.exit_code == 1 and "Found instead: 2 .nii, 1 without suffix." in done.output
