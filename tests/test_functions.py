"""Every Function's gradient against differences, and what else holds for all of them.

The calls are those of autograd/function_cases.py and minilstm/function_cases.py; a test fails if a Function
is missing there.
"""

import itertools

import numpy as np
import pytest

import autograd.function_cases
import autograd.functions as F
import minilstm.function_cases
from autograd import Parameter, Variable, backprop
from autograd.check import functions_without_case
from autograd.function_cases import normal, outputs_of
from autograd.gradient_check import backward_all, check_backward

CASES = [*autograd.function_cases.CASES, *minilstm.function_cases.CASES]
SEVERAL_INPUTS = [case for case in CASES if len(case.float_inputs) > 1]
SEVERAL_OUTPUTS = [case for case in CASES if len(outputs_of(case, case.inputs)) > 1]


def of_each_kind(cases):
    """The test of one case becomes a test for each Function, of all its cases: pytest takes longer to count
    two thousand tests than they to run."""
    kinds = {case.kind.__name__: [other for other in cases if other.kind is case.kind] for case in cases}

    def decorate(test):
        def of_a_kind(kind):
            for case in kinds[kind]:
                try:
                    test(case)
                except Exception as error:
                    raise AssertionError(f"{case}: {error}") from error

        of_a_kind.__name__, of_a_kind.__doc__ = test.__name__, test.__doc__
        return pytest.mark.parametrize("kind", kinds)(of_a_kind)

    return decorate


def variables_of(case, dtype=np.float64):
    return [
        Variable(value.astype(dtype) if index in case.float_inputs else value, index in case.float_inputs)
        for index, value in enumerate(case.inputs)
    ]


def functions_behind(outputs):
    unseen, seen = [output.creator for output in outputs], set()
    while unseen:
        function = unseen.pop()
        if function is not None and function not in seen:
            seen.add(function)
            unseen += [node.creator for node in function.inputs]
    return seen


@pytest.mark.parametrize("module", [autograd.function_cases, minilstm.function_cases])
def test_every_function_is_checked_here(module):
    assert functions_without_case(module) == [], "add a line for each to the module's CASES"


def test_many_functions_are_checked_here():
    """Else the test above might have looked at nothing."""
    assert len({case.kind for case in CASES}) >= 33
    assert len(SEVERAL_OUTPUTS) >= 5


@of_each_kind(CASES)
def test_the_gradient_is_right(case):
    assert case.kind in {
        type(function) for function in functions_behind(outputs_of(case, variables_of(case)))
    }
    assert check_backward(case.function, case.inputs) <= 1e-7


@of_each_kind(SEVERAL_INPUTS)
def test_the_gradient_is_right_when_one_input_alone_wants_one(case):
    for index in case.float_inputs:
        constants = [Variable(value, requires_grad=False) for value in case.inputs]

        def function(x, index=index, constants=constants):
            return case.function(*constants[:index], x, *constants[index + 1 :])

        check_backward(function, [case.inputs[index]])
        assert all(constant.grad is None for constant in constants)


@of_each_kind(SEVERAL_OUTPUTS)
def test_the_gradient_is_right_when_some_outputs_get_none(case):
    shapes = [output.shape for output in outputs_of(case, case.inputs)]
    for used in itertools.product((False, True), repeat=len(shapes)):
        if any(used):
            grads = [normal(*shape) if wanted else None for shape, wanted in zip(shapes, used, strict=True)]
            check_backward(case.function, case.inputs, grads)


@of_each_kind(CASES)
def test_float32_stays_float32_and_is_near_float64(case):
    deliver, delivered = backprop._deliver, set()

    def watch(node, grad, gradients):
        delivered.add(grad.dtype)
        deliver(node, grad, gradients)

    results = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(backprop, "_deliver", watch)
        for dtype in (np.float32, np.float64):
            variables = variables_of(case, dtype)
            outputs = outputs_of(case, variables)
            delivered.clear()
            backward_all(outputs, [np.ones(output.shape, dtype) for output in outputs])
            assert delivered | {output.dtype for output in outputs} == {np.dtype(dtype)}
            results.append([v.data for v in outputs] + [variables[k].grad for k in case.float_inputs])
    for low, high in zip(*results, strict=True):
        np.testing.assert_allclose(low, high, rtol=1e-4, atol=1e-5)


@of_each_kind(CASES)
def test_neither_pass_changes_its_arrays_and_a_second_one_gives_equal_bits(case):
    variables = variables_of(case)
    outputs = outputs_of(case, variables)
    total = sum((F.sum(output * normal(*output.shape)) for output in outputs), Variable(0.0))
    kept = [output.data.tobytes() for output in outputs]
    gradients = []
    for _ in range(2):
        for variable in variables:
            variable.zero_grad()
        total.backward(retain_graph=True)
        gradients.append([variables[k].grad.tobytes() for k in case.float_inputs])
    assert gradients[0] == gradients[1]
    assert [output.data.tobytes() for output in outputs] == kept
    for variable, value in zip(variables, case.inputs, strict=True):
        assert variable.data.tobytes() == value.tobytes()


@of_each_kind(CASES)
def test_the_gradient_adds_to_what_a_parameter_holds(case):
    """A Function that writes into a parameter's own buffer must add to what another pass left there."""
    plain = variables_of(case)
    backward_all(outputs_of(case, plain), [np.ones(output.shape) for output in outputs_of(case, plain)])
    parameters = [Parameter(v.data) if v.requires_grad else v for v in variables_of(case)]
    for _ in range(2):
        outputs = outputs_of(case, parameters)
        backward_all(outputs, [np.ones(output.shape) for output in outputs])
    for index in case.float_inputs:
        np.testing.assert_allclose(parameters[index].grad, 2 * plain[index].grad, rtol=1e-12, atol=1e-14)
