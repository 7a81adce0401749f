"""What words say about the cause of a failure: messages of torch, CUDA, NCCL, gloo, Ray, boto3, MLflow and the kernel. Pure.

One table, most telling first. Each pattern has the form of the program that writes it, so that a user's own words are not taken for it.
Codes of NVIDIA's Xid errors: https://docs.nvidia.com/deploy/xid-errors.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from orchestrator.job import EndReason, Remedy


@dataclass(frozen=True, kw_only=True)
class Evidence:
    name: str
    """Of the row: part of the fingerprint."""
    reason: EndReason
    remedy: Remedy
    echo: bool = False
    """It only says that another rank is gone, or does not answer."""
    vague: bool = False
    """It only says that something failed: the log may know more."""


@dataclass(frozen=True)
class _Row:
    pattern: re.Pattern[str]
    evidence: Evidence
    exceptions_only: bool = False
    """Words too common for a log."""


def _row(
    name: str, reason: EndReason, *patterns: str, remedy: Remedy | None = None, echo: bool = False, vague: bool = False,
    exceptions_only: bool = False,
) -> _Row:  # fmt: skip
    evidence = Evidence(name=name, reason=reason, remedy=remedy or reason.remedy, echo=echo, vague=vague or echo)
    return _Row(re.compile("|".join(patterns), re.IGNORECASE), evidence, exceptions_only)


_BROKEN_DEVICE_XIDS = "48|62|63|64|74|79|92|94|95|119|120|140|143"
_TABLE = (
    _row(
        "device memory", EndReason.OUT_OF_MEMORY,
        r"\b(CUDA|HIP|XPU|MPS|NPU)( error:| backend)? out of memory", r"cuda (failure|runtime error)[^\n]{0,8}\bout of memory",
        r"\bCU\w+_STATUS_\w*ALLOC\w*", r"\bOutOfMemoryError\b", r"unable to find a valid cuDNN algorithm",
        r"unable to find an engine to execute",
    ),
    _row(
        "shared memory", EndReason.HOST_OUT_OF_MEMORY,
        r"out of shared memory", r"insufficient shared memory", r"no space left on device: '?/dev/shm",
    ),
    _row(
        "host memory", EndReason.HOST_OUT_OF_MEMORY,
        r"DefaultCPUAllocator: (can't allocate|not enough) memory", r"\b\w*MemoryError\b", r"\bstd::bad_alloc\b", r"cannot allocate memory",
        r"killed due to the node running low on memory", r"\boom-kill event", r"out of memory: killed process",
        r"is killed by signal: killed",
    ),
    _row(
        "broken device", EndReason.DEVICE_FAULT,
        r"uncorrectable (ECC|NVLink) error", r"fallen off the bus", r"\bGPU is lost\b", r"cuda error:.*\b(nvlink|hardware error)\b",
        rf"\bXid \([^)]*\): ({_BROKEN_DEVICE_XIDS})\b", r"device\(s\) is/are busy or unavailable", r"no CUDA-capable device",
        r"unexpected error from cudaGetDeviceCount", r"invalid device ordinal",
        r"no (CUDA|HIP|ROCm|XPU) (GPUs|devices?) (are |is )?(available|found|detected)",
        remedy=Remedy.OTHER_NODE,
    ),
    _row(
        "driver", EndReason.START_UP,
        r"NVIDIA driver on your system is too old", r"driver version is insufficient", r"driver/library version mismatch",
        r"found no NVIDIA driver", r"no kernel image is available", r"compiled with an unsupported toolchain", r"forward compatibility was",
        remedy=Remedy.OTHER_NODE,
    ),
    _row("device assert", EndReason.USER_ERROR, r"device-side assert triggered"),
    _row(
        "device", EndReason.DEVICE_FAULT,
        r"\b(CUDA error:|cuda runtime error \(\d+\) :) (?!(invalid|the provided) )", r"\bCU(BLAS|DNN)_STATUS_(?!NOT_SUPPORTED|BAD_PARAM)",
        r"\bXid \([^)]*\): \d+", r"unhandled cuda error",
    ),
    _row(
        "not finite", EndReason.NAN,
        r"loss scale already at minimum", r"\breturned nan values", r"(tensor contains|invalid values)\b(?s:.{0,200})\b(nan|inf)\b",
        r"\bFloatingPointError\b",
    ),
    _row(
        "collective timeout", EndReason.HANG,
        r"caught collective operation timeout", r"timed out waiting \d+ ?ms for", r"watchdog got stuck", r"detected by watchdog",
        r"failed to pass monitoredBarrier",
        echo=True,
    ),
    _row("port", EndReason.START_UP, r"server socket has failed to (listen|bind)\b.*(EADDRINUSE|address already in use)"),
    _row("rendezvous", EndReason.START_UP, r"client socket has timed out", r"seconds waiting for clients", remedy=Remedy.WAIT, echo=True),
    _row("collectives' configuration", EndReason.CONFIGURATION, r"\bncclInvalid(Usage|Argument)\b"),
    _row(
        "peer", EndReason.NETWORK,
        r"gloo/transport", r"\bNCCL (communicator|error|WARN)", r"nccl(System|Remote|Internal)Error", r"remote process exited",
        r"\btorch\.distributed\.[\w.]*Error\b", r"\bDist\w*Error\b", r"\[c10d\]",
        r"terminate called\b(?s:.*)what\(\):[^\n]*(connection (reset|closed|refused)|broken pipe)",
        echo=True,
    ),
    _row(
        "peer", EndReason.NETWORK,
        r"RuntimeError(?s:.*)(connection (was )?(closed|reset|refused|aborted)|broken pipe|socket (closed|timeout)|failed to (recv|send))",
        echo=True, exceptions_only=True,
    ),
    _row("disk", EndReason.STORAGE, r"no space left on device", r"disk quota exceeded", r"read-only file system"),
    _row(
        "store out of service", EndReason.STORAGE,
        r"\((SlowDown|Throttling\w*|TooManyRequests|ServiceUnavailable|InternalError|RequestTimeout|50\d)\) when calling the",
        r"botocore\S*\.(Endpoint|Connect|Read|HTTPClient)\w*Error", r"stale file handle", r"transport endpoint is not connected",
        r"\binput/output error\b", r"PytorchStreamWriter failed writing",
        remedy=Remedy.WAIT,
    ),
    _row("store", EndReason.STORAGE, r"an error occurred \(\w+\) when calling the", r"unable to locate credentials"),
    _row(
        "tracking", EndReason.TRACKING,
        r"\bMlflowException\b.*(API request to .* failed|database is locked|OperationalError|timed out|connection)",
    ),
    _row(
        "engine's configuration", EndReason.CONFIGURATION,
        r"\bDeepSpeedConfig\w*Error\b", r"check batch related parameters", r"torch not compiled with CUDA enabled",
    ),
    _row(
        "service of the workload", EndReason.USER_ERROR,
        r"\b(requests|urllib3|aiohttp|httpx|fsspec)\.\S*(Timeout|Connect|Disconnected|Protocol|MaxRetry|NameResolution)\w*",
        remedy=Remedy.WAIT, exceptions_only=True,
    ),
    _row("import", EndReason.USER_ERROR, r"\b(ModuleNotFound|Import|Syntax|Indentation|Tab)Error\b", remedy=Remedy.NONE),
    _row("data loader", EndReason.USER_ERROR, r"DataLoader worker \(pid", vague=True),
)  # fmt: skip


def of_exception(classes: Sequence[str], message: str) -> Evidence | None:
    """`classes`: the exception's class and those it comes from, with their modules, as far as Exception."""
    line = f"{' '.join(classes)}: {message}"
    return next((row.evidence for row in _TABLE if row.pattern.search(line)), None)


