"""What has changed and is not on disk yet, until it is and whoever asked has been told.

A change marks its execution; once per turn of the loop the marked ones become rows of a group (`_flush`), so an
execution that starts and ends between two commits is written once. The writer commits the group; then the loop hears of
it (`_settled`). Of one execution nothing is written while its first row is under way, since that may fail, nor while
large bytes of it are on their way to files.
"""

import asyncio
import logging
from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import Final, Protocol

from flashmesh.executions.record import Execution
from flashmesh.executions.sqlite.files import Content, Files, Keeping
from flashmesh.executions.sqlite.rows import LARGE_BYTES, Column, final_row, new_row, progress_row
from flashmesh.executions.sqlite.writer import Group, Statement, Sweep, Writer, not_written
from flashmesh.executions.states import Status
from flashmesh.executions.store import StoreUnavailable

Then = Callable[[StoreUnavailable | None], None]
Contents = Mapping[Column, Content]

_LAZY_S: Final = 0.05
"""Nobody waits for the news that a call runs; a fast one has ended by then and is written once."""
_ENDED_S: Final = 0.01
"""Nobody waits long for the news that a call has ended: its worker, which keeps the outcome meanwhile. A commit of its
own would hold up the next call that somebody waits to have accepted, and that one's commit takes the news along."""
_PROBE_S: Final = 1.0
"""How often it is tried whether the disk takes something again."""
_NO_FILES: Final[Mapping[str, str]] = MappingProxyType({})

_log = logging.getLogger(__name__)


class Owner(Protocol):
    """Whose executions these are."""

    def undo(self, execution: Execution) -> None:
        """It could not be written, so it never was."""

    def settled(self, execution: Execution) -> None:
        """Its final state is on disk; `number` is the one it was told with."""

    def sweep(self, *, urgent: bool) -> Sweep | None:
        """What to remove with the group that is being made. `urgent`: the last sweep did not come to its end."""


