"""The `jseg` command: discovery, help, exit codes, overrides, and the scripts in tools/."""

import importlib
import importlib.util
import pathlib
import re
import shlex
import subprocess
import sys

import pytest

from jseg import cli
from jseg.cli import names
from jseg.errors import DataError

ROOT = pathlib.Path(__file__).resolve().parents[1]
CONFIG = "configs/segnext/segnext_tiny_ade20k-512x512_160k.yaml"


@pytest.fixture
def command(monkeypatch):
    """Make every command run the given function instead of its own."""

    def replace(run):
        build = cli.build_parser
        monkeypatch.setattr(cli, "build_parser", lambda name: _with_run(build(name), run))

    def _with_run(parser, run):
        parser.set_defaults(run=run)
        return parser

    return replace


@pytest.fixture
def in_repo(monkeypatch):
    """Run from the repository's root, as the shipped paths expect."""
    monkeypatch.chdir(ROOT)


def test_commands_are_found_by_file_name():
    found = cli.commands()
    files = {p.stem.replace("_", "-") for p in (ROOT / "jseg" / "cli").glob("*.py") if not p.stem.startswith("_")}
    assert set(found) == files and {"check", "doctor"} <= files


@pytest.mark.parametrize("name", cli.commands())
def test_every_command_keeps_the_contract(name, capsys):
    summary = cli.commands()[name]
    assert summary.endswith(".") and len(summary) <= 100, (f"{name}: the docstring's first line is its summary: "
                                                           f"{summary!r}")
    module = importlib.import_module(f"jseg.cli.{name.replace('-', '_')}")
    words = shlex.split(module.EXAMPLE.splitlines()[-1])
    assert words[:2] == ["jseg", name], f"{name}: EXAMPLE is a real command line, got {module.EXAMPLE!r}"
    parser = cli.build_parser(name)
    args = parser.parse_args(words[2:])  # the example must be one that the parser takes
    assert args.run is module.run
    assert cli.main([name, "--help"]) == 0
    text = capsys.readouterr().out
    assert f"usage: jseg {name}" in text and text.rstrip().endswith(module.EXAMPLE)
    if "config" in vars(args):
        assert "--set" in text, f"{name} takes a config, so it takes --set too"
        assert parser.parse_args(words[2:] + ["--set", "a=1", "--set", "b=2"]).overrides[-2:] == ["a=1", "b=2"]
    configs = [word for word in words if word.startswith("configs/")]
    assert all(list(ROOT.glob(word))
               for word in configs), f"{name}: its example names a config that does not exist: {configs}"


def test_help_lists_commands_and_loads_nothing_heavy():
    """Neither the overview nor any command's help may load Jittor."""
    program = ("import sys\nfrom jseg import cli\nassert cli.main(['--help']) == 0\n"
               "for name in cli.commands():\n    cli.build_parser(name).format_help()\n"
               "    assert not {'jittor', 'torch'} & set(sys.modules), name\n")
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    for name, summary in cli.commands().items():
        assert any(line.split()[:1] == [name] and line.endswith(summary) for line in done.stdout.splitlines())


def test_unknown_command_names_the_nearest(capsys):
    assert cli.main(["chekc"]) == 2
    text = capsys.readouterr().err
    assert "unknown command 'chekc'; did you mean 'check'?" in text and "doctor" in text


def test_no_command_prints_the_overview(capsys):
    assert cli.main([]) == 2
    assert capsys.readouterr().out.startswith("usage: jseg COMMAND")


def test_version(capsys):
    import jseg

    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"jseg {jseg.__version__}\n"


def test_errors_of_ours_print_without_traceback(command, capsys):
    def run(args):
        raise DataError("data/x: no such folder\nput the pictures there")

    command(run)
    assert cli.main(["doctor"]) == 2
    out, err = capsys.readouterr()
    assert (out, err) == ("", "data/x: no such folder\nput the pictures there\n")


def test_interrupt_is_130(command, capsys):
    def run(args):
        raise KeyboardInterrupt

    command(run)
    assert cli.main(["doctor"]) == 130
    assert "Traceback" not in capsys.readouterr().err


