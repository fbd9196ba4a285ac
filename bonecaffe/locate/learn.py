"""Train the locator: variations of phantoms and of the user's marked hands in LMDBs; then ``caffe train``, twice."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack, closing
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from bonecaffe.caffe import programs, snapshots
from bonecaffe.caffe.lmdb import Writer
from bonecaffe.errors import LocateError
from bonecaffe.files import copy_file, held, make_folder, read_text, remove, write_text
from bonecaffe.hands import ids
from bonecaffe.hands.images import find_images, missing, read_image
from bonecaffe.hands.phantom import dataset
from bonecaffe.hands.reference_points import ReferencePoints, read_points
from bonecaffe.locate import frames, network, variation
from bonecaffe.locate.locator import MODEL
from bonecaffe.progress import Progress, unseen
from bonecaffe.records import Launch, State
from bonecaffe.run import RunDir
from bonecaffe.training import preflight
from bonecaffe.training.alarms import Alarms, DiskRoom
from bonecaffe.training.drive import Say, drive, silent
from bonecaffe.workers import in_parallel

VIEWS = ("whole", "near")
WORK = ".train-locator"
"""The work folder of a training in OUT; used for nothing else, and removed at the end."""
BATCH = 32
_PHANTOM_SIZE = (420, 546)


@dataclass(frozen=True)
class Plan:
    """What the locator will learn from, and for how long."""

    phantoms: int = 9000
    variations: int = 10
    """Of each phantom, for each of the two nets."""
    iterations: tuple[int, int] = (2500, 8000)
    """Of the net that sees the whole image, and of the net that sees the hand from near; batches of 32."""
    rate: float = 0.001
    seed: int = 1
    own_variations: int = 0
    """Of each of the user's hands."""
    tests: int = 200
    """Phantoms, each varied twice, that are used only in the test passes."""


FROM_SCRATCH = Plan()
IMPROVE = Plan(phantoms=800, variations=4, iterations=(400, 1000), rate=0.0003, own_variations=120)
"""From an existing locator, with the user's own marked hands."""

Hand = tuple[str, tuple[tuple[float, float], ...]]
"""An image's path and the seven points in it."""
Task = tuple[int, int, int, "Hand | None"]
"""Seed, number, how many variations; the hand, or None for the phantom of that number."""
Show = Callable[[str], AbstractContextManager[Progress]]
"""Shows the progress of a part of the work under its name."""


# ---- the training data -------------------------------------------------------------------------------------------


def _vary(task: Task) -> list[tuple[np.ndarray, np.ndarray]]:
    """The variations of one hand: for each view, the squares (n, SIDE, SIDE) and the labels (n, 14)."""
    seed, number, count, hand = task
    rng = np.random.default_rng([seed, number, 7])
    if hand is None:
        age = int(rng.integers(2, dataset.AGES_MONTHS[1] + 1))
        phantom = dataset.make(seed, number, _PHANTOM_SIZE, age_months=age)
        pixels, points = phantom.image, np.array(phantom.points.points)
    else:
        pixels, points = read_image(hand[0]), np.array(hand[1])
    image = frames.Pyramid(pixels)
    made = []
    for view in VIEWS:
        samples = [variation.draw(image, points, view, rng) for _ in range(count)]
        labels = [(sample.places * frames.LABEL_SCALE).ravel() for sample in samples]
        made.append((np.stack([sample.square for sample in samples]), np.stack(labels)))
    return made


