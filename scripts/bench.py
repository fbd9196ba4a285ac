#!/usr/bin/env python3
"""Benchmarks, side by side in one run: `make bench`, or one part alone with `make bench ONLY=prepare`.

These machines are shared, so a figure stands beside another that was measured in the same minute.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import NamedTuple

from bonecaffe.caffe import installation, programs

COUNT = int(os.environ.get("BENCH_COUNT", "600"))


def bonecaffe(*arguments: object) -> float:
    """Seconds that a command takes; its own words when it fails."""
    began = time.monotonic()
    command = [sys.executable, "-m", "bonecaffe", *map(str, arguments)]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"bench: bonecaffe {arguments[0]} failed:\n{done.stderr}")
    return time.monotonic() - began


def best(work: Callable[[], object], times: int = 5) -> float:
    """Seconds of the quickest of some calls."""
    seconds = []
    for _ in range(times):
        began = time.monotonic()
        work()
        seconds.append(time.monotonic() - began)
    return min(seconds)


def decode(paths: list[Path]) -> int:
    """Only decode, as the floor for prepare."""
    import cv2

    from bonecaffe.hands.images import read_image

    cv2.setNumThreads(1)
    return sum(read_image(path).size for path in paths)


def start(folder: Path) -> list[tuple[str, str]]:
    """How long `import bonecaffe` and `--help` take, against a bare interpreter."""

    def python(*code: str) -> float:
        return best(lambda: subprocess.run([sys.executable, *code], check=True, capture_output=True))

    bare = python("-c", "")
    return [
        ("import bonecaffe", f"{python('-c', 'import bonecaffe'):.3f} s (a bare interpreter {bare:.3f} s)"),
        ("bonecaffe --help", f"{python('-m', 'bonecaffe', '--help'):.3f} s"),
    ]


def phantom(folder: Path) -> list[tuple[str, str]]:
    """Phantoms of 1000 x 1300 a second."""
    seconds = bonecaffe("phantom", folder / "data", "--count", COUNT, "--size", "1000x1300")
    return [("phantom", f"{COUNT / seconds:.1f} images/s of 1000 x 1300 on {os.cpu_count()} cores")]


def rsna(folder: Path, count: int, copies: int = 1) -> Path:
    """Phantoms of RSNA's sizes (about 1500 x 2000) with their tables, each under ``copies`` ids by hard links."""
    import pandas

    made, data = folder / f"rsna{count}", folder / f"rsna{count}x{copies}"
    if data.is_dir():
        return data
    if not made.is_dir():
        bonecaffe("phantom", made, "--count", count)
    (data / "images").mkdir(parents=True)
    for name in ("ages.csv", "points.csv"):
        table = pandas.read_csv(made / name, dtype=str)
        ids = [f"{copy}{case_id}" for copy in range(copies) for case_id in table.id]
        pandas.concat([table] * copies).assign(id=ids).to_csv(data / name, index=False)
    for image in (made / "images").iterdir():
        for copy in range(copies):
            os.link(image, data / "images" / f"{copy}{image.name}")
    return data


def add_ten(data: Path) -> None:
    """Ten hands more in a folder of them."""
    import pandas

    for name in ("ages.csv", "points.csv"):
        table = pandas.read_csv(data / name, dtype=str)
        pandas.concat([table, table[:10].assign(id="more" + table.id[:10])]).to_csv(data / name, index=False)
    for case_id in table.id[:10]:
        os.link(data / "images" / f"{case_id}.png", data / "images" / f"more{case_id}.png")


class Memory(NamedTuple):
    """Peak memory in MB that is not a view of a file: of our processes together, and of Caffe's programs."""

    ours: float = 0.0
    caffe: float = 0.0

    def __str__(self) -> str:
        return f"{self.ours:.0f} MB in our processes together, {self.caffe:.0f} MB in Caffe's"


