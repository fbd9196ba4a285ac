"""Named pipes, devices, links and files of absurd size where an input is expected: refused by name, never waited for.

Each case runs in a separate process with a timeout, so that a hang fails only its own test.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

import pytest
from conftest import SAMPLE

from bonecaffe.hands.images import read_image
from bonecaffe.locate.locator import MODEL

TIMEOUT_S = 60

READERS = {
    "image": ("x.png", "from bonecaffe.hands.images import read_image; read_image(path)"),
    "image's size": ("x.png", "from bonecaffe.hands.images import image_size; image_size(path)"),
    "points": ("points.csv", "from bonecaffe.hands.reference_points import read_points; read_points(path)"),
    "ages": ("ages.csv", "from bonecaffe.hands.cases import read_cases; read_cases(path)"),
    "COCO": ("coco.json", "from bonecaffe.hands.formats import read; read([path])"),
    "VOC": ("hand.xml", "from bonecaffe.hands.formats import read; read([path])"),
    "folder of annotations": ("coco.json", "from bonecaffe.hands.formats import read; read([path.parent])"),
    "weights": ("a.caffemodel", "from bonecaffe.caffe.caffemodel import Caffemodel; Caffemodel(path)"),
    "solverstate": ("a.solverstate", "from bonecaffe.caffe.caffemodel import solver_state; solver_state(path)"),
    "solverstate's net": ("a.solverstate", "from bonecaffe.caffe.caffemodel import learned_net; learned_net(path)"),
    "mean": ("mean.binaryproto", "from bonecaffe.network.mean import read; read(path)"),
    "locator": ("locator.json", "from bonecaffe.locate.locator import Locator; Locator(path.parent)"),
    "notes": (
        "points.notes.csv",
        "from bonecaffe.hands.provenance import count_accepted; count_accepted(path.parent / 'points.csv')",
    ),
}


def refusal(code: str, path: object, timeout: float = TIMEOUT_S) -> str:
    """The text of the BonecaffeError that ``code`` ends in; the test fails on any other end, or none."""
    program = (
        "import pathlib, sys\nfrom bonecaffe.errors import BonecaffeError\npath = pathlib.Path(sys.argv[1])\n"
        f"try:\n    {code}\nexcept BonecaffeError as error:\n    print(error)\nelse:\n    sys.exit('not refused')\n"
    )
    done = subprocess.run([sys.executable, "-c", program, str(path)], capture_output=True, text=True, timeout=timeout)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("reader", READERS)
def test_named_pipe_is_refused_by_name(tmp_path, reader):
    """Nothing writes into it: opening it for reading would block forever."""
    name, code = READERS[reader]
    os.mkfifo(tmp_path / name)
    message = refusal(code, tmp_path / name)
    assert name in message and "named pipe" in message


@pytest.mark.parametrize("reader", READERS)
def test_device_is_refused(tmp_path, reader):
    """/dev/zero by a link: it has no end."""
    name, code = READERS[reader]
    (tmp_path / name).symlink_to("/dev/zero")
    message = refusal(code, tmp_path / name)
    assert name in message and ("a device" in message or "a link" in message)


@pytest.mark.parametrize("reader", ["image", "points", "ages", "COCO", "mean", "locator"])
def test_file_too_large_for_its_kind_is_refused(tmp_path, reader):
    """A sparse file of 16 GB takes no room on the disk; read, it would take all memory."""
    name, code = READERS[reader]
    with open(tmp_path / name, "wb") as file:
        file.truncate(16 << 30)
    message = refusal(code, tmp_path / name)
    assert name in message and "MB" in message


@pytest.mark.parametrize("name", ["points.csv", "points.notes.csv", ".points.csv.lock"])
@pytest.mark.parametrize("kind", ["pipe", "link", "hard link"])
def test_annotate_neither_waits_nor_writes_through(hands, tmp_path, name, kind):
    """The table's lock and notes as a pipe or a link: refused, and the link's target is unchanged."""
    victim = tmp_path / "victim"
    victim.write_text("id,skipped,flagged,seconds,points,suggested\n1001,no,,,,\n")
    before, folder = victim.read_bytes(), tmp_path / "data"
    folder.mkdir()
    path = folder / name
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "link":
        path.symlink_to(victim)
    else:
        path.hardlink_to(victim)
    code = (
        "from bonecaffe.annotate.marking import Marking, Marks; "
        f"marking = Marking({str(hands / 'images')!r}, path.parent / 'points.csv'); "
        "marking.change('1001', Marks(skipped='blurred', version=marking.marks('1001').version)); "
        "raise BonecaffeError('written')"
    )
    message = refusal(code, path)
    assert victim.read_bytes() == before
    if kind == "pipe":
        assert name in message and "named pipe" in message
    elif name == "points.csv":  # the user named it, and the victim is not a table of points
        assert name in message and "header" in message
    elif kind == "link" or name == ".points.csv.lock":
        assert name in message and "link" in message
    else:  # a hard-linked file is replaced, not written into
        assert message == "written\n"


@pytest.mark.parametrize("kind", ["pipe", "link", "folder of a stranger"])
def test_remembered_page_is_never_followed(hands, tmp_path, kind):
    """The file that a killed server left, as a pipe or a link: made again; its target is untouched and not trusted."""
    victim = tmp_path / "victim"
    victim.write_text('{"port": 1, "token": "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"}')
    path = tmp_path / "data" / ".points.csv.page"
    path.parent.mkdir()
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "link":
        path.symlink_to(victim)
    else:
        path.mkdir()
    code = (
        "from bonecaffe.annotate.marking import Marking; from bonecaffe.annotate.server import Server; "
        "from bonecaffe.recipe import Recipe; "
        f"marking = Marking({str(hands / 'images')!r}, path.parent / 'points.csv'); "
        "server = Server(marking, Recipe.load('paper').preparation); "
        "there = path.is_file() and not path.is_symlink() and path.stat().st_mode & 0o777 == 0o600; "
        "server.close(); raise BonecaffeError(f'{server.address} {there} {path.exists()}')"
    )
    message = refusal(code, path)
    assert victim.read_text().startswith('{"port": 1')
    if kind == "folder of a stranger":
        assert ".points.csv.page" in message and path.is_dir()
    else:
        assert "aaaa" not in message and message.endswith(" True False\n")


def test_phantoms_are_not_written_through_links(tmp_path):
    """An untrusted folder with a link where a phantom's image will be written."""
    victim = tmp_path / "victim"
    victim.write_text("mine")
    folder = tmp_path / "data" / "images"
    folder.mkdir(parents=True)
    (folder / "1001.png").symlink_to(victim)
    (folder / "1001.png.part").symlink_to(victim)
    code = (
        "from bonecaffe.hands.phantom import dataset; dataset.write(path, 1, 7, (300, 390)); "
        "raise BonecaffeError('written')"
    )
    assert refusal(code, tmp_path / "data") == "written\n"
    assert victim.read_text() == "mine" and read_image(folder / "1001.png").shape == (390, 300)


