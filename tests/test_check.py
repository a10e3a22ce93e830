"""python -m autograd.check: what passes, what is caught, and how table, JSON and picture show it."""

import importlib
import json
import os
import subprocess
import sys

import numpy as np
import pytest

from autograd import InputError, check, check_plot
from autograd.function_cases import CASES, Case, normal
from autograd.functions.activation import Tanh
from autograd.functions.linear import Matmul
from autograd.gradient_check import TOLERANCE, Comparison, worst_of
from minilstm import check as model_check

FUNCTIONS = """
import numpy as np
from autograd import Function

class Cube(Function):
    def forward(self, x):
        self.save(x)
        return x**3
    def backward(self, dy):
        (x,) = self.saved
        return dy * 3 * x**2

class WrongCube(Cube):
    def backward(self, dy):
        return super().backward(dy) * (1 + 1e-5)

class NanCube(Cube):
    def backward(self, dy):
        return super().backward(dy) * np.nan

class BrokenCube(Cube):
    def backward(self, dy):
        return dy, dy

class ForgottenCube(Cube):
    pass
"""
CASES_OF = """
from autograd.function_cases import Case, normal
from {package}.functions import *
CASES = [Case(kind, lambda x, kind=kind: kind().apply(x), [normal(*shape)])
         for kind in ({kinds},) for shape in ((2, 3), (4,))]
"""
FAULTY = ["WrongCube", "NanCube", "BrokenCube"]


@pytest.fixture
def package(tmp_path, monkeypatch):
    """Makes a package of cubes, good and bad, with cases of some kinds; returns the name of their module."""

    def make(*kinds, functions=FUNCTIONS):
        name = f"cubes_{tmp_path.name.replace('-', '_')}"
        folder = tmp_path / name
        folder.mkdir()
        (folder / "__init__.py").write_text("")
        (folder / "functions.py").write_text(functions)
        (folder / "cases.py").write_text(CASES_OF.format(package=name, kinds=", ".join(kinds)))
        monkeypatch.syspath_prepend(tmp_path)
        return f"{name}.cases"

    yield make
    for name in [name for name in sys.modules if name.startswith("cubes_")]:
        del sys.modules[name]


def rows_of_table(text):
    """name → the rest of its line."""
    lines = text.split("\n\n")[0].splitlines()
    assert lines[0].split()[:2] == ["function", "cases"]
    return {line.split()[0]: line.split(maxsplit=1)[1] for line in lines[1:]}


def test_all_functions_of_the_project_pass(capsys):
    assert model_check.main([]) == 0
    out = capsys.readouterr().out
    rows = rows_of_table(out)
    assert {"Exp", "Matmul", "Embedding", "LSTM", "TiedSoftmaxLoss", "LayerNormLSTM"} <= set(rows)
    assert len(rows) >= 33
    assert f"{len(rows)} functions, " in out
    assert out.rstrip().endswith("every error at most 1e-07")


def test_a_case_of_another_function_proves_nothing(package, capsys):
    name = package("Cube", functions=FUNCTIONS + "class Square(Cube):\n    pass\n")
    module = importlib.import_module(name)
    wrong = Case(module.Square, module.CASES[0].function, [normal(3)])
    assert check.check_case(wrong).failure == "its call applies no Square"
    assert check.check_case(module.CASES[0]).failure == ""


def test_the_engine_alone_is_the_engines_default(capsys):
    assert check.main(["--only", "Tanh", "Matmul"]) == 0
    assert list(rows_of_table(capsys.readouterr().out)) == ["Tanh", "Matmul"]
    with pytest.raises(InputError, match="--only: no Function 'LSTM'; there are Add, BroadcastTo"):
        check.main(["--only", "LSTM"])


def test_a_row_shows_the_worst_case(capsys):
    (row,) = check.check_modules([sys.modules[Case.__module__]], ["Linear"])
    expected = sum(case.kind.__name__ == "Linear" for case in CASES)
    assert len(row.results) == expected
    assert row.worst.error == max(result.error for result in row.results) > 0
    check.main(["--only", "Linear"])
    line = rows_of_table(capsys.readouterr().out)["Linear"]
    shapes = " ".join(str(x.shape).replace(" ", "") for x in row.worst.case.inputs)
    assert line.startswith(f"{expected}  {shapes} ")
    assert f" float64  {row.worst.error:.1e} " in line
    assert line.endswith(" ms")


