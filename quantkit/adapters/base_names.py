"""Names of a base checkpoint's tensors: by its family's rules, or as they are if it has no family."""

import re
from collections.abc import Mapping

from quantkit.checkpoint import TensorInfo
from quantkit.families.base.family import Family
from quantkit.families.base.mapping import renamed
from quantkit.families.base.output_head import head_names

_HEAD = "lm_head.weight"
_EMBEDDINGS = ("embed_tokens", "wte", "word_embeddings", "tok_embeddings", "embed_in", "embeddings", "embedding")


class BaseNames:
    """Names of the tensors of a checkpoint. `family` is None for an architecture that llama.cpp's converter reads.

    `embedding` and `head`: the names of the input embedding and of the output head, as `by_rule` has them.
    """

    def __init__(self, family: Family | None, tensors: Mapping[str, TensorInfo]) -> None:
        self.family = family
        self.embedding, self.head = head_names(family) if family is not None else (_embedding(tensors), _HEAD)
        self.update(tensors)

    def update(self, tensors: Mapping[str, TensorInfo]) -> None:
        """Take the names of `tensors`."""
        self.by_rule = {self.rule_name(name): name for name in tensors}
        self._tensors = tensors

    def rule_name(self, name: str) -> str:
        """A name as the family's rules have it."""
        return name if self.family is None else renamed(self.family, name)

    def find(self, name: str) -> str | None:
        """The checkpoint's name of a tensor that PEFT calls `name`; None if it has none.

        Without a family the prefixes may differ (`model.language_model.`), if the rest names one tensor only.
        """
        known = self.by_rule.get(self.rule_name(name)) or (name if name in self._tensors else None)
        if known is not None or self.family is not None:
            return known
        layer = re.search(r"(?:^|\.)(\w+\.\d+\..+)$", name)
        ending = layer[1] if layer else ".".join(name.split(".")[-2:])
        matches = [other for other in self._tensors if other == ending or other.endswith(f".{ending}")]
        return matches[0] if len(matches) == 1 else None


def _embedding(tensors: Mapping[str, TensorInfo]) -> str:
    """The name of the token embedding by its usual endings; "" if there is none, or more than one."""
    names = [name for name in tensors if name.removesuffix(".weight").split(".")[-1] in _EMBEDDINGS]
    return names[0] if len(names) == 1 else ""
