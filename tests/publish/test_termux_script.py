"""termux/termux.sh: the script itself, run by bash on imitations of phones."""

import hashlib
import os
import random
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path

import pytest

from tests.helpers.hub_server import Drop, Hub, Repo, closed_port, running_hub
from tests.publish.phone import ALL_BIG, BIG_LITTLE, QUAD, SCRIPT, THREE_CLUSTERS, Phone, wait_until
from tests.publish.runit import runit_or_skip

GGUF = random.Random(8).randbytes(300_000)
SHA256 = hashlib.sha256(GGUF).hexdigest()
MODEL = "me/model:4b"
MANIFEST = b'{"schemaVersion":2,"config":{"digest":"sha256:aa","size":500},"layers":[{"size":1999999500}]}'
FIGURES = ("--size", len(GGUF), "--sha256", SHA256, "--ram", 1_000_000_000)

MakePhone = Callable[..., Phone]


@pytest.fixture
def phone_with(tmp_path: Path) -> Iterator[MakePhone]:
    made: list[Phone] = []

    def make(**what: object) -> Phone:
        made.append(Phone(tmp_path / f"phone{len(made)}", **what))  # type: ignore[arg-type]
        return made[-1]

    yield make
    for phone in made:
        phone.put_out()


@pytest.fixture
def phone(phone_with: MakePhone) -> Phone:
    return phone_with()


@pytest.fixture
def hub() -> Iterator[Hub]:
    with running_hub() as hub:
        hub.repos["me/model"] = Repo({"model-Q4_0.gguf": GGUF})
        yield hub


def address(hub: Hub) -> str:
    return f"{hub.endpoint}/me/model/resolve/main/model-Q4_0.gguf"


def registry(hub: Hub, phone: Phone, manifest: bytes = MANIFEST) -> None:
    """A registry that has MODEL."""
    hub.repos["v2/me"] = Repo({"x": manifest})
    phone.env["QUANTKIT_REGISTRY"] = f"{hub.endpoint}/registry"
    phone.shell(
        "curl", f'case "$*" in *registry*) printf %s \'{manifest.decode()} 200\' ;; *) exec /usr/bin/curl "$@" ;; esac'
    )


def tool(name: str) -> Path:
    """A tool of the extra `dev`."""
    path = Path(sys.executable).with_name(name)
    if not path.exists():
        pytest.skip(f"{name} is not installed; pip install '.[dev]'")
    return path


def test_shellcheck_and_shfmt_find_nothing() -> None:
    for command in (["shellcheck"], ["shfmt", "-i", "2", "-ci", "-d"]):
        done = subprocess.run([tool(command[0]), *command[1:], SCRIPT], capture_output=True, text=True, check=False)
        assert (done.returncode, done.stdout) == (0, "")


@pytest.mark.parametrize(
    ("what", "parameters"),
    [
        pytest.param({"speeds": QUAD, "memory": 3_700, "available": 1_300}, ("4", "2048", "128"), id="4 GB, quad-core"),
        pytest.param({"speeds": BIG_LITTLE}, ("4", "4096", "512"), id="8 GB, big.LITTLE"),
        pytest.param(
            {"speeds": THREE_CLUSTERS, "memory": 11_200, "available": 6_000},
            ("5", "8192", "512"),
            id="12 GB, three clusters",
        ),
        pytest.param({"speeds": ALL_BIG, "memory": 15_200}, ("8", "8192", "512"), id="16 GB, big cores only"),
        pytest.param({"memory": 5_600}, ("4", "4096", "256"), id="6 GB"),
        pytest.param({"memory": 2_700, "available": 1_100}, ("4", "1024", "128"), id="3 GB"),
    ],
)
def test_threads_context_and_batch_are_the_phones(
    phone_with: MakePhone, hub: Hub, what: dict[str, object], parameters: tuple[str, str, str]
) -> None:
    phone = phone_with(**what)
    ended = phone.run("--gguf", address(hub), *FIGURES)
    assert ended.code == 0, ended.stderr
    made = phone.parameters("model-q4_0")
    assert (made["num_thread"], made["num_ctx"], made["num_batch"]) == parameters
    assert phone.models()["model-q4_0"]["sha256"] == SHA256


def test_cores_whose_speed_is_not_told_count_half(phone: Phone) -> None:
    shutil.rmtree(phone.root / "sys")
    phone.shell("nproc", "echo 8")
    assert "threads: 4" in phone.run("--dry-run").stdout


