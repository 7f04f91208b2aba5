"""Methods that a study file combines, and losses in files of the user's: reading, planning, ids."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator import losses
from orchestrator.errors import StudyError
from orchestrator.records import TrialConfig
from orchestrator.study import labels
from orchestrator.study.fields import Selection, combine
from orchestrator.study.plan import Plan, make_plan
from orchestrator.study.reader import load_study

LOSS = """
from helper import SCALE

def mine(student, labels, teacher, progress, *, weight: float = 1.0):
    return SCALE * weight * (student.logits - teacher.logits).square().mean()
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "my_loss.py").write_text(LOSS)
    (tmp_path / "helper.py").write_text("SCALE = 2\n")
    return tmp_path


def plan_of(folder: Path, method: str, *rest: str) -> Plan:
    path = folder / "s.yaml"
    lines = "".join(
        f"  {line}\n" for line in ("dataset: digits", "student: resnet_32_8", "teacher: resnet_32_14", *rest)
    )
    path.write_text(f"study: s\nexperiments:\n- method: {method}\n{lines}")
    return make_plan(load_study(path))


def students(plan: Plan) -> list[TrialConfig]:
    return [trial.config for trial in plan.trials if trial.role == "student"]


def fault_of(folder: Path, method: str, *rest: str) -> str:
    with pytest.raises(StudyError) as caught:
        plan_of(folder, method, *rest)
    (fault,) = caught.value.faults
    return f"{fault.path}: {fault.message}"


def test_a_mapping_with_several_names_is_one_method(tmp_path: Path) -> None:
    found = students(plan_of(tmp_path, "{dkd: {alpha: 1, beta: [2, 8]}, at: {weight: 1000}}"))
    assert [config.method for config in found] == ["at+dkd", "at+dkd"]
    assert [dict(config.options)["dkd.beta"] for config in found] == [2.0, 8.0]
    assert labels.of_config(found[0]) == "at+dkd dkd.beta=2"  # 8 is the default


def test_the_order_of_the_names_changes_nothing(tmp_path: Path) -> None:
    one, two = (plan_of(tmp_path, text) for text in ("{dkd: , at: {weight: 5}}", "{at: {weight: 5}, dkd: {}}"))
    assert [trial.trial_id for trial in one.trials] == [trial.trial_id for trial in two.trials]


def test_a_combination_that_needs_two_outputs_asks_a_live_teacher(tmp_path: Path) -> None:
    both, single = (plan_of(tmp_path, text, "teacher_cache: table") for text in ("{dkd: , rkd: }", "{dkd: , dist: }"))
    assert both.trials[-1].teacher_cache == "live" and both.trials[-1].table is None
    assert single.trials[-1].teacher_cache == "table" and single.trials[-1].table is not None


@pytest.mark.parametrize(
    ("method", "message"),
    [
        ("{kd: , st: }", "experiments[0].method: the cross-entropy counts once, and the methods give it different"),
        ("{base: , st: }", "experiments[0].method: base has no distillation term that could be combined"),
        ("{st: , dkd: {bta: 1}}", "experiments[0].method.dkd.bta: unknown key; known are"),
        ("{st: , nothing: }", "experiments[0].method.nothing: unknown key"),
        ("{}", "experiments[0].method: found"),
        ("./my_loss.py", "experiments[0].method: found ./my_loss.py alone; add the class or function in it"),
        ("./nowhere.py:mine", "experiments[0].method: nowhere.py cannot be read (No such file or directory)"),
        ("./my_loss.py:yours", "experiments[0].method: my_loss.py defines no class or function yours; it defines mine"),
        ("{./my_loss.py:mine: {wieght: 2}}", "experiments[0].method../my_loss.py:mine.wieght: unknown key"),
        ("{./my_loss.py:mine: {weight: high}}", "experiments[0].method../my_loss.py:mine.weight: found "),
    ],
)
def test_a_mistake_is_one_fault_at_its_place(folder: Path, method: str, message: str) -> None:
    assert fault_of(folder, method).startswith(message)


def test_two_files_of_one_name_are_refused(folder: Path) -> None:
    (folder / "other").mkdir()
    (folder / "other/my_loss.py").write_text(LOSS.replace("helper", "math").replace("SCALE", "pi"))
    message = fault_of(folder, "[./my_loss.py:mine, ./other/my_loss.py:mine]")
    assert message == "experiments[0].method[1]: two files define my_loss:mine; rename one of them"


