"""What a program from a stranger may say: what torch writes is taken, code and endless arithmetic are not."""

from __future__ import annotations

import io
import json
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from optimize.errors import UsageError
from optimize.sources.exported_program import ExportedProgramSource
from optimize.sources.pt2 import load_pt2
from optimize.sources.pt2_program import MOST_TERMS, fault, is_guard, terms

torch = pytest.importorskip("torch")

Program = dict[str, Any]
AUTO = torch.export.Dim.AUTO


class Halves(torch.nn.Module):  # type: ignore[misc]
    """Constraints, a float of a size, a keyword, a nested output with names, and a constant text."""

    def forward(self, x: Any, *, mask: Any) -> Any:
        torch._check(x.shape[0] * 2 < 100)
        joined = torch.einsum("bi,bj->bij", x, x)[:, : x.shape[1] // 2 * 2]
        scaled = torch.nn.functional.gelu(joined * mask / x.shape[1] ** 0.5, approximate="tanh")
        return {"last hidden": scaled, "pair": (x + 1, x.sum())}


@pytest.fixture(scope="module")
def saved() -> bytes:
    axes = {"x": {0: AUTO, 1: AUTO}, "mask": None}
    with torch.no_grad():
        program = torch.export.export(Halves(), (torch.ones(4, 6),), {"mask": torch.ones(1)}, dynamic_shapes=axes)
    buffer = io.BytesIO()
    torch.export.save(program, buffer)
    return buffer.getvalue()


def written(saved: bytes, path: Path, change: Callable[[Program], None]) -> Path:
    with zipfile.ZipFile(io.BytesIO(saved)) as source, zipfile.ZipFile(path, "w") as copy:
        for name in source.namelist():
            content = source.read(name)
            if "/models/" in name and name.endswith(".json"):
                program = json.loads(content)
                change(program)
                content = json.dumps(program).encode()
            copy.writestr(name, content)
    return path


def test_what_torch_writes_is_taken_and_its_guards_still_hold(saved: bytes, tmp_path: Path) -> None:
    def has_guards(program: Program) -> None:
        assert program["guards_code"]
        assert fault(program) is None

    module = load_pt2(written(saved, tmp_path / "net.pt2", has_guards), allow_pickle=False).module()
    assert module(torch.ones(3, 8), mask=torch.ones(1))["pair"][0].shape == (3, 8)
    with pytest.raises(AssertionError, match="Guard failed"):
        module(torch.ones(60, 8), mask=torch.ones(1))


def in_a_guard(program: Program, code: str) -> None:
    program["guards_code"] = [f"{code} or True"]


def in_a_guards_key(program: Program, code: str) -> None:
    program["guards_code"] = [f"""L["'"+{code}+'"].size()[0] >= 1"""]


def in_an_input(program: Program, code: str) -> None:
    text = json.dumps(program).replace('"name": "x"', json.dumps({"name": f"x={code}"})[1:-1])
    program.update(json.loads(text))


def in_a_constant_input(program: Program, code: str) -> None:
    program["graph_module"]["graph"]["inputs"].append({"as_string": f"'+{code}+'"})


def in_a_keyword(program: Program, code: str) -> None:
    node = program["graph_module"]["graph"]["nodes"][0]
    node["inputs"][0]["name"] = f"x={code}, y"


def in_a_tree(program: Program, code: str) -> None:
    call = program["graph_module"]["module_call_graph"][0]["signature"]
    call["in_spec"] = call["in_spec"].replace("mask", f"mask={code}")


def in_an_operator(program: Program, code: str) -> None:
    program["graph_module"]["graph"]["nodes"][0]["target"] = "torch.ops.aten.from_file.default"


def in_an_enumeration(program: Program, code: str) -> None:
    call = program["graph_module"]["module_call_graph"][0]["signature"]
    protocol, tree = json.loads(call["in_spec"])
    tree["context"] = json.dumps({"__enum__": True, "fqn": "antigravity:x", "name": "y"})
    call["in_spec"] = json.dumps([protocol, tree])


@pytest.mark.parametrize(
    "attack",
    [
        in_a_guard, in_a_guards_key, in_an_input, in_a_constant_input, in_a_keyword, in_a_tree, in_an_operator,
        in_an_enumeration,
    ],
)  # fmt: skip
def test_code_in_a_program_is_refused_before_it_runs(
    attack: Callable[[Program, str], None], saved: bytes, tmp_path: Path
) -> None:
    mark = tmp_path / "harmed"
    written(saved, tmp_path / "net.pt2", lambda program: attack(program, f"open({str(mark)!r},'w').name"))
    with pytest.raises(UsageError, match=r"Python code|does more than compare|may do anything"):
        ExportedProgramSource(path="net.pt2", base=tmp_path).capture(lambda *_: None)
    assert not mark.exists()


@pytest.mark.parametrize(
    "guard",
    [
        "L['x'].size()[1] <= 512", "(L['flat_args'][0].size()[0] % 4) == 0",
        "(1 + (((-1) + L['input'].size()[3]) // 2)) != 1 and L['a'][0].stride()[0] >= 1",
        "max(1, L['x'].ndim) == 1", "math.floor(L['x'].size()[0] / 2) != 3",
    ],
)  # fmt: skip
def test_comparing_sizes_is_a_guard(guard: str) -> None:
    assert is_guard(guard)


@pytest.mark.parametrize(
    "guard",
    [
        "open('x', 'w')", "L.__class__", "L['x'].tofile('y')", "(lambda: 1)()", "[1 for a in L]",
        "__import__('os')", "math.factorial(10**9)", "9 ** 9 ** 9 > L['x'].ndim", "1 << 10 ** 20", "L[",
        "L['x'].size()[0] >= 1\nimport os", "max(L, key=eval)", "-" * 20_000 + "1",
    ],
)  # fmt: skip
def test_anything_else_is_none(guard: str) -> None:
    assert not is_guard(guard)


S = "Symbol('s0', positive=True, integer=True)"


@pytest.mark.parametrize(
    ("text", "count"),
    [
        (S, 1),
        (f"Mul(Integer(3), {S})", 1),
        (f"Add(Mul(Integer(3), {S}), Integer(-1))", 2),
        (f"FloorDiv(Add({S}, Integer(3)), Integer(4))", 3),
        (f"Pow(Add({S}, Integer(1)), Integer(3))", 8),
        (f"FloatPow(ToFloat({S}), Float('0.5', precision=53))", 1),
        (f"FloatTrueDiv({S}, Max(Integer(1), Mul({S}, Rational(1, 2))))", 3),
        ("PowByNatural(Integer(2), s0)", 1),
        ("s0 // 2 + s1 % 8 >= 1", 5),
    ],
)
def test_terms_are_counted_as_if_all_were_multiplied_out(text: str, count: int) -> None:
    assert terms(text) == count


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("9**9**9**9", "power"),
        ("Pow(Integer(9), Pow(Integer(9), Integer(9)))", "power"),
        ("Pow(Integer(9), Add(Integer(99), Integer(9999)))", "power"),
        ("1 << 99999999999", "power"),
        ("LShift(Integer(1), Integer(99999999999))", "power"),
        ("Pow(Pow(Pow(Integer(9), Integer(60)), Integer(60)), Integer(60))", "too large"),
        (f"Float('1e999999999', precision=53) + {S}", "no arithmetic"),
        ("Float('1', precision=999999999)", "no arithmetic"),
        ("FloatPow(s0, Float('nonsense'))", "power"),
        ("FloatPow(s0, Float('1e300'))", "power"),
        (f"({'*'.join(['(a+b+c+d)'] * 9)}) % (a+1)", "too large"),
        (f"Mod(Pow(Add({', '.join('abcdefgh')}), Integer(8)), Integer(7))", "too large"),
        ("+".join("a" * (MOST_TERMS + 1)), "too large"),
        ("Matrix(99999, 99999, x)", "no arithmetic"),
        ("factorial(10)", "no arithmetic"),
        ("-" * 9_000 + "1", "no arithmetic"),
        ("(" * 5_000, "no arithmetic"),
        ("a" * 10_001, "more than 10,000 characters"),
        (str(10**30), "no arithmetic"),
    ],
)
def test_what_would_be_evaluated_without_end_is_refused_at_once(text: str, said: str) -> None:
    started = time.monotonic()
    with pytest.raises(ValueError, match=said):
        terms(text)
    assert time.monotonic() - started < 5


def test_many_expressions_are_bounded_together() -> None:
    many = [{"expr_str": f"s{number}+" + "+".join("a" * 49)} for number in range(201)]
    assert fault({"sizes": many[:199]}) is None
    assert "in all" in (fault({"sizes": many}) or "")