def test_of_the_contexts_it_knows_the_largest_that_fits_is_taken(phone: Phone, hub: Hub) -> None:
    registry(hub, phone)
    script = SCRIPT.read_text().replace(
        "MEMORY=''", "MEMORY='1024:128:3900000000 2048:128:4100000000 4096:512:5900000000'"
    )
    assert "context of 2048, batch 128" in phone.run("--dry-run", script=script.replace("NAME=''", "NAME='m'")).stdout


def test_too_little_memory_is_refused_before_anything_is_fetched(phone: Phone, hub: Hub) -> None:
    before = phone.tree()
    ended = phone.run("--gguf", address(hub), "--size", len(GGUF), "--ram", 6_000_000_000)
    assert ended.code == 1
    assert "needs 6.00 GB of memory at a context of 1024" in ended.sentence
    assert "room for 4.93 GB" in ended.sentence
    assert (phone.tree(), phone.calls("pkg"), hub.sent(".gguf")) == (before, [], 0)


def test_memory_that_other_apps_hold_is_a_note(phone_with: MakePhone, hub: Hub) -> None:
    ended = phone_with(available=500).run("--gguf", address(hub), *FIGURES, "--dry-run")
    assert ended.code == 0
    assert "close other apps" in ended.stderr


def test_too_little_space_is_refused_before_anything_is_fetched(phone_with: MakePhone, hub: Hub) -> None:
    phone = phone_with(free=4_300_000_000)
    before = phone.tree()
    ended = phone.run("--gguf", address(hub), "--size", 2_100_000_000, "--ram", 1_000_000_000)
    # The download, Ollama's copy of it, and the packages.
    assert "takes 4.50 GB of space and 4.30 GB are free; free 0.20 GB more" in ended.sentence
    assert (phone.tree(), phone.calls("pkg"), hub.sent(".gguf")) == (before, [], 0)


def test_of_a_name_the_registry_tells_the_size(phone_with: MakePhone, hub: Hub) -> None:
    phone = phone_with(free=2_200_000_000)
    registry(hub, phone)
    assert "takes 2.30 GB of space and 2.20 GB are free" in phone.run("--model", MODEL).sentence
    small = phone_with(memory=3_700, available=1_000)
    registry(hub, small)
    assert "needs 2.50 GB of memory" in small.run("--model", MODEL).sentence


def test_anyway_goes_on(phone_with: MakePhone, hub: Hub) -> None:
    phone = phone_with(free=1_000, memory=3_700)
    ended = phone.run("--gguf", address(hub), "--ram", 9_000_000_000, "--anyway")
    assert ended.code == 0, ended.stderr
    assert phone.parameters("model-q4_0")["num_ctx"] == "1024"


@pytest.mark.parametrize("machine", ["x86_64", "armv8l", "i686"])
def test_another_processor_is_refused(phone_with: MakePhone, machine: str) -> None:
    phone = phone_with(machine=machine)
    assert machine in phone.run("--model", MODEL).sentence
    assert phone.calls("pkg") == []


def test_outside_termux_it_refuses(phone: Phone) -> None:
    (phone.prefix / "bin" / "pkg").unlink()
    assert "not Termux" in phone.run("--model", MODEL).sentence
    phone.env["PREFIX"] = str(phone.root / "nowhere")
    assert "not Termux" in phone.run("--model", MODEL).sentence


def test_messages_have_the_name_of_the_file(tmp_path: Path) -> None:
    """quantkit writes the script under any name; a script that is piped into bash has the usual one."""
    (tmp_path / "my phone.sh").write_bytes(SCRIPT.read_bytes())

    def run(*words: str, **options: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["bash", *words], cwd=tmp_path, env={"PATH": "/usr/bin:/bin"}, capture_output=True, text=True, **options
        )

    assert run("./my phone.sh").stderr.startswith("my phone.sh: this is not Termux")
    assert run("my phone.sh", "--help").stdout.startswith("usage: my phone.sh [options]\n")
    assert run("-s", "--", "--use", "x", input=SCRIPT.read_text()).stderr.startswith("termux.sh: --use takes ")


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (("--modell", "x"), "unknown option '--modell'"),
        (("--model",), "--model needs a value"),
        (("--model", "a b"), "'a b' is not the name of a model"),
        (("--model", "-rf"), "'-rf' is not the name of a model"),
        (("--model", "$(touch x)"), "is not the name of a model"),
        (("--ctx", "many"), "--ctx takes a whole number, not 'many'"),
        (("--threads", "-1"), "--threads takes a whole number"),
        (("--use", "magic"), "--use takes auto, ollama, llama.cpp or source"),
        (("--gpu", "cuda"), "--gpu takes vulkan or opencl"),
        (("--sha256", "abc"), "64 hexadecimal digits"),
    ],
)
def test_wrong_usage_is_a_sentence(phone: Phone, options: tuple[str, ...], sentence: str) -> None:
    before = phone.tree()
    ended = phone.run(*options)
    assert ended.code == 2
    assert sentence in ended.sentence
    assert phone.tree() == before