def _write(
    runs: dict[str, RunDir],
    split: str,
    tasks: Sequence[Task],
    rng: np.random.Generator,
    progress: Callable[[int], None],
) -> None:
    """Write the squares and the labels of a split, for both views, in random order; keys are numbers."""
    Datum = programs.caffe_pb2().Datum
    total = sum(count for _, _, count, _ in tasks)
    size = (1 << 26) + total * (frames.SIDE**2 + 8192) * 2
    order = rng.permutation(total)
    with ExitStack() as stack:
        stores = {}
        for view, run in runs.items():
            for kind, path in (("squares", run.lmdb(split)), ("labels", run.labels_lmdb(split))):
                remove(path)
                stores[view, kind] = stack.enter_context(Writer(path, size, sync=False))
        done = 0
        variations = in_parallel(_vary, tasks, len(os.sched_getaffinity(0)), LocateError)
        for made in stack.enter_context(closing(variations)):
            count = len(made[0][0])
            keys = [f"{order[done + offset]:08d}" for offset in range(count)]
            for view, (squares, labels) in zip(VIEWS, made, strict=True):
                images = (Datum(channels=1, height=frames.SIDE, width=frames.SIDE, data=s.tobytes()) for s in squares)
                places = (Datum(channels=network.OUTPUTS, height=1, width=1, float_data=v.tolist()) for v in labels)
                for kind, data in (("squares", images), ("labels", places)):
                    stores[view, kind].put((k, d.SerializeToString()) for k, d in zip(keys, data, strict=True))
            done += count
            progress(done)


# ---- the training ------------------------------------------------------------------------------------------------


def at_work(out: Path) -> AbstractContextManager[int]:
    """Hold a locator's folder while it is trained; LocateError when another process holds it."""

    def busy(holder: str) -> LocateError:
        return LocateError(f"{out}: in use by {holder or 'another process'}. Wait for it, or give another folder.")

    out.mkdir(parents=True, exist_ok=True)
    return held(out / ".lock", "train-locator", busy)


def train_locator(
    out: Path,
    images: Path | None,
    table: Path | None,
    start: Path | None,
    phantoms: int | None,
    iterations: int | None,
    seed: int,
    show: Show,
    say: Say,
) -> None:
    """Train a locator into a new folder ``out``, on phantoms, or improve one with the hands that ``table`` marks.

    ``start`` is the locator to start from; with own hands, by default the one that comes with bonecaffe. ``phantoms``
    and ``iterations`` are those of the plan when None. An interrupted training is continued. Raises LocateError.
    """
    own = _own_hands(images, table) if images is not None and table is not None else []
    plan = IMPROVE if own else FROM_SCRATCH
    start = start or (MODEL if own else None)
    plan = replace(plan, seed=seed, phantoms=phantoms or plan.phantoms)
    if iterations:
        plan = replace(plan, iterations=(iterations, iterations))
    with at_work(out):
        with show("variations") as progress:
            prepare(out, plan, own, start, progress, say)
        for view in VIEWS:
            with show(f"train {view}") as progress:
                train_view(out, view, plan, start, progress, say)
        finish(out, plan, len(own))


def _own_hands(images: Path, table: Path) -> list[tuple[Path, ReferencePoints]]:
    marked, files = read_points(table), find_images(images)
    if imageless := missing(marked, files):
        raise LocateError(f"{images}: no image of {ids.listed(imageless, files)}, which {table} has points of.")
    if not marked:
        raise LocateError(f"{table}: contains no marked hand to learn from.")
    return [(files[case_id], hand) for case_id, hand in marked.items()]


def _run(out: Path, view: str) -> RunDir:
    return RunDir(out / WORK / view)


