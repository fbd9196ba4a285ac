"""What a run's records answer to each item of the CLAIM checklist, and what they leave to the authors.

What no record contains is left to the authors: a plausible guess would be worse than no answer.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NamedTuple

from bonecaffe.evaluation.claim_facts import Facts, Partition
from bonecaffe.evaluation.groups import FEWEST, Group
from bonecaffe.evaluation.metrics import Metrics
from bonecaffe.evaluation.words import between, between_signed, number, percent, signed, without_folders
from bonecaffe.network import mean, outline
from bonecaffe.recipe import fold_of
from bonecaffe.records import Attempt, MadeWith, Prepared, State, Trained
from bonecaffe.run import SPLITS

AUTHORS = "for the authors to fill in"
TRAIN = "not yet: run `bonecaffe train`, then `bonecaffe evaluate`"
EVALUATE = "not yet: run `bonecaffe evaluate`"


class Answer(NamedTuple):
    """What the records contain on an item ("" for nothing), in which files of the run, what is left to the authors, and
    which command must be run first."""

    text: str = ""
    files: tuple[str, ...] = ()
    authors: str = ""
    missing: str = ""

    @property
    def status(self) -> str:
        """One of `STATUSES`."""
        if self.missing:
            return "not yet"
        return ("partly" if self.text else "authors") if self.authors else "recorded"

    def __str__(self) -> str:
        left = f"**{AUTHORS}**: {self.authors}" if self.authors else ""
        return ". ".join(part.rstrip(".") for part in (self.text, self.missing, left) if part) + "."


STATUSES = {
    "recorded": "answered from the records",
    "partly": "answered partly, the rest is for the authors",
    "authors": AUTHORS,
    "not yet": "not yet: a command must be run first",
}


def answers_of(facts: Facts) -> dict[int, Answer]:
    """The answer to each item, by its number."""
    parts = (_introduction, _data, _reference, _partitions, _model, _training, _evaluation, _results, _discussion)
    found = {number: answer for part in parts for number, answer in part(facts).items()}
    return dict(sorted(found.items()))


def plain(text: str) -> str:
    """A user's text on one line, escaped for Markdown and HTML."""
    line = "".join(letter if letter.isprintable() else " " for letter in text)
    return re.sub(r"([\\`*_{}\[\]<>|#~$])", r"\\\1", line)


# ---- title to reference standard ---------------------------------------------------------------------------------


def _introduction(facts: Facts) -> dict[int, Answer]:
    net = facts.recipe.network
    return {
        1: Answer(
            f"Deep learning: a convolutional network ({plain(net.name)}) that gives the bone age as a number",
            ("recipe.yaml",),
            authors="title and abstract",
        ),
        2: Answer(authors="the abstract; its figures are in items 35 to 38"),
        3: Answer(authors="clinical background, and the intended use of the model. It is not a medical device"),
        4: Answer(authors="aims and hypotheses; whether the study reproduces the paper or has another question"),
        5: Answer(authors="whether the images were taken before the study or for it"),
        6: Answer(authors="such as a feasibility study, a new model, a comparison"),
    }


def _data(facts: Facts) -> dict[int, Answer]:
    prepared, preparation = facts.prepared, facts.recipe.preparation
    tables = ", ".join(f"{kind.replace('_', ' ')}: {plain(source.name)}" for kind, source in prepared.sources.items())
    left_out = _left_out(prepared)
    unknown = sum(partition.unknown for partition in facts.partitions.values())
    turned = sum(case.quarters is not None for case in prepared.cases.values())
    inverted = sum(case.polarity == "dark" for case in prepared.cases.values())
    steps = [
        "crop to the smallest rectangle that holds seven reference points"
        + (f", widened by {preparation.margin:g} of its size" if preparation.margin else ""),
        f"histogram equalization by the rule of MATLAB's histeq, {preparation.histeq_levels} grey levels",
        f"resized to {preparation.width} x {preparation.height} pixels",
        f"mean subtracted: {mean.words(facts.recipe)}",
    ]
    return {
        7: Answer(
            f"{facts.data}. Tables ({tables}), with their SHA-256",
            ("manifest.json",),
            authors="institutions, dates, or the public data set with its link; ethics approval and consent",
        ),
        8: Answer(
            f"A hand can be used when it has an image, an age and seven points; left out: {left_out}",
            ("manifest.json",),
            authors="clinical criteria: who was eligible, who was excluded before these tables were made",
        ),
        9: Answer(
            f"{'; '.join(steps)}. Before the crop {turned} were turned upright, {inverted} with dark bones inverted",
            ("recipe.yaml", "manifest.json", "example/"),
        ),
        10: Answer(
            f"{_split(facts)}. In an image, the rectangle around the points; the points are {_points(facts)}",
            ("recipe.yaml", "cases.csv"),
            authors="how the hands in the tables were chosen, and who placed the points",
        ),
        11: Answer(authors="how images and ids were de-identified; the records keep ids, not names"),
        12: Answer(
            f"No value was imputed: hands without points or without an age are left out ({left_out}). "
            f"The sex is {f'unknown for {unknown} hands, which are used' if unknown else 'known for all'}; the network "
            "does not use it",
            ("manifest.json", "cases.csv"),
            authors="data that were missing before these tables were made",
        ),
        13: Answer(authors="devices, views, exposure, resolution; the records hold no acquisition data"),
    }


