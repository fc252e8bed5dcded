"""The choice within a budget: what it takes is within it, one more of anything is not, and it says what is missing."""

from dataclasses import replace
from pathlib import Path

import pytest

from quantkit.planning.budget import Budget, Fit, best_fit, fit_experts, fit_offer, longest_context, remedies
from quantkit.planning.context import Context
from quantkit.planning.memory import plan_memory
from quantkit.planning.placement import fastest_fit
from quantkit.planning.sizes import Offer, offers
from quantkit.planning.sources import Source, open_source
from quantkit.planning.speed import DeviceSpeed, Work, token_work, tokens_per_second
from tests.planning.models import LARGE, write_model

GB = 10**9


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Source:
    return open_source(str(write_model(tmp_path_factory.mktemp("8B") / "model.gguf", LARGE["8B"])))


@pytest.fixture(scope="module")
def forms(llama: Source) -> dict[str, Offer]:
    return {offer.label: offer for offer in offers(llama, ["bf16", "q8_0", "q4_k_m", "q2_k"])}


@pytest.mark.parametrize("vram", [2, 3, 4, 6, 8, 12])
def test_no_more_layers_would_fit(vram: int, llama: Source, forms: dict[str, Offer]) -> None:
    budget = Budget(ram=32 * GB, vram=vram * GB)
    fit = fit_offer(llama.shape, forms["q8_0"], Context(), budget)
    gpu = fit.memory.gpu
    assert gpu is not None and gpu.total <= budget.vram and fit.fits
    if fit.gpu_layers <= llama.shape.n_layer:
        more = replace(fit.memory.context, gpu_layers=fit.gpu_layers + 1)
        memory = plan_memory(llama.shape, forms["q8_0"].tensors, more, has_gpu=True)
        assert memory.gpu is not None and memory.gpu.total > budget.vram


def test_a_gpu_with_room_for_all_takes_all(llama: Source, forms: dict[str, Offer]) -> None:
    fit = fit_offer(llama.shape, forms["q4_k_m"], Context(), Budget(8 * GB, 24 * GB))
    assert fit.gpu_layers == 33 and fit.fits


def test_a_gpu_too_small_for_the_compute_buffer_is_left_out(llama: Source, forms: dict[str, Offer]) -> None:
    fit = fit_offer(llama.shape, forms["q8_0"], Context(), Budget(32 * GB, GB))
    assert fit.memory.gpu is None and fit.fits and fit.gpu_layers == 0
    assert longest_context(llama.shape, fit, Budget(32 * GB, GB), 8192) == 8192


def test_layers_the_user_asked_for_stay(llama: Source, forms: dict[str, Offer]) -> None:
    fit = fit_offer(llama.shape, forms["q8_0"], Context(gpu_layers=33), Budget(32 * GB, 4 * GB), fixed_layers=True)
    assert fit.gpu_layers == 33
    assert fit.memory.gpu is not None and fit.missing == fit.memory.gpu.total - 4 * GB


def test_the_longest_context_fits_and_a_longer_one_does_not(llama: Source, forms: dict[str, Offer]) -> None:
    budget = Budget(ram=12 * GB)
    fit = fit_offer(llama.shape, forms["q8_0"], Context(), budget)
    longest = longest_context(llama.shape, fit, budget, 131072)
    assert 4096 < longest < 131072 and longest % 256 == 0
    for n_ctx, fits in ((longest, True), (longest + 256, False)):
        context = replace(fit.memory.context, n_ctx=n_ctx)
        assert fit_offer(llama.shape, forms["q8_0"], context, budget).fits == fits
    assert longest_context(llama.shape, fit, budget, 8192) == 8192


def test_a_type_that_fits_the_gpu_whole_comes_before_a_better_one_that_does_not(
    llama: Source, forms: dict[str, Offer]
) -> None:
    budget = Budget(32 * GB, 8 * GB)
    fits = [fit_offer(llama.shape, offer, Context(), budget) for offer in forms.values()]
    assert all(fit.fits for fit in fits)
    best = best_fit(llama.shape, [(fit, 20.0) for fit in fits])
    assert best is not None and best.offer.label == "q4_k_m"


def test_without_a_gpu_the_best_that_is_fast_enough_is_taken(llama: Source, forms: dict[str, Offer]) -> None:
    budget = Budget(64 * GB)
    fits = [fit_offer(llama.shape, offer, Context(), budget) for offer in forms.values()]

    def taken(*paces: float) -> str:
        best = best_fit(llama.shape, list(zip(fits, paces, strict=True)))
        assert best is not None
        return best.offer.label

    assert taken(10, 20, 35, 60) == "q8_0"  # bf16 would do, but is twice the size for nothing
    assert taken(1, 2, 3.8, 6) == "q4_k_m"  # none is fast: q8_0 at half the pace is no bargain
    assert best_fit(llama.shape, [(fits[0], 1.0)]) is fits[0]  # nothing else was asked for


def test_below_four_bits_only_where_nothing_else_fits(llama: Source, forms: dict[str, Offer]) -> None:
    budget = Budget(5 * GB)
    fits = [fit_offer(llama.shape, offer, Context(), budget) for offer in forms.values()]
    assert [fit.offer.label for fit in fits if fit.fits] == ["q2_k"]
    best = best_fit(llama.shape, [(fit, 5.0) for fit in fits])
    assert best is not None and best.offer.label == "q2_k"


