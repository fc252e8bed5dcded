"""Rules for routed experts, in both layouts: a tensor each (as on hubs), or a layer in one (transformers 5)."""

from collections.abc import Callable, Iterable

from quantkit.families.base.family import Rule, Take
from quantkit.families.base.fused import expert_halves
from quantkit.families.base.hyperparameters import Hyperparameters, size

Layers = Callable[[Hyperparameters], Iterable[int]]


def expert_width(sizes: Hyperparameters) -> int:
    """`moe_intermediate_size`: rows of an expert's gate and of its up projection."""
    return size(sizes.config, "moe_intermediate_size")


def expert_dimensions(ffn: int, shared: int = 0) -> dict[str, int]:
    """The dimensions that `expert_rules` and `shared_rules` name. `shared`: the width of the shared expert."""
    return {"expert_ffn": ffn, "expert_gate_up": 2 * ffn, "shared_ffn": shared}


def expert_rules(
    at: str,
    *,
    layers: Layers | None = None,
    names: tuple[str, str, str] = ("gate_proj", "up_proj", "down_proj"),
    width: Callable[[Hyperparameters], int] = expert_width,
) -> tuple[Rule, ...]:
    """The experts below `at` (such as `model.layers.{layer}.mlp.experts`) in both layouts.

    `names` are those of gate, up and down. Fused: `gate_up_proj` (experts, 2 width, hidden), gate before up, and
    `down_proj` (experts, hidden, width).
    """
    gate, up, down = names
    to = "blk.{layer}.ffn"

    def half(number: int) -> Callable[[Hyperparameters], tuple[Take, ...]]:
        return lambda sizes: expert_halves(sizes.n_expert, width(sizes), number)

    fused = ("n_expert", "expert_gate_up", "hidden")
    one = f"{at}.{{expert}}"
    return (
        Rule(f"{one}.{gate}.weight", f"{to}_gate_exps.weight", ("expert_ffn", "hidden"), layers=layers),
        Rule(f"{one}.{up}.weight", f"{to}_up_exps.weight", ("expert_ffn", "hidden"), layers=layers),
        Rule(f"{one}.{down}.weight", f"{to}_down_exps.weight", ("hidden", "expert_ffn"), layers=layers),
        Rule(f"{at}.gate_up_proj", f"{to}_gate_exps.weight", fused, take=half(0), layers=layers),
        Rule(f"{at}.gate_up_proj", f"{to}_up_exps.weight", fused, take=half(1), layers=layers),
        Rule(f"{at}.down_proj", f"{to}_down_exps.weight", ("n_expert", "hidden", "expert_ffn"), layers=layers),
    )


def shared_rules(
    at: str, *, layers: Layers | None = None, when: Callable[[Hyperparameters], bool] | None = None
) -> tuple[Rule, ...]:
    """The expert for all tokens below `at` (such as `model.layers.{layer}.mlp.shared_experts`)."""
    return tuple(
        Rule(f"{at}.{name}_proj.weight", f"blk.{{layer}}.ffn_{name}_shexp.weight", shape, layers=layers, when=when)
        for name, shape in (
            ("gate", ("shared_ffn", "hidden")),
            ("up", ("shared_ffn", "hidden")),
            ("down", ("hidden", "shared_ffn")),
        )
    )
