"""Claim: the default text classifier learns: it names the package of 60 % of unseen pieces of code.

    python benchmarks/learning_texts.py

TF-IDF with logistic regression on the same texts, with all labels, is told beside it: words and their pairs, and parts of words.
"""

from __future__ import annotations

import json
import time
from typing import Any

import psutil
from record import publish, table

from harness import Sandbox  # isort: skip  - `record` puts it on the path
from orchestrator.config import load_job_spec
from orchestrator.paths import JobKeys
from workloads.text_classifier import TextClassifier

ACCURACY = 0.6
FEATURES: dict[str, dict[str, Any]] = {
    "words and pairs": {"ngram_range": (1, 2), "sublinear_tf": True},
    "parts of words, 2 to 5 characters": {"analyzer": "char_wb", "ngram_range": (2, 5), "sublinear_tf": True, "max_features": 200_000},
}


def learn(box: Sandbox) -> dict[str, Any]:
    """Evaluation before and after, seconds of the whole command."""
    began = time.monotonic()
    code, output = box.run("train", "workload=text-classifier", "tracking.enabled=false", timeout_s=3000)
    assert code == 0, output
    job_id = box.jobs()[-1].id
    print(output[-900:], flush=True)
    told = json.loads(box.store(job_id).get(JobKeys(job_id).artifact("evaluation.json")))
    return {**told, "seconds": time.monotonic() - began}


def peers() -> dict[str, float]:
    """Accuracy of each set of features on the split of the workload."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression

    subject = TextClassifier(load_job_spec(["workload=text-classifier"]))
    texts = subject.recipe.read()
    split = subject.split(texts, subject.recipe.classes_of(texts))
    labels = {name: [text.label for text in members] for name, members in split.items()}
    found = {}
    for name, settings in FEATURES.items():
        vectorizer = TfidfVectorizer(**settings)
        train = vectorizer.fit_transform(text.text for text in split["train"])
        held_out = vectorizer.transform(text.text for text in split["validation"])
        found[name] = float(LogisticRegression(C=10, max_iter=100).fit(train, labels["train"]).score(held_out, labels["validation"]))
    return found


def main() -> int:
    box = Sandbox()
    try:
        told = learn(box)
    finally:
        box.close()
    before, after, others = told["before"], told["after"], peers()
    rows = table(
        ("figure", "before", "after"),
        [(name, f"{before[name]:.3f}", f"{after[name]:.3f}") for name in ("loss", "accuracy", "macro_f1", "calibration_error")],
    )
    rows += ["", *table(("TF-IDF + logistic regression (C = 10)", "accuracy"), [(name, f"{value:.3f}") for name, value in others.items()])]
    load = psutil.getloadavg()[2]
    rows += ["", f"The whole command took {told['seconds']:.0f} s; the machine's load over the last 15 minutes was {load:.1f} on 2 cores."]
    return publish(
        "learning_texts", "The default text classifier names the package of most unseen code", ours=round(after["accuracy"], 4),
        bar=ACCURACY, holds=after["accuracy"] >= ACCURACY, rows=rows, peers={name: round(value, 4) for name, value in others.items()},
        seconds=round(told["seconds"]), load=round(load, 1),
    )  # fmt: skip


if __name__ == "__main__":
    raise SystemExit(main())
