"""What was probably meant by a command or an option that does not exist."""

from __future__ import annotations

from typing import Any

from typer.core import TyperGroup

COMMANDS = {
    **dict.fromkeys(("ls", "ps", "jobs", "sacct"), "list"),
    **dict.fromkeys(("get", "describe", "info", "status", "inspect", "view", "scontrol"), "show"),
    **dict.fromkeys(("kill", "stop", "abort", "scancel", "terminate"), "cancel"),
    **dict.fromkeys(("rm", "remove", "del", "purge"), "delete"),
    **dict.fromkeys(("run", "start", "launch", "create", "apply", "sbatch", "add"), "submit"),
    **dict.fromkeys(("log", "tail", "output", "attach"), "logs"),
    **dict.fromkeys(("watch", "htop", "monitor", "dashboard"), "top"),
    **dict.fromkeys(("squeue", "waiting"), "queue"),
    **dict.fromkeys(("nodes", "machines", "sinfo"), "cluster"),
    **dict.fromkeys(("restart", "rerun", "requeue"), "retry"),
    **dict.fromkeys(("hold", "suspend"), "pause"),
    **dict.fromkeys(("unpause", "release"), "resume"),
    **dict.fromkeys(("scale", "workers"), "resize"),
    **dict.fromkeys(("check", "lint"), "validate"),
    **dict.fromkeys(("copy", "duplicate"), "clone"),
    **dict.fromkeys(("artifacts",), "files"),
    **dict.fromkeys(("diff",), "compare"),
    **dict.fromkeys(("key", "token", "tokens"), "keys"),
    **dict.fromkeys(("help",), "--help"),
    **dict.fromkeys(("version",), "--version"),
    **dict.fromkeys(("completion",), "--install-completion"),
}
"""By what other programs call it: the command, or the option, of ours."""

OPTIONS = {
    **dict.fromkeys(("--status", "-s"), "--state"),
    **dict.fromkeys(("-n", "--count", "--max", "--head"), "--limit"),
    **dict.fromkeys(("-a", "--everything"), "--all"),
    **dict.fromkeys(("-w", "--watch"), "--follow"),
    **dict.fromkeys(("-o", "--format"), "--json"),
    **dict.fromkeys(("-l", "--tag", "--tags", "--selector"), "--label"),
    **dict.fromkeys(("--force", "--no-input"), "--yes"),
    **dict.fromkeys(("--from", "--newer-than"), "--since"),
    **dict.fromkeys(("--lines",), "--tail"),
    **dict.fromkeys(("--owner",), "--user"),
}
"""By what other programs call it: the option of ours, where a command has it."""

KEYS = {
    "--workers": "resources.workers",
    "--gpus": "resources.gpus_per_worker",
    "--cpus": "resources.cpus_per_worker",
    "--memory": "resources.memory_per_worker",
    "--priority": "priority",
    "--name": "name",
    "--retries": "retries",
    "--time": "time_limit",
    "--timeout": "time_limit",
    "--seed": "training.seed",
    "--epochs": "training.max_epochs",
    "--experiment": "tracking.experiment",
}
"""Options that are keys of a spec, where a command has --set."""


class Commands(TyperGroup):
    """The commands, with hints for those who know other programs."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Names the command that does what an unknown one does elsewhere."""
        if args and args[0] not in self.commands and (meant := COMMANDS.get(args[0])):
            ctx.fail(f"No such command '{args[0]}'. Did you mean '{meant}'?")
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        """Names the option that does what an unknown one does elsewhere."""
        try:
            return super().invoke(ctx)
        except Exception as error:  # of the library under typer, which is not the same in all its versions
            if type(error).__name__ == "NoSuchOption":
                _name_other(error)
            raise


def _name_other(error: Any) -> None:
    """Adds to a NoSuchOption what the user may have meant."""
    has = {name for parameter in error.ctx.command.params for name in parameter.opts}
    name = error.option_name
    if OPTIONS.get(name) in has:
        error.possibilities = [OPTIONS[name]]
    elif "--set" in has and name in KEYS:
        error.possibilities = [f"--set {KEYS[name]}=VALUE"]