def test_a_pulled_model_gets_a_name_of_its_own_with_the_phones_parameters(phone: Phone, hub: Hub) -> None:
    registry(hub, phone)
    ended = phone.run("--model", MODEL)
    assert ended.code == 0, ended.stderr
    assert set(phone.models()) == {MODEL, "model-phone:4b"}
    assert phone.models()["model-phone:4b"]["modelfile"].startswith(f"FROM {MODEL}\n")
    assert "ollama run model-phone:4b --nowordwrap" in ended.stdout


def test_run_twice_it_finds_everything_done(phone: Phone, hub: Hub) -> None:
    first = phone.run("--gguf", address(hub), *FIGURES)
    before, calls, sent = phone.tree(), phone.calls("pkg", "ollama"), hub.sent(".gguf")
    second = phone.run("--gguf", address(hub), *FIGURES)
    assert (first.code, second.code) == (0, 0), second.stderr
    assert phone.tree() == before
    more = phone.calls("pkg", "ollama")[len(calls) :]
    assert {tuple(words[:2]) for words in more} <= {("ollama", "show"), ("ollama", "--version")}
    assert hub.sent(".gguf") == sent == len(GGUF)
    assert "already exists" in second.stdout


def test_run_again_without_a_network_it_still_finds_everything_done(phone: Phone, hub: Hub) -> None:
    url = f"{closed_port()}/model.gguf"
    (phone.home / "model.gguf").write_bytes(GGUF)
    assert phone.run("--gguf", "model.gguf", *FIGURES).code == 0
    (phone.home / "model.gguf").unlink()
    assert phone.run("--gguf", "model.gguf", *FIGURES).code == 0
    assert "no network" in phone.run("--gguf", url).sentence


def test_other_parameters_are_set_without_fetching_again(phone: Phone, hub: Hub) -> None:
    assert phone.run("--gguf", address(hub), *FIGURES).code == 0
    ended = phone.run("--gguf", address(hub), *FIGURES, "--threads", 2, "--ctx", 512)
    assert ended.code == 0, ended.stderr
    made = phone.parameters("model-q4_0")
    assert (made["num_thread"], made["num_ctx"]) == ("2", "512")
    assert phone.models()["model-q4_0"]["sha256"] == SHA256
    assert hub.sent(".gguf") == len(GGUF)


def test_a_model_removed_by_hand_is_fetched_again(phone: Phone, hub: Hub) -> None:
    assert phone.run("--gguf", address(hub), *FIGURES).code == 0
    (phone.home / ".ollama" / "models" / "manifests" / "model-q4_0").unlink()
    assert phone.run("--gguf", address(hub), *FIGURES).code == 0
    assert phone.models()["model-q4_0"]["sha256"] == SHA256


def test_where_ollama_cannot_be_installed_llama_cpp_is(phone: Phone, hub: Hub) -> None:
    phone.env["PHONE_BROKEN"] = "ollama"
    ended = phone.run("--gguf", address(hub), *FIGURES)
    assert ended.code == 0, ended.stderr
    assert "ollama could not be installed" in ended.stderr
    (words,) = [words for words in phone.calls("llama-server") if "-m" in words]
    flags = dict(pairwise(words))
    assert (flags["-t"], flags["-c"], flags["-b"]) == ("4", "4096", "512")
    assert Path(flags["-m"]).read_bytes() == GGUF