def test_a_loss_of_the_user_is_a_method_with_options(folder: Path) -> None:
    plan = plan_of(folder, "[./my_loss.py:mine, {./my_loss.py:mine: {weight: [2, 3]}, st: {temperature: 2}}]")
    found = students(plan)
    assert [config.method for config in found] == ["my_loss:mine", "my_loss:mine+st", "my_loss:mine+st"]
    assert dict(found[0].options) == {"weight": 1.0}
    assert dict(found[2].options)["my_loss:mine.weight"] == 3.0
    digest = plan.own_code["my_loss:mine"].digest
    assert all(config.own_code == (("my_loss:mine", digest),) for config in found)
    assert labels.of_config(found[0]) == f"my_loss:mine weight=1 code={digest}"
    assert losses.get("my_loss:mine").needs({}) == ("logits",)


def test_an_edit_of_the_file_or_of_what_it_imports_makes_new_trials(folder: Path) -> None:
    def ids() -> list[str]:
        return [trial.trial_id for trial in plan_of(folder, "[./my_loss.py:mine, st]").trials]

    teacher, own, st = ids()
    assert ids() == [teacher, own, st]
    (folder / "unused.py").write_text("x = 1\n")
    assert ids() == [teacher, own, st]
    (folder / "helper.py").write_text("SCALE = 3\n")
    edited = ids()
    assert edited[0] == teacher and edited[1] != own and edited[2] == st


def test_an_id_does_not_depend_on_what_is_registered(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = students(plan_of(folder, "{./my_loss.py:mine: {weight: 2}, st: }"))[0]
    before = config.trial_id()
    monkeypatch.delitem(losses.OWN, "my_loss:mine")
    assert config.trial_id() == before


def test_a_label_does_not_depend_on_what_is_registered(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = students(plan_of(folder, "[./my_loss.py:mine, {./my_loss.py:mine: {weight: 2}, dkd: {beta: 2}}]"))
    before = [labels.of_config(config) for config in found]
    monkeypatch.delitem(losses.OWN, "my_loss:mine")
    assert [labels.of_config(config) for config in found] == before
    assert before[1].startswith("dkd+my_loss:mine dkd.beta=2 my_loss:mine.weight=2 code=")


def test_a_stored_plan_holds_no_code(folder: Path) -> None:
    plan = plan_of(folder, "./my_loss.py:mine")
    assert plan.own_code and "SCALE" not in str(plan.to_json())


def test_a_base_run_has_no_code(folder: Path) -> None:
    (warning,) = plan_of(folder, "./my_loss.py:mine").warnings
    assert "base · digits · resnet_32_8 · seed 0" in warning


def test_combined_selections_are_sorted() -> None:
    one, two = Selection("st", (("temperature", 2.0),)), Selection("at", (("weight", 5.0),))
    expected = Selection("at+st", (("at.weight", 5.0), ("st.temperature", 2.0)))
    assert combine([one, two]) == combine([two, one]) == expected
    assert combine([one]) == one


NET = "def build(num_classes): ...\n"


def test_a_model_of_the_user_is_a_student_or_a_teacher(folder: Path) -> None:
    (folder / "my_net.py").write_text(NET)
    path = folder / "s.yaml"
    path.write_text(
        "study: s\nexperiments:\n- method: [st, ./my_loss.py:mine]\n  dataset: digits\n  student: ./my_net.py:build\n"
        "  teacher: [./my_net.py:build, resnet_32_8]\n- {method: base, dataset: digits, student: ./my_net.py:build}\n"
    )
    plan = make_plan(load_study(path))
    digest = plan.own_code["my_net:build"].digest
    own = {trial.config.method: trial.config for trial in plan.trials if trial.config.student == "my_net:build"}
    assert own["base"].own_code == own["st"].own_code == (("my_net:build", digest),)
    assert [name for name, _ in own["my_loss:mine"].own_code] == ["my_loss:mine", "my_net:build"]
    assert own["st"].own_names() == {"my_net:build"}
    assert not plan.warnings  # their base is the teacher itself


@pytest.mark.parametrize(
    ("student", "message"),
    [
        ("my_net:build", "experiments[0].student: found the text 'my_net:build'; expected the file of "),
        ("./my_net.py:other", "experiments[0].student: my_net.py defines no class or function other"),
        ("./my_net.py", "experiments[0].student: found ./my_net.py alone"),
        ("./my-net.py:build", "experiments[0].student: Python cannot import a file named my-net.py; rename it"),
    ],
)
def test_a_wrong_model_is_one_fault(folder: Path, student: str, message: str) -> None:
    (folder / "my_net.py").write_text(NET)
    (folder / "my-net.py").write_text(NET)
    path = folder / "s.yaml"
    path.write_text(f"study: s\nexperiments:\n- {{method: base, dataset: digits, student: '{student}'}}\n")
    with pytest.raises(StudyError) as caught:
        load_study(path)
    (fault,) = caught.value.faults
    assert f"{fault.path}: {fault.message}".startswith(message)
