"""`tampu worker`: what to write into a Workers project so that its `env.AI` is answered by a Tampu server.

The texts live in `snippets/` and are run as they stand by tests/clients. Knows file names and commands of the four
set-ups; refuses to know the server.
"""

from __future__ import annotations

import ipaddress
import re
import shlex
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Annotated

import typer

from tampu.cli.options import number
from tampu.cli.server_process import join_address
from tampu.core.errors import ConfigError

DEFAULT_ADDRESS = "127.0.0.1:8900"  # as written in the snippets
NPM_PACKAGE = "tampu-workers"
_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,253}[A-Za-z0-9])?")


@dataclass(frozen=True, slots=True)
class WorkerSetup:
    """One way to run a Worker on this machine. `{package}` in a command is the place of our npm package."""

    name: str
    title: str
    file: str  # in snippets/, and its name in the reader's project
    install: tuple[str, ...]
    prepare: tuple[str, ...]
    run: str
    note: str
    derive: str = ""  # makes the file out of the reader's own, in the form that the installed tool takes


SETUPS: dict[str, WorkerSetup] = {
    setup.name: setup
    for setup in (
        WorkerSetup(
            name="workerd",
            title="plain workerd",
            file="tampu.capnp",
            install=("npm install --save-dev workerd esbuild",),
            prepare=("npx esbuild src/index.ts --bundle --format=esm --outfile=dist/index.js",),
            run="npx workerd serve tampu.capnp",
            note="This is the runtime's own AI binding; nothing of ours runs inside it.",
        ),
        WorkerSetup(
            name="miniflare",
            title="Miniflare's API",
            file="miniflare.mjs",
            install=("npm install --save-dev miniflare esbuild",),
            prepare=("npx esbuild src/index.ts --bundle --format=esm --outfile=dist/index.js",),
            run="node miniflare.mjs",
            note="For tests, call dispatchFetch() or getBindings() of the Miniflare object instead of opening a port.",
        ),
        WorkerSetup(
            name="wrangler",
            title="wrangler dev",
            file="wrangler.local.jsonc",
            install=("npm install --save-dev wrangler {package}",),
            prepare=(),
            run="npx wrangler dev -c wrangler.local.jsonc",
            note="Step 2 needs Wrangler 4.36 or newer. The file above is the form of Wrangler 4.108 and newer;\n"
            "older ones take another, which the command of step 2 writes for them.\n"
            "Deploying keeps using the untouched wrangler.jsonc.",
            derive="npx tampu-workers local --url http://127.0.0.1:8900",
        ),
        WorkerSetup(
            name="vitest",
            title="Vitest with Cloudflare's pool",
            file="vitest.config.mts",
            install=("npm install --save-dev vitest @cloudflare/vitest-plugin",),
            prepare=(),
            run="npx vitest run",
            note="Wrangler still warns that AI bindings access remote resources; with remoteBindings: false none does.",
        ),
    )
}


def snippet(name: str, address: str = DEFAULT_ADDRESS) -> str:
    """The text of set-up `name`'s file for a server at `address` (host:port)."""
    text = (files("tampu.cli") / "snippets" / SETUPS[name].file).read_text(encoding="utf-8")
    return text.replace(DEFAULT_ADDRESS, address)


def checked_host(host: str) -> str:
    """`host` when it is a name or an address, which is what the files have room for. Raises ConfigError."""
    if _NAME.fullmatch(host) is None:
        try:
            ipaddress.IPv6Address(host)
        except ValueError:
            raise ConfigError(
                "host", f"{host!r} is not a host name or an address: write it alone, as in 127.0.0.1 or ::1"
            ) from None
    return host


def npm_package() -> str:
    """What `npm install` should be given for our package: its folder in a source checkout, else its name."""
    folder = Path(__file__).resolve().parents[3] / "integrations" / "workers"
    return shlex.quote(str(folder)) if (folder / "package.json").is_file() else NPM_PACKAGE


def instructions(setup: WorkerSetup, address: str) -> str:
    """The steps of `setup` as a person reads them."""
    install = [command.format(package=npm_package()) for command in setup.install]
    lines = [f"# {setup.title}: env.AI answered by Tampu at http://{address}", "", "1. Install"]
    lines += [f"   {command}" for command in install]
    lines += ["", *_file_step(setup, address), "", snippet(setup.name, address).rstrip(), "", "3. Run"]
    lines += [f"   {command}" for command in (*setup.prepare, setup.run)]
    return "\n".join([*lines, "", setup.note.replace(DEFAULT_ADDRESS, address)])


def _file_step(setup: WorkerSetup, address: str) -> list[str]:
    """How the file comes into the project."""
    if not setup.derive:
        return [f"2. Write {setup.file}"]
    return [
        f"2. Derive {setup.file} from your wrangler.jsonc or wrangler.toml",
        f"   {setup.derive.replace(DEFAULT_ADDRESS, address)}",
        "",
        "   It is your configuration with one change, as in this example:",
    ]


def worker(
    setup: Annotated[
        str, typer.Argument(help="workerd, miniflare, wrangler or vitest.", metavar="SETUP", show_default=False)
    ],
    port: Annotated[
        int, number("--port", "-p", least=1, most=65535, envvar="TAMPU_PORT", help="The port Tampu listens on.")
    ] = 8900,
    host: Annotated[str, typer.Option("--host", help="The machine Tampu listens on.")] = "127.0.0.1",
    write: Annotated[
        Path | None,
        typer.Option(
            "--write", help="Write the file into this folder instead of printing the steps (not for wrangler)."
        ),
    ] = None,
) -> None:
    """Print what a Workers project needs so that env.AI works offline, with no account."""
    if setup not in SETUPS:
        raise ConfigError("SETUP", f"{setup!r} is not one of {', '.join(SETUPS)}")
    chosen, address = SETUPS[setup], join_address(checked_host(host), port)
    if write is None:
        typer.echo(instructions(chosen, address))
        return
    if chosen.derive:
        raise ConfigError(
            "--write",
            f"{chosen.file} holds what your own configuration holds, and its form depends on your Wrangler: run "
            f"`{chosen.derive.replace(DEFAULT_ADDRESS, address)}` in your project "
            f"(after `npm install --save-dev {npm_package()}`)",
        )
    target = write / chosen.file
    if not write.is_dir():
        raise ConfigError("--write", f"{write} is not a folder")
    if target.exists():
        raise ConfigError("--write", f"{target} exists already: remove it or choose another folder")
    target.write_text(snippet(setup, address), encoding="utf-8")
    typer.echo(f"Wrote {target}. Next: {' && '.join((*chosen.prepare, chosen.run))}")
