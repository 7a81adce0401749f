"""Completion for bash: verbs and jobs by us, settings by Hydra's own completion."""

from __future__ import annotations

from orchestrator.errors import UserError
from orchestrator.paths import Home

_SCRIPT = """\
_orchestrator_complete() {
    local words
    words=$(COMP_LINE="${COMP_LINE:0:$COMP_POINT}" orchestrator completion query 2>/dev/null)
    COMPREPLY=($words)
    [[ ${#COMPREPLY[@]} -eq 1 && ${COMPREPLY[0]} == *[=./] ]] && compopt -o nospace
    [[ "$COMP_WORDBREAKS" == *=* && "${COMP_LINE:0:$COMP_POINT}" =~ [^[:space:]]*=[^[:space:]]*$ ]] && COMPREPLY=("${COMPREPLY[@]#*=}")
}
complete -o nosort -F _orchestrator_complete orchestrator
"""
_JOB_VERBS = ("status", "logs", "cancel", "resume", "events", "explain", "priority", "remove")


def completion(arguments: list[str]) -> int:
    """`completion bash` prints the script; `completion query` answers for $COMP_LINE."""
    if arguments and arguments[0] in ("-h", "--help", "help"):
        print('usage: orchestrator completion bash\n\nIn ~/.bashrc: eval "$(orchestrator completion bash)"')
    elif arguments == ["query"]:
        import os

        print("\n".join(complete(os.environ.get("COMP_LINE", ""))))
    elif arguments == ["bash"]:
        print(_SCRIPT, end="")
    else:
        raise UserError('completion is there for bash: eval "$(orchestrator completion bash)"')
    return 0


def complete(line: str) -> list[str]:
    """What may stand in place of the last word of `line` (`orchestrator train wor`)."""
    from orchestrator.cli import _verbs

    words = line.split()
    if not words:
        return []
    last = "" if line.endswith(" ") else words.pop()
    if len(words) < 2:
        return [verb for verb in _verbs() if verb.startswith(last)]
    if words[1] in ("train", "submit", "simulate"):
        return [] if last.startswith("-") else _overrides(words[1], [word for word in words[2:] if not word.startswith("-")], last)
    if words[1] == "checkpoint" and len(words) == 2:
        from orchestrator.cli.checkpoint import VERBS

        return [verb for verb in VERBS if verb.startswith(last)]
    if len(words) == (3 if words[1] == "checkpoint" else 2) and words[1] in (*_JOB_VERBS, "checkpoint"):
        return [job_id for job_id in _jobs() if job_id.startswith(last)]
    if words[1] == "wait":
        return [job_id for job_id in _jobs() if job_id.startswith(last) and job_id not in words]
    if words[1] in ("up", "doctor"):
        return [] if last.startswith("-") else _settings("train", [word for word in [*words[2:], last] if not word.startswith("-")])
    return []


def _overrides(verb: str, words: list[str], last: str) -> list[str]:
    if verb != "simulate":
        return _settings(verb, [*words, last])
    return [*_traces(last), *_settings(verb, [*(word for word in words if "=" in word), last])]


def _traces(last: str) -> list[str]:
    """CSV files and folders."""
    from glob import escape
    from pathlib import Path

    folder, slash, name = last.rpartition("/")
    found = [path for path in sorted(Path(folder + slash).glob(f"{escape(name)}*")) if name or not path.name.startswith(".")]
    return [f"{folder}{slash}{path.name}{'/' * path.is_dir()}" for path in found if path.is_dir() or path.suffix == ".csv"]


def _settings(verb: str, words: list[str]) -> list[str]:
    from hydra import initialize_config_dir
    from hydra._internal.core_plugins.bash_completion import BashCompletion
    from hydra.core.global_hydra import GlobalHydra

    from orchestrator.config import JOB, SIMULATION, conf_dir, groups

    schema = SIMULATION if verb == "simulate" else JOB
    with initialize_config_dir(config_dir=str(conf_dir()), version_base="1.3"):
        hydra = GlobalHydra.instance().hydra
        assert hydra is not None
        found: list[str] = BashCompletion(hydra.config_loader)._query(config_name=schema.config, line=" ".join(words))
    strange = {f"{folder.name}=" for folder in conf_dir().iterdir()} - {f"{group}=" for group in groups(schema)}
    return sorted(word for word in found if word not in strange)


def _jobs() -> list[str]:
    from orchestrator.control.reading.quick_list import quick_list

    home = Home.find()
    if (quick := quick_list(home, None, 0)) is not None:
        return [summary.id for summary in quick[0]]
    from orchestrator.control.client import Client
    from orchestrator.control.records.database import exists

    return [summary.id for summary in Client(home).summaries()[0]] if exists(home) else []