def prepare(
    out: Path,
    plan: Plan,
    hands: Sequence[tuple[Path, ReferencePoints]] = (),
    start: Path | None = None,
    progress: Progress = unseen,
    say: Say = silent,
) -> None:
    """Write what a locator in the new folder ``out`` will learn from.

    It is kept in ``OUT/.train-locator`` while it is needed. ``hands`` are the user's marked hands, ``start`` a locator
    to start from. Raises LocateError.
    """
    if (out / "locator.json").exists():
        raise LocateError(f"{out}: already contains a locator. Give another folder, or remove this one.")
    if start is not None and not (start / "near.caffemodel").is_file():
        raise LocateError(f"{start}: no locator here to start from.")
    own = [(str(path.resolve()), points.points) for path, points in hands]
    note = out / WORK / "plan.json"
    expected = json.dumps({"plan": asdict(plan), "own": own, "start": str(start and start.resolve())})
    if note.is_file() and read_text(note, "record", LocateError) == expected:
        say("the training data already exists")
        return
    if any(snapshots.newest_complete(_run(out, view).snapshots) for view in VIEWS):
        raise LocateError(
            f"{out}: contains an unfinished training with other hands, options or files. Repeat the earlier "
            f"command to continue it, or remove {out / WORK} to start again."
        )
    remove(out / WORK)
    (out / WORK).mkdir(parents=True)
    runs = {view: _run(out, view) for view in VIEWS}
    for run in runs.values():
        make_folder(run.path)
    train: list[Task] = [(plan.seed, number, plan.variations, None) for number in range(plan.phantoms)]
    train += [(plan.seed, 10**6 + number, plan.own_variations, hand) for number, hand in enumerate(own)]
    test: list[Task] = [(plan.seed + 1, number, 2, None) for number in range(plan.tests)]
    rng = np.random.default_rng(plan.seed)
    before, after = (sum(count for _, _, count, _ in tasks) for tasks in (train, test))
    _write(runs, "train", train, rng, lambda done: progress(done, before + after))
    _write(runs, "test", test, rng, lambda done: progress(before + done, before + after))
    write_text(note, expected)


def train_view(
    out: Path,
    view: str,
    plan: Plan,
    start: Path | None = None,
    progress: Progress = unseen,
    say: Say = silent,
) -> None:
    """Train the net of one view to its last iteration, from the newest snapshot when there is one.

    Raises LocateError.
    """
    run, iterations = _run(out, view), dict(zip(VIEWS, plan.iterations, strict=True))[view]
    write_text(run.train_val, network.train_val(view, BATCH))
    write_text(run.solver, network.solver(iterations, plan.rate, max(1, plan.tests * 2 // BATCH), plan.seed))
    make_folder(run.snapshots)
    last = snapshots.newest_complete(run.snapshots)
    if last and last.iteration >= iterations:
        return
    launch = Launch()
    if last:
        launch = Launch(snapshot=run.name_of(last.solverstate))
        say(f"{view}: continues from iteration {last.iteration}")
    elif start:
        copy_file(start / f"{view}.caffemodel", run.init_weights)
        launch = Launch(weights=run.init_weights.name)
    schedule = preflight.schedule(run)
    alarms = Alarms(DiskRoom(run.snapshots, schedule.snapshot_bytes))  # the other alarms are about months
    with run.lock("train-locator") as lock:
        outcome = drive(
            run,
            schedule,
            launch,
            last.iteration if last else 0,
            lock,
            alarms,
            lambda where: progress(where.iteration, where.max_iter),
            say,
        )
    if outcome.state is State.INTERRUPTED:
        raise KeyboardInterrupt
    if outcome.state is not State.FINISHED:
        raise LocateError(f"{view}: training {outcome.state} at iteration {outcome.iteration}: {outcome.why}")


def finish(out: Path, plan: Plan, own_hands: int) -> None:
    """Write ``whole.caffemodel, near.caffemodel, deploy.prototxt, locator.json``, and remove the work folder."""
    for view in VIEWS:
        last = snapshots.newest_complete(_run(out, view).snapshots)
        if last is None:
            raise LocateError(f"{out}: the last snapshot of the net {view} is missing. Remove {out} and start again.")
        copy_file(last.caffemodel, out / f"{view}.caffemodel")
    write_text(out / "deploy.prototxt", network.deploy())
    facts = {"learnt from": {"phantoms": plan.phantoms, "own hands": own_hands}, "plan": asdict(plan)}
    write_text(out / "locator.json", json.dumps(facts, indent=2) + "\n")
    remove(out / WORK)
