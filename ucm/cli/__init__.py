"""The command ``ucm``. Only click is imported before a command runs."""

from __future__ import annotations

import errno
import os
import sys
import traceback
from collections.abc import Sequence

import click

from ucm import _secrets
from ucm._version import __version__
from ucm.cli import (
    bench,
    check,
    config,
    demo,
    fsck,
    gc,
    inspect,
    new_plugin,
    plugins,
    remove,
    replay,
)


@click.group(invoke_without_command=True, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="ucm")
@click.pass_context
def cli(context: click.Context) -> None:
    """Persist and reuse the KV cache of LLM inference through a pipeline of store plugins."""
    if context.invoked_subcommand is None:
        click.echo(context.get_help())


cli.add_command(demo.command)
cli.add_command(plugins.command)
cli.add_command(check.command)
cli.add_command(config.command)
cli.add_command(bench.command)
cli.add_command(inspect.command)
cli.add_command(fsck.command)
cli.add_command(gc.command)
cli.add_command(remove.command)
cli.add_command(replay.command)
cli.add_command(new_plugin.command)


_OWNER = "run this as its owner, or give this user write permission there"
_ROOM = "make room there, with ucm remove or by removing other files"
_ADVICE = {
    errno.EACCES: _OWNER,
    errno.EPERM: _OWNER,
    errno.EROFS: "mount it writable; ucm inspect and ucm fsck only read",
    errno.ENOSPC: _ROOM,
    errno.EDQUOT: _ROOM,
}


def _fail(message: str, code: int) -> int:
    if os.environ.get("UCM_TRACEBACK") == "1":
        traceback.print_exc()
    print(f"ucm: {_secrets.hide(' '.join(message.split()))}", file=sys.stderr)
    return code


def main(args: Sequence[str] | None = None) -> int:
    """Run a command: 0, 1 if it failed, 2 if the command line or the configuration is wrong."""
    try:
        result = cli.main(args, prog_name="ucm", standalone_mode=False)
    except click.UsageError as error:
        hint = f" (see '{error.ctx.command_path} --help')" if error.ctx else ""
        return _fail(error.format_message() + hint, 2)
    except click.ClickException as error:
        return _fail(error.format_message(), error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        return _fail("interrupted", 130)
    except Exception as error:
        from ucm.errors import ConfigError, StoreError

        if isinstance(error, ConfigError):
            return _fail(str(error), 2)
        if isinstance(error, OSError) and error.filename and error.errno in _ADVICE:
            return _fail(f"{error.filename}: {error.strerror}; {_ADVICE[error.errno]}", 1)
        if isinstance(error, (StoreError, OSError)):
            return _fail(str(error), 1)
        return _fail(f"unexpected {type(error).__name__}: {error} (UCM_TRACEBACK=1 shows where)", 1)
    return result if isinstance(result, int) else 0
