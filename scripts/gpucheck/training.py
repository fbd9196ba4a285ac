"""Parts 4 to 6: the paper's net trained and resumed, its predictions on both devices, the same seed twice."""

from __future__ import annotations

import math
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Dict, List, Tuple

from gpucheck import convolutions, database, images, nets, programs, wire
from gpucheck.check import Check
from gpucheck.outcome import Failed, Result, Skip
from gpucheck.programs import Log, Memory, Ran, Running
from gpucheck.store import remove, write

TEST_BATCH = {False: 50, True: 6}
"""Images a batch in test and prediction, by --quick, or fewer, so that they divide the number of test images."""
COUNTS = {False: (400, 200), True: (24, 12)}
"""Images for training and test, by --quick."""
ITERATIONS = {False: (200, 40), True: (12, 4)}
"""Iterations of the training and of its resumption, by --quick."""
DISPLAY = {False: 10, True: 1}
"""Iterations from one line of the log to the next, by --quick."""
TWICE = {False: 20, True: 4}
"""Iterations of a short run, by --quick."""
RATE = {False: 0.0001, True: 0.001}
MONTHS = 0.01
MONTHS_REASON = (
    "ten times the last digit of caffe's log, 0.001 months. On a CPU, the full net with other OpenBLAS kernels gave "
    "the same digits"
)


# ---- data ----------------------------------------------------------------------------------------------------------


def databases(check: Check) -> Dict[str, Any]:
    """The two LMDBs, made by convert_imageset unless they are there; what is in them, and their counts."""
    folder = check.work / "data"

    def make() -> Dict[str, Any]:
        remove(folder)
        folder.mkdir()
        train, test = COUNTS[check.options.quick]
        check.say("images and LMDBs")
        packed = check.options.data
        about = images.unpack(packed, folder) if packed else images.draw(folder, train, test)
        about["made_by"] = "convert_imageset" if check.caffe.converts else "this script"
        for split in ("train", "test"):
            if not check.caffe.converts:  # a Caffe without OpenCV has no convert_imageset
                about[split] = database.convert(folder / "images", folder / f"{split}.txt", folder / f"{split}_lmdb")
                continue
            arguments = ["data/images/", f"data/{split}.txt", f"data/{split}_lmdb"]
            ran = check.run_caffe(arguments, f"convert-{split}", program="convert_imageset")
            count = len(images.listed(folder / f"{split}.txt"))
            # it skips an image that it cannot read, and exits 0
            stored = re.findall(r"Processed (\d+) files", ran.output)
            if not stored or int(stored[-1]) != count:
                last = programs.last_words(ran.output)
                raise Failed(f"convert_imageset stored {stored[-1] if stored else 0} of {count} images: {last}")
            about[split] = count
        return about

    return dict(check.step("data", make, (folder / "train_lmdb" / "data.mdb", folder / "test_lmdb" / "data.mdb")))


def _test_batches(check: Check, count: int) -> Tuple[int, int]:
    """Images a batch and the number of batches that make one pass over the test images."""
    batch = math.gcd(count, TEST_BATCH[check.options.quick])
    return batch, count // batch


# ---- training ------------------------------------------------------------------------------------------------------


def _solver(check: Check, name: str, iterations: int, test: Tuple[int, int], display: int) -> None:
    quick = check.options.quick
    text = nets.solver(f"{name}.net.prototxt", name, check.gpu, iterations, display, test, RATE[quick])
    write(check.work / f"{name}.prototxt", text)


def _train(check: Check, name: str, log: str, last: int, more: List[str], extra: Dict[str, str] | None = None) -> Ran:
    """``caffe train``, with a line about its progress now and then."""
    started = time.monotonic()
    first: Dict[str, float] = {}

    def seen(line: str) -> None:
        found = re.search(r"Iteration (\d+)", line)
        if found:
            done = int(found.group(1))
            first.setdefault("iteration", done)
            first.setdefault("at", time.monotonic())
            here = done - first["iteration"]
            left = (time.monotonic() - first["at"]) / here * (last - done) if here else None
            eta = f", about {left:.0f} s left" if left is not None else f", {time.monotonic() - started:.0f} s to start"
            check.progress(f"  iteration {done} of {last}{eta}")

    arguments = ["train", "-solver", f"{name}.prototxt", *more, *check.on_device()]
    return check.run_caffe(arguments, log, extra, seen)


