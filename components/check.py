"""check: validate a whole run before anything expensive."""

from typing import NamedTuple

from kfp import dsl

from components.image import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def check(
    max_stages: int,
    dataset: str,
    data_root: str,
    download: bool,
    image_size: int,
    val_fraction: float,
    test_fraction: float,
    probe_size: int,
    data_seed: int,
    open_classes: list,
    teacher: str,
    teacher_stem: str,
    teacher_embedding_dim: int,
    teacher_epochs: int,
    teacher_batch_size: int,
    teacher_optimizer: str,
    teacher_lr: float,
    teacher_momentum: float,
    teacher_weight_decay: float,
    teacher_schedule: str,
    teacher_milestones: list,
    teacher_gamma: float,
    teacher_warmup_epochs: float,
    teacher_augment: str,
    teacher_seed: int,
    route: str,
    checkpoint_every: int,
    student: str,
    student_stem: str,
    student_embedding_dim: int,
    epochs: int,
    batch_size: int,
    optimizer: str,
    lr: float,
    momentum: float,
    weight_decay: float,
    schedule: str,
    milestones: list,
    gamma: float,
    warmup_epochs: float,
    augment: str,
    seed: int,
    strategy: str,
    n_anchors: int,
    delta: float,
    first_epoch: int,
    anchor_epochs: list,
    objective: str,
    label_weight: float,
    tau: float,
    lam: str,
    views: int,
    hint_weight: float,
    student_tap: str,
    teacher_tap: str,
    dkd_alpha: float,
    dkd_beta: float,
    dist_beta: float,
    dist_gamma: float,
    device: str,
    precision: str,
    threads: int,
    workers: int,
    experiment: str,
    registered_model: str,
    champion_margin: float,
    check_services: bool,
) -> NamedTuple(
    "Checked",
    [
        ("data", dict),
        ("teacher", dict),
        ("student", dict),
        ("anchors", dict),
        ("stage", dict),
        ("evaluate", dict),
        ("filing", dict),
    ],
):
    """Validate every parameter, resolve what was left open, open the run in MLflow.

    The parameters are those of rco.config.parameters.RunConfig; the outputs are the settings of the other tasks
    (rco.tasks.settings.Settings).

    Args:
        max_stages: how many stages the pipeline was compiled with.
    """
    # First, before any other name is bound: KFP reads the signature, and the body need not repeat fifty names.
    parameters = dict(locals())
    from collections import namedtuple

    from rco.tasks.check import check

    settings = check(parameters, max_stages=parameters.pop("max_stages"))
    return namedtuple("Checked", settings)(**settings)
