"""The session's directory is private and short, and what a killed session left is swept by the next one."""

import os
import subprocess
import sys
from pathlib import Path

from flashmesh.deploy.local.place import SessionPlace, sweep


def test_directory_and_key_are_for_this_user_alone(tmp_path: Path) -> None:
    place = SessionPlace.create(tmp_path)
    try:
        assert place.directory.stat().st_mode & 0o777 == 0o700
        assert place.key_file.stat().st_mode & 0o777 == 0o600
        assert len(place.key_file.read_bytes()) == 32
    finally:
        place.close()
    assert not place.directory.exists()


def test_closing_it_ends_whoever_watches_the_pipe(tmp_path: Path) -> None:
    place = SessionPlace.create(tmp_path)
    watched = os.dup(place.pipe_fd)
    place.close()
    assert os.read(watched, 1) == b""
    os.close(watched)


def test_the_directory_of_a_killed_session_is_swept_and_a_living_ones_is_not(tmp_path: Path) -> None:
    program = (
        "import os, sys, pathlib; from flashmesh.deploy.local.place import SessionPlace;"
        "print(SessionPlace.create(pathlib.Path(sys.argv[1])).directory, flush=True); os.kill(os.getpid(), 9)"
    )
    dead = Path(subprocess.run([sys.executable, "-c", program, str(tmp_path)], stdout=-1, text=True).stdout.strip())
    living = SessionPlace.create(tmp_path)
    try:
        assert dead.exists()
        assert sweep(tmp_path) == [dead]
        assert living.directory.exists()
    finally:
        living.close()