def train(check: Check) -> Result:
    """The paper's net trained, then resumed from its snapshot: does it learn, how fast, in how much memory."""
    about = databases(check)
    quick, sizes = check.options.quick, check.options.sizes
    first, more = ITERATIONS[quick]
    batch, passes = _test_batches(check, about["test"])
    name = "train"
    write(check.work / f"{name}.net.prototxt", nets.train_val(sizes, "data/train_lmdb", "data/test_lmdb", batch))
    display = DISPLAY[quick]
    figures: Dict[str, Any] = {
        "images": about["what"],
        "lmdb_by": about["made_by"],
        "train_images": about["train"],
        "test_images": about["test"],
        "batch": sizes.batch,
        "iterations": first,
        "resumed_to": first + more,
    }

    def begin() -> Dict[str, Any]:
        _clear(check, name)
        _solver(check, name, first, (passes, more), display)
        with Memory(check.options.gpu) as memory:
            ran = _train(check, name, "train", first, [])
        facts = _facts(ran, programs.read_log(ran.output), sizes.batch)
        if memory.peak is not None and memory.before is not None:
            facts.update(gpu_memory_peak_mib=memory.peak, gpu_memory_before_mib=memory.before)
        return facts

    snapshot = check.work / f"{name}_iter_{first}"
    begun = check.step("train.begin", begin, (Path(f"{snapshot}.caffemodel"), Path(f"{snapshot}.solverstate")))
    figures["first"] = begun
    faults = _falls(begun)

    def resume() -> Dict[str, Any]:
        _solver(check, name, first + more, (passes, more), display)
        ran = _train(check, name, "resume", first + more, ["-snapshot", f"{name}_iter_{first}.solverstate"])
        log = programs.read_log(ran.output)
        facts = _facts(ran, log, sizes.batch)
        facts["began_at"] = min(log.losses) if log.losses else None
        facts["restored"] = log.restored
        return facts

    resumed = check.step("train.resume", resume, (trained(check),))
    figures["resumed"] = resumed
    if not resumed["restored"] or resumed["began_at"] != first:
        faults.append(f"the resumed training began at iteration {resumed['began_at']}, not at {first}")
    elif not resumed["first_loss"] <= 3 * max(begun["last_loss"], 1.0) + 0.25 * begun["first_loss"]:
        faults.append(f"the loss jumped from {begun['last_loss']:.4g} to {resumed['first_loss']:.4g} on resuming")
    if not (begun["complete"] and resumed["complete"]):
        faults.append("the log does not end with Optimization Done")
    if faults:
        raise Failed("; ".join(faults), figures)
    for path in check.work.glob(f"{name}_iter_*"):  # at full size 1.5 GB, of which the other parts need one file
        if path != trained(check):
            remove(path)
    summary = f"loss {begun['first_loss']:.4g} to {begun['last_loss']:.4g}, resumed at {first}"
    if begun["images_per_second"]:
        summary += f"; {begun['seconds_per_iteration']:.3g} s an iteration of {sizes.batch}, "
        summary += f"{begun['images_per_second']:.0f} images/s"
    if "gpu_memory_peak_mib" in begun:
        summary += f"; {begun['gpu_memory_peak_mib'] - begun['gpu_memory_before_mib']:.0f} MiB of the GPU's memory"
    return Result("ok", summary, figures)


def trained(check: Check) -> Path:
    """The model that the resumed training leaves."""
    return check.work / f"train_iter_{sum(ITERATIONS[check.options.quick])}.caffemodel"


def _clear(check: Check, name: str) -> None:
    for path in check.work.glob(f"{name}_iter_*"):
        remove(path)