def memory_of(ancestor: int) -> Memory:
    """What a process and all that it started hold now; Caffe trains in a session of its own."""
    ours, caffe, family = 0, 0, {str(ancestor)}
    for number in sorted(int(name) for name in os.listdir("/proc") if name.isdigit()):  # parents come first
        try:
            status = Path(f"/proc/{number}/status").read_text()
            if str(number) not in family and status.split("PPid:")[1].split()[0] not in family:
                continue
            family.add(str(number))
            held = int(status.split("RssAnon:")[1].split()[0])
        except (OSError, IndexError):  # it has ended
            continue
        if status.startswith(("Name:\tconvert_image", "Name:\tcaffe")):
            caffe += held
        else:
            ours += held
    return Memory(ours / 1024, caffe / 1024)


def watched(*arguments: object) -> tuple[float, Memory]:
    """Seconds that a command of bonecaffe takes, and the peak memory of all its processes."""
    began, peak = time.monotonic(), Memory()
    with tempfile.TemporaryFile("w+") as said:
        command = [sys.executable, "-m", "bonecaffe", *map(str, arguments)]
        process = subprocess.Popen(command, stdout=said, stderr=said, start_new_session=True)
        while process.poll() is None:
            peak = Memory(*map(max, peak, memory_of(process.pid)))
            time.sleep(0.05)
        seconds = time.monotonic() - began
        said.seek(0)
        if process.returncode:
            raise SystemExit(f"bench: {arguments[0]} failed:\n{said.read()}")
    return seconds, peak


