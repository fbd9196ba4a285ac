"""Which settings of a solver break a training, the reading of its log, or the search for its snapshots.

Pure: a parsed SolverParameter in, sentences out. bonecaffe writes a solver that has none of these problems; a
solver.prototxt that was edited by hand may. Sources: Caffe's solver.cpp, sgd_solver.cpp, upgrade_proto.cpp.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

STATE_FACTOR = {"SGD": 1, "Nesterov": 1, "AdaGrad": 1, "RMSProp": 1, "AdaDelta": 2, "Adam": 2}
"""Histories that each type of solver keeps per weight; its solverstate holds that many numbers per weight."""
_POLICIES = ("fixed", "step", "exp", "inv", "multistep", "poly", "sigmoid")
_WITHOUT_MOMENTUM = ("AdaGrad", "RMSProp")
_OTHER_NETS = ("net_param", "train_net", "train_net_param", "test_net", "test_net_param")
_STATES = ("train_state", "test_state")


def problems(solver: Any, net_name: str) -> Iterator[str]:
    """What makes Caffe abort, or makes bonecaffe misread the training. ``net_name``: the file of the run's net."""
    yield from _net(solver, net_name)
    yield from _method(solver)
    yield from _course(solver)
    yield from _snapshots(solver)


def _net(solver: Any, net_name: str) -> Iterator[str]:
    """One net, in the file that is recorded with the training; weights as the command line gives them."""
    others = [field for field in _OTHER_NETS if _is_set(solver, field)]
    if others or solver.net != net_name:
        found = ", ".join([*others, *([f"net: {solver.net}"] if solver.net != net_name else [])]).rstrip(": ")
        yield (
            f'the network is named by {found}; bonecaffe checks and records {net_name}. Write net: "{net_name}" '
            "and no other field for it."
        )
    if states := [field for field in _STATES if _is_set(solver, field)]:
        yield f"{' and '.join(states)}: bonecaffe does not follow layers by level or stage. Remove it."
    if _is_set(solver, "weights"):
        yield "weights: the record of the training would not name them. Remove the line and give them with --weights."


def _method(solver: Any) -> Iterator[str]:
    """Type, rate and regularization."""
    if solver.HasField("solver_type"):
        yield 'solver_type is the old name of type. Write type, such as type: "Adam", and remove it.'
    elif solver.type not in STATE_FACTOR:
        yield f"type {solver.type!r} is not one that Caffe knows. Write one of {', '.join(STATE_FACTOR)}."
    elif solver.type in _WITHOUT_MOMENTUM and solver.momentum:
        yield f"type {solver.type} with momentum {solver.momentum:g}; Caffe would abort. Write momentum: 0."
    if solver.type == "RMSProp" and not 0 <= solver.rms_decay < 1:
        yield f"rms_decay {solver.rms_decay:g}: Caffe needs 0 or more, and less than 1."
    if solver.weight_decay and solver.regularization_type not in ("L1", "L2"):
        yield f"regularization_type {solver.regularization_type!r} is not one that Caffe knows. Write L1 or L2."
    if solver.lr_policy not in _POLICIES:
        yield (
            f"lr_policy {solver.lr_policy!r} is not one that Caffe knows; Caffe would abort at the first iteration. "
            'Write lr_policy: "step" or "fixed".'
            if solver.lr_policy
            else 'lr_policy is missing; Caffe would abort at the first iteration. Write lr_policy: "step" or "fixed".'
        )
    if solver.lr_policy == "step" and solver.stepsize <= 0:
        yield "lr_policy step needs a stepsize above 0; Caffe would divide by it."


def _course(solver: Any) -> Iterator[str]:
    """Iterations, tests, and what the log shows of them."""
    if solver.max_iter < 1:
        yield f"max_iter is {solver.max_iter}: nothing would be trained. Write 1 or more."
    if solver.iter_size < 1:
        yield f"iter_size is {solver.iter_size}; Caffe would divide the loss by it. Write 1 or more."
    if solver.average_loss < 1:
        yield f"average_loss is {solver.average_loss}; Caffe would abort. Write 1 or more."
    if not solver.display:
        yield (
            "display is 0: Caffe would print no loss, so there would be no curve and a loss of nan would go unnoticed. "
            "Write display: 20."
        )
    if len(solver.test_iter) > 1:
        yield f"{len(solver.test_iter)} lines of test_iter: bonecaffe reads one test pass. Keep one of them."
    if solver.test_iter and solver.test_interval <= 0:
        yield f"test_iter with test_interval {solver.test_interval}; Caffe would abort. Write test_interval: 100."


def _snapshots(solver: Any) -> Iterator[str]:
    """Whether the last iteration leaves a snapshot that bonecaffe can read."""
    if solver.snapshot_format != solver.BINARYPROTO:
        yield (
            "snapshot_format HDF5: bonecaffe reads snapshots in Caffe's binary format only. Write "
            "snapshot_format: BINARYPROTO, or remove the line."
        )
    last = solver.snapshot and solver.max_iter % solver.snapshot == 0
    if not solver.snapshot_after_train and not last:
        yield (
            f"snapshot_after_train: false, and max_iter {solver.max_iter} is not a multiple of snapshot "
            f"{solver.snapshot}: the last iteration would leave no snapshot. Remove the line."
        )


def _is_set(solver: Any, name: str) -> bool:
    """Whether a field is in the file; False for one that this Caffe's protocol does not have."""
    return any(field.name == name for field, _ in solver.ListFields())
