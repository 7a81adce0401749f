from __future__ import annotations

from orchestrator.control.log_files import open_log, shorten_logs
from orchestrator.paths import Home


def test_a_log_that_grows_while_it_is_open_begins_anew_and_its_end_is_kept(tmp_path):
    home = Home(tmp_path)
    with open_log(home, "controller") as log, open_log(home, "ray") as other:
        other.write(b"short")
        for number in range(3):
            log.write(b"%d" % number * 60)
            log.flush()
            shorten_logs(home, most_bytes=100)
        log.write(b"last")
    old = home.log("controller").with_suffix(".old.log")
    assert (home.log("controller").read_bytes(), old.read_bytes()) == (b"2" * 60 + b"last", b"0" * 40 + b"1" * 60)
    assert home.log("ray").read_bytes() == b"short"
    shorten_logs(home, most_bytes=100)
    assert {path.name for path in home.logs.iterdir()} == {"controller.log", "controller.old.log", "ray.log"}


def test_a_log_that_cannot_be_shortened_stands_in_nobodys_way(tmp_path, caplog):
    home = Home(tmp_path)
    (home.logs / "folder.log").mkdir(parents=True)
    with open_log(home, "ray") as log:
        log.write(b"x" * 200)
    shorten_logs(home, most_bytes=100)
    assert home.log("ray").read_bytes() == b"" and "folder.log cannot be shortened" in caplog.text


def test_a_home_without_logs(tmp_path):
    shorten_logs(Home(tmp_path))