def test_where_no_package_can_be_installed_ollama_is_built(phone: Phone, hub: Hub) -> None:
    phone.env["PHONE_BROKEN"] = "ollama llama-cpp"
    ended = phone.run("--gguf", address(hub), *FIGURES)
    assert ended.code == 0, ended.stderr
    assert [words[1] for words in phone.calls("git", "cmake")] == ["clone", "-S", "--build"]
    assert phone.models()["model-q4_0"]["sha256"] == SHA256


def test_llama_cpp_cannot_pull_a_name(phone: Phone, hub: Hub) -> None:
    registry(hub, phone)
    phone.env["PHONE_BROKEN"] = "ollama"
    ended = phone.run("--model", MODEL)
    assert ended.code == 0, ended.stderr
    assert "llama.cpp cannot pull me/model:4b" in ended.stdout
    assert MODEL in phone.models()


def test_where_no_way_is_left_it_says_so_and_the_next_run_goes_on(phone: Phone, hub: Hub) -> None:
    phone.env["PHONE_BROKEN"] = "ollama llama-cpp git"
    ended = phone.run("--gguf", address(hub), *FIGURES)
    assert ended.code == 1
    assert "no runtime could be installed" in ended.sentence
    phone.env["PHONE_BROKEN"] = ""
    assert phone.run("--gguf", address(hub), *FIGURES).code == 0


def test_a_download_that_breaks_off_is_taken_up_where_it_was(phone: Phone, hub: Hub) -> None:
    hub.drops["model-Q4_0.gguf"] = Drop(after=70_000, times=3)
    ended = phone.run("--gguf", address(hub), *FIGURES)
    assert ended.code == 0, ended.stderr
    assert phone.models()["model-q4_0"]["sha256"] == SHA256
    gets = [served for served in hub.requests if served.method == "GET"]
    assert [served.range for served in gets] == [None, "bytes=70000-", "bytes=140000-", "bytes=210000-"]
    assert hub.sent(".gguf") == len(GGUF)


def test_a_download_that_was_killed_is_taken_up_by_the_next_run(phone: Phone, hub: Hub) -> None:
    hub.drops["model-Q4_0.gguf"] = Drop(after=70_000, times=1, reset=True)
    # Killed in its first pause.
    phone.shell("sleep", "kill -9 $PPID")
    assert phone.run("--gguf", address(hub), *FIGURES).code == -signal.SIGKILL
    (phone.prefix / "bin" / "sleep").unlink()
    part = phone.home / ".quantkit-termux" / "model.gguf.part"
    had = part.stat().st_size
    assert 0 < had <= 70_000
    ended = phone.run("--gguf", address(hub), *FIGURES)
    assert ended.code == 0, ended.stderr
    assert [served.range for served in hub.requests if served.method == "GET"] == [None, f"bytes={had}-"]
    assert phone.models()["model-q4_0"]["sha256"] == SHA256


def test_a_server_that_knows_no_ranges_is_asked_for_the_whole(phone: Phone, hub: Hub) -> None:
    hub.ignore_ranges = True
    hub.drops["model-Q4_0.gguf"] = Drop(after=70_000)
    ended = phone.run("--gguf", address(hub), *FIGURES)
    assert ended.code == 0, ended.stderr
    assert phone.models()["model-q4_0"]["sha256"] == SHA256


def test_a_file_of_another_sha256_is_refused_and_not_kept(phone: Phone, hub: Hub) -> None:
    ended = phone.run("--gguf", address(hub), "--sha256", "0" * 64)
    assert ended.code == 1
    assert "does not have the sha256" in ended.sentence
    assert not list((phone.home / ".quantkit-termux").glob("*.part"))
    assert phone.models() == {}


def test_a_part_of_another_file_is_not_gone_on_with(phone: Phone, hub: Hub) -> None:
    other = phone.home / ".quantkit-termux"
    other.mkdir()
    (other / "model.gguf.part").write_bytes(b"x" * 1000)
    assert phone.run("--gguf", address(hub)).code == 0
    assert phone.models()["model-q4_0"]["sha256"] == SHA256


def test_a_file_on_the_phone_is_taken_and_left(phone: Phone) -> None:
    file = phone.home / "storage" / "downloads" / "My Model (1).gguf"
    file.parent.mkdir(parents=True)
    file.write_bytes(GGUF)
    ended = phone.run("--gguf", "My Model (1).gguf", *FIGURES)
    assert ended.code == 0, ended.stderr
    assert phone.models()["my-model--1-"]["sha256"] == SHA256
    assert file.read_bytes() == GGUF
    assert "is damaged" in phone.run("--gguf", file, "--sha256", "0" * 64).sentence
    assert "instead of 7" in phone.run("--gguf", file, "--size", 7).sentence
    assert "file other.gguf not found" in phone.run("--gguf", "other.gguf").sentence


