"""Names as Ollama takes them, tags as publishers name them, and the plan as a file that is edited and taken back."""

from pathlib import Path

import pytest

from quantkit.errors import UsageError
from quantkit.publish.ollama.plan_file import read_plan, write_plan
from quantkit.publish.ollama.tags import Name, TagPlan, parse_name, plan_tags, size_tag
from quantkit.system.python import tomllib

BLOSSOM = Name("blossom-v5", "azure99")


def files(*types: str) -> list[tuple[str, tuple[str, ...]]]:
    return [(kind, (f"m-{kind.upper()}.gguf",)) for kind in types]


def tags(plan: TagPlan) -> dict[str, tuple[tuple[str, ...], tuple[str, ...]]]:
    return {quantization.type: (quantization.tags, quantization.gpu_tags) for quantization in plan.quantizations}


def test_one_q4_0_gets_the_tags_of_blossoms_own_page() -> None:
    plan = plan_tags(BLOSSOM, files("q4_0"), size="4b")
    assert tags(plan) == {"q4_0": (("4b-q4_0", "4b", "latest"), ("4b-q4_0-gpu", "4b-gpu", "gpu"))}
    assert plan.quantizations[0].modelfile == "Modelfile"
    assert plan.quantizations[0].gpu_modelfile == "Modelfile.gpu"


def test_the_short_tags_go_to_q4_0_and_the_others_keep_their_type() -> None:
    plan = plan_tags(BLOSSOM, files("q2_k", "q4_0", "q8_0"), size="9b")
    assert tags(plan) == {
        "q4_0": (("9b-q4_0", "9b", "latest"), ("9b-q4_0-gpu", "9b-gpu", "gpu")),
        "q2_k": (("9b-q2_k",), ("9b-q2_k-gpu",)),
        "q8_0": (("9b-q8_0",), ("9b-q8_0-gpu",)),
    }
    assert [quantization.modelfile for quantization in plan.quantizations] == [
        "Modelfile",
        "Modelfile.q2_k",
        "Modelfile.q8_0",
    ]


def test_another_default_takes_the_short_tags() -> None:
    plan = plan_tags(BLOSSOM, files("q4_0", "q8_0"), size="9b", default="q8_0")
    assert tags(plan)["q8_0"][0] == ("9b-q8_0", "9b", "latest")
    assert tags(plan)["q4_0"][0] == ("9b-q4_0",)


@pytest.mark.parametrize(
    ("types", "short"), [(("q2_k", "q4_k_m"), "q4_k_m"), (("q8_0", "q2_k"), "q8_0"), (("f16",), "f16")]
)
def test_without_q4_0_the_next_best_is_short(types: tuple[str, ...], short: str) -> None:
    plan = plan_tags(BLOSSOM, files(*types), size="4b")
    assert [kind for kind, (plain, _) in tags(plan).items() if "latest" in plain] == [short]


def test_a_tag_in_the_name_leaves_latest_to_another_size() -> None:
    plan = plan_tags(parse_name("azure99/blossom-v5:14b"), files("q4_0", "q8_0"), size="4b")
    assert tags(plan) == {
        "q4_0": (("14b-q4_0", "14b"), ("14b-q4_0-gpu", "14b-gpu")),
        "q8_0": (("14b-q8_0",), ("14b-q8_0-gpu",)),
    }
    assert str(plan.name) == "azure99/blossom-v5"


def test_a_whole_tag_in_the_name_is_taken_as_it_is() -> None:
    plan = plan_tags(parse_name("ns/m:4b-q4_0"), files("q4_0"), size="4b")
    assert tags(plan) == {"q4_0": (("4b-q4_0",), ("4b-q4_0-gpu",))}


def test_without_a_size_the_type_is_the_tag() -> None:
    assert tags(plan_tags(BLOSSOM, files("q4_0"), size=None)) == {
        "q4_0": (("q4_0", "latest"), ("q4_0-gpu", "gpu")),
    }


def test_two_files_of_one_type_and_an_absent_default_are_refused() -> None:
    two = [("q4_0", ("a.gguf",)), ("q4_0", ("b.gguf",))]
    with pytest.raises(UsageError, match=r"a\.gguf, b\.gguf are all q4_0"):
        plan_tags(BLOSSOM, two, size="4b")
    with pytest.raises(UsageError, match="--default q8_0 is not among the files, which are q4_0"):
        plan_tags(BLOSSOM, files("q4_0"), size="4b", default="q8_0")


@pytest.mark.parametrize(
    ("label", "tag"),
    [
        ("3.9B", "4b"),
        ("4.0B", "4b"),
        ("4B", "4b"),
        ("1.8B", "1.8b"),
        ("1.1B", "1.1b"),
        ("0.5B", "0.5b"),
        ("2.7B", "2.7b"),
        ("6.7B", "7b"),
        ("8.8B", "9b"),
        ("8.03B", "8b"),
        ("13.3B", "13b"),
        ("34.4B", "34b"),
        ("135M", "135m"),
        ("494M", "494m"),
        ("8x7B", "8x7b"),
        ("8x6.7B", "8x7b"),
        ("large", None),
        (None, None),
    ],
)
def test_sizes_are_rounded_as_publishers_do(label: str | None, tag: str | None) -> None:
    assert size_tag(label) == tag


@pytest.mark.parametrize(
    "text",
    [
        "blossom",
        "azure99/blossom-v5",
        "azure99/blossom-v5:4b",
        "registry.example.com/azure99/blossom-v5:4b-q4_0",
        "127.0.0.1:5000/ns/m:gpu",
        "a_b/c.d:1.8b",
    ],
)
def test_a_sound_name_comes_back_as_it_was(text: str) -> None:
    assert str(parse_name(text)) == text