@pytest.mark.filterwarnings("ignore:invalid value")
def test_what_is_wrong_is_told_and_what_is_right_still_checked(package, capsys):
    assert check.main([package(*FAULTY, "Cube")]) == 1
    out = capsys.readouterr().out
    rows = rows_of_table(out)
    assert list(rows) == [*FAULTY, "Cube", "ForgottenCube"]
    assert rows["WrongCube"].endswith("above 1e-07")
    assert " nan " in rows["NanCube"]
    assert rows["NanCube"].endswith("above 1e-07")
    assert rows["BrokenCube"].endswith(
        "RuntimeError: broken_cube.backward must return one gradient or None for each of its 1 inputs; got 2"
    )
    assert rows["Cube"].endswith("ms")
    assert rows["ForgottenCube"].endswith("has no case")
    assert out.rstrip().endswith("wrong: WrongCube, NanCube, BrokenCube, ForgottenCube")


def test_a_function_without_a_case_is_enough_to_fail(package, capsys):
    name = package("Cube", "NanCube", "WrongCube", "BrokenCube")
    assert check.main([name, "--only", "Cube"]) == 0
    assert check.main([name, "--only", "ForgottenCube"]) == 1
    found = check.functions_without_case(sys.modules[name])
    assert [kind.__name__ for kind in found] == ["ForgottenCube"]


def test_the_tolerance_decides(package):
    name = package("WrongCube")
    assert check.main([name, "--only", "WrongCube"]) == 1
    assert check.main([name, "--only", "WrongCube", "--tolerance", "1e-4"]) == 0


@pytest.mark.filterwarnings("ignore:invalid value")
def test_json_holds_every_case(package, capsys):
    assert check.main([package("Cube", *FAULTY), "--json"]) == 1
    report = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
    assert (report["tolerance"], report["step"], report["passed"]) == (TOLERANCE, 1e-6, False)
    functions = {row["function"]: row for row in report["functions"]}
    assert functions["Cube"]["fault"] == ""
    assert functions["Cube"]["module"].endswith(".functions")
    cases = functions["Cube"]["cases"]
    assert [case["shapes"] for case in cases] == [[[2, 3]], [[4]]]
    assert all(case["dtypes"] == ["float64"] and 0 < case["error"] < 1e-7 for case in cases)
    assert all(case["seconds"] > 0 for case in cases)
    assert functions["NanCube"]["cases"][0]["error"] is None
    assert functions["ForgottenCube"]["cases"] == []


def test_a_good_report_says_so(capsys):
    assert check.main(["--only", "Exp", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["passed"] is True


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["no.such.module"], "no.such.module: no such module; expected one with a list CASES"),
        (["autograd.variable"], "autograd.variable: expected a list CASES in it, as autograd.function_cases"),
        (["--only", "Exq"], "--only: no Function 'Exq'"),
        (["--tolerance", "small"], "argument --tolerance: invalid float value"),
        (["--plot", "errors.txt"], "--plot: expected a name ending in .png, .svg or .pdf; got 'errors.txt'"),
        (["--plot", "gone/errors.png"], "--plot: there is no folder gone; make it first"),
        (
            ["--plot", "a.png", "--only", "Exp", "Log", "Add", "Sum", "Mean", "Split", "Tanh", "Relu"],
            "--plot: a picture shows 1 to 7 Functions; got 8; choose by --only",
        ),
    ],
)
def test_bad_arguments_are_refused_before_the_work(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError) as error:
        check.main(arguments)
    assert message in str(error.value)
    assert capsys.readouterr().out == ""
    assert list(tmp_path.iterdir()) == []


def test_an_error_inside_a_module_of_cases_is_not_hidden(package):
    name = package("Cube", functions="import no_such_thing")
    with pytest.raises(ModuleNotFoundError, match="no_such_thing"):
        check.main([name])


def test_the_command_ends_with_the_status(package, tmp_path):
    def run(*arguments):
        command = [sys.executable, "-m", "autograd.check", *arguments]
        env = {**os.environ, "PYTHONPATH": f"{os.getcwd()}:{tmp_path}"}
        return subprocess.run(command, env=env, capture_output=True, text=True)

    name = package("Cube", "WrongCube")
    assert run(name, "--only", "Cube").returncode == 0
    assert run(name, "--only", "Cube", "WrongCube").returncode == 1
    result = run("no.such.module")
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr == "error: no.such.module: no such module; expected one with a list CASES\n"