def test_without_a_network_it_is_one_sentence(phone: Phone) -> None:
    before = phone.tree()
    phone.env["QUANTKIT_REGISTRY"] = closed_port()
    for options in (("--gguf", f"{closed_port()}/m.gguf"), ("--model", MODEL)):
        ended = phone.run(*options)
        assert ended.code == 1
        assert "no network: 127.0.0.1" in ended.sentence
        assert len(ended.sentence.splitlines()) == 1
    assert phone.tree() == before
    assert phone.calls("pkg") == []


def test_an_address_with_nothing_behind_it_is_one_sentence(phone: Phone, hub: Hub) -> None:
    assert "not found or not readable" in phone.run("--gguf", address(hub) + "x").sentence
    assert phone.calls("pkg") == []


def test_a_pull_that_fails_is_one_sentence(phone: Phone, hub: Hub) -> None:
    registry(hub, phone)
    phone.env["PHONE_BROKEN_PULL"] = "1"
    assert "could not pull me/model:4b" in phone.run("--model", MODEL).sentence
    phone.env["PHONE_BROKEN_PULL"] = ""
    assert phone.run("--model", MODEL).code == 0


def test_uninstall_leaves_nothing_of_a_run_that_was_killed(phone: Phone, hub: Hub) -> None:
    before = phone.tree()
    hub.drops["model-Q4_0.gguf"] = Drop(after=70_000)
    phone.shell("sleep", "kill -9 $PPID")
    assert phone.run("--gguf", address(hub), *FIGURES).code == -signal.SIGKILL
    (phone.prefix / "bin" / "sleep").unlink()
    assert phone.run("--uninstall").code == 0
    assert phone.tree() == before


@pytest.mark.parametrize("broken", ["", "ollama", "ollama llama-cpp"], ids=["ollama", "llama.cpp", "source"])
def test_uninstall_leaves_nothing(phone: Phone, hub: Hub, broken: str) -> None:
    before = phone.tree()
    phone.env["PHONE_BROKEN"] = broken
    assert phone.run("--gguf", address(hub), *FIGURES).code == 0
    assert phone.tree() != before
    ended = phone.run("--uninstall")
    assert ended.code == 0, ended.stderr
    assert phone.tree() == before
    assert wait_until(lambda: not phone.pids())
    assert ended.stdout.count("+ termux-wake-unlock") == 1
    assert "nothing to remove" in phone.run("--uninstall").stdout
    assert phone.tree() == before


def test_uninstall_leaves_nothing_of_a_pulled_model_and_a_server_without_a_service(phone: Phone, hub: Hub) -> None:
    registry(hub, phone)
    before = phone.tree()
    assert phone.run("--model", MODEL, "--no-service").code == 0
    assert phone.run("--uninstall").code == 0
    assert phone.tree() == before
    assert wait_until(lambda: not phone.pids())


def test_uninstall_keeps_what_was_there_before(phone: Phone, hub: Hub) -> None:
    registry(hub, phone)
    phone.install("ollama")
    boot = phone.home / ".termux" / "boot" / "mine"
    boot.parent.mkdir(parents=True)
    boot.write_text("#!/bin/sh\n")
    manifests = phone.home / ".ollama" / "models" / "manifests"
    manifests.mkdir(parents=True)
    (manifests / MODEL.replace("/", "+")).write_text("{}")
    before = phone.tree()
    assert phone.run("--model", MODEL).code == 0
    assert phone.run("--uninstall").code == 0
    after = phone.tree()
    manifest = f"home/.ollama/models/manifests/{MODEL.replace('/', '+')}"
    assert after.keys() == before.keys()
    assert {name for name in after if after[name] != before[name]} <= {manifest}


def test_uninstall_keeps_models_that_came_since(phone: Phone, hub: Hub) -> None:
    assert phone.run("--gguf", address(hub), *FIGURES).code == 0
    (phone.home / ".ollama" / "models" / "manifests" / "mine").write_text("{}")
    ended = phone.run("--uninstall")
    assert ended.code == 0
    assert "has models that this script did not create" in ended.stderr
    assert set(phone.models()) == {"mine"}


