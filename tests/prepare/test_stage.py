"""prepare: it packs what was requested, names every fault, and leaves nothing incomplete."""

from __future__ import annotations

import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import threading
import time

import cv2
import numpy as np
import pandas
import pytest
from conftest import REPOSITORY, edit_table, prepare_run, small_file_system, tiny

from bonecaffe import files
from bonecaffe.caffe import lmdb, programs
from bonecaffe.errors import BonecaffeError, CasesError, ImageError, PointsError, PrepareError, RunError
from bonecaffe.hands import standard_view
from bonecaffe.hands.cases import read_cases
from bonecaffe.hands.images import find_images, read_image
from bonecaffe.hands.reference_points import read_points, write_points
from bonecaffe.prepare import imageset, normalize, normalized, prepare
from bonecaffe.run import SPLITS, RunDir
from bonecaffe.studies import verify


def outputs(run):
    """Every file of a run except its lock, with its bytes (an LMDB's lock.mdb left out)."""
    return {
        str(p.relative_to(run.path)): p.read_bytes()
        for p in sorted(run.path.rglob("*"))
        if p.is_file() and p.name not in (".lock", "lock.mdb")
    }


def test_lmdbs_hold_every_case_label_and_pixel(prepared, hands):
    """Read back: keys in the order of the list, whole months, three equal channels of the normalized hand."""
    ages = {case.id: case.boneage_months for case in read_cases(hands / "ages.csv")}
    points, files, recipe = read_points(hands / "points.csv"), find_images(hands / "images"), prepared.recipe()
    seen = []
    for split in SPLITS:
        listed = [line.rsplit(" ", 1) for line in prepared.list_file(split).read_text().splitlines()]
        packed = list(lmdb.records(prepared.lmdb(split)))
        assert [key for key, _, _ in packed] == [f"{i:08d}_{path}" for i, (path, _) in enumerate(listed)]
        for (path, written), (_, label, pixels) in zip(listed, packed, strict=True):
            case_id = path.removesuffix(".png")
            assert label == ages[case_id] == int(written)
            expected = normalize.normalize(read_image(files[case_id]), points[case_id], recipe.preparation)
            assert np.array_equal(pixels, np.stack([expected] * 3))
            assert np.array_equal(read_image(prepared.image(case_id)), expected)
            seen.append(case_id)
    assert len(seen) == len(set(seen)) == 12
    assert prepared.read().prepare.records == {"train": 8, "test": 4}


@pytest.mark.parametrize("which", ["phantoms", "real"])
def test_bytes_equal_the_papers_own_command(which, hands, tmp_path, request):
    """`convert_imageset -resize_height 224 -resize_width 224` on full-size equalized crops packs the same bytes."""
    data = hands if which == "phantoms" else request.getfixturevalue("real_hands")
    images, recipe = find_images(data / "images"), tiny(data__train_cases=8, data__test_cases=4)
    run = RunDir(tmp_path / "run")
    prepare.prepare(run, data / "images", data / "ages.csv", data / "points.csv", recipe)
    points = read_points(data / "points.csv")
    full = tmp_path / "full"
    full.mkdir()
    for split in SPLITS:
        for line in run.list_file(split).read_text().splitlines():
            case_id = line.rsplit(" ", 1)[0].removesuffix(".png")
            crop = normalize.equalized_crop(read_image(images[case_id]), points[case_id], recipe.preparation)
            assert crop.shape != (224, 224)
            cv2.imwrite(str(full / f"{case_id}.png"), crop)
        programs.call(
            "convert_imageset",
            [
                "-resize_height",
                "224",
                "-resize_width",
                "224",
                f"{full}/",
                str(run.list_file(split)),
                str(tmp_path / split),
            ],
        )
        ours, theirs = list(lmdb.records(run.lmdb(split))), list(lmdb.records(tmp_path / split))
        assert [record[:2] for record in ours] == [record[:2] for record in theirs]
        assert all(np.array_equal(a[2], b[2]) for a, b in zip(ours, theirs, strict=True))


