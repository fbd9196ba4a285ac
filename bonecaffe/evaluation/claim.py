"""The CLAIM checklist of 2024 as a Markdown file, answered from a run's records.

Tejani AS, Klontzas ME, Gatti AA, Mongan JT, Moy L, Park SH, Kahn CE Jr. Checklist for Artificial Intelligence in
Medical Imaging (CLAIM): 2024 Update. Radiology: Artificial Intelligence 2024;6(4):e240300.

The topics of its 44 items are in bonecaffe's words. Numbers, sections and topics were compared with two public
transcriptions of the checklist, which agree in all 44. The published page itself was not available.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from bonecaffe.errors import EvaluateError
from bonecaffe.evaluation.claim_answers import STATUSES, answers_of, plain
from bonecaffe.evaluation.claim_facts import Facts, facts_of
from bonecaffe.files import followed, read_bytes, sha256, write_if_unchanged, write_text
from bonecaffe.run import RunDir

SECTIONS: Mapping[str, Mapping[int, str]] = {
    "Title and abstract": {
        1: "The title or abstract names the study as one of AI, and the kind of method",
        2: "The abstract sums up design, methods, results and conclusions",
    },
    "Introduction": {
        3: "Background, and the role that the method is meant for",
        4: "Aims, objectives and hypotheses",
    },
    "Methods: study design": {
        5: "Prospective or retrospective",
        6: "Goal of the study",
    },
    "Methods: data": {
        7: "Where the data come from",
        8: "Criteria for inclusion and exclusion",
        9: "Preprocessing",
        10: "How subsets of the data were selected",
        11: "De-identification",
        12: "How missing data were handled",
        13: "How the images were acquired",
    },
    "Methods: reference standard": {
        14: "What the reference standard is and how it was obtained",
        15: "Why this reference standard",
        16: "Who made its annotations",
        17: "Annotation of the test set",
        18: "Variability between and within readers",
    },
    "Methods: data partitions": {
        19: "How data were assigned to partitions",
        20: "At which level the partitions are disjoint",
    },
    "Methods: testing data": {
        21: "Intended sample size",
    },
    "Methods: model": {
        22: "Description of the model",
        23: "Software: libraries, frameworks, packages",
        24: "How the parameters were initialized",
    },
    "Methods: training": {
        25: "How it was trained",
        26: "How the final model was selected",
        27: "Ensembles",
    },
    "Methods: evaluation": {
        28: "Measures of performance",
        29: "Measures of significance and uncertainty",
        30: "Robustness or sensitivity analysis",
        31: "Explainability or interpretability",
        32: "Evaluation on internal data",
        33: "Testing on external data",
        34: "Registration as a clinical trial",
    },
    "Results: data": {
        35: "Numbers included and excluded",
        36: "Demographic and clinical characteristics of each partition",
    },
    "Results: model performance": {
        37: "Performance with its uncertainty",
        38: "Estimates of diagnostic performance and their precision",
        39: "Analysis of failures",
    },
    "Discussion": {
        40: "Limitations",
        41: "Implications for practice, intended use, clinical role",
    },
    "Other information": {
        42: "Where the protocol or further technical details are",
        43: "Availability of software, model and data",
        44: "Funding, and the role of funders",
    },
}


def checklist(facts: Facts) -> str:
    """The checklist of a run as Markdown: a table for each section."""
    answers = answers_of(facts)
    counts = {status: sum(answer.status == status for answer in answers.values()) for status in STATUSES}
    lines = [
        f"# CLAIM 2024: {plain(facts.run)}",
        "",
        "Checklist for Artificial Intelligence in Medical Imaging, 2024 update (Tejani et al., Radiology: Artificial "
        "Intelligence 2024;6(4):e240300), filled in from the records of a run of bonecaffe. Topics are in bonecaffe's "
        "words: submit the official form with the manuscript, and take the answers from here.",
        "",
        "Files are in the run's folder. Of 44 items: "
        + "; ".join(f"{counts[status]} {meaning}" for status, meaning in STATUSES.items())
        + ".",
    ]
    for section, topics in SECTIONS.items():
        lines += ["", f"## {section}", "", "| Item | Topic | In this run | Files |", "| ---: | --- | --- | --- |"]
        for number, topic in topics.items():
            files = ", ".join(f"`{name}`" for name in answers[number].files)
            lines.append(f"| {number} | {topic} | {answers[number]} | {files} |")
    return "\n".join(lines) + "\n"


# ---- the file --------------------------------------------------------------------------------------------------------

_SEAL = "<!-- Written by bonecaffe, which replaces this file as long as it is not edited: "


def check_target(path: Path) -> bytes | None:
    """The content of the file that the checklist will replace; None when there is no file.

    Raises EvaluateError when its name does not end in .md, or when somebody has edited it: authors fill the checklist
    in, and their answers must not be overwritten.
    """
    if path.suffix != ".md":
        raise EvaluateError(f"--claim {path}: the checklist is Markdown. Give a file that ends in .md.")
    try:
        content = read_bytes(path, "table", EvaluateError)
    except FileNotFoundError:
        return None
    except NotADirectoryError:
        raise EvaluateError(f"--claim {path}: {path.parent} is a file, not a folder. Give another place.") from None
    text, _, seal = content.decode("utf-8", "replace").rpartition(_SEAL)
    if seal != _seal(text):
        raise EvaluateError(
            f"--claim {path}: the file already exists and is not as bonecaffe wrote it: somebody edited it, or it is "
            "another file. Give another name, and copy your answers into the new file."
        )
    return content


def write(run: RunDir, path: Path) -> None:
    """Write the checklist of a run.

    Raises what `facts_of` and `check_target` raise, and EvaluateError when the file changes in the meantime.
    """
    text = checklist(facts_of(run)) + "\n"
    sealed = f"{text}{_SEAL}{_seal(text)}"
    before = check_target(path)
    if before is None:
        write_text(path, sealed, parents=True)
    elif not write_if_unchanged(followed(path), sealed, before):
        raise EvaluateError(f"--claim {path}: another program has just changed it. Look at it, and try again.")


def _seal(text: str) -> str:
    return f"{sha256(text)} -->\n"