def test_bugs_keep_their_traceback(command):
    def run(args):
        return 1 // 0

    command(run)
    with pytest.raises(ZeroDivisionError):
        cli.main(["doctor"])


def test_exit_status_is_the_commands_own(command):
    command(lambda args: 7)
    assert cli.main(["doctor"]) == 7
    command(lambda args: None)
    assert cli.main(["doctor"]) == 0


def test_wrong_options_exit_2(capsys):
    assert cli.main(["doctor", "--nonsense"]) == 2
    assert "unrecognized arguments: --nonsense" in capsys.readouterr().err


def test_check_prints_a_summary(in_repo, capsys):
    assert cli.main(["check", CONFIG]) == 0
    assert capsys.readouterr().out == (f"{CONFIG}: ok: MSCAN tiny + LightHamHead on ADE20KDataset (150 classes), "
                                       "160000 iterations of 16 pictures\n"
                                       f"pictures and masks were not looked at; to do so: jseg data check {CONFIG}\n")


def test_check_prints_every_fault_and_goes_on(in_repo, capsys):
    status = cli.main(["check", "configs/gone.yaml", CONFIG, "--set", "model.decode_head.num_clases=3",
                       "--set", "sead=1"])
    out, err = capsys.readouterr()
    assert status == 2 and out == ""
    lines = err.splitlines()
    assert len(lines) == 3 and lines[0].startswith("configs/gone.yaml: cannot read the config")
    assert f"{CONFIG}: sead: unknown key 'sead' in the top level of a config; did you mean 'seed'?" in lines[1]
    assert (lines[2] == f"{CONFIG}: model.decode_head: unknown key 'num_clases' for LightHamHead; did you mean "
                        "'num_classes'?")


def test_names_describes_an_entry(capsys):
    assert cli.main(["names", "RandomCrop", "LightHamHead"]) == 0
    shown = capsys.readouterr().out
    for words in ("RandomCrop  (transforms, jseg.data.transforms.geometric)\n\nIn a config:\n  type: RandomCrop\n",
                  "\n  crop_size: (needed)  # int | Sequence[int]\n  cat_max_ratio: 1.0   # float\n",
                  "cat_max_ratio: in 0..1.", "  ham_channels: 512 ", "  in_channels: (needed) ",
                  "\nHeadOptions: What a head reads", "\nham_options: Merge"):
        assert words in shown
    assert "  groups: " not in (cli.main(["names", "SGD"]), capsys.readouterr().out.partition("\n\nStoch")[0])[1]
    assert cli.main(["names", "RandomCorp"]) == 2 and "did you mean 'RandomCrop'?" in capsys.readouterr().err


def test_names_describes_every_argument_of_every_entry():
    missing = []
    for _, kind in names._registries():
        for name in kind.names():
            _, _, text = names.described(name).partition("\nIn a config:\n")
            lines, _, words = text.partition("\n\n")
            missing += [f"{name}: {key}" for key in re.findall(r"^  (\w+):", lines, re.M)
                        if key != "type" and not re.search(rf"\b{key}\b", words)]
    assert not missing, "not in the description of the entry or of what it refers to: " + ", ".join(missing)