def test_again_with_nothing_changed_does_nothing(prepared, hands, own_run):
    """And reports that; a changed table or recipe is noticed."""
    before = outputs(own_run)
    arguments = (hands / "images", hands / "ages.csv", hands / "points.csv")
    assert prepare.prepare(own_run, *arguments, tiny()).made is False
    assert outputs(own_run) == before
    assert prepare.prepare(own_run, *arguments, tiny(preparation__margin=0.1)).made is True
    assert outputs(own_run) != before


def test_order_and_seed_decide_the_bytes(hands, prepared, tmp_path):
    """The same seed gives the same LMDB, byte for byte; one process or two."""
    again = prepare_run(tmp_path / "again", hands, workers=1)
    for split in SPLITS:
        assert again.list_file(split).read_bytes() == prepared.list_file(split).read_bytes()
        assert [r[2].tobytes() for r in lmdb.records(again.lmdb(split))] == [
            r[2].tobytes() for r in lmdb.records(prepared.lmdb(split))
        ]
    other = prepare_run(tmp_path / "other", hands, tiny(data__split_seed=99))
    assert other.list_file("train").read_bytes() != prepared.list_file("train").read_bytes()


def spoil_image(data, how):
    path = sorted((data / "images").glob("*.png"))[0]
    content = path.read_bytes()
    if how == "cut":
        path.write_bytes(content[: len(content) // 2])
    elif how == "damaged":
        path.write_bytes(content[:3000] + bytes(200) + content[3200:])
    elif how == "gone":
        path.unlink()
    elif how == "other size":
        cv2.imwrite(str(path), cv2.imread(str(path), 0)[:-1])
    elif how == "colour":
        image = cv2.imread(str(path))
        image[..., 0] //= 2
        cv2.imwrite(str(path), image)
    return path


BAD = {
    "cut": (ImageError, PointsError, PrepareError),
    "damaged": (PrepareError,),
    "gone": (ImageError,),
    "other size": (PointsError,),
    "colour": (PrepareError,),
}


@pytest.mark.parametrize("how", BAD)
def test_bad_image_is_named_and_nothing_is_left(own_hands, tmp_path, how):
    """Cut off, damaged, missing, of another size than in its points, in colour."""
    path = spoil_image(own_hands, how)
    with pytest.raises(BAD[how]) as error:
        prepare_run(tmp_path / "run", own_hands)
    assert path.stem in str(error.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("file", "cells", "error", "message"),
    [
        ("ages.csv", {"boneage": "126.5"}, PrepareError, r"1 of 12 ages are not whole months: 1001 \(126.5\)"),
        ("ages.csv", {"boneage": "abc"}, CasesError, "row 2"),
        ("ages.csv", {"id": "1002"}, CasesError, "is already in row 2"),
        ("points.csv", {"radius_x": ""}, PointsError, "row 2.*missing radius_x"),
        ("points.csv", {"radius_x": "4000"}, PointsError, "row 2.*outside"),
        ("points.csv", {"id": "1002"}, PointsError, "is already in row 2"),
        ("points.csv", {"width": "301"}, PointsError, "1001"),
        ("points.csv", {"id": "77"}, CasesError, "first without points: 1001"),
    ],
)
def test_bad_row_is_named_and_nothing_is_left(own_hands, tmp_path, file, cells, error, message):
    """Ages and points: each faulty cell gives its own error."""
    edit_table(own_hands / file, **cells)
    with pytest.raises(error, match=f"(?s){message}"):
        prepare_run(tmp_path / "run", own_hands)
    assert not (tmp_path / "run").exists()


def test_failure_leaves_the_prepared_run_as_it_was(own_hands, tmp_path):
    """Nothing is lost when a second prepare fails."""
    run = prepare_run(tmp_path / "run", own_hands)
    before = outputs(run)
    spoil_image(own_hands, "damaged")
    with pytest.raises(BonecaffeError):
        prepare_run(run.path, own_hands)
    assert outputs(run) == before


def test_half_written_lmdb_is_replaced(own_run, hands):
    """An LMDB cut off by a crash is noticed and rebuilt; one in the way of convert_imageset is refused."""
    data = own_run.lmdb("train") / "data.mdb"
    data.write_bytes(data.read_bytes()[:5000])
    assert prepare.prepare(own_run, hands / "images", hands / "ages.csv", hands / "points.csv", tiny()).made is True
    assert len(list(lmdb.records(own_run.lmdb("train")))) == 8
    with pytest.raises(PrepareError, match="already exists"):
        imageset.convert(own_run.images, own_run.list_file("train"), own_run.lmdb("train"), tiny().preparation)


@pytest.mark.parametrize(("mask", "folder", "file"), [(0o022, 0o755, 0o644), (0o027, 0o750, 0o640)])
def test_lmdbs_have_the_permissions_that_the_umask_leaves(hands, tmp_path, mask, folder, file):
    """Caffe makes their folder with mode 0744, which another user of the run cannot enter; exact labels too."""
    before = os.umask(mask)
    try:
        run = prepare_run(tmp_path / "run", hands, tiny(data__labels="exact"), workers=1)
    finally:
        os.umask(before)
    for split in SPLITS:
        for lmdb_folder in (run.lmdb(split), run.labels_lmdb(split)):
            assert stat.S_IMODE(lmdb_folder.stat().st_mode) == folder, lmdb_folder
            modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in lmdb_folder.iterdir()}
            assert set(modes.values()) == {file}, modes
    for path in [run.path, *run.path.rglob("*")]:
        assert stat.S_IMODE(path.stat().st_mode) == (folder if path.is_dir() else file), path


def test_skipped_image_is_noticed(own_run):
    """convert_imageset skips what it cannot read and exits 0; the audit names the first missing image."""
    recipe, cases = own_run.recipe(), read_cases(own_run.cases_file)[:8]
    hashes = {case_id: case.pixels_sha256 for case_id, case in own_run.read().prepare.cases.items()}
    own_run.image(cases[3].id).write_bytes(b"not a png")
    target = own_run.path / "again_lmdb"
    imageset.convert(own_run.images, own_run.list_file("train"), target, recipe.preparation)
    with pytest.raises(PrepareError, match=f"holds 7 records for 8 listed cases; first missing: {cases[3].id}"):
        imageset.audit(target, cases, hashes, recipe.preparation)


def test_every_wrong_record_is_noticed(own_run):
    """Another label, another order, another size, another pixel."""
    recipe, cases = own_run.recipe(), read_cases(own_run.cases_file)[:8]
    hashes = {case_id: case.pixels_sha256 for case_id, case in own_run.read().prepare.cases.items()}
    lines = own_run.list_file("train").read_text().splitlines()

    def packed(name, listed, folder=own_run.images, size=recipe.preparation):
        (own_run.path / f"{name}.txt").write_text("\n".join(listed) + "\n")
        imageset.convert(folder, own_run.path / f"{name}.txt", own_run.path / name, size)
        return own_run.path / name

    assert imageset.audit(packed("same", lines), cases, hashes, recipe.preparation) == 8
    path, label = lines[2].rsplit(" ", 1)
    wrong = {
        "label": (packed("label", [*lines[:2], f"{path} {int(label) + 1}", *lines[3:]]), "has label"),
        "order": (packed("order", [lines[1], lines[0], *lines[2:]]), "is where another record was expected"),
        "more": (packed("more", [*lines, lines[0]]), "holds 9 records for 8"),
        "size": (packed("size", lines, size=tiny(preparation__height=100).preparation), "not \\(3, 224, 224\\)"),
    }
    other = own_run.path / "other"
    shutil.copytree(own_run.images, other)
    image = read_image(other / path)
    image[0, 0] ^= 1
    cv2.imwrite(str(other / path), image)
    wrong["pixel"] = (packed("pixel", lines, folder=other), "its pixels differ")
    for database, message in wrong.values():
        with pytest.raises(PrepareError, match=message):
            imageset.audit(database, cases, hashes, recipe.preparation)


def test_training_hands_are_packed_while_test_hands_are_normalized(hands, prepared, tmp_path, monkeypatch):
    """The first test hand waits here until the training hands are packed: without end if they waited for it."""
    packed, start, normalize_file = threading.Event(), imageset.Conversion, normalized.normalize_file

    def start_and_tell(*given):
        conversion = start(*given)
        threading.Thread(target=lambda: (conversion._call._process.wait(), packed.set())).start()
        return conversion

    def wait_and_normalize(job):
        assert job.id not in tests or packed.wait(60)
        return normalize_file(job)

    tests = set(prepared.read().prepare.split["test"])
    monkeypatch.setattr(imageset, "Conversion", start_and_tell)
    monkeypatch.setattr(normalized, "normalize_file", wait_and_normalize)
    run = prepare_run(tmp_path / "run", hands, workers=1)
    for split in SPLITS:
        ours, theirs = lmdb.records(run.lmdb(split)), lmdb.records(prepared.lmdb(split))
        assert all(a[:2] == b[:2] and np.array_equal(a[2], b[2]) for a, b in zip(ours, theirs, strict=True))


def test_bad_test_hand_undoes_the_packed_training_hands(own_hands, prepared, tmp_path):
    """A damaged image that is met after the training hands were packed: named, and nothing is left."""
    path = own_hands / "images" / f"{prepared.read().prepare.split['test'][-1]}.png"
    content = path.read_bytes()
    path.write_bytes(content[:3000] + bytes(200) + content[3200:])
    with pytest.raises(PrepareError, match=path.stem):
        prepare_run(tmp_path / "run", own_hands)
    assert not (tmp_path / "run").exists()


def test_only_added_images_are_normalized(hands, tmp_path, monkeypatch):
    """Nine hands prepared, then twelve: three are normalized, in whichever split the nine were."""
    table = pandas.read_csv(hands / "ages.csv", dtype=str)
    nine = tmp_path / "nine.csv"
    table[:9].to_csv(nine, index=False)
    run = RunDir(tmp_path / "run")
    recipe = tiny(data__train_cases=5, data__test_cases=4)
    prepare.prepare(run, hands / "images", nine, hands / "points.csv", recipe)
    done, normalize_file = [], normalized.normalize_file
    monkeypatch.setattr(normalized, "normalize_file", lambda job: done.append(job.id) or normalize_file(job))
    prepare_run(run.path, hands)
    assert sorted(done) == sorted(table.id[9:])
    assert run.read().prepare.records == {"train": 8, "test": 4}


def test_two_at_once_are_refused(own_run, hands):
    """One run, one writer."""
    with own_run.lock("test"), pytest.raises(RunError, match="in use by bonecaffe test"):
        prepare_run(own_run.path, hands, tiny(data__split_seed=1))


def session(pid: str) -> int:
    """The session of a process; -1 when it has ended."""
    try:
        return os.getsid(int(pid))
    except ProcessLookupError:
        return -1


def test_pixels_of_other_points_are_not_reused(hands, tmp_path, monkeypatch):
    """Killed between image and journal, with other points than before and after: the image is rebuilt."""
    data = tmp_path / "data"
    shutil.copytree(hands, data)
    write_text, first = prepare.write_cases, (data / "points.csv").read_text()

    def killed(*given):
        raise KeyboardInterrupt

    monkeypatch.setattr(prepare, "write_cases", killed)
    with pytest.raises(KeyboardInterrupt):
        prepare_run(tmp_path / "run", data)
    work = tmp_path / "run" / ".prepare"
    journal = (work / "journal.jsonl").read_bytes()
    edit_table(data / "points.csv", ulna_x="20", phalanx5_y="90")
    with pytest.raises(KeyboardInterrupt):
        prepare_run(tmp_path / "run", data)
    (work / "journal.jsonl").write_bytes(journal)  # the last line did not reach the disk
    (data / "points.csv").write_text(first)
    monkeypatch.setattr(prepare, "write_cases", write_text)
    run = prepare_run(tmp_path / "run", data)
    assert run.read().prepare.records == {"train": 8, "test": 4}


def test_killed_prepare_continues(tmp_path):
    """kill -9 during the work; the second run finds finished images, and the result is that of an undisturbed one.

    The workers end with the process that was killed: none of them writes during the second run.
    """
    from bonecaffe.hands.phantom import dataset

    data = tmp_path / "data"
    dataset.write(data, 120, 8, (500, 650))
    recipe = tiny(data__train_cases=80, data__test_cases=40)
    (tmp_path / "recipe.yaml").write_text(recipe.to_yaml())
    command = [
        sys.executable,
        "-m",
        "bonecaffe",
        "prepare",
        str(tmp_path / "run"),
        "--images",
        str(data / "images"),
        "--ages",
        str(data / "ages.csv"),
    ]
    command += ["--points", str(data / "points.csv"), "--recipe", str(tmp_path / "recipe.yaml"), "--jobs", "2"]
    process = subprocess.Popen(command, cwd=REPOSITORY, stderr=subprocess.DEVNULL, start_new_session=True)
    journal = tmp_path / "run" / ".prepare" / "journal.jsonl"
    deadline = time.monotonic() + 300
    while not (journal.exists() and len(journal.read_text().splitlines()) >= 5):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.005)
    process.kill()  # alone, as the kernel does when memory runs out
    process.wait()
    assert not (tmp_path / "run" / "train_lmdb").exists()
    while family := [pid for pid in filter(str.isdigit, os.listdir("/proc")) if session(pid) == process.pid]:
        assert time.monotonic() < deadline, f"its workers live on: {family}"
        time.sleep(0.05)
    finished = len(journal.read_text().splitlines())
    counts = []
    run = prepare_run(tmp_path / "run", data, recipe, progress=lambda done, total: counts.append(done))
    assert counts[0] > finished >= 5 and counts[-1] == 120
    clean = prepare_run(tmp_path / "clean", data, recipe)
    assert {name: content for name, content in outputs(run).items() if name.startswith("images")} == {
        name: content for name, content in outputs(clean).items() if name.startswith("images")
    }
    assert not (run.path / ".prepare").exists()


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 1.5 MB, where this user may mount one."""
    with small_file_system(tmp_path / "small", "1500k") as folder:
        yield folder


def test_full_disk_is_reported_and_nothing_is_left(hands, small_disk, monkeypatch):
    """Before the work where it is predictable, and during it where it is not."""
    with pytest.raises(PrepareError, match="disk is full"):
        prepare_run(small_disk / "run", hands)
    assert list(small_disk.iterdir()) == []
    monkeypatch.setattr(prepare, "_check_space", lambda run, jobs: None)
    with pytest.raises((PrepareError, OSError)) as error:
        prepare_run(small_disk / "run", hands)
    assert "full" in str(error.value) or "No space left" in str(error.value)
    assert list(small_disk.iterdir()) == []


def test_manifest_holds_no_path_and_every_hash(prepared):
    """Names and hashes, so that a run can be shown to others."""
    text = prepared.manifest_file.read_text()
    assert str(prepared.path.parent) not in text
    cases = json.loads(text)["prepare"]["cases"]
    assert len(cases) == 12
    assert all(len(entry["source_sha256"]) == len(entry["pixels_sha256"]) == 64 for entry in cases.values())


def test_real_hands_are_prepared(real_hands, tmp_path):
    """Real images, ages and points pass through; hands without an age are counted."""
    run = prepare_run(tmp_path / "run", real_hands, tiny(data__train_cases=39, data__test_cases=20))
    record = run.read().prepare
    assert record.records == {"train": 39, "test": 20} and record.left_out == {"without an age": 5}


def test_refused_second_prepare_leaves_the_first_alone(own_run, hands):
    """The refused one removes nothing of the one at work."""
    work = own_run.path / ".prepare"
    work.mkdir()
    (work / "images").mkdir()
    with own_run.lock("prepare"), pytest.raises(RunError):
        prepare_run(own_run.path, hands, tiny(data__split_seed=1))
    assert (work / "images").is_dir()


class KillsItsWorker(normalized.Job):
    """A job that kills the worker process it is sent to, as the kernel does when memory runs out."""

    def __reduce__(self):
        return signal.raise_signal, (signal.SIGKILL,)


def test_killed_worker_is_an_error_not_a_wait(hands, tmp_path, monkeypatch):
    """A killed worker process is reported, and nothing is left."""
    all_jobs = prepare.jobs_of

    def last_one_kills(*given):
        *jobs, last = all_jobs(*given)
        return [*jobs, KillsItsWorker(**vars(last))]

    monkeypatch.setattr(prepare, "jobs_of", last_one_kills)
    with pytest.raises(PrepareError, match="worker process was killed"):
        prepare_run(tmp_path / "run", hands, tiny(), workers=2)
    assert not (tmp_path / "run").exists()


def test_turned_and_dark_images_are_corrected_and_declared(hands, tmp_path):
    """A run of hands stored turned or inverted packs the bytes of the upright ones, and reports the changes."""
    odd = tmp_path / "odd"
    shutil.copytree(hands, odd)
    marked, images = read_points(hands / "points.csv"), find_images(odd / "images")
    turns = {"1002": 1, "1005": 2, "1007": 3}
    dark = ["1003", "1005"]
    for case_id in {*turns, *dark}:
        image = np.rot90(read_image(images[case_id]), turns.get(case_id, 0))
        cv2.imwrite(str(images[case_id]), 255 - image if case_id in dark else image)
        marked[case_id] = standard_view.turned(marked[case_id], turns.get(case_id, 0))
    write_points(odd / "points.csv", marked.values())
    recipe = tiny(data__train_cases=8, data__test_cases=4)
    runs = {}
    for name, data in (("plain", hands), ("odd", odd)):
        runs[name] = RunDir(tmp_path / f"run {name}")
        done = prepare.prepare(runs[name], data / "images", data / "ages.csv", data / "points.csv", recipe)
        assert bool(done.remarks) == (name == "odd"), done.remarks
    assert "3 hands were turned upright, counter-clockwise, in degrees: " in done.remarks[0]
    assert "1002 (270)" in done.remarks[0] and "1005 (180)" in done.remarks[0] and "1007 (90)" in done.remarks[0]
    assert "2 images have dark bones, inverted for the crop: " in done.remarks[1]
    for split in SPLITS:
        plain, odd_ones = (
            [(i, label, x.tobytes()) for i, label, x in lmdb.records(run.lmdb(split))] for run in runs.values()
        )
        assert plain == odd_ones and plain
    again = prepare.prepare(runs["odd"], odd / "images", odd / "ages.csv", odd / "points.csv", recipe)
    assert not again.made and again.remarks == done.remarks  # what was done is on record


KILLED = """
import os, signal, sys
from bonecaffe.cli import main
from bonecaffe.prepare import outputs
real, count = outputs.move, 0
limit = int(sys.argv.pop(1))
def move(source, target):
    global count
    real(source, target)
    count += 1
    if count == limit:
        os.kill(os.getpid(), signal.SIGKILL)