def _left_out(prepared: Prepared) -> str:
    return ", ".join(f"{count} {plain(reason)}" for reason, count in prepared.left_out.items()) or "none"


def _split(facts: Facts) -> str:
    """How the hands were assigned to the two splits."""
    counts, data = facts.prepared.records, facts.recipe.data
    hands = f"{counts['train']} hands for training and {counts['test']} for test"
    if fold := fold_of(data.split):
        return f"{hands}: {fold}, assigned at random with seed {data.split_seed}; its hands are the test split"
    if data.split == "given":
        return f"{hands}, as the tables give it; bonecaffe drew none of them"
    return f"{hands} were drawn at random from those that can be used, seed {data.split_seed}"


def _tables_of_ages(facts: Facts) -> str:
    sources = facts.prepared.sources
    return " and ".join(plain(sources[kind].name) for kind in ("ages", "test_ages") if kind in sources)


def _points(facts: Facts) -> str:
    declared = {
        "marked": "declared as marked by hand",
        "boxes": "the centres of boxes around bones",
        "found": "found by a program (bonecaffe locate), all or in part",
    }
    return declared[facts.recipe.data.points]


def _reference(facts: Facts) -> dict[int, Answer]:
    own = "test_ages" in facts.prepared.sources
    unit = ", given in years and converted" if facts.prepared.ages_in == "years" else ""
    kept = {
        "whole_months": "whole months",
        "round": "fractions rounded to whole months for training",
        "exact": "fractions kept",
    }[facts.recipe.data.labels]
    return {
        14: Answer(
            f"The age in months in the table of ages ({_tables_of_ages(facts)}){unit}; {kept}",
            ("manifest.json", "cases.csv"),
            authors="what these ages are: read by whom from which atlas, or the age at the examination",
        ),
        15: Answer(authors="why these ages and not others (another atlas, several readers)"),
        16: Answer(authors="number, qualification and training of the readers who gave the ages"),
        17: Answer(
            f"The ages of the test split come from {'a separate table' if own else 'the same table'}",
            ("cases.csv",),
            authors="how the test hands were read, with which tools, and whether by other readers",
        ),
        18: Answer(authors="agreement of readers on the age, and of two markings of the points"),
    }


def _partitions(facts: Facts) -> dict[int, Answer]:
    solver = facts.recipe.solver
    groups = facts.prepared.groups
    held = f". Hands of a group are on one side: {groups} groups, by the tables' column group" if groups else ""
    grouped = (
        "what the groups are, such as children, and whether they are complete"
        if groups
        else "whether several images are of one child; the tables hold no number of the child"
    )
    compared = all(case.image_sha256 for case in facts.prepared.cases.values())
    same = ", and no identical image (decoded pixels were compared)" if compared else ""
    tested = (
        f"No partition for tuning: the test split's loss is computed every {solver.test_interval} iterations and shown "
        "in the curve; it changes no weight"
    )
    return {
        19: Answer(f"{_split(facts)}. {tested}", ("recipe.yaml", "train.txt", "test.txt", "manifest.json")),
        20: Answer(
            f"Images: no id is on both sides{same}{held}",
            ("manifest.json",),
            authors=grouped,
        ),
        21: Answer(
            f"{facts.recipe.data.train_cases} for training and {facts.recipe.data.test_cases} for test "
            f"{'were requested' if facts.recipe.data.split == 'drawn' else 'follow from the split'}",
            ("recipe.yaml",),
            authors="why these numbers: the intended precision of the figures",
        ),
    }