@pytest.mark.parametrize("broken", ["", "ollama"], ids=["ollama", "llama.cpp"])
def test_a_dry_run_changes_nothing_and_prints_what_a_run_does(phone: Phone, hub: Hub, broken: str) -> None:
    before = phone.tree()
    use = ("--use", "llama.cpp") if broken else ()
    dry = phone.run("--gguf", address(hub), *FIGURES, "--dry-run", *use)
    assert dry.code == 0, dry.stderr
    assert (phone.tree(), phone.calls("pkg", "ollama", "sv", "termux-wake-lock"), phone.pids()) == (before, [], [])
    assert hub.sent(".gguf") == 0
    real = phone.run("--gguf", address(hub), *FIGURES, *use)
    only_dry = {f"+ wait until http://127.0.0.1:{phone.port} answers"}
    only_real = {step for step in real.steps if step.startswith("+ sv up ")}
    assert [step for step in dry.steps if step not in only_dry] == [
        step for step in real.steps if step not in only_real
    ]


def test_every_change_is_printed_before_it_happens(phone: Phone, hub: Hub) -> None:
    before = phone.tree()
    ended = phone.run("--gguf", address(hub), *FIGURES)
    changed = [name for name, what in phone.tree().items() if before.get(name) != what]
    brought = {
        f"usr/{path.relative_to(shelf)}" for shelf in (phone.root / "shelf").iterdir() for path in shelf.rglob("*")
    }
    servers_own = ("home/.ollama", "supervise")
    for name in changed:
        # Made under another name, then moved.
        name = name.replace("service/ollama", "service/.ollama.new")
        if name not in brought and not any(word in name for word in servers_own):
            # The record of what is made is told of as a whole.
            assert str(phone.root / name) in ended.stdout or name.endswith(("/made", "/present")), name
    phone.run("--uninstall")
    assert phone.unprinted() == []


def test_service_wake_lock_and_boot_can_each_be_left_out(phone_with: MakePhone, hub: Hub) -> None:
    everything = {"usr/var/service/ollama/run", "home/.termux/boot/quantkit-ollama", "usr/bin/service-daemon"}
    for option, missing in {
        "--no-wake-lock": set(),
        "--no-boot": {"home/.termux/boot/quantkit-ollama"},
        "--no-service": {"usr/var/service/ollama/run", "usr/bin/service-daemon"},
    }.items():
        phone = phone_with()
        ended = phone.run("--gguf", address(hub), *FIGURES, option)
        assert ended.code == 0, ended.stderr
        assert everything & phone.tree().keys() == everything - missing
        assert bool(phone.calls("termux-wake-lock")) == (option != "--no-wake-lock")
        boot = phone.home / ".termux" / "boot" / "quantkit-ollama"
        if boot.exists():
            assert ("termux-wake-lock" in boot.read_text()) == (option != "--no-wake-lock")
            assert os.access(boot, os.X_OK)


@pytest.mark.parametrize("options", [(), ("--no-service",)], ids=["service", "no service"])
def test_at_boot_the_server_is_started(phone: Phone, hub: Hub, options: tuple[str, ...]) -> None:
    assert phone.run("--gguf", address(hub), *FIGURES, *options).code == 0
    phone.put_out()
    assert wait_until(lambda: not phone.answers())
    subprocess.run([phone.home / ".termux" / "boot" / "quantkit-ollama"], env=phone.environment(), check=True)
    assert wait_until(phone.answers)


def test_a_server_that_runs_already_is_used_as_it_is(phone: Phone, hub: Hub) -> None:
    phone.install("ollama")
    own = subprocess.Popen(
        [phone.prefix / "bin" / "ollama", "serve"], env=phone.environment(), stdout=subprocess.DEVNULL
    )
    try:
        assert wait_until(phone.answers)
        ended = phone.run("--gguf", address(hub), *FIGURES)
        assert ended.code == 0, ended.stderr
        assert "answers already" in ended.stdout
        assert not (phone.prefix / "var" / "service").exists()
        assert phone.run("--uninstall").code == 0
        assert own.poll() is None
    finally:
        own.terminate()
        own.wait()