def test_xml_with_entities_is_refused_in_every_encoding(tmp_path):
    """A document type is found in UTF-16 too; an entity that grows a thousandfold is not expanded."""
    entities = f"<!ENTITY b 'x'><!ENTITY c '{'&b;' * 1000}'>"
    text = f"<!DOCTYPE a [{entities}]><annotation><filename>&c;</filename></annotation>"
    for encoding in ("utf-8", "utf-16-le"):
        path = tmp_path / f"{encoding}.xml"
        path.write_bytes(text.encode(encoding))
        code = "from bonecaffe.hands.formats import read; read([path])"
        assert f"{encoding}.xml: XML with a document type" in refusal(code, path)


def test_cut_off_model_of_a_locator_is_refused(tmp_path):
    """Caffe would abort, and this process with it."""
    shutil.copytree(MODEL, tmp_path / "model")
    os.truncate(tmp_path / "model" / "whole.caffemodel", 50_000)
    message = refusal("from bonecaffe.locate.locator import Locator; Locator(path)", tmp_path / "model")
    assert "whole.caffemodel: cut off" in message


def test_only_formats_of_radiographs_are_asked_for_their_size(tmp_path):
    """No other of Pillow's formats is tried on a file from a stranger."""
    import PIL.Image

    image = PIL.Image.fromarray(read_image(next((SAMPLE / "images").glob("*.png"))))
    for kind, named in (("GIF", "a GIF file"), ("PPM", "not an image that bonecaffe knows"), ("ICO", "not an image")):
        image.save(tmp_path / "a.png", kind)
        message = refusal("from bonecaffe.hands.images import image_size; image_size(path)", tmp_path / "a.png")
        assert f"a.png: {named}" in message
