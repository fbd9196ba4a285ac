"""prepare: at RSNA's sizes, against bare decoding of the same files and a plain script; again; with ten images more."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import cv2
import pandas

from bonecaffe import histeq
from bonecaffe.caffe import programs
from bonecaffe.hands.reference_points import read_points

from .workbench import CORES, Row, Workbench, decode, prepared, vary

COPIES = 8


def measure(bench: Workbench) -> list[Row]:
    """Images per second, and the share of that time that decoding alone takes."""
    few, data, run = bench.rsna(), bench.rsna(COPIES), bench.folder / "many"
    count = bench.count // 2
    total = count * COPIES
    limits = [_decode_limit(data, decode)]
    seconds, peak = prepared(run, data)
    limits.append(_decode_limit(data, decode))
    limit, opencv = sum(limits) / 2, _decode_limit(data, _decode_opencv)
    again = prepared(run, data).seconds
    _add_ten(data)
    more = prepared(run, data).seconds
    plain = _one_at_a_time(few, bench.folder / "plain")
    speed = f"{total / seconds:.0f} images/s of about 1500 x 2000 on {os.cpu_count()} cores, {total} images"
    script = f"the {count / plain:.0f} images/s of a script that goes image by image on one core and checks nothing"
    return [
        Row("prepare", f"{speed}, with packing and audit"),
        Row(
            "prepare, decode limit",
            f"{limit / seconds:.0%} of bare decoding by the same decoder ({total / limit:.0f} images/s)",
        ),
        Row("prepare, OpenCV", f"{opencv / seconds:.0%} of bare decoding by OpenCV ({total / opencv:.0f} images/s)"),
        Row("prepare, plain script", f"{plain / count / (seconds / total):.1f} times {script}"),
        Row("prepare, memory", f"{peak}, files mapped not counted"),
        Row("prepare again", f"{again:.2f} s with nothing changed, {total} images"),
        Row("prepare, ten more", f"{more:.1f} s; all are packed and audited again, ten are decoded"),
    ]


def _decode_limit(data: Path, work: Callable[[list[Path]], int]) -> float:
    """Seconds in which one process per core only decodes the images."""
    paths = sorted((data / "images").glob("*.png"))
    with ProcessPoolExecutor(CORES, mp_context=get_context("spawn")) as pool:  # a fork would inherit OpenCV's locks
        list(pool.map(work, [[]] * CORES))  # starts all processes, with their imports, before the clock does
        began = time.monotonic()
        list(pool.map(work, [paths[i::CORES] for i in range(CORES)]))
        return time.monotonic() - began


def _decode_opencv(paths: list[Path]) -> int:
    """Only decode, as most scripts do it; the number of bytes."""
    cv2.setNumThreads(1)
    images = (cv2.imread(str(path), cv2.IMREAD_UNCHANGED) for path in paths)
    return sum(image.size for image in images if image is not None)


def _one_at_a_time(data: Path, folder: Path) -> float:
    """Seconds that a plain script takes for the paper's steps on one core, without a check.

    Read, crop, histeq, write, convert_imageset.
    """
    cv2.setNumThreads(1)
    began = time.monotonic()
    points, lines = read_points(data / "points.csv"), []
    folder.mkdir()
    for case_id, months, *_ in pandas.read_csv(data / "ages.csv", dtype=str).itertuples(index=False):
        image, part = cv2.imread(str(data / "images" / f"{case_id}.png"), 0), points[case_id].rectangle()
        assert image is not None
        hand = histeq(image[part.top : part.bottom + 1, part.left : part.right + 1])
        cv2.imwrite(str(folder / f"{case_id}.png"), hand)
        lines.append(f"{case_id}.png {int(months)}\n")
    (folder / "all.txt").write_text("".join(lines))
    size = ["-resize_height=224", "-resize_width=224"]
    programs.call("convert_imageset", [*size, f"{folder}/", str(folder / "all.txt"), str(folder / "lmdb")])
    return time.monotonic() - began


def _add_ten(data: Path) -> None:
    """Ten hands more in a folder of them."""
    for name in ("ages.csv", "points.csv"):
        cells = pandas.read_csv(data / name, dtype=str)
        pandas.concat([cells, cells[:10].assign(id="more" + cells.id[:10])]).to_csv(data / name, index=False)
    for image in (data / "images" / f"{case_id}.png" for case_id in cells.id[:10]):
        vary(image, image.with_name(f"more{image.name}"), 77)