def of_log(tail: str) -> Evidence | None:
    """The most telling of what stands at the end of a log."""
    return next((row.evidence for row in _TABLE if not row.exceptions_only and row.pattern.search(tail)), None)


# fingerprints

_MESSAGE_CHARACTERS = 300
_VARYING = (
    (re.compile(r"(/tmp|/var/tmp|/var/folders|/dev/shm|/run/user)(/[^\s'\"`,:;()\[\]]*)?"), "<tmp>"),
    (re.compile(r"\b[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}\b|\b[0-9A-HJKMNP-TV-Z]{26}\b"), "#"),
    (re.compile(r"\b0x[0-9a-f]+|\b(?=[a-f]*[0-9])[0-9a-f]{8,}\b", re.IGNORECASE), "#"),
    (re.compile(r"(?<![a-z])((u?int|float|bfloat|complex|fp|bf|utf-?)\d+)", re.IGNORECASE), r"<\1>"),
    (re.compile(r"<(\w+)(\d+)>|[-+]?\d+(\.\d+)*(e[-+]?\d+)?", re.IGNORECASE), lambda found: found[0] if found[0][0] == "<" else "#"),
    (re.compile(r"# ?([KMGTP]i?)?(B|bytes)\b", re.IGNORECASE), "# B"),
    (re.compile(r"# ?(ms|milliseconds|s|seconds|minutes)\b"), "# s"),
    (re.compile(r"([\[(])#(\s*,\s*#)*,?([\])])"), r"\1#\3"),
    (re.compile(r"#(\s*[x.,:]\s*#)+"), "#"),
)


def normal_form(message: str) -> str:
    """The first line of a message without what differs from one time to the next: addresses, numbers, sizes, ids, temporary paths.

    Names of number formats (`int64`) stay.
    """
    lines = message.strip().splitlines()
    text = lines[0] if lines else ""
    for pattern, instead in _VARYING:
        text = pattern.sub(instead, text)
    return text[:_MESSAGE_CHARACTERS]
