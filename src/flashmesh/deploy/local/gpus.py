"""The GPUs of this machine, and which of them a resource gets."""

import dataclasses
import os
import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from typing import Any

from flashmesh.functions.config import ResourceConfig

_GROUP_MEMORY = re.compile(r"^(?:ADA|AMPERE|HOPPER|BLACKWELL)_(\d+)(?:_|$)")
_NOT_MODEL = re.compile(r"[^a-z0-9]+")
_SMI_FIELDS = "index,uuid,name,memory.total"
_SMI_LIMIT_S = 10


@dataclasses.dataclass(frozen=True, slots=True)
class Gpu:
    """One GPU. `index` counts as CUDA does with PCI bus order."""

    index: int
    uuid: str
    name: str
    memory_bytes: int


@dataclasses.dataclass(frozen=True, slots=True)
class Devices:
    """The GPUs a worker may see. `note`: what is not as declared, for people; else None."""

    gpus: tuple[Gpu, ...]
    note: str | None = None

    @property
    def cuda_visible_devices(self) -> str:
        """The value of CUDA_VISIBLE_DEVICES. By uuid: an index means another card once the order changes."""
        return ",".join(gpu.uuid for gpu in self.gpus)


@dataclasses.dataclass(frozen=True, slots=True)
class NoGpu:
    """None can be given. `busy`: there will be once another worker leaves; else there never will be here."""

    reason: str
    busy: bool = False


def detect(environ: Mapping[str, str] | None = None) -> tuple[Gpu, ...]:
    """The GPUs that this process may use (CUDA_VISIBLE_DEVICES counts). Empty without driver or card; never raises."""
    found = _from_nvml()
    if found is None:
        found = _from_smi()
    visible = (os.environ if environ is None else environ).get("CUDA_VISIBLE_DEVICES")
    return found if visible is None else _visible(found, visible)


def choose(
    config: ResourceConfig, gpus: Sequence[Gpu], in_use: Mapping[str, int], *, share: bool = True
) -> Devices | NoGpu:
    """Pick `config.gpu_count` GPUs for one more worker: free ones first, then those with the fewest workers.

    Any of `config.gpus` will do: a GpuGroup means at least its memory, a GpuType that model. When none fits, one that
    does not is better than none on a developer's machine, and the note says so.

    Args:
        in_use: workers per GPU uuid.
        share: whether a GPU may have several workers, where the resource does not say (`gpu_share`).
    """
    if not config.gpus:
        return NoGpu("it declares no GPU")
    if len(gpus) < config.gpu_count:
        return NoGpu(f"it needs {config.gpu_count} GPU(s), this machine has {len(gpus)}")
    fitting = [gpu for gpu in gpus if any(fits(gpu, wanted) for wanted in config.gpus)]
    note = None
    if len(fitting) < config.gpu_count:
        note = f"no {' or '.join(config.gpus)} here: using {gpus[0].name}"
        fitting = list(gpus)
    may_share = share if config.gpu_share is None else config.gpu_share
    usable = [gpu for gpu in fitting if may_share or not in_use.get(gpu.uuid)]
    if len(usable) < config.gpu_count:
        return NoGpu("queued: waiting for GPU", busy=True)
    usable.sort(key=lambda gpu: (in_use.get(gpu.uuid, 0), gpu.memory_bytes, gpu.index))
    chosen = usable[: config.gpu_count]
    if note is not None:
        note = f"no {' or '.join(config.gpus)} here: using {chosen[0].name}"
    return Devices(tuple(chosen), note)


def lacking(config: ResourceConfig, gpus: Sequence[Gpu]) -> str | None:
    """What a machine with these GPUs lacks of what the resource declares, in words; None: nothing."""
    if not config.gpus:
        return None
    wanted = f"{config.gpu_count} x {' or '.join(config.gpus)}" if config.gpu_count > 1 else " or ".join(config.gpus)
    fitting = [gpu for gpu in gpus if any(fits(gpu, name) for name in config.gpus)]
    if len(fitting) >= config.gpu_count:
        return None
    here = ", ".join(f"{gpu.name} ({gpu.memory_bytes / 10**9:.0f} GB)" for gpu in gpus) or "none"
    return f"it declares a GPU ({wanted}), and this machine has {here}"


def fits(gpu: Gpu, wanted: str) -> bool:
    """Whether a GPU is what a GpuGroup's or GpuType's name asks for.

    A group's number is in decimal GB, which every card sold under that number has.
    """
    if wanted.upper() == "ANY":
        return True
    group = _GROUP_MEMORY.match(wanted)
    if group:
        return gpu.memory_bytes >= int(group.group(1)) * 10**9
    return _model(gpu.name) == _model(wanted)


def _model(name: str) -> str:
    return _NOT_MODEL.sub("", name.lower())


def _visible(gpus: tuple[Gpu, ...], visible: str) -> tuple[Gpu, ...]:
    """As CUDA reads it: indices or uuid prefixes, up to the first that names none."""
    chosen: list[Gpu] = []
    for entry in (part.strip() for part in visible.split(",")):
        gpu = next((gpu for gpu in gpus if entry == str(gpu.index) or (entry and gpu.uuid.startswith(entry))), None)
        if gpu is None:
            break
        chosen.append(gpu)
    return tuple(chosen)


def _from_nvml() -> tuple[Gpu, ...] | None:
    """None when the library is not installed; empty when it finds no driver."""
    try:
        import pynvml  # an extra (`flashmesh[gpu]`): most machines have no GPU
    except ImportError:
        return None
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return ()
    try:
        return tuple(_nvml_gpu(pynvml, index) for index in range(pynvml.nvmlDeviceGetCount()))
    except pynvml.NVMLError:
        return ()
    finally:
        pynvml.nvmlShutdown()


def _nvml_gpu(nvml: Any, index: int) -> Gpu:
    handle = nvml.nvmlDeviceGetHandleByIndex(index)
    uuid, name = (_as_text(read(handle)) for read in (nvml.nvmlDeviceGetUUID, nvml.nvmlDeviceGetName))
    return Gpu(index, uuid, name, int(nvml.nvmlDeviceGetMemoryInfo(handle).total))


def _as_text(value: str | bytes) -> str:
    """Old releases of the library answer bytes."""
    return value.decode() if isinstance(value, bytes) else value


def _from_smi() -> tuple[Gpu, ...]:
    program = shutil.which("nvidia-smi")
    if program is None:
        return ()
    command = [program, f"--query-gpu={_SMI_FIELDS}", "--format=csv,noheader,nounits"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=_SMI_LIMIT_S, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ()
    return parse_smi(answer.stdout) if answer.returncode == 0 else ()


def parse_smi(text: str) -> tuple[Gpu, ...]:
    """GPUs from lines `0, GPU-8f…, NVIDIA H100 80GB HBM3, 81559` (memory in MiB). Other lines are left out."""
    gpus: list[Gpu] = []
    for line in text.splitlines():
        parts = [part.strip() for part in line.split(",")]
        if len(parts) == 4 and parts[0].isdigit() and parts[3].isdigit():
            gpus.append(Gpu(int(parts[0]), parts[1], parts[2], int(parts[3]) * 2**20))
    return tuple(gpus)