def test_a_service_of_someone_else_stays(phone: Phone, hub: Hub) -> None:
    run = phone.prefix / "var" / "service" / "ollama" / "run"
    run.parent.mkdir(parents=True)
    run.write_text(f"#!/bin/sh\nexec {phone.prefix}/bin/ollama serve\n")
    run.chmod(0o755)
    before = run.read_text()
    ended = phone.run("--gguf", address(hub), *FIGURES)
    assert ended.code == 0, ended.stderr
    assert "is not from this script and stays unchanged" in ended.stdout
    assert phone.run("--uninstall").code == 0
    assert run.read_text() == before


def test_a_server_that_does_not_start_is_one_sentence_with_its_log(phone: Phone, hub: Hub) -> None:
    phone.env["QUANTKIT_WAIT"] = "1"
    (phone.root / "shelf" / "ollama" / "bin" / "ollama").write_text(
        "#!/bin/sh\n[ $1 = --version ] || { echo no memory; exit 1; }\n"
    )
    ended = phone.run("--gguf", address(hub), *FIGURES, "--no-service")
    assert ended.code == 1
    assert "does not answer after 1 seconds; its log is" in ended.sentence
    assert "no memory" in ended.stderr


def test_piped_into_bash_it_does_the_same(phone: Phone, hub: Hub) -> None:
    ended = phone.run("--gguf", address(hub), *FIGURES, piped=True)
    assert ended.code == 0, ended.stderr
    assert phone.models()["model-q4_0"]["sha256"] == SHA256


def test_a_script_cut_off_on_its_way_does_nothing(phone: Phone) -> None:
    text = SCRIPT.read_text().replace("NAME=''", f"NAME='{MODEL}'")
    before = phone.tree()
    cut = random.Random(3)
    for length in (*(cut.randrange(len(text)) for _ in range(12)), len(text) - 3, len(text) - 8):
        phone.run(script=text[:length], piped=True)
        assert phone.tree() == before
    assert phone.calls("pkg", "ollama") == []


def test_without_a_model_the_server_is_set_up(phone: Phone) -> None:
    ended = phone.run()
    assert ended.code == 0, ended.stderr
    assert phone.answers()
    assert "no model is given" in ended.stderr


def test_the_gpu_is_asked_for(phone: Phone, hub: Hub) -> None:
    output = phone.run("--gguf", address(hub), *FIGURES, "--dry-run").stdout
    assert "vulkan" not in output.lower()
    output = phone.run("--gguf", address(hub), *FIGURES, "--dry-run", "--gpu", "vulkan").stdout
    assert "ollama-backend-vulkan vulkan-loader-generic mesa-vulkan-icd-freedreno" in output
    output = phone.run("--gguf", address(hub), *FIGURES, "--dry-run", "--gpu", "opencl").stdout
    assert "llama-cpp-backend-opencl" in output
    assert "-ngl 99" in output


def test_runit_supervises_the_server_and_restarts_a_killed_one(phone_with: MakePhone, hub: Hub) -> None:
    phone = phone_with(runit=runit_or_skip())
    before = phone.tree()
    ended = phone.run("--gguf", address(hub), *FIGURES)
    assert ended.code == 0, ended.stderr
    (pid,) = phone.pids()
    os.kill(pid, signal.SIGKILL)
    assert wait_until(lambda: bool(phone.pids()) and phone.pids() != [pid])
    assert wait_until(phone.answers)
    log = phone.prefix / "var" / "log" / "sv" / "ollama" / "current"
    assert wait_until(lambda: log.read_text().count("serving") == 2)
    assert phone.run("--gguf", address(hub), *FIGURES).code == 0
    ended = phone.run("--uninstall")
    assert ended.code == 0, ended.stderr
    assert wait_until(lambda: not phone.pids())
    assert phone.tree() == before


@pytest.mark.parametrize("speeds", [BIG_LITTLE])
def test_changed_settings_reach_a_service_that_runs(phone_with: MakePhone, hub: Hub, speeds: object) -> None:
    phone = phone_with(runit=runit_or_skip(), speeds=speeds)
    assert phone.run("--gguf", address(hub), *FIGURES, "--use", "llama.cpp").code == 0
    assert phone.run("--gguf", address(hub), *FIGURES, "--use", "llama.cpp", "--threads", 2).code == 0
    threads = [words[words.index("-t") + 1] for words in phone.calls("llama-server") if "-t" in words]
    assert threads == ["4", "2"]