def test_where_nothing_fits_each_remedy_would(llama: Source, forms: dict[str, Offer]) -> None:
    context = Context(n_ctx=32768)
    smallest = forms["q2_k"]
    need = fit_offer(llama.shape, smallest, context, Budget(GB)).memory.cpu.total
    budget = Budget(need - GB)
    fit = fit_offer(llama.shape, smallest, context, budget)
    assert fit.missing == GB
    fits = {remedy.what: remedy.fit for remedy in remedies(llama.shape, list(forms.values()), context, budget)}
    assert "--kv-type q8_0" in fits and any(what.startswith("--ctx ") for what in fits)
    assert all(remedy_fit.fits and remedy_fit.memory.cpu.total <= budget.ram for remedy_fit in fits.values())
    assert remedies(llama.shape, list(forms.values()), context, Budget(10**8)) == []


def test_experts_on_the_cpu_are_a_remedy(tmp_path: Path) -> None:
    mixtral = open_source(str(write_model(tmp_path / "model.gguf", LARGE["Mixtral"])))
    (offer,) = offers(mixtral, ["q4_0"])
    context = Context(gpu_layers=33)
    fit = fit_offer(mixtral.shape, offer, context, Budget(64 * GB, 8 * GB), fixed_layers=True)
    assert not fit.fits
    moved = replace(context, cpu_moe=32)
    assert fit_offer(mixtral.shape, offer, moved, Budget(64 * GB, 8 * GB), fixed_layers=True).fits


@pytest.mark.parametrize(("vram", "layers"), [(6, 33), (12, 33), (20, 33), (2, 20)])
def test_experts_go_to_the_cpu_first_as_few_as_possible_and_whole_layers_after_them(
    vram: int, layers: int, tmp_path: Path
) -> None:
    mixtral = open_source(str(write_model(tmp_path / "model.gguf", LARGE["Mixtral"])))
    (offer,) = offers(mixtral, ["q4_0"])
    budget = Budget(64 * GB, vram * GB)
    fit = fit_experts(mixtral.shape, offer, Context(), budget)
    assert fit is not None and fit.memory.gpu is not None and fit.memory.gpu.total <= budget.vram

    def gpu(**changes: int) -> int:
        context = replace(fit.memory.context, **changes)
        memory = plan_memory(mixtral.shape, offer.tensors, context, has_gpu=True).gpu
        assert memory is not None
        return memory.total

    assert (fit.gpu_layers == 33) == (layers == 33)
    if layers == 33:
        assert gpu(cpu_moe=fit.cpu_moe - 1) > budget.vram
    else:
        assert fit.cpu_moe == 32 and gpu(gpu_layers=fit.gpu_layers + 1) > budget.vram
    # every other split of the same memory reads more bytes on the CPU for one token
    whole = fit_offer(mixtral.shape, offer, Context(), budget)
    on_cpu = [token_work(mixtral.shape, offer.tensors, split.memory.context)["CPU"].bytes for split in (fit, whole)]
    assert on_cpu[0] < on_cpu[1]


def test_a_model_without_experts_has_no_placement_of_experts(llama: Source, forms: dict[str, Offer]) -> None:
    assert fit_experts(llama.shape, forms["q4_k_m"], Context(), Budget(32 * GB, 4 * GB)) is None


def test_a_token_reads_the_experts_it_uses_and_one_row_of_the_embedding(tmp_path: Path) -> None:
    mixtral = open_source(str(write_model(tmp_path / "model.gguf", LARGE["Mixtral"])))
    (offer,) = offers(mixtral, ["f16"])
    work = token_work(mixtral.shape, offer.tensors, Context(n_ctx=512))
    # 12.9 billion active parameters (Mixtral of Experts, section 2), less the embedding of 32000 rows
    weights = 2 * (12.88e9 - 32000 * 4096)
    kv = 32 * 2 * 8 * 128 * 2 * 512
    assert work["CPU"].bytes == pytest.approx(weights + kv, rel=0.002) and work["GPU"].bytes == 0
    two = {"CPU": Work({"F16": 4 * GB}), "GPU": Work({"F16": 8 * GB})}
    assert tokens_per_second(two, {"CPU": DeviceSpeed(20e9), "GPU": DeviceSpeed(400e9)}) == pytest.approx(1 / 0.22)


def test_measured_speeds_decide_between_experts_whole_layers_and_the_cpu(tmp_path: Path) -> None:
    mixtral = open_source(str(write_model(tmp_path / "model.gguf", LARGE["Mixtral"])))
    (offer,) = offers(mixtral, ["q4_0"])
    context, budget = Context(512), Budget(64 * GB, 12 * GB)

    def placed(cpu: DeviceSpeed, gpu: DeviceSpeed) -> tuple[int, int]:
        fit = fastest_fit(mixtral.shape, offer, context, budget, {"CPU": cpu, "GPU": gpu}).fit
        return fit.gpu_layers, fit.cpu_moe

    fast, slow = DeviceSpeed(400e9, operation=1e-6), DeviceSpeed(40e9, operation=1e-6)
    layers, moe = placed(slow, fast)
    assert layers == 33 and 0 < moe < 33
    # two transfers in each layer with experts on the CPU, of 10 ms each: whole layers have one
    costly = replace(fast, transfer=10e-3), replace(slow, transfer=10e-3)
    layers, moe = placed(costly[1], costly[0])
    assert 0 < layers < 33 and moe == 0
    # a device that is slower than the CPU gets no layer
    assert placed(fast, slow) == (0, 0)


def test_a_fit_says_what_is_missing_on_the_shorter_device(llama: Source, forms: dict[str, Offer]) -> None:
    fit = fit_offer(llama.shape, forms["bf16"], Context(), Budget(2 * GB, 4 * GB))
    assert isinstance(fit, Fit) and fit.memory.gpu is not None
    assert fit.memory.gpu.total <= 4 * GB
    assert fit.missing == fit.memory.cpu.total - 2 * GB
