"""``amae slurm``: a run as a SLURM job, without waiting for it, and what became of it."""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path

from amae_plugin.cluster.submission import JobFailed, find_jobs, states
from amae_plugin.errors import UserError

# The launcher's sweep of one run, in the folder that the run would have without it.
_ONE_RUN = (
    "hydra.sweeper.params=null",
    "hydra.sweep.dir=${hydra.run.dir}",
    "hydra.sweep.subdir=.",
    "hydra.launcher.wait=false",
)
_LOOK_S = 2.0


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``slurm`` with its own subcommands."""
    parser = subparsers.add_parser("slurm", help="submit a run as a SLURM job, and follow it")
    commands = parser.add_subparsers(required=True, metavar="ACTION")
    submit = commands.add_parser("submit", help="submit a run and return")
    submit.add_argument("--config-dir", default="config", metavar="DIR", help="of the recipes (%(default)s)")
    submit.add_argument("--config-name", required=True, metavar="RECIPE")
    submit.add_argument(
        "overrides",
        nargs="+",
        metavar="KEY=VALUE",
        help="as of fairseq-hydra-train; among them run_config=slurm_1x8 or another of config/run_config/slurm*",
    )
    submit.set_defaults(run=_submit)
    for name, function, text in (
        ("status", _status, "the jobs of a run or a sweep, with the results or errors of those that ended"),
        ("logs", _logs, "what rank 0 of the latest job printed"),
        ("cancel", _cancel, "cancel the jobs of a run or a sweep that have not ended"),
    ):
        command = commands.add_parser(name, help=text)
        command.add_argument("folder", type=Path, metavar="DIR", help="of the run or sweep, as outputs/<recipe>")
        if name == "logs":
            command.add_argument("--follow", action="store_true", help="go on until the job has ended")
            command.add_argument("--rank", type=int, default=0, help="of another task")
        command.set_defaults(run=function)


def _submit(args: argparse.Namespace) -> int:
    if not any(override.startswith("run_config=slurm") for override in args.overrides):
        raise UserError("say what to ask the cluster for: run_config=slurm_1x8, or another of config/run_config/slurm*")
    recipe = ["--config-dir", args.config_dir, "--config-name", args.config_name]
    command = [sys.executable, "-m", "fairseq_cli.hydra_train", "-m", *recipe, *args.overrides, *_ONE_RUN]
    return subprocess.run(command, check=False).returncode


def _status(args: argparse.Namespace) -> int:
    failed = False
    jobs = find_jobs(args.folder)
    known = states(job.id for job in jobs)
    for job in jobs:
        state = known[job.id]
        if state.going:
            print(f"{job.id}  {state}")
            continue
        try:
            print(f"{job.id}  {state}  result {job.result(state.name)}")
        except JobFailed as error:
            failed = True
            print(f"{job.id}  {state}\n{error}")
    return int(failed)


def _logs(args: argparse.Namespace) -> int:
    job = find_jobs(args.folder)[-1]
    path = job.paths(args.rank).stdout
    position = 0
    while True:
        going = args.follow and states([job.id])[job.id].going
        if path.exists():
            with path.open("rb") as file:
                file.seek(position)
                sys.stdout.buffer.write(file.read())
                position = file.tell()
            sys.stdout.flush()
        elif not args.follow:
            raise UserError(f"{path}: job {job.id} has not written it ({states([job.id])[job.id]})")
        if not going:
            return 0
        time.sleep(_LOOK_S)


def _cancel(args: argparse.Namespace) -> int:
    for job, state in states(job.id for job in find_jobs(args.folder)).items():
        if state.going:
            subprocess.run(["scancel", job], check=True)
            print(f"cancelled {job}")
    return 0