outputs.move = move
main()
"""


@pytest.mark.parametrize("after", [1, 3, 8])
def test_prepare_killed_in_its_swap_does_not_orphan_a_model(own_trained, hands, after):
    """A repair of a trained run is killed between two moves: other hands are refused, the same ones repair it."""
    given = ["--images", hands / "images", "--ages", hands / "ages.csv", "--points", hands / "points.csv"]
    own_trained.cases_file.unlink()
    call = ["prepare", own_trained.path, *given, "--jobs", "1"]
    killed = subprocess.run(
        [sys.executable, "-c", KILLED, str(after), *map(str, call)], capture_output=True, check=False
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    again = [sys.executable, "-m", "bonecaffe", *map(str, call)]
    other = subprocess.run([*again, "--seed", "7"], capture_output=True, text=True, check=False)
    assert other.returncode == 1 and "holds a trained model" in other.stderr
    assert (own_trained.work / "old" / "images").is_dir()  # the refusal has not removed the only earlier copies
    same = subprocess.run(again, capture_output=True, text=True, check=False)
    assert same.returncode == 0, same.stderr
    assert verify.first_broken(verify.verify(own_trained)) is None


@pytest.mark.parametrize("where", ["write_recipe", "record"])
def test_a_failed_swap_is_undone(own_trained, hands, where, monkeypatch):
    """The disk is full when the new preparation is recorded: the earlier files, recipe and record are restored."""
    own_trained.cases_file.unlink()
    before = {path: path.read_bytes() for path in own_trained.path.rglob("*") if path.is_file()}

    def full(self, *given):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(RunDir, where, full)
    arguments = (hands / "images", hands / "ages.csv", hands / "points.csv", own_trained.recipe())
    with pytest.raises(OSError, match="No space"):
        prepare.prepare(own_trained, *arguments, workers=1)
    monkeypatch.undo()
    after = {path: path.read_bytes() for path in own_trained.path.rglob("*") if path.is_file()}
    assert after == before
    assert prepare.prepare(own_trained, *arguments, workers=1).made
    assert verify.first_broken(verify.verify(own_trained)) is None


def test_a_model_without_its_preparation_on_record_is_guarded(own_trained, hands):
    """However the record was lost: another split is refused, the same hands prepare it again."""
    own_trained.forget("prepare")
    other = own_trained.recipe().with_values({"data.split_seed": 7}, "test")
    arguments = (hands / "images", hands / "ages.csv", hands / "points.csv")
    with pytest.raises(RunError, match="holds a trained model, and its preparation was interrupted"):
        prepare.prepare(own_trained, *arguments, other)
    prepare.prepare(own_trained, *arguments, own_trained.recipe())
    assert verify.first_broken(verify.verify(own_trained)) is None


def test_a_folder_that_another_process_made_or_holds_is_not_removed(tmp_path):
    """Of two processes that make a folder at once, one made it; the holder keeps it when the other fails."""
    with pytest.raises(ValueError, match="mine"), files.folder_made(tmp_path / "a" / "b") as new:
        assert new
        raise ValueError("mine")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ValueError, match="theirs"), files.folder_made(tmp_path / "run"):
        (tmp_path / "run" / "work").mkdir()
        with RunDir(tmp_path / "run").lock("prepare"):
            raise ValueError("theirs")
    assert not (tmp_path / "run").exists()  # the lock was released, so no process holds it
    holding = RunDir(tmp_path / "run").lock("prepare")
    with pytest.raises(ValueError, match="busy"), files.folder_made(tmp_path / "run"):
        holding.__enter__()
        raise ValueError("busy")
    assert (tmp_path / "run" / ".lock").exists()
    holding.__exit__(None, None, None)


def test_two_first_prepares_leave_one_run(hands, tmp_path):
    """Both are called at once on a new folder: at least one prepares it, and its outputs exist."""
    call = [sys.executable, "-m", "bonecaffe", "prepare", tmp_path / "run", "--images", hands / "images"]
    call += ["--ages", hands / "ages.csv", "--points", hands / "points.csv", "--recipe", "smoke"]
    call += ["--train", "8", "--test", "4"]
    both = [subprocess.Popen([*map(str, call)], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) for _ in range(2)]
    errors = [process.communicate()[1].decode() for process in both]
    assert 0 in {process.returncode for process in both}, errors
    assert all(process.returncode == 0 or "in use" in error for process, error in zip(both, errors, strict=True)), (
        errors
    )
    assert verify.first_broken(verify.verify(RunDir(tmp_path / "run"))) is None
