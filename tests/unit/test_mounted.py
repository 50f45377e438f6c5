"""Settings that a cluster mounts as files, and a task takes as variables."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rco.core import mounted
from rco.core.errors import InputError
from rco.core.mounted import DEFAULT, Mounted, describe, take
from rco.tasks.process import TASKS, task


def write(folder: Path, **files: str) -> None:
    """Keys of the default ConfigMap and Secret, as Kubernetes mounts them."""
    for name, text in files.items():
        source = DEFAULT[0] if name in DEFAULT[0].variables else DEFAULT[1]
        path = folder / source.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def test_the_default_files_become_variables(tmp_path: Path) -> None:
    write(tmp_path, MLFLOW_TRACKING_URI="http://mlflow:5000\n", AWS_SECRET_ACCESS_KEY="a b=c")
    environment = {"PATH": "/bin"}
    take(environment, tmp_path)
    assert environment == {"PATH": "/bin", "MLFLOW_TRACKING_URI": "http://mlflow:5000", "AWS_SECRET_ACCESS_KEY": "a b=c"}


def test_a_variable_that_is_set_stays(tmp_path: Path) -> None:
    """KFP's MLflow plugin sets MLFLOW_TRACKING_URI as a value."""
    write(tmp_path, MLFLOW_TRACKING_URI="http://ours")
    for given_ in ("http://the-plugins", ""):
        environment = {"MLFLOW_TRACKING_URI": given_}
        take(environment, tmp_path)
        assert environment == {"MLFLOW_TRACKING_URI": given_}


def test_what_comes_by_our_name_for_it(tmp_path: Path) -> None:
    name = mounted.by_reference("MLFLOW_TRACKING_URI")
    assert (name, mounted.by_reference("AWS_REGION")) == ("RCO_MLFLOW_TRACKING_URI", "AWS_REGION")
    write(tmp_path, MLFLOW_TRACKING_URI="http://mounted")
    for environment, known in (
        ({name: "http://ours"}, "http://ours"),
        ({name: "http://ours", "MLFLOW_TRACKING_URI": "http://the-plugins"}, "http://the-plugins"),
        ({"RCO_RESULTS": "s3://b/r"}, "http://mounted"),
    ):
        take(environment, tmp_path)
        assert environment["MLFLOW_TRACKING_URI"] == known


def test_keys_that_nobody_listed_are_not_read(tmp_path: Path) -> None:
    write(tmp_path, AWS_ACCESS_KEY_ID="id")
    (tmp_path / "secret/rco-credentials/LD_PRELOAD").write_text("/evil.so")
    environment: dict[str, str] = {}
    take(environment, tmp_path)
    assert environment == {"AWS_ACCESS_KEY_ID": "id"}
    environment = {mounted.VARIABLE: "secret/rco-credentials:AWS_SESSION_TOKEN"}
    take(environment, tmp_path)
    assert set(environment) == {mounted.VARIABLE}


def test_another_name_and_what_must_be_there(tmp_path: Path) -> None:
    write(tmp_path, AWS_ACCESS_KEY_ID="id")
    environment = {mounted.VARIABLE: "secret/rco-credentials!:MY_KEY=AWS_ACCESS_KEY_ID,OTHER"}
    with pytest.raises(InputError, match="is not set: the Secret rco-credentials has no key OTHER"):
        take(environment, tmp_path)
    assert environment["MY_KEY"] == "id"


def test_nothing_is_mounted_on_this_machine(tmp_path: Path) -> None:
    environment: dict[str, str] = {}
    take(environment, tmp_path / "nothing")
    assert environment == {}


@pytest.mark.parametrize("content", [b"\xff\xfe", b"a\0b"])
def test_what_is_not_text_is_refused_unseen(tmp_path: Path, content: bytes) -> None:
    write(tmp_path, AWS_ACCESS_KEY_ID="")
    (tmp_path / "secret/rco-credentials/AWS_ACCESS_KEY_ID").write_bytes(content)
    with pytest.raises(InputError, match=r"AWS_ACCESS_KEY_ID = '\(hidden\)': is not text"):
        take({}, tmp_path)


@pytest.mark.parametrize("text", ["x", "secret/../../etc:A b", "secret/a/b:A", "volume/a:B", "secret/a:", "secret/a"])
def test_a_description_that_is_none(tmp_path: Path, text: str) -> None:
    with pytest.raises(InputError, match="RCO_ENVIRONMENT"):
        take({mounted.VARIABLE: text}, tmp_path)


_NAMES = st.from_regex(r"[A-Za-z_][A-Za-z0-9_]{0,8}", fullmatch=True)
_KEYS = st.from_regex(r"[-._A-Za-z0-9]{1,8}", fullmatch=True)
_OBJECTS = st.from_regex(r"[a-z0-9]([-a-z0-9.]{0,8}[a-z0-9])?", fullmatch=True)
_SOURCES = st.builds(
    Mounted,
    folder=st.builds("{}/{}".format, st.sampled_from(["secret", "config-map"]), _OBJECTS),
    variables=st.dictionaries(_NAMES, _KEYS, min_size=1, max_size=4),
    optional=st.booleans(),
)


@given(st.lists(_SOURCES, min_size=1, max_size=3))
def test_what_is_described_is_read_again(sources: list[Mounted]) -> None:
    assert [Mounted.read(text) for text in describe(sources).split()] == sources


def test_the_default_is_not_written_out() -> None:
    assert describe(DEFAULT) == ""


def test_a_task_sees_what_is_mounted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    import os

    write(tmp_path, AWS_REGION="eu-somewhere")
    monkeypatch.delenv("AWS_REGION", raising=False)
    environment = dict(os.environ)
    monkeypatch.setattr(mounted.take, "__defaults__", (environment, tmp_path))

    @task
    def looks() -> str:
        return environment["AWS_REGION"]

    assert looks() == "eu-somewhere"
    environment[mounted.VARIABLE] = "config-map/rco-settings!:NO_SUCH"
    with pytest.raises(InputError):
        looks()
    TASKS.pop("looks")