# ---- model and training ------------------------------------------------------------------------------------------


def _model(facts: Facts) -> dict[int, Answer]:
    recipe, trained = facts.recipe, facts.trained
    sizes = "; ".join(f"{step.name} {step.size} ({step.does})" for step in outline.steps(recipe))
    files = ("train_val.prototxt", "deploy.prototxt")
    return {
        22: Answer(
            f"{plain(recipe.network.name)}, channels x height x width of each output: {sizes}. ReLU after each "
            f"convolution and each fully connected layer but the last, local response normalization after pool1 and "
            f"pool2, dropout {recipe.network.dropout:g} after fc6 and fc7; loss {recipe.network.loss}"
            f"{_edited(trained, files)}",
            files,
        ),
        23: Answer(f"{_software(_made(facts))}{'' if trained else '; of the preparation'}", ("manifest.json",)),
        24: _initial(facts),
    }


def _made(facts: Facts) -> MadeWith:
    attempts = facts.trained.attempts if facts.trained else ()
    return attempts[-1].by if attempts else facts.prepared.by


def _software(by: MadeWith) -> str:
    parts = [f"bonecaffe {by.bonecaffe}", f"Python {by.python}"]
    if by.caffe is not None:
        build = [by.caffe.build[key] for key in ("commit", "compiler", "blas") if by.caffe.build.get(key)]
        gpu = f"{'with' if by.caffe.gpu else 'without'} CUDA" + (", cuDNN" if by.caffe.cudnn else "")
        parts.append(f"Caffe ({'; '.join(_without_folders(word) for word in (by.caffe.origin, *build))}; {gpu})")
    parts += [f"{name} {version}" for name, version in by.packages.items()]
    return f"{', '.join(parts)}; {_without_folders(by.host.system)}"


def _without_folders(text: str) -> str:
    """The text without the folder names of the machine that built Caffe."""
    return plain(without_folders(text))


def _initial(facts: Facts) -> Answer:
    trained, recipe = facts.trained, facts.recipe
    if trained is None:
        return Answer(f"The recipe asks for: {recipe.training.initial_weights}", ("recipe.yaml",), missing=TRAIN)
    seed = f"Caffe's seed {recipe.solver.random_seed}"
    if trained.weights is None:
        return Answer(f"At random, by the fillers of the definition file, {seed}", ("train_val.prototxt",))
    kind = "BVLC's CaffeNet weights, trained on ImageNet" if trained.weights.imagenet else "weights that were given"
    return Answer(
        f"{kind} ({plain(trained.weights.name)}, SHA-256 {trained.weights.sha256}); {recipe.network.fc8_name} at "
        f"random, SD {recipe.network.fc8_weight_std:g}, {seed}",
        ("manifest.json", "init.caffemodel"),
        authors="" if trained.weights.imagenet else "what these weights were trained on",
    )


def _training(facts: Facts) -> dict[int, Answer]:
    return {
        25: _trained(facts),
        26: _selected(facts),
        27: Answer("None: one network, one pass for each image", ("deploy.prototxt",)),
    }


def _trained(facts: Facts) -> Answer:
    trained, net = facts.trained, facts.recipe.network
    edited = trained.edited.get("solver.prototxt", {}) if trained else {}
    solver = {
        name: edited[name][1] if name in edited else _number(getattr(facts.recipe.solver, name))
        for name in (
            *("type", "base_lr", "lr_policy", "gamma", "stepsize", "momentum", "weight_decay", "max_iter"),
            *("iter_size", "snapshot", "random_seed"),
        )
    }
    settings = ", ".join(f"{name} {plain(value)}" for name, value in solver.items())
    augmentation = "mirrored at random" if net.mirror else "none"
    text = f"{settings}; batch {net.train_batch}; augmentation: {augmentation}; dropout {net.dropout:g}"
    if trained is None:
        return Answer(f"Planned: {text}", ("recipe.yaml",), missing=TRAIN)
    text += f"{_edited(trained, ('solver.prototxt',))}. Training: {facts.state}, at iteration {trained.iteration}"
    text += "".join(f". {_attempt(number, each)}" for number, each in enumerate(trained.attempts, start=1))
    host = _made(facts).host
    text += f". Hardware: {plain(host.cpu)}, {host.cores} cores, {host.memory_gb:g} GB"
    model = "the model of the GPUs" if any(attempt.gpus for attempt in trained.attempts) else ""
    unfinished = "" if facts.state is State.FINISHED else TRAIN
    return Answer(
        text, ("solver.prototxt", "caffe.log", "curve.csv", "manifest.json"), authors=model, missing=unfinished
    )


