"""What a run is: resolved into a frozen record, while the user's configuration stays as it is."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import cast

import pytest
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ReadonlyConfigError

from runs import CONTEXT, TINY, composed
from skillgraft.config import compose
from skillgraft.config.schema import ResolvedConfig
from skillgraft.experiments.resolve import resolve

MIXTURE = ("finetune=multitask", "finetune.tasks=[toy_film,toy_topic]")
SMALL = tuple(option for option in TINY if option != "task.ood=[]")


@pytest.mark.parametrize("overrides", [(), MIXTURE], ids=["one task", "a mixture"])
def test_the_configuration_of_the_user_is_left_as_it_is(
    overrides: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    cfg = composed("store=runs", *SMALL, *overrides)
    cfg.task.verbalizer = ["bad", "good"]  # as the command line can give it to task=custom
    OmegaConf.set_readonly(cast(DictConfig, cfg), True)
    before = OmegaConf.to_yaml(cfg)
    found = resolve(cfg, CONTEXT)
    assert OmegaConf.to_yaml(cfg) == before
    assert OmegaConf.get_type(found.cfg) is ResolvedConfig
    assert found.cfg.store == str(tmp_path / "runs")
    assert found.cfg.task.verbalizer == {"negative": "bad", "positive": "good"}
    assert list(found.cfg.ood_tasks) == list(found.rows.ood) == list(found.cfg.task.ood)
    assert list(found.cfg.other_tasks) == list(found.rows.others)
    assert list(found.cfg.other_tasks) == (["toy_topic"] if overrides else [])
    with pytest.raises(ReadonlyConfigError):
        found.cfg.ood_tasks["another"] = found.cfg.task
    with pytest.raises(dataclasses.FrozenInstanceError):
        found.size = 3  # type: ignore[misc]


def test_a_resolved_configuration_resolves_to_itself(tmp_path: Path) -> None:
    """As it is stored, and read by a rerun that has no folder of tasks."""
    first = resolve(composed(f"store={tmp_path}", *SMALL), CONTEXT)
    (tmp_path / "config.yaml").write_text(OmegaConf.to_yaml(first.cfg, resolve=True))
    stored = OmegaConf.merge(
        OmegaConf.structured(ResolvedConfig), OmegaConf.load(tmp_path / "config.yaml")
    )
    again = resolve(cast(ResolvedConfig, stored), dataclasses.replace(CONTEXT, config_folders=()))
    assert compose.plain(again.cfg) == compose.plain(first.cfg)
    assert again.identity == first.identity
