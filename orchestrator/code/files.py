"""Which files of a working directory belong to its package.

In a git work tree those that git does not ignore, else all but what `.gitignore` files name; less what `.orchestratorignore` names (in
the same language, see gitignore(5)), and less what never belongs there: caches, virtual environments, files of secrets. The home of a
control plane and the file of the user's token are left out whatever the rules say, and a token in any other file is refused.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from pathspec import GitIgnoreSpec

from orchestrator.errors import ConfigError
from orchestrator.paths import TOKEN_FILE_VARIABLE, Home

IGNORE_FILE = ".orchestratorignore"
ALWAYS_IGNORED = (
    ".git/", "__pycache__/", "*.py[cod]", ".mypy_cache/", ".pytest_cache/", ".ruff_cache/", ".ipynb_checkpoints/", ".DS_Store",
    ".env", ".env.*", ".netrc", ".pgpass", ".git-credentials", ".aws/", ".ssh/", ".ray/", ".kube/", "**/.config/gcloud/", ".huggingface/",
    "*.pem", "*.key", "id_rsa*", "id_ecdsa*", "id_ed25519*", "*.token", "*-token", "!*-token/", ".orchestrator/",
    "mlruns/", "multirun/", "outputs/",
)  # fmt: skip
"""`!name` in `.orchestratorignore` takes one of them back."""
MAX_FILES = 20_000
SMALL_BYTES = 1 << 20
"""Of a file that is searched for tokens."""
_TOKEN = re.compile(rb"\borc\.[\w.-]{1,200}\.[\w-]{43}")
"""As `control.records.users` makes them."""
_GIT_LIMIT_S = 60.0


@dataclass(frozen=True)
class CodeFile:
    name: str
    """Relative to the folder, with `/`."""
    path: Path
    num_bytes: int
    executable: bool


def collect(folder: Path, max_bytes: float, max_files: int = MAX_FILES) -> list[CodeFile]:
    """In the order of their names. Raises ConfigError if they are too many, more than `max_bytes` together, or if one holds a token."""
    folder = folder.resolve()
    ignored = _own_rules(folder)
    found: list[CodeFile] = []
    for name in _names(folder, ignored):
        if len(found) == max_files:
            raise ConfigError(_too_many(folder, found))
        path = folder / name
        status = path.stat()
        found.append(CodeFile(name, path, status.st_size, bool(status.st_mode & 0o100)))
    found = _without_homes(folder, found)
    total = sum(file.num_bytes for file in found)
    if total > max_bytes:
        raise ConfigError(_too_large(folder, found, total, max_bytes))
    for file in found:
        _check_no_token(folder, file)
    return sorted(found, key=lambda file: file.name)


def _names(folder: Path, ignored: GitIgnoreSpec) -> Iterator[str]:
    of_git, private = _of_git(folder), _private(folder)
    names = _walk(folder, ignored) if of_git is None else _expanded(folder, of_git, ignored)
    for name in names:
        path = folder / name
        if not ignored.match_file(name) and path.is_file():
            file = _inside(folder, name, path)
            if not any(file.is_relative_to(left_out) for left_out in private):
                yield name


def _private(folder: Path) -> list[Path]:
    """Of what is in the folder: this user's home of the control plane, and the file of the token for a server."""
    token = os.environ.get(TOKEN_FILE_VARIABLE)
    found = [Home.find().root, *([Path(token).resolve()] if token else [])]
    return [path for path in found if path.is_relative_to(folder)]


def _own_rules(folder: Path) -> GitIgnoreSpec:
    file = folder / IGNORE_FILE
    lines = file.read_text(errors="replace").splitlines() if file.is_file() else []
    try:
        return GitIgnoreSpec.from_lines([*ALWAYS_IGNORED, *lines])
    except ValueError as error:
        raise ConfigError(f"{file} has a line that is no pattern: {error}") from error