def models(trained: Trained) -> dict[int, str]:
    """The models of a training on record, as paths in the run, by iteration."""
    found = ((re.search(r"_iter_(\d+)\.caffemodel", name), name) for name in trained.outputs)
    return {int(number[1]): name for number, name in found if number}


def _number(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _edited(trained: Trained | None, names: Iterable[str]) -> str:
    here = [name for name in names if trained and name in trained.edited]
    return f". Edited by hand, so the file is right where it differs from this: {', '.join(here)}" if here else ""


def _attempt(number: int, attempt: Attempt) -> str:
    where = "" if attempt.gpus is None else f" on {attempt.gpus} GPUs" if attempt.gpus else " on the CPU"
    start = f"from iteration {attempt.started_at}" if attempt.started_at else "from the start"
    seconds = f", {attempt.seconds:.0f} s" if attempt.seconds is not None else ""
    alarms = "".join(f"; alarm: {_without_folders(alarm)}" for alarm in attempt.alarms)
    return f"Call {number}: {start}{where}, {attempt.state or 'unfinished'}{seconds}{alarms}"


def _selected(facts: Facts) -> Answer:
    if facts.trained is None:
        return Answer(missing=TRAIN)
    if facts.measured is None:
        return Answer(missing=EVALUATE)
    used, last = facts.measured.iteration, max(models(facts.trained), default=facts.trained.iteration)
    surveyed = ". Every snapshot was measured on the test split too" if facts.surveyed else ""
    files = ("manifest.json", *(("metrics_by_snapshot.csv",) if facts.surveyed else ()))
    if used == last:
        return Answer(f"The last snapshot, iteration {used}{surveyed}", files)
    return Answer(
        f"The snapshot of iteration {used}; the last one is of iteration {last}{surveyed}",
        files,
        authors="why this snapshot was chosen, and that no test figure was used to choose it",
    )


# ---- evaluation and results --------------------------------------------------------------------------------------


def _evaluation(facts: Facts) -> dict[int, Answer]:
    measured = facts.measured
    missing = "" if measured else EVALUATE if facts.trained else TRAIN
    robust = facts.months_per_percent
    intervals = "95 % intervals of MAD and CCC, and by age and sex of MAD and bias"
    by_sex = "boys against girls by Welch's test, and by regression on sex and age (HC3 standard errors)"
    return {
        28: Answer(
            "Mean absolute difference (MAD), Lin's concordance correlation coefficient, largest error, bias, limits of "
            "agreement, Pearson's r, RMSE, hands within 12 and 24 months",
            ("metrics.json",) if measured else (),
            missing=missing,
        ),
        29: Answer(
            f"{intervals} ({plain(measured.intervals)}); {by_sex}" if measured else "",
            ("metrics.json",) if measured else (),
            missing=missing,
        ),
        30: Answer(
            f"Reference points moved at random: predictions move by {robust:.2f} months for each percent of "
            "the palm; the model is not on record",
            ("sensitivity.json",),
            authors="other analyses: other devices, image quality, other readers",
        )
        if robust is not None
        else Answer(missing="not yet: run `bonecaffe sensitivity`", authors="other analyses"),
        31: Answer(authors="whether any was used; none is on record"),
        32: Answer(
            f"The test split: {facts.partitions['test'].hands} hands that were not trained on",
            ("test.txt",),
            missing=missing,
        ),
        33: Answer(
            authors="whether the model was tested on data from elsewhere; the origin of the hands is not on record"
        ),
        34: Answer(authors="number and registry, or that it is not a clinical trial"),
    }


def _results(facts: Facts) -> dict[int, Answer]:
    counts, measured = facts.prepared.records, facts.measured
    missing = "" if measured else EVALUATE if facts.trained else TRAIN
    answers = {
        35: Answer(
            f"Images: {sum(counts.values())} included ({counts['train']} for training, {counts['test']} for test); "
            f"left out: {_left_out(facts.prepared)}",
            ("manifest.json",),
            authors="numbers of children, and a flow diagram that starts with the eligible children",
        ),
        36: Answer(
            ". ".join(_characteristics(split, facts.partitions[split]) for split in SPLITS),
            ("cases.csv",),
            authors="clinical characteristics, ancestry, site",
        ),
    }
    if measured is None:
        return answers | dict.fromkeys((37, 38, 39), Answer(missing=missing))
    overall = ". ".join(f"{split.capitalize()}: {_figures(measured.splits[split])}" for split in SPLITS)
    by_group = "; ".join(_of_group(group) for group in measured.groups["test"])
    test = measured.splits["test"]
    worst = [group for group in measured.groups["test"] if group.max_error_months == test.max_error_months]
    return answers | {
        37: Answer(f"{overall}. {measured.sex['test'].verdict}", ("metrics.json", "report.html", "figures/")),
        38: Answer(
            f"The output is an age, not a diagnosis. Test split: {percent(test.within_12_months)} within 12 months, "
            f"{percent(test.within_24_months)} within 24, limits of agreement "
            f"{between_signed(test.limits_of_agreement_months)} months. By age and sex (no interval below {FEWEST} "
            f"hands): {by_group}",
            ("metrics.json", "report.html"),
        ),
        39: Answer(
            f"Largest error {test.max_error_months:.1f} months, in: {' and '.join(group.name for group in worst)}. "
            "The report shows the twelve test hands with the largest errors",
            ("report.html", "predictions_test.csv"),
            authors="what these hands have in common, and what such an error would mean for the child",
        ),
    }


def _characteristics(split: str, p: Partition) -> str:
    unknown = f", {p.unknown} of unknown sex" if p.unknown else ""
    return (
        f"{split.capitalize()}: {p.hands} hands, {p.boys} boys, {p.girls} girls{unknown}; age {p.mean_months:.1f} "
        f"months (SD {p.sd_months:.1f}, {p.youngest_months:g} to {p.oldest_months:g})"
    )


def _figures(m: Metrics) -> str:
    def shown(interval: tuple[float, float] | None, digits: int) -> str:
        return f" (95 % interval {between(interval, digits)})" if interval else " (no interval)"

    return (
        f"MAD {m.mad_months:.1f} months{shown(m.mad_interval_95, 1)}, CCC {number(m.ccc, 3)}"
        f"{shown(m.ccc_interval_95, 3)}, largest error {m.max_error_months:.1f}, "
        f"bias {signed(m.bias_months)}, n = {m.cases}"
    )


def _of_group(group: Group) -> str:
    mad = f" ({between(group.mad_interval_95)})" if group.mad_interval_95 else ""
    bias = f" ({between_signed(group.bias_interval_95)})" if group.bias_interval_95 else ""
    return f"{group.name}, n = {group.cases}: MAD {group.mad_months:.1f}{mad}, bias {signed(group.bias_months)}{bias}"


# ---- discussion and the rest -------------------------------------------------------------------------------------


def _discussion(facts: Facts) -> dict[int, Answer]:
    notes = facts.measured.splits["test"].notes if facts.measured else ()
    noted = f"Noted by the evaluation: {plain('; '.join(notes))}" if notes else ""
    by, trained = facts.prepared.by, facts.trained
    left = models(trained) if trained else {}
    name = left.get(facts.measured.iteration if facts.measured else max(left, default=0), "")
    model = f"; model {plain(name)}, SHA-256 {trained.outputs[name]}" if trained and name else ""
    return {
        40: Answer(
            noted,
            ("metrics.json",) if noted else (),
            authors="such as few hands, one source of data, one reading of the age, differences by sex and age",
        ),
        41: Answer(authors="what follows for practice. bonecaffe is not a medical device"),
        42: Answer(
            "Every setting with its source in Lee and Kim (2018) or its reason; hashes of all inputs and results, "
            "which `bonecaffe verify` recomputes",
            ("recipe.yaml", "manifest.json"),
            authors="the study's protocol, if there is one",
        ),
        43: Answer(
            f"Software: bonecaffe {by.bonecaffe}, open source (BSD-2-Clause){model}",
            ("manifest.json",),
            authors="where model and data are available, to whom, under which licence",
        ),
        44: Answer(authors="sources of funding, the role of funders, conflicts of interest"),
    }
