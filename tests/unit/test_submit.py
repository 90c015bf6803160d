"""launch/submit.py without a cluster: arguments, the plan, the sbatch script, --local."""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from launch.submit import main, parse_nodes, read_cluster
from w2v2dist.cli import main as w2v2dist
from w2v2dist.config import ConfigError, from_dict, read_yaml
from w2v2dist.jobs.cluster import ClusterConfig, make_executor, minutes_of
from w2v2dist.jobs.devices import DEVICES
from w2v2dist.jobs.local import run_local
from w2v2dist.jobs.plan import make_plan
from w2v2dist.runtime.logging import read_jsonl
from w2v2dist.runtime.preemption import EXIT_PREEMPTED
from w2v2dist.tasks.train import read_config
from w2v2dist.training.lock import locked

ROOT = Path(__file__).parents[2]
A100 = DEVICES["a100"]
BASE, LARGE = str(ROOT / "configs/base_ls960.yaml"), str(ROOT / "configs/large_lv60k.yaml")


@pytest.mark.parametrize("text", ["4-2", "x", "0", "1-2-3", "-1", "", "0-4", "2.5"])
def test_nodes_that_cannot_be(text: str) -> None:
    with pytest.raises(ValueError, match=r"--nodes is .* but must be N or MIN-MAX"):
        parse_nodes(text)


def test_nodes_and_times() -> None:
    assert parse_nodes("8") == (8, 8)
    assert parse_nodes("12-16") == (12, 16)
    times = ["90", "01:30:00", "00:00:01", "2-01:00:00"]
    assert [minutes_of(t) for t in times] == [90, 90, 1, 2940]
    for wrong in ("0", "1h", "00:00:00", "12:00"):
        with pytest.raises(ValueError, match="--time is"):
            minutes_of(wrong)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--nodes", "4-2", LARGE], "--nodes is '4-2'"),
        (["--nodes", "8-17", LARGE], "virtual_world_size is 128 but the job has 136 processes"),
        (["--local", "--processes", "65", BASE], "is 64 but the job has 65 processes"),
        (["--local", "--processes", "0", BASE], "--processes is 0"),
        (["--time", "soon", BASE], "--time is 'soon'"),
        (["--gpus-per-node", "-1", BASE], "gpus_per_node is -1"),
        (["--gpus-per-node", "0", "--tasks-per-node", "0", BASE], "tasks_per_node is 0"),
        ([str(ROOT / "configs/base_ls961.yaml")], "did you mean base_ls960.yaml?"),
        ([BASE, "loop.max_step=3"], "did you mean loop.max_steps?"),
        ([BASE, "--nodes", "2", "loop.max_steps=ten"], "must be a whole number"),
        (["--cluster", "nowhere.yaml", BASE], "nowhere.yaml does not exist"),
    ],
)
def test_mistakes_end_before_submitting(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("below", ["", "/x"])
@pytest.mark.parametrize("where", ["--local", "--dry-run", "--autotune", "train"])
def test_a_file_in_the_place_of_the_run_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], where: str, below: str
) -> None:
    (tmp_path / "t.txt").touch()
    run_dir = f"run_dir={tmp_path}/t.txt{below}"
    if where == "train":
        assert w2v2dist(["train", BASE, run_dir]) == 2
    else:
        assert main([where, BASE, run_dir]) == 2
    message = f"run_dir needs the folder {tmp_path}/t.txt{below}, but {tmp_path}/t.txt is a file"
    assert message in capsys.readouterr().err
    with pytest.raises(ConfigError, match=message), locked(tmp_path / f"t.txt{below}"):
        pass


