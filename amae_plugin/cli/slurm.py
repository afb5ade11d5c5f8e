"""Submit a run as a SLURM job without waiting for it, and follow it."""

import argparse
import shutil
import subprocess
import sys
import time
from pathlib import Path

from amae_plugin.cli.arguments import add_config_dir, natural
from amae_plugin.cluster.commands import cancel, job_states
from amae_plugin.cluster.submission import find_jobs
from amae_plugin.errors import UserError
from amae_plugin.processes import terminated_with_parent

_RUN_CONFIG = "run_config=slurm_1x8 or another of config/run_config/slurm*"
_FOLLOW_S = 2.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the subcommands."""
    actions = parser.add_subparsers(required=True, metavar="ACTION")
    submit = actions.add_parser("submit", help="submit a run as a job, and return at once")
    add_config_dir(submit)
    submit.add_argument("--config-name", required=True, metavar="RECIPE", help="train by this recipe")
    settings = f"give fairseq-hydra-train these settings, among them {_RUN_CONFIG}"
    submit.add_argument("overrides", nargs="+", metavar="KEY=VALUE", help=settings)
    submit.set_defaults(action=_submit)
    for name, function, text in (
        ("status", _status, "show the jobs of a run or a sweep, with the results or errors of those that ended"),
        ("logs", _logs, "print the log of a task of the latest job"),
        ("cancel", _cancel, "cancel the jobs of a run or a sweep that have not ended"),
    ):
        action = actions.add_parser(name, help=text)
        action.add_argument(
            "folder",
            type=Path,
            metavar="DIR",
            help="take the run or sweep in this folder, such as outputs/pretrain_audio_mae_base",
        )
        if name == "logs":
            action.add_argument("--follow", action="store_true", help="go on until the job has ended")
            action.add_argument(
                "--rank", type=natural, default=0, metavar="N", help="print the log of this task (default: %(default)s)"
            )
        action.set_defaults(action=function)


def run(args: argparse.Namespace) -> int | None:
    """Run the subcommand."""
    return args.action(args)


def _submit(args: argparse.Namespace) -> int:
    if not any(override.startswith("run_config=slurm") for override in args.overrides):
        raise UserError(f"say what to ask the cluster for: {_RUN_CONFIG}")
    command = [
        *(sys.executable, "-m", "fairseq_cli.hydra_train", "-m"),
        *("--config-dir", str(args.config_dir), "--config-name", args.config_name, *args.overrides),
        # The launcher submits sweeps: this is one of a single run, in the folder that the run has without a sweep.
        *("hydra.sweeper.params=null", "hydra.sweep.dir=${hydra.run.dir}", "hydra.sweep.subdir=."),
        "hydra.launcher.wait=false",
    ]
    return subprocess.run(command, preexec_fn=terminated_with_parent(), check=False).returncode


def _status(args: argparse.Namespace) -> int:
    jobs = find_jobs(args.folder)
    states = job_states([job.id for job in jobs])
    failed = False
    for job in jobs:
        state = states[job.id]
        line = f"{job.id}  {state}"
        if state.ended:
            result, error = job.outcome(state.name)
            line += f"\n{error}" if error else f"  result {result}"
            failed |= bool(error)
        print(line)
    return int(failed)


def _logs(args: argparse.Namespace) -> None:
    job = find_jobs(args.folder)[-1]
    log = job.log(args.rank)
    while not log.exists():
        state = job_states([job.id])[job.id]
        if state.ended or not args.follow:
            raise UserError(f"{log}: job {job.id} has not written it ({state})")
        time.sleep(_FOLLOW_S)
    with log.open("rb") as file:
        while True:
            last = not args.follow or job_states([job.id])[job.id].ended
            shutil.copyfileobj(file, sys.stdout.buffer)
            sys.stdout.flush()
            if last:
                return
            time.sleep(_FOLLOW_S)


def _cancel(args: argparse.Namespace) -> None:
    states = job_states([job.id for job in find_jobs(args.folder)])
    for job, state in states.items():
        if state.name == "UNREACHABLE":
            remedy = "try again when `scontrol ping` shows its controller UP"
            raise UserError(f"SLURM does not answer, so job {job} is not cancelled ({state.reason}); {remedy}")
        if not state.ended:
            cancel(job)
            print(f"cancelled {job}")
    if all(state.ended for state in states.values()):
        print(f"nothing to cancel: {', '.join(f'{job} {state.name}' for job, state in states.items())}")