def _facts(ran: Ran, log: Log, batch: int) -> Dict[str, Any]:
    losses = [log.losses[number] for number in sorted(log.losses)]
    few = max(1, len(losses) // 4)
    seconds = log.seconds_per_iteration
    return {
        "first_loss": losses[0] if losses else math.nan,
        "last_loss": sum(losses[-few:]) / few if losses else math.nan,
        "test_loss": log.test_loss,
        "seconds_per_iteration": seconds,
        "images_per_second": batch / seconds if seconds else None,
        "seconds": round(ran.seconds, 1),
        "memory_peak_mib": ran.memory_bytes >> 20,
        "complete": log.complete,
        "exit_status": ran.status,
    }


def _falls(facts: Dict[str, Any]) -> List[str]:
    if facts["last_loss"] < facts["first_loss"]:  # false for nan
        return []
    return [f"the loss does not fall: {facts['first_loss']:.4g} at first, {facts['last_loss']:.4g} at last"]


# ---- predictions ---------------------------------------------------------------------------------------------------


def predictions(check: Check) -> Result:
    """The trained net's ages of the test images on the device and on the CPU, from ``caffe test``'s log."""
    ages = {name: _predict(check, name) for name in ("cpu", "device")}
    if len(ages["cpu"]["fc8"]) != len(ages["device"]["fc8"]) or ages["cpu"]["label"] != ages["device"]["label"]:
        raise Failed("the two runs predicted different images")
    differences = [abs(a - b) for a, b in zip(ages["cpu"]["fc8"], ages["device"]["fc8"])]
    errors = [abs(a - b) for a, b in zip(ages["device"]["fc8"], ages["device"]["label"])]
    largest = wire.max_abs(differences)
    figures = {
        "images": len(differences),
        "largest_difference_months": largest,
        "bound_months": MONTHS,
        "bound_reason": MONTHS_REASON,
        "mean_absolute_error_months": sum(errors) / len(errors),
        "predicted_months": [min(ages["device"]["fc8"]), max(ages["device"]["fc8"])],
    }
    if not largest <= MONTHS:
        raise Failed(f"{check.device} and CPU differ by up to {largest:.4g} months, over {MONTHS}", figures)
    return Result(
        "ok", f"{len(differences)} ages, {check.device} and CPU differ by up to {largest:.4g} months", figures
    )


def _predict(check: Check, where: str) -> Dict[str, List[float]]:
    model = trained(check)
    if "train.resume" not in check.state.finished() or not model.exists():
        raise Skip("there is no trained model, since the training failed")
    count = databases(check)["test"]
    batch, passes = _test_batches(check, count)
    write(check.work / "predict.prototxt", nets.predicting(check.options.sizes, "data/test_lmdb", batch))
    device = check.on_device() if where == "device" else []
    arguments = ["test", "-model", "predict.prototxt", "-weights", model.name, "-iterations", str(passes), *device]
    values = programs.read_batches(check.run_caffe(arguments, f"predict-{where}").output)
    if len(values.get("fc8", [])) != count or len(values.get("label", [])) != count:
        raise Failed(f"caffe test logged {len(values.get('fc8', []))} ages of {count} images")
    return {"fc8": values["fc8"], "label": values["label"]}


_PYCAFFE = """
import json, sys
import caffe
model, weights, passes, gpu = sys.argv[1:]
if gpu: caffe.set_device(int(gpu)); caffe.set_mode_gpu()
else: caffe.set_mode_cpu()
net = caffe.Net(model, caffe.TEST, weights=weights)
ages = []
for _ in range(int(passes)): ages += [float(value) for value in net.forward()["fc8"].ravel()]
print("ages " + json.dumps(ages))
"""


def pycaffe(check: Check) -> Result:
    """The same ages from pycaffe, where this Python can load it."""
    needed = str(check.caffe.record.get("python", ""))
    version = "{}.{}".format(*sys.version_info)
    if check.caffe.python is None:
        raise Skip("this Caffe has no pycaffe next to it")
    if needed and needed.split(".")[:2] != version.split("."):
        raise Skip(f"pycaffe was built for Python {needed}, and this is {version}")
    by_caffe = _predict(check, "device")["fc8"]
    _, passes = _test_batches(check, len(by_caffe))
    command = [
        sys.executable,
        "-c",
        _PYCAFFE,
        "predict.prototxt",
        trained(check).name,
        str(passes),
        check.options.gpu or "",
    ]
    env = programs.environment({"PYTHONPATH": str(check.caffe.python), "GLOG_minloglevel": "2"})
    output = Running(
        command, check.work / "pycaffe.log", check.options.limit_s, check.work, env, any_status=True
    ).finish()
    found = re.search(r"^ages (\[.*\])$", output.output, re.MULTILINE)
    if not found:
        last = programs.last_words(output.output)
        if "ModuleNotFoundError" in last:
            raise Skip(f"this Python lacks a module that pycaffe imports: {last}")
        raise Failed(f"pycaffe did not predict: {last}")
    ages = [float(value) for value in found.group(1)[1:-1].split(",")]
    largest = wire.max_abs([a - b for a, b in zip(ages, by_caffe)])
    figures = {"images": len(ages), "largest_difference_months": largest}
    if len(ages) != len(by_caffe) or not largest <= MONTHS:
        raise Failed(f"pycaffe and caffe differ by up to {largest:.4g} months", figures)
    return Result("ok", f"{len(ages)} ages, pycaffe and caffe differ by up to {largest:.2g} months", figures)


# ---- the same seed twice -------------------------------------------------------------------------------------------

VARIANTS: Dict[str, Dict[str, str]] = {
    "standard": {},
    "fast": {"BONECAFFE_CUDNN": "fast"},
    "tf32": convolutions.TF32_ON,
}
"""By name, the environment of two runs with one seed. Only the standard one must give the same bits."""


def repeatable(check: Check) -> Result:
    """Two short trainings with one seed: equal bit for bit, or the largest difference of a weight."""
    about = databases(check)
    batch, passes = _test_batches(check, about["test"])
    sizes, iterations = check.options.sizes, TWICE[check.options.quick]
    write(check.work / "twice.net.prototxt", nets.train_val(sizes, "data/train_lmdb", "data/test_lmdb", batch))
    _solver(check, "twice", iterations, (passes, iterations + 1), iterations)
    figures: Dict[str, Any] = {"iterations": iterations}
    reference: wire.Weights = {}
    for variant in VARIANTS if check.gpu else ("standard",):
        one = _short(check, variant, iterations)
        two = _short(check, variant, iterations)
        difference, layer = wire.largest_difference(one, two)
        figures[variant] = {"equal": not layer, "largest_difference": difference, "layer": layer}
        reference = reference or one
        if variant != "standard":
            figures[variant]["from_standard"] = wire.largest_difference(reference, one)[0]
    _clear(check, "twice")
    standard = figures["standard"]
    others = ""
    for name in ("fast", "tf32"):
        if name in figures:
            equal, largest = figures[name]["equal"], figures[name]["largest_difference"]
            others += f"; {name}: " + ("the same bits" if equal else f"up to {largest:.2g}")
    if not standard["equal"]:
        where = f"largest difference of a weight {standard['largest_difference']:.2g}, in {standard['layer']}"
        raise Failed(f"the same seed gave two models: {where}{others}", figures)
    return Result("ok", f"the same bits after {iterations} iterations{others}", figures)


def _short(check: Check, variant: str, iterations: int) -> wire.Weights:
    _clear(check, "twice")
    _train(check, "twice", f"twice-{variant}", iterations, [], VARIANTS[variant])
    try:
        return wire.read(check.work / f"twice_iter_{iterations}.caffemodel")
    except (OSError, ValueError) as error:
        raise Failed(f"the snapshot of a short run cannot be read: {error}") from error


# ---- speed ---------------------------------------------------------------------------------------------------------


def speed(check: Check) -> Result:
    """Images a second, forward and backward: ``caffe time`` against PyTorch on the same net and batch."""
    python = check.options.torch_python or sys.executable
    probe = [python, "-c", "import torch; print(torch.__version__)"]
    try:
        done = subprocess.run(probe, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, timeout=120, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Skip(f"--torch-python cannot be run: {error}") from error
    if done.returncode:
        raise Skip("PyTorch cannot be imported by this Python. Give --torch-python the path of one that can.")
    databases(check)
    sizes, rounds = check.options.sizes, 3 if check.options.quick else 20
    batch = sizes.batch
    write(check.work / "time.prototxt", nets.train_val(sizes, "data/train_lmdb", "data/test_lmdb", batch))
    arguments = ["time", "-model", "time.prototxt", "-iterations", str(rounds), *check.on_device()]
    ran = check.run_caffe(arguments, "time")
    found = re.search(r"Average Forward-Backward: ([\d.]+) ms", ran.output)
    if not found or float(found.group(1)) <= 0:
        raise Failed(f"caffe time gave no time: {programs.last_words(ran.output)}")
    figures: Dict[str, Any] = {"batch": batch, "caffe_images_per_second": 1000 * batch / float(found.group(1))}
    figures["torch"] = done.stdout.decode("utf-8", "replace").strip()
    script = Path(__file__).with_name("torch_speed.py")
    for name, tf32 in (("torch", "0"), ("torch_tf32", "1")) if check.gpu else (("torch", "0"),):
        command = [python, str(script), str(batch), str(rounds), check.options.gpu or "", tf32]
        command += [",".join(map(str, sizes.convolutions)), ",".join(map(str, sizes.inner)), str(sizes.dropout)]
        env = programs.environment({"BONECAFFE_TF32": tf32})
        output = Running(command, check.work / f"{name}.log", check.options.limit_s, check.work, env).finish()
        rate = re.search(r"^images_per_second ([\d.e+-]+)$", output.output, re.MULTILINE)
        if not rate:
            raise Failed(f"PyTorch gave no time: {programs.last_words(output.output)}", figures)
        figures[f"{name}_images_per_second"] = float(rate.group(1))
    ratio = figures["caffe_images_per_second"] / figures["torch_images_per_second"]
    figures["caffe_over_torch"] = ratio
    rates = f"Caffe {figures['caffe_images_per_second']:.0f} images/s, PyTorch {figures['torch']} "
    return Result("ok", f"{rates}{figures['torch_images_per_second']:.0f}; ratio {ratio:.2f} (batch {batch})", figures)