def test_without_sbatch(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert main([BASE, f"run_dir={tmp_path}/run"]) == 2
    error = capsys.readouterr().err
    assert "sbatch is not on the PATH" in error
    assert "--local" in error
    assert "--dry-run" in error
    assert not (tmp_path / "run").exists()


def test_cluster_profiles(tmp_path: Path) -> None:
    for path in (ROOT / "launch/clusters").glob("*.yaml"):
        assert from_dict(ClusterConfig, read_yaml(path)).num_tasks_per_node == 8
    with pytest.raises(ConfigError, match="did you mean partition"):
        from_dict(ClusterConfig, {"partitions": "gpu"})


def test_script(tmp_path: Path) -> None:
    cluster = ClusterConfig(
        account="speech",
        partition="gpu",
        modules=("cuda/12.8",),
        environment={"NOTE": "two words"},
        setup=("source env/bin/activate",),
        sbatch={"reservation": "night"},
        srun_args=("--container-image=/i.sqsh",),
        python="python3",
        max_failures=5,
    )
    lines = make_executor(cluster, tmp_path / "run", "12-16", 90).script().splitlines()
    options = [line.removeprefix("#SBATCH ") for line in lines if line.startswith("#SBATCH")]
    expected = ["account=speech", "partition=gpu", "nodes=12-16", "time=90", "gpus-per-node=8"]
    expected += ["reservation=night", "signal=USR2@120", "open-mode=append", "mem=0"]
    expected += ["dependency=singleton", "exclusive", "requeue"]
    assert {f"--{option}" for option in expected} <= set(options)
    # As the job's option it would pin the number of tasks, and the job wait for a lost node
    assert not [option for option in options if "ntasks" in option]
    (srun,) = [line for line in lines if line.startswith("srun ")]
    for part in ("--kill-on-bad-exit=1", "--ntasks-per-node=8", "--container-image=/i.sqsh"):
        assert part in srun.split()
    assert f"python3 -u -m submitit.core._submit {tmp_path}/run/logs" in srun
    before = lines[: lines.index(srun)]
    assert {"module load cuda/12.8", 'export NOTE="two words"'} <= set(before)
    assert "source env/bin/activate" in before


@pytest.mark.parametrize(
    ("profile", "there", "absent"),
    [
        ("time: 24:00:00", ["time=1440"], []),
        ("mem: null", [], ["mem"]),
        ("mem: 0", ["mem=0"], []),
        ("sbatch: {mem-per-gpu: 60G}", ["mem-per-gpu=60G"], ["mem"]),
        ("sbatch: {gpus-per-node: a100:8}", ["gpus-per-node=a100:8"], []),
        ("sbatch: {gres: gpu:a100:8}", ["gres=gpu:a100:8"], ["gpus-per-node"]),
        ("sbatch: {gres: license:1}", ["gres=license:1", "gpus-per-node=8"], []),
        ("sbatch: {gpus_per_task: 1}", ["gpus-per-task=1"], ["gpus-per-node"]),
        ("sbatch: {contiguous: true, spread-job: null, wait: false}", ["contiguous"], ["wait"]),
        ("sbatch: {partition: long, time: 2-00:00:00}", ["partition=long", "time=2-00:00:00"], []),
        ("sbatch: {oversubscribe: }", ["oversubscribe"], ["exclusive"]),
        ("sbatch: {exclusive: user}", ["exclusive=user"], []),
        ("sbatch: {nice: 0100}", ["nice=0100"], []),
    ],
)
def test_each_kind_of_option_is_there_once(
    tmp_path: Path, profile: str, there: list[str], absent: list[str]
) -> None:
    (tmp_path / "c.yaml").write_text(profile)
    args = argparse.Namespace(cluster=str(tmp_path / "c.yaml"), gpus_per_node=None)
    args = argparse.Namespace(**vars(args), tasks_per_node=None, partition=None, time=None)
    cluster = read_cluster(args)
    script = make_executor(cluster, tmp_path, "2", minutes_of(cluster.time)).script()
    options = [line[10:] for line in script.splitlines() if line.startswith("#SBATCH --")]
    assert {*there} <= {*options}
    names = [option.partition("=")[0] for option in options]
    assert len({*names}) == len(names)
    assert not {*absent} & {*names}


def test_options_that_the_job_depends_on_and_variables(tmp_path: Path) -> None:
    for name, remedy in (("signal", "use signal_delay_s"), ("nodes", "use --nodes"), ("p", "long")):
        with pytest.raises(ConfigError, match=f"'{name}', which cannot be given there: .*{remedy}"):
            from_dict(ClusterConfig, {"sbatch": {name: "x"}})
    environment = {"A": "$HOME/x y", "B": 'say "hi" `id` $(id)', "C": "back\\slash"}
    script = make_executor(ClusterConfig(environment=environment), tmp_path, "1", 9).script()
    exports = [line for line in script.splitlines() if line.startswith("export ")]
    shell = "\n".join([*exports, 'printf "%s|" "$A" "$B" "$C"'])
    done = subprocess.run(
        ["bash", "-c", shell], env={"HOME": "/h"}, capture_output=True, text=True, check=True
    )
    assert done.stdout == '/h/x y|say "hi" `id` $(id)|back\\slash|'


def test_script_without_gpus(tmp_path: Path) -> None:
    cluster = ClusterConfig(gpus_per_node=0, tasks_per_node=4, exclusive=False)
    script = make_executor(cluster, tmp_path, "2", 90).script()
    assert "--gpus" not in script
    assert "--exclusive" not in script
    assert "--ntasks-per-node=4" in script


def run_script(run_dir: Path, exit_code: int, state: str = "RUNNING") -> tuple[int, bool]:
    """Exit status of a rendered script whose tasks end with `exit_code` on two nodes of which none
    answers afterwards, and whether it requeued the job: Slurm's commands are stand-ins."""
    tools = run_dir / "bin"
    tools.mkdir(exist_ok=True)
    commands = {
        "srun": f'case "$*" in *--overlap*) exit 1;; esac; exit {exit_code}',
        "squeue": "echo n1,n2",
        "sinfo": "echo n1",
        "scontrol": f"""case "$*" in
          *hostnames*) echo n1; echo n2;;
          requeue*) touch {run_dir}/requeued;;
          *job*) echo JobId=7 JobState={state} StdErr={run_dir}/log StdIn=x;; esac""",
    }
    for name, command in commands.items():
        (tools / name).write_text(f"#!/bin/sh\n{command}\n")
        (tools / name).chmod(0o755)
    (run_dir / "log").touch()
    script = make_executor(ClusterConfig(max_failures=2), run_dir, "1-2", 9).script()
    environment = {"PATH": f"{tools}:{os.environ['PATH']}", "SLURM_JOB_ID": "7"}
    done = subprocess.run(["bash", "-c", script], env=environment, check=False, timeout=60)
    requeued = (run_dir / "requeued").exists()
    (run_dir / "requeued").unlink(missing_ok=True)
    return done.returncode, requeued


def test_failed_job_is_requeued_while_it_progresses(tmp_path: Path) -> None:
    assert run_script(tmp_path, 0) == (0, False)
    assert run_script(tmp_path, 1) == (1, True)
    for _ in range(3):  # preempted: no failure
        assert run_script(tmp_path, EXIT_PREEMPTED) == (EXIT_PREEMPTED, True)
    assert run_script(tmp_path, 143, "COMPLETING") == (143, False)  # cancelled: none either
    assert run_script(tmp_path, 2) == (2, False)  # a mistake in the configuration
    assert run_script(tmp_path, 137) == (137, False)  # the second without a checkpoint
    (tmp_path / "checkpoints" / "step_00000100").mkdir(parents=True)
    assert run_script(tmp_path, 1) == (1, True)
    (tmp_path / "checkpoints" / "step_00000200").mkdir()
    assert run_script(tmp_path, 1) == (1, True)
    assert run_script(tmp_path, 1) == (1, False)
    names = [e["event"] for e in read_jsonl(tmp_path / "events.jsonl")]
    assert names == ["failed", "failed", "crash_loop", "failed", "failed", "failed", "crash_loop"]


def test_a_node_without_all_its_gpus_does_not_answer(tmp_path: Path) -> None:
    """The check that each node runs: Slurm's and NVIDIA's commands are stand-ins."""
    text = (ROOT / "w2v2dist/jobs/job.sh").read_text()
    tools = {
        "srun": 'while [ "${1#--}" != "$1" ]; do case $1 in --nodelist=*) n=${1#*=};; esac; shift; '
        'done; NODE=$n "$@"',
        "squeue": "echo n1,n2,n3",
        "scontrol": "printf 'n1\\nn2\\nn3\\n'",
        "nvidia-smi": 'for i in 1 2 3; do [ $NODE$i = n23 ] || echo "GPU $i"; done',
    }
    for name, command in tools.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{command}\n")
        (tmp_path / name).chmod(0o755)
    functions = text[text.index("count()") : text.index("event()")]

    def answers(**environment: str) -> list[str]:
        environment |= {"PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_JOB_ID": "7"}
        done = subprocess.run(
            ["bash", "-c", f"{functions}\nanswering"],
            env=environment, capture_output=True, text=True, check=False,
        )  # fmt: skip
        return done.stdout.split()

    assert answers(SLURM_GPUS_ON_NODE="3") == ["n1", "n3"]
    assert answers(SLURM_GPUS_ON_NODE="2") == ["n1", "n2", "n3"]
    assert answers() == ["n1", "n2", "n3"]  # a job without GPUs
    (tmp_path / "nvidia-smi").unlink()
    assert answers(SLURM_GPUS_ON_NODE="3") == ["n1", "n2", "n3"]  # nobody to ask


def test_plan_of_large_on_16_nodes(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--nodes", "16", LARGE, "--dry-run"]) == 0
    printed = capsys.readouterr().out
    parts = ["128 on 16 nodes", "1 per GPU", "2.67 h", "317.4 M", "fits in 80 GiB (a100)"]
    parts += ["PREDICTED for a100, not measured", "GB a process and step at ZeRO stage"]
    for part in [*parts, "on 1 x 100 Gb/s Ethernet", "#SBATCH --nodes"]:
        assert part in printed
    assert not (ROOT / "runs/large_lv60k/logs").exists()
    assert main(["--nodes", "1", LARGE, "--dry-run"]) == 0
    (line,) = [x for x in capsys.readouterr().out.splitlines() if x.startswith("exchange")]
    assert "s inside the node, " in line


def test_plan_of_a_language_model(tmp_path: Path) -> None:
    path = str(ROOT / "configs/lm/transformer_librispeech.yaml")
    config = read_config(path, ["engine.zero_stage=1"])
    plan = make_plan(config, 8, 8, A100)
    assert plan.amount_per_step == 64 * 2_048
    text = "\n".join(plan.lines())
    assert "562.1 M parameters, 50,000 steps; a vocabulary of 224,000 words ASSUMED" in text
    assert "tokens per step 131,072 at most" in text
    assert "audio" not in text
    (tmp_path / "dict.txt").write_text("".join(f"w{i} 1\n" for i in range(220_996)))
    plan = make_plan(read_config(path, [f"data.vocabulary={tmp_path}/dict.txt"]), 8, 8, A100)
    assert plan.prediction.num_parameters == 561_831_040
    assert "ASSUMED" not in plan.lines()[0]
    few = make_plan(read_config(path, ["model.activation_checkpointing=true"]), 8, 8, A100)
    assert few.prediction.kept_bytes < plan.prediction.kept_bytes


def test_plan_numbers() -> None:
    config = read_config(LARGE, ["engine.zero_stage=1"])
    plan = make_plan(config, 16, 8, A100)
    assert plan.amount_per_step == pytest.approx(128 * 1.2e6 / 16_000 / 3600)
    half = make_plan(config, 12, 8, A100)
    one, two = plan.prediction, half.prediction
    assert (one.num_rounds, two.num_rounds) == (1, 2)
    assert half.amount_per_step == plan.amount_per_step
    assert two.model_flops == 2 * one.model_flops
    assert 1.5 * one.step_seconds < two.step_seconds < 2 * one.step_seconds
    # ZeRO 1 in bf16: weights, their gradients and the sum of these everywhere, 12 bytes split
    assert one.memory.state == pytest.approx(one.num_parameters * (2 + 2 + 4 + 12 / 128))


def test_plan_of_what_does_not_fit() -> None:
    config = read_config(LARGE, ["data.max_samples_per_slot=24_000_000"])
    (line,) = [x for x in make_plan(config, 16, 8, A100).lines() if x.startswith("memory")]
    assert "does NOT fit in 80 GiB (a100)" in line
    assert "model.activation_checkpointing=true" in line


def test_profiles_name_their_gpu(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "c.yaml").write_text("gpu: h200\n")
    command = ["--nodes", "16", LARGE, "--dry-run", "--cluster", str(tmp_path / "c.yaml")]
    assert main(command) == 0
    assert "PREDICTED for h200" in capsys.readouterr().out
    (tmp_path / "c.yaml").write_text("peak_tflops: 624\ngpu_memory_gib: 24\n")  # another GPU
    assert main(command) == 0
    printed = capsys.readouterr().out
    assert "fits in 24 GiB (a100 with 624 TFLOP/s)" in printed
    assert "PREDICTED for a100 with 624 TFLOP/s, not measured" in printed
    other, known = A100.like(624, None), A100
    assert other.peak_flops == 2 * known.peak_flops == 624e12
    assert other.matrix_flops == 2 * known.matrix_flops
    for text, message in (
        ("gpu: v100", "gpu is 'v100' but must be one of a100"),
        ("gpu_memory_gib: 0", "gpu_memory_gib is 0.0 but must be positive"),
    ):
        (tmp_path / "c.yaml").write_text(text)
        assert main(command) == 2
        assert message in capsys.readouterr().err


def test_local_reports_a_mistake_of_the_training(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(f"task: pretrain\nrun_dir: {tmp_path}/run\n")
    assert run_local([str(config)], tmp_path / "logs", 2) == 2
    assert "data.train is not set" in capfd.readouterr().err


def test_local_passes_signals_on(tmp_path: Path) -> None:
    """Ranks that still import end at once, by the signal: the mistake in CONFIG is not reached."""
    config = tmp_path / "config.yaml"
    config.write_text(f"task: pretrain\nrun_dir: {tmp_path}/run\n")
    code = "import sys; from pathlib import Path; from w2v2dist.jobs.local import run_local; "
    code += "sys.exit(run_local([sys.argv[1]], Path(sys.argv[2]), 2))"
    launcher = subprocess.Popen([sys.executable, "-c", code, str(config), str(tmp_path / "logs")])
    deadline = time.monotonic() + 60
    while not (tmp_path / "logs" / "rank_1.log").exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    launcher.send_signal(signal.SIGINT)
    launcher.send_signal(signal.SIGTERM)
    assert launcher.wait(60) in (128 + signal.SIGTERM, 128 + signal.SIGKILL)
    assert not [p for p in Path("/proc").glob("[0-9]*/cmdline") if is_rank(p, config)]


def is_rank(path: Path, config: Path) -> bool:
    try:
        return str(config).encode() in path.read_bytes().split(b"\0")
    except OSError:  # it has just ended
        return False
