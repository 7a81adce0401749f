"""Which files of a working directory are packaged."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from orchestrator.code.files import SMALL_BYTES, collect
from orchestrator.control.lock import ControllerLock
from orchestrator.control.records.store import JobStore
from orchestrator.control.records.users import Users
from orchestrator.errors import ConfigError
from orchestrator.paths import Home


def touch(folder: Path, *names: str) -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)


def names(folder: Path) -> list[str]:
    return [file.name for file in collect(folder, 1e9)]


def git(folder: Path, *arguments: str) -> None:
    who = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "init.defaultBranch=main", "-c", "protocol.file.allow=always"]
    subprocess.run(["git", *who, "-C", str(folder), *arguments], check=True, capture_output=True)


ALL = ("a.py", "pkg/b.py", "pkg/data.bin", "logs/x.log", "deep/er/y.log", "keep.log", "build/out.o", "pkg/build/out.o")


@pytest.fixture(params=["git", "no git"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """With ignore files at two levels; the same files are packaged with and without git."""
    touch(tmp_path, *ALL)
    (tmp_path / ".gitignore").write_text("*.log\n/build/\n!keep.log\n")
    (tmp_path / "pkg" / ".gitignore").write_text("data.bin\n")
    if request.param == "git":
        git(tmp_path, "init")
    return tmp_path


def test_what_git_ignores_is_left_out(folder: Path) -> None:
    assert names(folder) == [".gitignore", "a.py", "keep.log", "pkg/.gitignore", "pkg/b.py", "pkg/build/out.o"]


def test_the_users_own_rules_leave_out_more(folder: Path) -> None:
    (folder / ".orchestratorignore").write_text("# not needed\n.gitignore\npkg/build/\n")
    assert names(folder) == [".orchestratorignore", "a.py", "keep.log", "pkg/b.py"]


def test_caches_environments_and_secrets_never_belong_to_it(tmp_path: Path) -> None:
    touch(
        tmp_path,
        "a.py",
        "__pycache__/a.pyc",
        "venv/pyvenv.cfg",
        "venv/lib/x.py",
        ".env",
        "sub/.env.local",
        "key.pem",
        ".ssh/id",
        "outputs/x",
    )
    assert names(tmp_path) == ["a.py"]
    (tmp_path / ".orchestratorignore").write_text("!outputs/\n!.env\n")
    assert names(tmp_path) == [".env", ".orchestratorignore", "a.py", "outputs/x"]


KEYS = (
    "api.token", "jobs-token", ".jobs-token", ".pgpass", ".git-credentials", "sub/.netrc", ".kube/config", ".aws/credentials", "tls.key",
    "home/.config/gcloud/x.json", ".huggingface/x", ".orchestrator/jobs.db", "id_rsa", "id_ecdsa.pub", "id_ed25519", "sub/tls.pem",
)  # fmt: skip


def test_files_of_keys_never_belong_to_it_and_those_of_a_tokenizer_do(tmp_path: Path) -> None:
    code = ["keys.py", "multi-token/a.py", "special_tokens_map.json", "token.py", "tokenizer.json", "tokens/a.py"]
    touch(tmp_path, *KEYS, *code)
    assert names(tmp_path) == code


def test_no_rule_takes_back_the_home_or_the_token_of_this_user(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(folder, "state/jobs.db", "state/secrets/job.json", "mine.txt")
    (folder / ".orchestratorignore").write_text("!state/\n!state/**\n!mine.txt\n")
    before = names(folder)
    monkeypatch.setenv("ORCHESTRATOR_HOME", str(folder / "state"))
    monkeypatch.setenv("ORCHESTRATOR_TOKEN_FILE", str(folder / "mine.txt"))
    (folder / "link.txt").symlink_to("mine.txt")
    assert sorted({*before} - {*names(folder)}) == ["mine.txt", "state/jobs.db", "state/secrets/job.json"]
    monkeypatch.setenv("ORCHESTRATOR_HOME", str(folder))
    with pytest.raises(ConfigError, match="is the home of a control plane, with its secrets: submit from another folder"):
        names(folder)


def test_the_home_of_any_other_control_plane_is_left_out(tmp_path: Path) -> None:
    touch(tmp_path, "a.py", "state/token.txt", "state/secrets/job.json")
    ControllerLock(Home(tmp_path / "state")).publish("a:1", ready=True)
    assert names(tmp_path) == ["a.py"]
    with pytest.raises(ConfigError, match="is the home of a control plane"):
        names(tmp_path / "state")


def test_a_token_in_any_other_file_is_refused_with_its_name(tmp_path: Path) -> None:
    code = tmp_path / "code"
    touch(code, "a.py", "sub/notes.txt")
    token = Users(JobStore(tmp_path / "jobs.db").engine).add("ann.b", "", "user")
    (code / "a.py").write_text(f"# orc.ann, or {token[:-1]}\n")
    assert names(code) == ["a.py", "sub/notes.txt"]
    (code / "sub" / "notes.txt").write_text(f"export ORCHESTRATOR_TOKEN='{token}'\n")
    with pytest.raises(ConfigError, match=r"^sub/notes\.txt in .* holds the token of a user") as caught:
        names(code)
    assert token not in str(caught.value)
    (code / "sub" / "notes.txt").write_text(token + " " * SMALL_BYTES)
    assert names(code) == ["a.py", "sub/notes.txt"]
    (code / "sub" / "notes.txt").write_text(token)
    (code / ".orchestratorignore").write_text("notes.txt\n")
    assert names(code) == [".orchestratorignore", "a.py"]


def test_a_file_that_git_tracks_belongs_to_it_even_if_a_rule_names_it(tmp_path: Path) -> None:
    touch(tmp_path, "a.py", "b.log")
    git(tmp_path, "init")
    git(tmp_path, "add", "b.log")
    (tmp_path / ".gitignore").write_text("*.log\n")
    assert "b.log" in names(tmp_path)


def test_a_tracked_file_that_is_gone_does_not_belong_to_it(tmp_path: Path) -> None:
    touch(tmp_path, "a.py", "b.py")
    git(tmp_path, "init")
    git(tmp_path, "add", ".")
    (tmp_path / "b.py").unlink()
    assert names(tmp_path) == ["a.py"]


def test_a_folder_below_the_root_of_the_work_tree_follows_its_rules(tmp_path: Path) -> None:
    touch(tmp_path, "sub/a.py", "sub/b.log", "other.py")
    (tmp_path / ".gitignore").write_text("*.log\n")
    git(tmp_path, "init")
    assert names(tmp_path / "sub") == ["a.py"]


def test_a_submodule_belongs_to_it(tmp_path: Path) -> None:
    inner, outer = tmp_path / "inner", tmp_path / "outer"
    touch(inner, "x.py", "y.log")
    (inner / ".gitignore").write_text("*.log\n")
    git(inner, "init")
    git(inner, "add", ".")
    git(inner, "commit", "-m", "x")
    touch(outer, "a.py")
    git(outer, "init")
    git(outer, "submodule", "add", str(inner), "lib")
    touch(outer, "lib/z.log")
    assert "lib/x.py" in names(outer) and "lib/z.log" not in names(outer)


def test_a_link_inside_is_packaged_as_its_file_and_one_that_leads_out_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "code"
    touch(folder, "a.py")
    (folder / "b.py").symlink_to("a.py")
    (folder / "gone.py").symlink_to("nowhere")
    assert names(folder) == ["a.py", "b.py"]
    touch(tmp_path, "secret.txt")
    (folder / "c.py").symlink_to(tmp_path / "secret.txt")
    with pytest.raises(ConfigError, match=r"c\.py in .* leads out of the folder, to .*secret\.txt"):
        names(folder)


def test_too_much_is_refused_with_the_largest_files(tmp_path: Path) -> None:
    for number in range(8):
        (tmp_path / f"file{number}.bin").write_bytes(b"x" * 100_000 * number)
    with pytest.raises(ConfigError) as caught:
        collect(tmp_path, 1e6)
    said = str(caught.value)
    assert "has 2.8 MB, more than environment.max_package_mb=1" in said
    assert "file7.bin (0.7 MB), file6.bin (0.6 MB), file5.bin (0.5 MB), file4.bin (0.4 MB), file3.bin (0.3 MB)." in said
    assert ".orchestratorignore" in said and "file2.bin" not in said


def test_too_many_files_are_refused_with_where_they_are(tmp_path: Path) -> None:
    touch(tmp_path, "a.py", *(f"data/{number}" for number in range(6)))
    with pytest.raises(ConfigError, match=r"more than 5 files; most are in data/ \(4\)"):
        collect(tmp_path, 1e9, max_files=5)