def test_the_parts_of_a_name() -> None:
    assert parse_name("127.0.0.1:5000/ns/m:gpu") == Name("m", "ns", "127.0.0.1:5000", "gpu")
    assert parse_name("ns/m").tagged("4b") == "ns/m:4b"


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("my model", "has a space"),
        (" ns/m", "has a space"),
        ("ns/m\n", "has a space"),
        ("", "is empty"),
        ("Azure99/Blossom", "'Azure99' has capital letters, which ollama.com does not keep; write azure99/blossom"),
        ("ns/m:4B", "'4B' has capital letters"),
        ("ns/a..b", "'a..b'"),
        ("n.s/m", "the namespace of the name 'n.s/m' is 'n.s'"),
        ("ns/m:", "the tag of the name 'ns/m:' is ''"),
        ("ns/", "the model of the name 'ns/' is ''"),
        ("/m", "the namespace of the name '/m' is ''"),
        ("a/b/c/d", "too many slashes"),
        ("ns/-m", "'-m'"),
        ("ns/m:4b:gpu", "the tag of the name"),
        ("ns/模型", "'模型'"),
        ("ns/m@sha256", "'m@sha256'"),
        ("ns/" + "m" * 81, "has 81 characters; Ollama allows at most 80"),
        ("ho st/ns/m", "has a space"),
        ("-host/ns/m", "'-host', which is not a host"),
    ],
)
def test_a_malformed_name_is_refused_with_the_part_that_is_wrong(text: str, why: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_name(text)
    assert why in str(caught.value)


def test_a_plan_survives_its_file(tmp_path: Path) -> None:
    plan = plan_tags(BLOSSOM, [("q4_0", ('a "b"\\c\x7f.gguf', "模型.gguf")), ("q8_0", ("x.gguf",))], size="4b")
    path = tmp_path / "plan.toml"
    path.write_text(write_plan(plan), "utf-8")
    assert read_plan(path) == plan


def test_the_plans_file_is_toml_that_anyone_can_read() -> None:
    table = tomllib.loads(write_plan(plan_tags(BLOSSOM, files("q4_0"), size="4b")))
    assert table == {
        "format": "quantkit-ollama-plan",
        "version": 1,
        "name": "azure99/blossom-v5",
        "quantization": [
            {
                "type": "q4_0",
                "files": ["m-Q4_0.gguf"],
                "tags": ["4b-q4_0", "4b", "latest"],
                "gpu_tags": ["4b-q4_0-gpu", "4b-gpu", "gpu"],
                "modelfile": "Modelfile",
                "gpu_modelfile": "Modelfile.gpu",
            }
        ],
    }


EDITED = """\
format = "quantkit-ollama-plan"
version = 1
name = "azure99/blossom-v5"

[[quantization]]
type = "q4_0"
files = ["m.gguf"]
tags = ["4b"]
gpu_tags = ["gpu"]
modelfile = "Modelfile"
gpu_modelfile = "Modelfile.gpu"
"""


def test_a_plan_without_gpu_tags_has_no_modelfile_for_them(tmp_path: Path) -> None:
    path = tmp_path / "plan.toml"
    path.write_text(EDITED.replace('gpu_tags = ["gpu"]\n', "").replace('gpu_modelfile = "Modelfile.gpu"\n', ""))
    (only,) = read_plan(path).quantizations
    assert (only.tags, only.gpu_tags, only.gpu_modelfile) == (("4b",), (), "")


@pytest.mark.parametrize(
    ("old", "new", "why"),
    [
        ('tags = ["4b"]', 'tagz = ["4b"]', "unknown key 'tagz' (did you mean tags?)"),
        ('tags = ["4b"]', "", "lacks tags"),
        ('tags = ["4b"]', "tags = []", "has no tags"),
        ('tags = ["4b"]', 'tags = "4b"', "tags in [[quantization]] 1 of"),
        ('tags = ["4b"]', "tags = [4]", "has 4, which is not a text"),
        ('tags = ["4b"]', 'tags = ["4 b"]', "'4 b'"),
        ('tags = ["4b"]', 'tags = ["gpu"]', "tag 'gpu' is listed twice"),
        ('"azure99/blossom-v5"', '"azure99/blossom-v5:4b"', "list tags under each [[quantization]] only"),
        ('"azure99/blossom-v5"', '"Azure99/blossom-v5"', "capital letters"),
        ("version = 1", "version = 2", "version 2, not quantkit-ollama-plan version 1"),
        ("version = 1", "version = true", "version in the plan"),
        ('modelfile = "Modelfile"', 'modelfile = "../Modelfile"', "plain, different file names"),
        ('"Modelfile.gpu"', '"Modelfile"', "plain, different file names"),
        ("version = 1", "version = ", "is not TOML"),
        ("[[quantization]]", "[quantization]", "quantization in the plan"),
        ('name = "azure99/blossom-v5"', "", "lacks name"),
    ],
)
def test_a_wrong_edit_is_one_sentence(tmp_path: Path, old: str, new: str, why: str) -> None:
    path = tmp_path / "plan.toml"
    assert old in EDITED
    path.write_text(EDITED.replace(old, new, 1))
    with pytest.raises(UsageError) as caught:
        read_plan(path)
    assert why in str(caught.value)


def test_two_quantizations_cannot_share_a_modelfile(tmp_path: Path) -> None:
    path = tmp_path / "plan.toml"
    second = EDITED[EDITED.index("[[") :].replace('["4b"]', '["9b"]').replace('["gpu"]', '["9b-gpu"]')
    path.write_text(EDITED + second)
    with pytest.raises(UsageError, match="writes 'Modelfile' twice"):
        read_plan(path)


def test_a_plan_that_is_not_there_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"cannot read the plan .*nowhere\.toml: No such file"):
        read_plan(tmp_path / "nowhere.toml")