def test_flops_says_the_total_first(in_repo, capsys):
    assert cli.main(["flops", "segnext_tiny_ade20k-512x512_160k", "--depth", "1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == ("4.26 M parameters (17.1 MB in float32), 6.61 G FLOPs (multiply-adds) for a picture of "
                        "512x512, logits 1x150x64x64")
    assert [line.split()[0] for line in lines[3:6]] == ["backbone", "decode_head", "(logits"]


def test_shipped_configs_have_names_in_any_folder(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    name = CONFIG.removeprefix("configs/")
    assert cli.main(["check", name]) == 0
    assert capsys.readouterr().out.startswith(f"{name}: ok: MSCAN tiny")
    weights = str(ROOT / "weights" / "segnext_tiny_camvid.safetensors")
    for words in (["train", "segnxt.yaml"], ["val", "segnxt.yaml", "--checkpoint", weights], ["flops", "segnxt.yaml"],
                  ["data", "check", "segnxt.yaml"], ["browse", "segnxt.yaml"], ["warmup", "segnxt.yaml"],
                  ["check", "segnxt.yaml"], ["bench", "--model", "segnxt.yaml"]):
        monkeypatch.setattr("jseg.config.shipped_configs", lambda: {"segnext/segnext": "x"})
        assert cli.main(words) == 2, words
        assert "the nearest of them: segnext/segnext.yaml" in capsys.readouterr().err, words
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("path", sorted((ROOT / "tools").glob("*.py")), ids=lambda p: p.name)
def test_scripts_work_from_any_folder(path, tmp_path):
    done = subprocess.run([sys.executable, str(path), "--help"], cwd=tmp_path, capture_output=True,
                          text=True, timeout=120)
    assert done.returncode == 0 and "usage:" in done.stdout, done.stderr


def test_the_module_runs(tmp_path):
    done = subprocess.run([sys.executable, "-m", "jseg", "--version"], cwd=ROOT, capture_output=True,
                          text=True, timeout=120)
    assert done.returncode == 0 and done.stdout.startswith("jseg ")


def test_a_closed_pipe_is_no_traceback():
    done = subprocess.run(f"{shlex.quote(sys.executable)} -u -m jseg --help | true", shell=True, cwd=ROOT,
                          capture_output=True, text=True, timeout=120)
    assert "Traceback" not in done.stderr


@pytest.fixture
def run_net(monkeypatch):
    """tools/run_net.py as a module."""
    monkeypatch.setattr(sys, "path", ["tools", *sys.path])
    spec = importlib.util.spec_from_file_location("run_net", ROOT / "tools" / "run_net.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def old(module, *words: str) -> list[str]:
    """Translate original JSeg's words for the ADE20K config."""
    return module.translate(module.parse(["--config-file", CONFIG, *words]))


def test_run_net_translates(run_net, in_repo, tmp_path, monkeypatch):
    weights = tmp_path / "best.safetensors"
    weights.touch()
    run = str(tmp_path)
    assert old(run_net) == ["train", CONFIG] == old(run_net, "--task", "train", "--efficient_val")
    assert old(run_net, "--resume") == ["train", CONFIG, "--resume"]
    assert old(run_net, "--resume", run) == ["train", CONFIG, "--resume", "--work-dir", run]
    assert old(run_net, "--task", "val", "--resume", str(weights)) == ["val", CONFIG, "--checkpoint", str(weights)]
    assert old(run_net, "--task", "val", "--resume", run) == ["val", CONFIG, "--checkpoint", str(weights)]
    assert old(run_net, "--task", "test", "--resume", run, "--save-dir", "out") == [
        "predict", str(weights), "data/ade/ADEChallengeData2016/images/validation", "--out", "out"]


@pytest.mark.parametrize("words", [["--resume"], ["--resume", "."], ["--task", "val", "--resume"],
                                   ["--task", "test", "--resume"]])
def test_run_net_makes_commands_that_jseg_takes(run_net, in_repo, tmp_path, words):
    if words[0] == "--task":
        (tmp_path / "w.safetensors").touch()
        words = [*words, str(tmp_path / "w.safetensors")]
    command = old(run_net, *words)
    args = cli.build_parser(command[0]).parse_args(command[1:])
    assert args.resume if command[0] == "train" else args.checkpoint.endswith("w.safetensors")


def test_run_net_says_what_is_missing(run_net, in_repo, tmp_path, capsys):
    assert run_net.main(["--config-file", "gone.yaml"]) == 2
    assert "gone.yaml: cannot read the config" in capsys.readouterr().err
    assert run_net.main(["--config-file", CONFIG, "--resume", "old.pkl"]) == 2
    assert "--resume old.pkl: training continues from a run folder" in capsys.readouterr().err
    assert run_net.main(["--config-file", CONFIG, "--task", "val", "--resume", str(tmp_path)]) == 2
    assert "no weights there (looked for" in capsys.readouterr().err