def test_the_worst_is_the_largest_and_nan_before_any_number():
    numbers = [Comparison(1.0, 1.0 + error, 1.0) for error in (1e-9, 1e-3, 1e-6)]
    assert worst_of(numbers) is numbers[1]
    lost = Comparison(np.nan, 1.0, 1.0)
    assert worst_of([*numbers, lost]) is lost
    assert worst_of([lost, *numbers]) is lost


def slope(steps, errors):
    return np.polyfit(np.log(steps), np.log(errors), 1)[0]


def case_of(kind):
    return next(case for case in CASES if case.kind is kind and case.inputs[0].size > 3)


def test_truncation_grows_as_the_square_and_rounding_falls_as_the_inverse_of_the_step():
    truncated, rounded = np.logspace(-4, -2, 9), np.logspace(-11, -8, 13)
    errors = check.errors_by_step(case_of(Tanh), truncated)
    assert slope(truncated, errors) == pytest.approx(2, abs=0.02)
    assert slope(rounded, check.errors_by_step(case_of(Tanh), rounded)) == pytest.approx(-1, abs=0.25)
    assert errors[0] < 1e-8 < errors[-1]


def test_a_product_has_no_truncation():
    steps = np.logspace(-8, -2, 13)
    assert slope(steps, check.errors_by_step(case_of(Matmul), steps)) == pytest.approx(-1, abs=0.25)


def test_a_wrong_derivative_is_a_floor_under_both_branches(package):
    module = check.load_cases(package("WrongCube"))
    steps = np.logspace(-9, -4, 6)
    errors = check.errors_by_step(module.CASES[0], steps)
    assert np.all((errors > 1e-6) & (errors < 1e-5))


def test_curves_are_of_the_largest_case_and_leave_out_what_cannot_run(package, monkeypatch):
    module = check.load_cases(package("Cube", "BrokenCube"))
    rows = check.check_modules([module])
    drawn = []
    monkeypatch.setattr(check, "errors_by_step", lambda case: drawn.append(case) or [1.0])
    names = ["Cube", "BrokenCube", "ForgottenCube"]
    assert check.curves(rows, names) == {"Cube": [1.0]}
    assert [case.inputs[0].shape for case in drawn] == [(2, 3)]


def test_the_modules_choose_what_is_plotted_and_only_overrules():
    modules = [check.load_cases(name) for name in model_check.MODULES]
    names = check.plotted_names(modules)
    assert {"Matmul", "LSTM"} <= set(names)
    assert 1 <= len(names) <= len(check_plot.STYLES)
    assert check.plotted_names(modules, ["Exp"]) == ["Exp"]


def test_the_picture_shows_both_branches_and_the_limits():
    pytest.importorskip("matplotlib")
    steps, errors = np.array([1e-9, 1e-6, 1e-3]), np.array([1e-7, 0.0, 1e-6])
    (axes,) = check_plot.draw(steps, {"Tanh": errors}, 1e-6, 1e-7).axes
    assert (axes.get_xscale(), axes.get_yscale()) == ("log", "log")
    rounding, truncation, step, limit, curve = (line.get_xydata() for line in axes.lines)
    assert slope(*rounding.T) == pytest.approx(-1)
    assert slope(*truncation.T) == pytest.approx(2)
    assert set(step[:, 0]) == {1e-6}
    assert set(limit[:, 1]) == {1e-7}
    np.testing.assert_array_equal(curve, [[1e-9, 1e-7], [1e-6, np.nan], [1e-3, 1e-6]])
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["Tanh"]


@pytest.mark.parametrize(("kind", "start"), [("png", b"\x89PNG"), ("svg", b"<?xml")])
def test_a_picture_is_written(kind, start, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    path = tmp_path / f"errors.{kind}"
    assert check.main(["--only", "Exp", "--plot", str(path)]) == 0
    assert path.read_bytes().startswith(start)
    assert list(tmp_path.iterdir()) == [path]


def test_without_matplotlib_the_plot_is_refused_and_the_table_is_not(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(InputError, match=r"pip install matplotlib"):
        check.main(["--only", "Exp", "--plot", str(tmp_path / "errors.png")])
    assert capsys.readouterr().out == ""
    assert check.main(["--only", "Exp"]) == 0


def test_a_new_function_needs_one_line():
    """As autograd/function_cases.py says."""
    result = check.check_case(Case(Tanh, lambda x: Tanh().apply(x), [normal(2, 3)]))
    assert (result.failure, result.error <= TOLERANCE, result.seconds > 0) == ("", True, True)