def prepared(run: Path, data: Path, *options: object) -> tuple[float, Memory]:
    """Seconds that prepare takes for all hands of ``data``, a fifth of them for test, and its peak memory."""
    count = len(list((data / "images").iterdir()))
    inputs = ("--images", data / "images", "--ages", data / "ages.csv", "--points", data / "points.csv")
    return watched("prepare", run, *inputs, "--train", count - count // 5, "--test", count // 5, *options)


def one_at_a_time(data: Path, folder: Path) -> float:
    """Seconds that a plain script takes for the paper's steps: read, crop, histeq, write, convert_imageset; no check, one core."""
    import cv2

    from bonecaffe.hands.cases import read_cases
    from bonecaffe.hands.reference_points import read_points
    from bonecaffe.prepare.histeq import histeq

    cv2.setNumThreads(1)
    began = time.monotonic()
    points, lines = read_points(data / "points.csv"), []
    folder.mkdir()
    for case in read_cases(data / "ages.csv"):
        image, part = cv2.imread(str(data / "images" / f"{case.id}.png"), cv2.IMREAD_GRAYSCALE), points[case.id].rectangle()  # fmt: skip
        hand = histeq(image[part.top : part.bottom + 1, part.left : part.right + 1])
        cv2.imwrite(str(folder / f"{case.id}.png"), hand)
        lines.append(f"{case.id}.png {int(case.boneage_months)}\n")
    (folder / "all.txt").write_text("".join(lines))
    size = ["-resize_height=224", "-resize_width=224"]
    programs.call("convert_imageset", [*size, f"{folder}/", str(folder / "all.txt"), str(folder / "lmdb")])
    return time.monotonic() - began


def decode_opencv(paths: list[Path]) -> int:
    """Only decode, as most scripts do it."""
    import cv2

    cv2.setNumThreads(1)
    return sum(cv2.imread(str(path), cv2.IMREAD_UNCHANGED).size for path in paths)


def decode_limit(data: Path, work: Callable[[list[Path]], int] = decode) -> float:
    """Seconds in which a process a core only decodes the images."""
    paths = sorted((data / "images").glob("*.png"))
    cores = len(os.sched_getaffinity(0))
    began = time.monotonic()
    with ProcessPoolExecutor(cores) as pool:
        list(pool.map(work, [paths[i::cores] for i in range(cores)]))
    return time.monotonic() - began


def prepare(folder: Path) -> list[tuple[str, str]]:
    """prepare at RSNA's sizes against the bare decoding of the same files and against a plain script; the rerun; ten images more."""
    count, copies = COUNT // 2, 8
    few, data = rsna(folder, count), rsna(folder, count, copies)
    total = count * copies
    limits = [decode_limit(data)]
    seconds, peak = prepared(folder / "many", data)
    limits.append(decode_limit(data))
    limit, opencv = sum(limits) / 2, decode_limit(data, decode_opencv)
    again, _ = prepared(folder / "many", data)
    add_ten(data)
    more, _ = prepared(folder / "many", data)
    plain = one_at_a_time(few, folder / "plain")
    return [
        ("prepare", f"{total / seconds:.0f} images/s of about 1500 x 2000 on {os.cpu_count()} cores, {total} images, with packing and audit"),
        ("prepare, decode limit", f"{limit / seconds:.0%} of bare decoding by the same decoder ({total / limit:.0f} images/s)"),
        ("prepare, OpenCV", f"{opencv / seconds:.0%} of bare decoding by OpenCV ({total / opencv:.0f} images/s)"),
        ("prepare, plain script", f"{plain / count / (seconds / total):.1f} times the {count / plain:.0f} images/s of a script that goes image by image on one core and checks nothing"),
        ("prepare, memory", f"{peak}, files mapped not counted"),
        ("prepare again", f"{again:.2f} s with nothing changed, {total} images"),
        ("prepare, ten more", f"{more:.1f} s; all are packed and audited again, ten are decoded"),
    ]  # fmt: skip


def growth(folder: Path) -> list[tuple[str, str]]:
    """prepare, and a training that sees each image once, at 1, 4 and 16 times the images: time and memory.

    convert_imageset holds up to 1,000 records, so its own memory is whole from 4 times on.
    """
    rows: dict[str, list[tuple[str, str]]] = {"prepare": [], "train": []}
    first: dict[str, float] = {}
    for copies in (1, 4, 16):
        data, run, count = rsna(folder, COUNT // 2, copies), folder / f"grown{copies}", COUNT // 2 * copies
        turns = count * 4 // 5 // 32
        last = f"{{value: {turns}, reason: bench}}"
        recipe = folder / f"grown{copies}.yaml"
        recipe.write_text(f"extends: demo\nsolver: {{max_iter: {last}, snapshot: {last}, test_interval: {last}}}\n")
        for what, (seconds, peak) in (
            ("prepare", prepared(run, data, "--recipe", recipe)),
            ("train", watched("train", run)),
        ):
            ratio = seconds / count / first.setdefault(what, seconds / count)
            said = f"{count} images: {seconds:.1f} s, {ratio:.2f} times as long an image as the first; {peak}"
            rows[what].append((f"growth, {what} {copies}x", said))
    return [*rows["prepare"], *rows["train"]]


def log(folder: Path) -> list[tuple[str, str]]:
    """A million lines of Caffe's log, parsed."""
    from bonecaffe.caffe.log import Curve, parse

    said = "I1123 19:53:52.223456 10177 solver.cpp:{}"
    lines = [
        said.format("239] Iteration %d (2.8 iter/s, 7.1s/20 iters), loss = 196.5"),
        said.format("258]     Train net output #0: loss = 196.5 (* 1 = 196.5 loss)"),
        said.format("112] Iteration %d, lr = 3e-06"),
        "I1123 19:53:50.223456 10177 net.cpp:129] Top shape: 256 3 224 224 (38535168)",
    ]
    million = [line % number if "%d" in line else line for number in range(250_000) for line in lines]
    began = time.monotonic()
    points = len(Curve(parse(million)).points())
    return [("log", f"{time.monotonic() - began:.1f} s for {len(million)} lines, {points} points")]


def full_net(folder: Path):
    """A run with the paper's 600 hands and its full-size net, which need not have learned."""
    from bonecaffe.recipe import Recipe
    from bonecaffe.run import RunDir

    data, run = folder / "data", RunDir(folder / "full")
    if run.path.is_dir():
        return run
    if not data.is_dir():
        phantom(folder)
    smoke = Recipe.load("smoke")
    one = {
        "solver.max_iter": 1,
        "solver.snapshot": 1,
        "solver.test_iter": COUNT // 3,
        "data.train_cases": COUNT * 2 // 3,
        "data.test_cases": COUNT // 3,
    }
    recipe = Recipe.load("paper").with_values(
        {**one, "solver.solver_mode": "CPU", "training.initial_weights": "none", "network.train_batch": 32, "network.test_batch": 1,
         "network.weight_filler": smoke.network.weight_filler, "solver.base_lr": 0.0},
        "bench: a full-size net that need not have learned",
    )  # fmt: skip
    (folder / "full.yaml").write_text(recipe.to_yaml())
    inputs = ("--images", data / "images", "--ages", data / "ages.csv", "--points", data / "points.csv")
    bonecaffe("prepare", run, *inputs, "--recipe", folder / "full.yaml")
    bonecaffe("train", run)
    return run


def evaluate(folder: Path) -> list[tuple[str, str]]:
    """evaluate on the paper's 600 hands with the full-size net, against the bare forward time of the same net."""
    import numpy as np

    run = full_net(folder)
    for predictions in run.path.glob("predictions_*.csv"):  # or there would be nothing to do
        predictions.unlink()
    seconds = bonecaffe("evaluate", run)
    caffe = programs.import_pycaffe()
    net = caffe.Net(str(run.deploy), str(next(run.snapshots.glob("*.caffemodel"))), caffe.TEST)
    net.blobs["data"].reshape(32, 3, 224, 224)
    net.blobs["data"].data[...] = np.random.default_rng(0).normal(0, 50, (32, 3, 224, 224))
    net.forward()
    began = time.monotonic()
    for _ in range(-(-COUNT // 32)):
        net.forward()
    bare = (time.monotonic() - began) * COUNT / (-(-COUNT // 32) * 32)
    return [
        ("evaluate", f"{seconds:.1f} s for {COUNT} hands, full-size net, start to report.html"),
        ("evaluate, ratio", f"{seconds / bare:.2f} times the bare forward passes ({bare:.1f} s)"),
        ("report", f"{seconds - bare:.1f} s of it: start-up, reading, bootstrap, figures, report.html"),
    ]


def predict(folder: Path) -> list[tuple[str, str]]:
    """Predictions by pycaffe and by OpenCV's importer of the same files: cold (process start to months), one warm, a batch of 32."""
    import cv2

    from bonecaffe.hands.images import read_image
    from bonecaffe.predict import Predictor

    cv2.setNumThreads(-1)  # all cores again, after parts that decode on one
    run, data = full_net(folder), folder / "data"
    image = next((data / "images").glob("*.png"))
    normals = [read_image(path) for path in sorted(run.images.glob("*.png"))[:32]]

    rows, warm = [], {}
    for engine in ("caffe", "opencv"):
        cold = min(
            bonecaffe("predict", run, image, "--points", data / "points.csv", "--engine", engine) for _ in range(3)
        )
        predictor = Predictor(run, engine=engine)
        list(predictor.predict_normalized(normals))
        warm[engine] = (
            cold,
            best(lambda p=predictor: list(p.predict_normalized(normals[:1])), 20),
            best(lambda p=predictor: list(p.predict_normalized(normals))),
        )
    for number, what in enumerate(("cold", "one image, warm", "32 images, warm")):
        ours, other = warm["caffe"][number], warm["opencv"][number]
        rows.append(
            (
                f"predict, {what}",
                f"pycaffe {ours * 1000:.0f} ms, OpenCV {other * 1000:.0f} ms: {ours / other:.2f} times",
            )
        )
    return rows


def locate(folder: Path) -> list[tuple[str, str]]:
    """Hands located a second, with reading them, by either engine; the share of it that is reading."""
    data = folder / "data"
    if not data.is_dir():
        phantom(folder)
    few = folder / "few"
    few.mkdir(exist_ok=True)
    paths = sorted((data / "images").glob("*.png"))[:60]
    for path in paths:
        (few / path.name).write_bytes(path.read_bytes())
    began = time.monotonic()
    decode(paths)
    reading = time.monotonic() - began
    rows = []
    for engine in ("caffe", "opencv"):
        seconds = bonecaffe("locate", few, "--points", folder / f"{engine}.csv", "--engine", engine)
        rows.append((f"locate, {engine}", f"{len(paths) / seconds:.1f} hands/s on {os.cpu_count()} cores, start-up included; reading them on one core takes {reading / seconds:.0%} of that time"))  # fmt: skip
    return rows


def annotate(folder: Path) -> list[tuple[str, str]]:
    """A 16-bit image of 3000 pixels in the browser: from the key to the picture, opened cold and loaded ahead."""
    import threading

    import cv2
    import numpy as np
    from selenium import webdriver

    from bonecaffe import Recipe
    from bonecaffe.annotate.marking import opened
    from bonecaffe.annotate.server import Server
    from bonecaffe.hands.phantom import dataset

    images = folder / "deep"
    images.mkdir(exist_ok=True)
    for number in range(4):
        picture = dataset.make(1, number, (2400, 3000)).image.astype(np.uint16) * 257
        cv2.imwrite(str(images / f"{number}.png"), picture)
    options = webdriver.ChromeOptions()
    options.binary_location = "/usr/bin/chromium"
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--window-size=1280,860"):
        options.add_argument(argument)
    seen = "return !document.getElementById('stage').classList.contains('loading') && document.getElementById('hand').textContent == arguments[0]"
    times = []
    with opened(images, folder / "deep.csv") as marking:
        server = Server(marking, Recipe.load("paper").preparation)
        threading.Thread(target=server.run, daemon=True).start()
        browser = webdriver.Chrome(options=options, service=webdriver.ChromeService("/usr/bin/chromedriver"))
        for number in range(4):
            began = time.monotonic()
            if number == 0:
                browser.get(server.address)
            else:
                browser.execute_script("document.querySelector('#buttons button').click()")
            while not browser.execute_script(seen, str(number)):
                time.sleep(0.005)
            times.append(time.monotonic() - began)
            time.sleep(3)  # somebody marks this hand, and the next one is loaded
        browser.quit()
        server.close()
    return [("annotate", f"2400 x 3000, 16 bits: first {times[0]:.2f} s with the page, the next {max(times[1:]):.2f} s at most, loaded ahead")]  # fmt: skip


def train(folder: Path) -> list[tuple[str, str]]:
    """The paper's net as it trains, batch 32, forward and backward: against Caffe's own loops, PyTorch, and the cores' sgemm."""
    run, batch = full_net(folder), 32
    ours = str(installation.find().program("caffe"))
    engines = {"bonecaffe's Caffe": lambda: caffe_time(ours, run.path)}
    if stock := stock_caffe():
        engines["Caffe's own loops"] = lambda: caffe_time(stock, run.path)
    if torch_net := pytorch(batch):
        engines["PyTorch"] = torch_net
    times = dict.fromkeys(engines, float("inf"))
    for _ in range(3):
        for name, seconds in engines.items():
            times[name] = min(times[name], seconds())
    own = times.pop("bonecaffe's Caffe")
    rows = [("train", f"{batch / own:.1f} images/s forward and backward, full-size net, batch {batch} ({own:.2f} s)")]
    for name, seconds in times.items():
        rows.append((f"train, {name}", f"{seconds / own:.2f} times as fast ({name}: {batch / seconds:.1f} images/s)"))
    flops, peak = multiplications(run, batch), sgemm_peak()
    limit = flops / peak
    said = f"{limit / own:.0%} of what sgemm alone would take ({limit:.2f} s: {flops / 1e9:.0f} GFLOP at {peak / 1e9:.0f} GFLOP/s)"
    rows.append(("train, sgemm", said))
    if "PyTorch" not in times:
        rows.append(("train, PyTorch", "not installed; nothing to stand beside"))
    return rows


def caffe_time(program: str, run: Path) -> float:
    """Seconds of a forward and backward pass of a run's own training net and LMDB, by `caffe time`."""
    command = [program, "time", "-model", "train_val.prototxt", "-iterations", "3"]
    loud = {**programs.UNLESS_SET, **os.environ, "GLOG_minloglevel": "0"}
    said = subprocess.run(command, cwd=run, env=loud, capture_output=True, text=True, check=True).stderr
    return float(said.split("Average Forward-Backward: ")[1].split()[0]) / 1000


def stock_caffe() -> str | None:
    """The caffe program of a build with Caffe's own loops (FAST=0), built when it is not there; none beside a Caffe of the user's own."""
    caffe = installation.find()
    if "USE_OPENMP=ON" not in caffe.build.get("flags", ""):
        return None
    environment = {**os.environ, "BONECAFFE_FAST": "0", "BONECAFFE_GPU": "1" if caffe.has_gpu else "0"}
    command = [sys.executable, "scripts/build_caffe.py"]
    said = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True).stdout
    return said.split("root=")[1].split("\n")[0] + "/bin/caffe"


def pytorch(batch: int):
    """A function that gives the seconds of a forward and backward pass of the same net in PyTorch; None when it is not installed."""
    try:
        import torch
    except ImportError:
        return None
    from torch import nn

    def conv(a, b, kernel, **more):
        return [nn.Conv2d(a, b, kernel, **more), nn.ReLU(inplace=True)]

    net = nn.Sequential(
        *conv(3, 96, 11, stride=4), nn.MaxPool2d(3, 2, ceil_mode=True), nn.LocalResponseNorm(5), *conv(96, 256, 5, padding=2, groups=2),
        nn.MaxPool2d(3, 2, ceil_mode=True), nn.LocalResponseNorm(5), *conv(256, 384, 3, padding=1), *conv(384, 384, 3, padding=1, groups=2),
        *conv(384, 256, 3, padding=1, groups=2), nn.MaxPool2d(3, 2, ceil_mode=True), nn.Flatten(), nn.LazyLinear(4096), nn.ReLU(inplace=True),
        nn.Dropout(), nn.Linear(4096, 4096), nn.ReLU(inplace=True), nn.Dropout(), nn.Linear(4096, 1),
    )  # fmt: skip
    data = torch.randn(batch, 3, 224, 224) * 50

    def once() -> None:
        net.zero_grad(set_to_none=False)  # as Caffe, which clears its sums and keeps their memory
        net(data).square().mean().backward()

    def seconds(turns: int = 3) -> float:
        once()
        began = time.monotonic()
        for _ in range(turns):
            once()
        return (time.monotonic() - began) / turns

    return seconds


def multiplications(run, batch: int) -> float:
    """Floating-point operations of the matrix products of a forward and backward pass; the first layer passes no gradient on."""
    net = programs.import_pycaffe().Net(str(run.deploy), 1)
    one = [2 * blobs[0].data.size * (net.blobs[name].data[0, 0].size) for name, blobs in net.params.items()]
    return batch * (3.0 * sum(one) - one[0])


def sgemm_peak() -> float:
    """Multiplications and additions a second of NumPy's BLAS on a product of 4096 x 4096, on all cores."""
    import numpy as np

    a = np.ones((4096, 4096), np.float32)
    return 2 * 4096**3 / best(lambda: a @ a, 4)


def setup(folder: Path) -> list[tuple[str, str]]:
    """Caffe from nothing into an empty cache; `make setup` with nothing changed."""
    began = time.monotonic()
    environment = {**os.environ, "BONECAFFE_CACHE": str(folder / "cache")}
    subprocess.run([sys.executable, "scripts/build_caffe.py"], env=environment, check=True, capture_output=True)
    built = time.monotonic() - began
    began = time.monotonic()
    subprocess.run(["scripts/setup.sh"], check=True, capture_output=True)
    return [("setup", f"{built:.0f} s for Caffe from nothing, {time.monotonic() - began:.2f} s with nothing changed")]


PARTS = {
    "setup": setup,
    "start": start,
    "phantom": phantom,
    "prepare": prepare,
    "growth": growth,
    "log": log,
    "locate": locate,
    "annotate": annotate,
    "train": train,
    "predict": predict,
    "evaluate": evaluate,
}


def main() -> int:
    """Run the parts asked for, print one table, keep it with the machine's description in runs/bench.json."""
    from bonecaffe.caffe import environment
    from bonecaffe.files import write_text

    wanted = sys.argv[1:] or list(PARTS)
    unknown = [name for name in wanted if name not in PARTS]
    if unknown:
        print(f"bench: no part {unknown[0]}; there are {', '.join(PARTS)}", file=sys.stderr)
        return 1
    table: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in wanted:
            for what, figure in PARTS[name](Path(folder)):
                print(f"{what:24} {figure}", flush=True)
                table[what] = figure
    kept = {"machine": environment.describe(), "at": time.strftime("%Y-%m-%dT%H:%M:%S%z"), "figures": table}
    write_text(Path("runs/bench.json"), json.dumps(kept, indent=2, ensure_ascii=False) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