class Behind:
    """See the module. Everything is called, and calls back, on the loop's thread."""

    def __init__(self, owner: Owner, *, writer: Writer, files: Files, loop: asyncio.AbstractEventLoop) -> None:
        self._owner = owner
        self._loop = loop
        self._writer = writer
        self._writer.committed = self._settled
        self._files = files
        self._files.kept = self._filed
        self.unavailable: Exception | None = None
        """Why nothing can be written at the moment."""
        self._last = 0
        """Row of the execution that was changed, or found by its key, last: what `when_durable` is about."""
        self._dirty: dict[int, Execution] = {}
        """Row → execution whose row is older than the record."""
        self._unwritten: dict[int, tuple[bytes | None, bytes]] = {}
        """Row → fingerprint and packed request, until its first commit."""
        self._inserting: dict[int, Group] = {}
        """Row → the group with its first row."""
        self._ended_no: dict[int, int] = {}
        """Row → number, until its last commit."""
        self._staging: dict[int, int] = {}
        """Row → how many times its large bytes are being written to files."""
        self._again: dict[int, Contents] = {}
        """Row → what could not be written to files, to be tried again."""
        self._file_names: dict[int, dict[str, str]] = {}
        self._forgotten: list[int] = []
        self._thens: list[tuple[int, Then, bool]] = []
        """Row, who waits, and whether they wait for an answer."""
        self._asked: asyncio.Handle | None = None
        self._lazy: asyncio.TimerHandle | None = None
        self._lazy_at = 0.0
        self._probe_timer: asyncio.TimerHandle | None = None
        self._more = False

    # What is said

    def restored(self, row: int, payload_file: str) -> None:
        """A row that was read back, has not ended, and names a file."""
        self._file_names[row] = {"payload": payload_file}

    def created(self, execution: Execution, fingerprint: bytes | None, request: bytes) -> None:
        """Somebody may wait for it."""
        row = self._last = execution.row
        self._unwritten[row] = (fingerprint, request)
        if len(execution.payload) > LARGE_BYTES:
            self._stage(row, {"payload": execution.payload})
        self._dirty[row] = execution
        self.soon()

    def found(self, execution: Execution) -> None:
        """It is there already; whoever asks next asks about it."""
        self._last = execution.row

    def changed(self, execution: Execution) -> None:
        """It is to be written with the next commit, which nobody waits for."""
        self._last = execution.row
        self._dirty[execution.row] = execution
        self._within(_LAZY_S)

    def ended(self, execution: Execution, number: int) -> None:
        """It is in its final state, the ledger's `number`."""
        row = self._last = execution.row
        self._ended_no[row] = number
        self._dirty[row] = execution
        large = _large(execution)
        if large:
            self._stage(row, large)
        self._within(_ENDED_S)

    def forget(self, execution: Execution) -> None:
        """Its row goes before another one takes its key."""
        row = execution.row
        self._dirty.pop(row, None)
        self._ended_no.pop(row, None)
        if row in self._unwritten and row not in self._inserting:
            self._drop(row)
        else:
            self.remove(row)

    def remove(self, row: int) -> None:
        """A row of no execution in memory goes before anything else is written."""
        self._forgotten.append(row)

    def when_durable(self, then: Then, *, patient: bool) -> None:
        """As the port has it. `patient`: what it is about may wait a little for others to be written with."""
        if not self._dirty and not self._writer.outstanding and not self._thens:
            then(None)
            return
        self._thens.append((self._last, then, not patient))
        if patient:
            self._within(_ENDED_S)
        else:
            self.soon()

    def soon(self) -> None:
        """Write at the end of this turn of the loop."""
        if self._asked is None:
            self._asked = self._loop.call_soon(self._flush)

    def _within(self, seconds: float) -> None:
        """Write then, or earlier with what cannot wait."""
        if self._asked is not None:
            return
        at = self._loop.time() + seconds
        if self._lazy is not None:
            if self._lazy_at <= at:
                return
            self._lazy.cancel()
        self._lazy_at = at
        self._lazy = self._loop.call_later(seconds, self._flush)

    def sync(self) -> None:
        """Block until everything said so far is on disk and everybody has been told. Raises StoreUnavailable."""
        while True:
            self._files.wait()
            self._flush(probe=True)
            self._writer.wait()
            if self.unavailable is not None:
                raise not_written(self.unavailable)
            if not self._dirty and not self._thens and not self._files.outstanding:
                return

    def close(self) -> None:
        """Write what was said; what cannot be written is logged and left."""
        try:
            self.sync()
        except StoreUnavailable as error:
            _log.error("what happened last could not be written: %s", error)
        for handle in (self._asked, self._lazy, self._probe_timer):
            if handle is not None:
                handle.cancel()

    # Groups

    def _flush(self, *, probe: bool = False) -> None:
        """Make rows of what has changed and hand them to the writer."""
        for handle in (self._asked, self._lazy):
            if handle is not None:
                handle.cancel()
        self._asked = self._lazy = None
        if self.unavailable is not None and not probe:
            return  # the next probe takes everything along
        part = Group()
        held: dict[int, Execution] = {}
        for row, execution in self._dirty.items():
            if row in self._staging or row in self._inserting:
                held[row] = execution
            else:
                self._put(part, row, execution)
        self._dirty = held
        part.forgotten, self._forgotten = self._forgotten, []
        part.sweep = self._owner.sweep(urgent=self._more)
        self._more = False
        if self.unavailable is not None:
            part.statements.append(
                Statement([("UPDATE schemas SET version = version WHERE name = 'executions'", ())], None)
            )
        self._place_thens(part)
        if part.size or part.sweep is not None:
            group = self._writer.submit(part)
            if group is not part:
                for execution in part.records:
                    if self._inserting.get(execution.row) is part:
                        self._inserting[execution.row] = group
        elif self._writer.outstanding:
            self._writer.outstanding[-1].thens += part.thens
        else:
            for _, then in part.thens:
                self._tell(then, None)

    def _put(self, part: Group, row: int, execution: Execution) -> None:
        new, number = self._unwritten.get(row), self._ended_no.get(row)
        files = self._file_names.get(row) or _NO_FILES
        part.records.append(execution)
        if number is not None:
            part.ended.append(execution)
        try:
            if new is not None:
                self._inserting[row] = part
                part.inserts.append(new_row(execution, *new, files))
            if number is not None:
                self._put_final(part, execution, number, files)
            elif new is None or execution.status is not Status.QUEUED or execution.attempt > 1:
                part.progress.append(progress_row(execution))
        except (TypeError, ValueError, OverflowError) as error:  # text that is no text, numbers beyond 64 bits
            part.refused[row] = error

    def _put_final(self, part: Group, execution: Execution, number: int, files: Mapping[str, str]) -> None:
        gone = files if execution.result_evicted else {"payload"} if execution.payload_dropped else ()
        kept = {column: name for column, name in files.items() if column not in gone} if files else _NO_FILES
        final = final_row(execution, number, kept)
        (part.finals if execution.payload_dropped else part.failed).append(final)
        if len(kept) < len(files):
            part.dropped[execution.row] = [name for column, name in files.items() if column in gone]

    def _place_thens(self, part: Group) -> None:
        """Each waits with the group that holds what it is about, or until that can be written."""
        waiting, self._thens = self._thens, []
        for row, then, urgent in waiting:
            if row in self._dirty:
                self._thens.append((row, then, urgent))
            else:
                self._inserting.get(row, part).thens.append((row, then))

    def _settled(self, group: Group) -> None:
        """A group was committed, or failed as a whole."""
        if group.error is not None:
            self._failed(group, group.error)
            return
        if self.unavailable is not None:
            self._recovered()
        self._more = self._more or group.more
        for name in group.released:
            self._files.release(name)
        for execution in group.records:
            if self._inserting.pop(execution.row, None) is not None:
                del self._unwritten[execution.row]
                if execution.row in group.refused:
                    self._undo(execution)
        for execution in group.ended:
            self._written(execution, group.dropped.get(execution.row, ()))
        for row, error in group.refused.items():
            _log.error("an execution could not be written (row %d): %s", row, error)
        for row, then in group.thens:
            refused = group.refused.get(row)
            self._tell(then, None if refused is None else not_written(refused))
        if self._more or any(urgent for _, _, urgent in self._thens):
            self.soon()
        elif self._dirty or self._thens:
            self._within(_ENDED_S)

    def _written(self, execution: Execution, dropped: Iterable[str]) -> None:
        """Its final state is on disk, without naming the files `dropped`."""
        row = execution.row
        self._ended_no.pop(row, None)
        if self._file_names.pop(row, None) is not None:  # else it was undone, and its files with it
            for name in dropped:
                self._files.release(name)
        self._owner.settled(execution)

    def _failed(self, group: Group, error: Exception) -> None:
        """Nothing of the group was written: async creates never were, everything else is tried again."""
        for execution in group.records:
            row = execution.row
            if self._inserting.pop(row, None) is not None and execution.kind == "async":
                self._undo(execution)
            elif row in self._ended_no or not execution.ended:
                self._dirty.setdefault(row, execution)
        self._forgotten = group.forgotten + self._forgotten
        self._more = self._more or group.sweep is not None
        self._break(error)
        for _, then in group.thens:
            self._tell(then, not_written(error))

    def _undo(self, execution: Execution) -> None:
        self._dirty.pop(execution.row, None)
        self._drop(execution.row)
        self._owner.undo(execution)

    def _drop(self, row: int) -> None:
        self._unwritten.pop(row, None)
        self._ended_no.pop(row, None)
        for name in self._file_names.pop(row, {}).values():
            self._files.release(name)

    def _break(self, error: Exception) -> None:
        if self.unavailable is None:
            _log.error("%s", not_written(error))
        self.unavailable = error
        if self._probe_timer is None:
            self._probe_timer = self._loop.call_later(_PROBE_S, self._probe)

    def _probe(self) -> None:
        """Try to write what has gathered, or anything."""
        self._probe_timer = None
        self._flush(probe=True)

    def _recovered(self) -> None:
        self.unavailable = None
        if self._probe_timer is not None:
            self._probe_timer.cancel()
            self._probe_timer = None
        _log.warning("the server's database can be written again")
        again, self._again = self._again, {}
        for row, contents in again.items():
            self._unstage(row)
            self._stage(row, contents)
        self.soon()

    # Large bytes

    def _stage(self, row: int, contents: Contents) -> None:
        self._staging[row] = self._staging.get(row, 0) + 1
        self._files.keep(row, contents)

    def _filed(self, keeping: Keeping) -> None:
        """The files of a row are written, or could not be."""
        row, execution = keeping.row, self._dirty.get(keeping.row)
        if execution is None:  # undone meanwhile
            for name in keeping.names.values():
                self._files.release(name)
            self._unstage(row)
        elif keeping.error is None:
            self._file_names.setdefault(row, {}).update(keeping.names)
            self._unstage(row)
        elif "payload" not in keeping.contents:
            self._again[row] = keeping.contents
            self._break(keeping.error)
            return
        elif execution.kind == "async":
            self._unstage(row)
            self._undo(execution)
            told = [then for about, then, _ in self._thens if about == row]
            self._thens = [one for one in self._thens if one[0] != row]
            for then in told:
                self._tell(then, not_written(keeping.error))
        else:
            self._again[row] = keeping.contents  # it runs; its key is written when there is room
            self._break(keeping.error)
            return
        self.soon()

    def _unstage(self, row: int) -> None:
        left = self._staging.pop(row, 1) - 1
        if left:
            self._staging[row] = left

    def _tell(self, then: Then, outcome: StoreUnavailable | None) -> None:
        try:
            then(outcome)
        except Exception as error:  # the boundary of one caller: the others are told all the same
            self._loop.call_exception_handler({"message": "a caller of when_durable failed", "exception": error})


def _large(execution: Execution) -> Contents:
    """What of an ended execution belongs into files."""
    contents: dict[Column, Content] = {}
    if len(execution.result) > LARGE_BYTES:
        contents["result"] = execution.result
    items = execution.items
    if items is not None and items.bytes > LARGE_BYTES:
        contents["items"] = (items.kept(), items.first)
    return contents