def _of_git(folder: Path) -> list[str] | None:
    """All that git tracks or would take; None outside a work tree, or without git."""
    git = shutil.which("git")
    if git is None:
        return None
    command = [git, "-C", str(folder), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    done = subprocess.run(command, capture_output=True, timeout=_GIT_LIMIT_S, check=False)
    return sorted({os.fsdecode(name) for name in done.stdout.split(b"\0") if name}) if done.returncode == 0 else None


def _expanded(folder: Path, names: list[str], ignored: GitIgnoreSpec) -> Iterator[str]:
    """git names a submodule, another work tree inside this one or a link to a folder by its folder alone."""
    for name in names:
        path = folder / name
        if path.is_dir():
            inner = _of_git(path) if (path / ".git").exists() else None
            below = _walk(path, ignored) if inner is None else _expanded(path, inner, ignored)
            yield from (str(PurePosixPath(name, rest)) for rest in below)
        else:
            yield name


def _walk(folder: Path, ignored: GitIgnoreSpec) -> Iterator[str]:
    """Names below the folder; its own `.gitignore` files count, and a virtual environment is passed over."""
    rules: dict[Path, GitIgnoreSpec] = {}

    def left_out(path: Path, end: str = "") -> bool:
        """By the file of its folder, or of one above it."""
        return any(base in rules and rules[base].match_file(f"{path.relative_to(base)}{end}") for base in path.parents)

    for name_of_parent, folders, files in os.walk(folder):
        parent = Path(name_of_parent)
        if (parent / ".gitignore").is_file():
            rules[parent] = GitIgnoreSpec.from_lines((parent / ".gitignore").read_text(errors="replace").splitlines())
        inside = [parent / name for name in sorted(folders)]
        folders[:] = [
            path.name for path in inside
            if not ignored.match_file(f"{path.relative_to(folder)}/") and not left_out(path, "/") and not (path / "pyvenv.cfg").exists()
        ]  # fmt: skip
        yield from (str(path.relative_to(folder)) for name in sorted(files) if not left_out(path := parent / name))


def _inside(folder: Path, name: str, path: Path) -> Path:
    """The file itself: a link may lead to another file of the folder, and is packaged as that file; not out of it."""
    if not path.is_symlink() and not any(part.is_symlink() for part in path.parents if part.is_relative_to(folder) and part != folder):
        return path
    target = path.resolve()
    if not target.is_relative_to(folder):
        raise ConfigError(
            f"{name} in {folder} leads out of the folder, to {target}: it cannot be packaged. Copy it, or name it in {IGNORE_FILE}."
        )
    return target


def _without_homes(folder: Path, found: list[CodeFile]) -> list[CodeFile]:
    """Less the homes of other control planes, each known by its lock. Raises ConfigError for a folder that is a home itself."""
    homes = {file.path.parent for file in found if file.path == Home(file.path.parent).controller_lock}
    if folder in homes or folder == Home.find().root:
        raise ConfigError(f"the working directory {folder} is the home of a control plane, with its secrets: submit from another folder.")
    return [file for file in found if homes.isdisjoint(file.path.parents)]


def _check_no_token(folder: Path, file: CodeFile) -> None:
    if file.num_bytes <= SMALL_BYTES and _TOKEN.search(file.path.read_bytes()):
        raise ConfigError(
            f"{file.name} in {folder} holds the token of a user, and every node would get it: move it elsewhere, or name the file in "
            f"{IGNORE_FILE}."
        )


def _too_many(folder: Path, found: list[CodeFile]) -> str:
    counts = Counter(file.name.partition("/")[0] for file in found if "/" in file.name)
    most = ", ".join(f"{name}/ ({count:,})" for name, count in counts.most_common(5))
    return (
        f"the working directory {folder} has more than {len(found):,} files; most are in {most or 'it itself'}. "
        f"Submit from the folder of your code, or name what does not belong to it in {folder / IGNORE_FILE}."
    )


def _too_large(folder: Path, found: list[CodeFile], total: int, max_bytes: float) -> str:
    largest = sorted(found, key=lambda file: -file.num_bytes)[:5]
    named = ", ".join(f"{file.name} ({file.num_bytes / 1e6:.1f} MB)" for file in largest)
    return (
        f"the working directory {folder} has {total / 1e6:.1f} MB, more than environment.max_package_mb={max_bytes / 1e6:g}. Largest: "
        f"{named}. Name what the job does not need in {folder / IGNORE_FILE}, or raise the limit; data belongs into the object store."
    )
