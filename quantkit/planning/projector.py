"""The projector in a plan: how large it is, and which memory it takes."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from quantkit.errors import QuantkitError, UsageError
from quantkit.families.base.multimodal import has_tower
from quantkit.gguf.projector_file import choose_projector, named_projectors
from quantkit.machine import Machine
from quantkit.outputs.projector import ProjectorRequest, find_projector, plan_projectors, projector_types
from quantkit.planning.sources import Source
from quantkit.units import human_bytes

NONE = "none"
USUAL = "f16"


@dataclass(frozen=True)
class PlannedProjector:
    """A projector beside the text model. `size` in bytes. `option`: what makes it with the GGUF; "" if it exists.

    llama.cpp loads it onto the GPU, if there is one. Its compute buffer depends on the image and is not counted.
    """

    file: str
    size: int
    option: str = ""

    def left(self, machine: Machine) -> Machine:
        """The memory that the projector leaves: it is on the first GPU if there is one."""
        ram = max(machine.ram - self.size, 0) if machine.unified or not machine.vram else machine.ram
        if not machine.vrams:
            return replace(machine, ram=ram, vram=max(machine.vram - self.size, 0))
        vrams = (max(machine.vrams[0] - self.size, 0), *machine.vrams[1:])
        return replace(machine, ram=ram, vrams=vrams, vram=sum(vrams))

    def note(self, machine: Machine) -> str:
        """What the plan reserves."""
        where = "GPU memory" if machine.vram else "memory"
        size = human_bytes(self.size)
        return f"{self.file} takes {size} of {where}, which the plan reserves; images take more while they run"

    def document(self, machine: Machine) -> dict[str, Any]:
        """The projector as JSON."""
        return {"file": self.file, "bytes": self.size, "device": "GPU" if machine.vram else "CPU"}


def planned_projector(source: Source, model: str, type_name: str | None) -> tuple[PlannedProjector | None, str | None]:
    """The projector that a plan counts, and a note on one that it does not count.

    `model`: the source as the user wrote it. `type_name`: a type of --mmproj, or `none`; without it a projector beside
    a GGUF counts, and that of a checkpoint does not.

    Raises:
        UsageError: another type, or the model has no projector of this type, or only that of another model.
    """
    if type_name == NONE:
        return None, None
    checkpoint = source.model.checkpoint
    if checkpoint is None:
        beside = named_projectors(Path(model))
        if type_name is not None:
            beside = [path for path in beside if path.stem.lower().endswith(f"-{type_name.lower()}")]
            if not beside:
                raise UsageError(
                    f"no projector of the type {type_name} lies beside {model}; leave --mmproj out, or write one with"
                    f" quantkit gguf SOURCE --mmproj {type_name}"
                )
        if not beside:
            return None, None
        try:
            file = choose_projector(Path(model), beside[0])
        except UsageError as error:
            if type_name is not None:
                raise
            return None, f"a projector is not counted: {str(error).partition(';')[0]}"
        return PlannedProjector(file.name, file.stat().st_size), None
    types = projector_types([type_name or USUAL])
    rules = None if source.is_config else find_projector(checkpoint.config)
    if rules is None:
        if type_name is not None:
            towers = source.is_config or has_tower(checkpoint.tensors)
            reason = "has no projector that quantkit can plan" if towers else "has no vision or audio tower"
            raise UsageError(f"{model} {reason}; leave --mmproj out")
        return None, None
    does = "hears audio" if rules.hears else "sees images"
    try:
        plan = plan_projectors(checkpoint, ProjectorRequest(types, Path(), source.model.name))
    except QuantkitError as error:
        if type_name is not None:
            raise
        return None, f"the model {does}, but its projector cannot be planned: {error}"
    (output,) = plan.outputs
    if type_name is None:
        return None, f"the model {does}; --mmproj {USUAL} counts its projector too, {human_bytes(output.size)}"
    return PlannedProjector(output.files[0].name, output.size, f" --mmproj {types[0].name}"), None
