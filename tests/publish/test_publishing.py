"""A whole tag plan on the stand-in server: every tag is there, weights go once, the next run completes a broken one."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from quantkit.errors import PublishError
from quantkit.publish.ollama.bundle import make_bundle
from quantkit.publish.ollama.facts import facts_of_gguf
from quantkit.publish.ollama.overrides import Overrides
from quantkit.publish.ollama.push import Created, Item, create_all, push_all
from quantkit.publish.ollama.server import Server
from quantkit.publish.ollama.tags import Name, TagPlan, plan_tags
from tests.helpers.ollama_server import Ollama, running_ollama
from tests.publish.gguf_files import write_gguf
from tests.publish.recorded import Recorded

ALL = {
    *("ns/m:4b-q4_0", "ns/m:4b", "ns/m:latest", "ns/m:4b-q4_0-gpu", "ns/m:4b-gpu", "ns/m:gpu"),
    *("ns/m:4b-q8_0", "ns/m:4b-q8_0-gpu"),
}


@pytest.fixture
def ollama() -> Iterator[Ollama]:
    with running_ollama() as state:
        yield state


@pytest.fixture
def planned(tmp_path: Path) -> tuple[TagPlan, list[Item]]:
    facts = {
        kind: facts_of_gguf(write_gguf(tmp_path / f"m-{kind.upper()}.gguf", type=kind, extra=i))
        for i, kind in enumerate(("q4_0", "q8_0"))
    }
    plan = plan_tags(
        Name("m", "ns"), [(kind, (facts_of_type.files[0].name,)) for kind, facts_of_type in facts.items()], size="4b"
    )
    items = []
    for quantization in plan.quantizations:
        sources = [f"./{file}" for file in quantization.files]
        bundle = make_bundle(
            facts[quantization.type], Overrides(), sources=sources, base=plan.name.tagged(quantization.tags[0])
        )
        items.append(Item(quantization, facts[quantization.type], bundle))
    return plan, items


def weights(ollama: Ollama, name: str) -> str:
    (digest,) = (digest for kind, digest in ollama.models[name]["layers"] if kind.startswith("model "))
    return str(digest)


def make(ollama: Ollama, planned: tuple[TagPlan, list[Item]]) -> Created:
    return create_all(Server(ollama.url), *planned)


def test_every_tag_is_made_and_the_weights_of_a_type_are_sent_once(
    ollama: Ollama, planned: tuple[TagPlan, list[Item]]
) -> None:
    made = make(ollama, planned)
    assert set(ollama.models) == set(made.tags) == ALL
    assert ollama.uploads() == 2
    sizes = [item.facts.files[0].stat().st_size for item in planned[1]]
    assert (made.sent, made.kept) == (sum(sizes), 0)
    assert len({weights(ollama, name) for name in ALL if "q8_0" not in name}) == 1
    assert len({weights(ollama, name) for name in ALL}) == 2


def test_gpu_differs_from_the_plain_tag_in_nothing_but_its_parameters(
    ollama: Ollama, planned: tuple[TagPlan, list[Item]]
) -> None:
    make(ollama, planned)
    plain, gpu = dict(ollama.models["ns/m:4b"]["layers"]), dict(ollama.models["ns/m:gpu"]["layers"])
    assert {kind for kind in plain if plain[kind] != gpu[kind]} == {"params"} and plain.keys() == gpu.keys()
    plain_parameters, gpu_parameters = ollama.layer("ns/m:4b", "params"), ollama.layer("ns/m:gpu", "params")
    assert gpu_parameters == plain_parameters | {"num_gpu": 999}
    assert "num_gpu" not in plain_parameters and plain_parameters["num_ctx"] == 4096


def test_aliases_are_the_same_model(ollama: Ollama, planned: tuple[TagPlan, list[Item]]) -> None:
    make(ollama, planned)
    assert ollama.models["ns/m:latest"] == ollama.models["ns/m:4b"] == ollama.models["ns/m:4b-q4_0"]
    assert ollama.models["ns/m:gpu"] == ollama.models["ns/m:4b-q4_0-gpu"]


def test_a_second_run_sends_no_blob_and_changes_nothing(ollama: Ollama, planned: tuple[TagPlan, list[Item]]) -> None:
    first = make(ollama, planned)
    before = {name: dict(model) for name, model in ollama.models.items()}
    again = make(ollama, planned)
    assert ollama.uploads() == 2
    assert (again.sent, again.kept) == (0, first.sent)
    assert ollama.models == before


def test_a_push_sends_each_layer_once_over_all_tags(ollama: Ollama, planned: tuple[TagPlan, list[Item]]) -> None:
    make(ollama, planned)
    progress = Recorded()
    pushed = push_all(Server(ollama.url), planned[0], progress=progress)
    counted = [item for amount, item in progress.advances if amount]
    assert set(ollama.manifests) == set(pushed) == set(counted) == ALL
    assert progress.stages == [("pushing", len(counted))]
    digests = [digest for _, digest in ollama.pushed_layers]
    assert len(digests) == len(set(digests))
    # two weights, one template of both, plain and gpu parameters of both types alike
    assert sorted(kind for kind, _ in ollama.pushed_layers if not kind.startswith("model ")) == [
        *("params", "params", "template"),
    ]
    push_all(Server(ollama.url), planned[0])
    assert len(ollama.pushed_layers) == len(digests)


def test_a_server_killed_in_the_second_upload_is_completed_by_the_next_run(
    planned: tuple[TagPlan, list[Item]],
) -> None:
    state = Ollama()
    second = planned[1][1].facts.files[0]
    with running_ollama(state):
        create_all(Server(state.url), planned[0], planned[1][:1])
        state.die_after = 100
        with pytest.raises(PublishError, match=rf"went away after \d+ of {second.stat().st_size} bytes of m-Q8_0.gguf"):
            make(state, planned)
    with pytest.raises(PublishError, match="no Ollama server answers"):
        make(state, planned)
    uploads = state.uploads()
    with running_ollama(state):
        made = make(state, planned)
    assert state.uploads() == uploads + 1
    assert (made.sent, made.kept) == (second.stat().st_size, planned[1][0].facts.files[0].stat().st_size)
    assert set(state.models) == ALL


def test_all_shards_are_sent_under_their_own_names(ollama: Ollama, tmp_path: Path) -> None:
    for i in (1, 2):
        write_gguf(tmp_path / f"m-0000{i}-of-00002.gguf", extra=i)
    facts = facts_of_gguf(tmp_path / "m-00001-of-00002.gguf")
    plan = plan_tags(Name("m"), [("q4_0", tuple(file.name for file in facts.files))], size=None)
    sources = [f"./{file.name}" for file in facts.files]
    item = Item(plan.quantizations[0], facts, make_bundle(facts, Overrides(), sources=sources, base="m:q4_0"))
    create_all(Server(ollama.url), plan, [item])
    kinds = [kind for kind, _ in ollama.models["m:latest"]["layers"]]
    assert kinds[:2] == ["model m-00001-of-00002.gguf", "model m-00002-of-00002.gguf"]


def test_progress_adds_up_to_twice_the_files(ollama: Ollama, planned: tuple[TagPlan, list[Item]]) -> None:
    total = sum(item.facts.files[0].stat().st_size for item in planned[1])
    for _ in (1, 2):
        progress = Recorded()
        create_all(Server(ollama.url), *planned, progress)
        assert progress.stages == [("publishing", 2 * total)]
        assert sum(amount for amount, _ in progress.advances) == 2 * total
