"""`quantkit serve`: an OpenAI-compatible server for a GGUF file."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from quantkit.cli.loading_options import LoadingOptions
from quantkit.cli.option_groups import grouped
from quantkit.cli.options import DryRunOption
from quantkit.cli.output import Out
from quantkit.errors import UsageError
from quantkit.llamacpp.server import ServerChoice

if TYPE_CHECKING:
    from quantkit.llamacpp.server import ServerCommand
    from quantkit.measurement.memory import Device


@grouped
def serve(
    out: Out,
    model: Annotated[
        Path, typer.Argument(metavar="MODEL.gguf", help="A GGUF file, or a folder with one.", show_default=False)
    ],
    *,
    port: Annotated[int, typer.Option(metavar="N", min=1, max=65535, help="Port to listen on.")] = 8080,
    host: Annotated[
        str, typer.Option(metavar="ADDRESS", help="Address to listen on; 0.0.0.0 lets other machines in.")
    ] = "127.0.0.1",
    api_key: Annotated[
        str | None,
        typer.Option(
            "--api-key",
            metavar="KEY",
            envvar="QUANTKIT_API_KEY",
            help="Key that clients must send; required for other machines.",
            show_default="none",
        ),
    ] = None,
    alias: Annotated[
        str | None, typer.Option(metavar="NAME", help="Name of the model in the API.", show_default="the file's name")
    ] = None,
    server: Annotated[
        ServerChoice, typer.Option(help="The server; auto: llama-server if it is installed.")
    ] = ServerChoice.auto,
    parallel: Annotated[
        int, typer.Option(metavar="N", min=1, max=256, help="Requests answered at once, each with the whole context.")
    ] = 1,
    dry_run: DryRunOption = False,
    options: LoadingOptions,
) -> None:
    """Serve a GGUF file with an OpenAI-compatible API and a web page to chat in.

    The server is llama-server, or llama-cpp-python's. Placement and context are chosen as `run` chooses them. A request
    may set the sampling; otherwise it is the model's. Ctrl-C stops the server.

    Example: quantkit serve NAME-Q4_0.gguf --port 8080
    """
    from quantkit.cli.placement import placed_loading
    from quantkit.gguf.model_file import model_file
    from quantkit.llamacpp.conversation import converse
    from quantkit.llamacpp.draft_choice import choose_draft
    from quantkit.llamacpp.server import Serving, find_server, llama_cpp_python_command, llama_server_command
    from quantkit.llamacpp.server_process import check_port_is_free, is_loopback

    if not host.isprintable() or not host or " " in host:
        raise UsageError(f"--host {host!r} is not an address; pass 127.0.0.1, or 0.0.0.0 to let other machines in")
    if not is_loopback(host) and not api_key:
        raise UsageError(f"--host {host} lets other machines in; set a key with --api-key KEY or QUANTKIT_API_KEY")
    if alias is not None and not alias.strip():
        raise UsageError(f"--alias {alias!r} is empty; give the model a name, or leave it out")
    options.fixed_placement()  # refuses wrong values before the file is read
    model = model_file(model)
    program = find_server(server)
    with converse(model, n_ctx=options.ctx, system=None, raw=False, sampling={}) as conversation:
        pass
    if conversation.template is None:
        out.warn(f"{model.name} has no chat template; the server uses ChatML")
    check_port_is_free(host, port)
    context = options.context(conversation.n_ctx * parallel)
    draft = choose_draft(model, options.draft, options.draft_tokens) if options.draft else None
    loading, placement = placed_loading(
        model, options, context, draft, lambda: _devices(model, program, options.rpc or []), out
    )
    serving = Serving(
        model,
        loading,
        conversation.n_ctx,
        conversation.sampling,
        host,
        port,
        alias or model.stem,
        has_template=conversation.template is not None,
        parallel=parallel,
        api_key=api_key,
    )
    command = llama_server_command(program, serving) if program else llama_cpp_python_command(serving)
    name = f"[{host}]" if ":" in host else host
    document = {
        "command": "serve",
        "model": str(model),
        "alias": serving.alias,
        "server": "llama-server" if program else "llama-cpp-python",
        "url": f"http://{name}:{port}",
        "n_ctx": serving.n_ctx,
        "parallel": parallel,
        "gpu_layers": placement.gpu_layers,
        "cpu_moe": placement.cpu_moe,
        "tensor_split": list(placement.split) or None,
    }
    if dry_run:
        out.say(command.shown())
        out.document(document)
        return
    _run(command, document, out, host=host, port=port)


def _run(command: "ServerCommand", document: dict[str, Any], out: Out, *, host: str, port: int) -> None:
    """Run the server until Ctrl-C or SIGTERM, which end it without an error."""
    from quantkit.llamacpp.server_process import ServerProcess

    out.note(f"loading {Path(document['model']).name} with {document['server']} ...")
    with ServerProcess(command, host, port) as process:
        try:
            process.wait_until_ready()
            page = f", with a page to chat at {document['url']}/" if process.has_page() else ""
            out.say(f"{document['alias']}: OpenAI API at {document['url']}/v1{page}")
            out.note("Ctrl-C stops the server")
            out.document(document)
            process.wait()
        except KeyboardInterrupt:
            process.stop()
            accepted, drafted = process.drafts
            if drafted:
                out.note(f"{accepted} of {drafted} drafted tokens accepted ({accepted / drafted:.0%})")
            out.note("stopped")


def _devices(model: Path, program: Path | None, rpc: list[str]) -> "list[Device]":
    """The devices of the server that is used."""
    from quantkit.llamacpp.server import server_devices
    from quantkit.measurement.memory import Device, gpu_devices

    return [Device(**device) for device in server_devices(program, rpc)] if program else gpu_devices(model, rpc=rpc)
