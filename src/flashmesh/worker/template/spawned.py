"""A worker, or a zygote, in a fresh interpreter: where a fork of what was imported would not be safe."""

import json
import os
import socket
import sys
from typing import NoReturn

from flashmesh.worker import parent
from flashmesh.worker.groups import GroupTable
from flashmesh.worker.launch import read_file
from flashmesh.worker.records import RecordTable
from flashmesh.worker.spec import WorkerSpec
from flashmesh.worker.template.program import Program, UserProgram
from flashmesh.worker.template.zygote import Assignment, Inheritance, Zygote, run


def main(argument: str, program: Program) -> NoReturn:
    """`argument`: {"fds": {name: fd}, "parent": pid} and "assignment" (a worker) or "control", "place" (a zygote)."""
    settings = json.loads(argument)
    fds = settings["fds"]
    parent.die_with_parent(settings["parent"])
    for fd in fds.values():
        os.set_inheritable(fd, False)
    parent.watch_session(fds["session"])
    have = Inheritance(
        spec=WorkerSpec.from_dict(json.loads(read_file(fds["spec"]))),
        table=RecordTable.attach(fds["table"]),
        groups=GroupTable.attach(fds["groups"]),
        peer_fd=fds["peer"],
        again_fd=fds["again"],
        notify_fd=fds["notify"],
        session_fd=fds["session"],
        tcp_fd=fds.get("tcp"),
    )
    program.preload()
    if "control" in settings:
        zygote = Zygote(have, program, control=socket.socket(fileno=settings["control"]), place=settings["place"])
        zygote.live(template_pid=settings["parent"], stdout=os.dup(1), stderr=os.dup(2))
    assignment = Assignment(**settings["assignment"])
    have.groups.enter(assignment.place, os.getpid())
    run(have, assignment, program, loaded=None)


if __name__ == "__main__":
    main(sys.argv[1], UserProgram())
