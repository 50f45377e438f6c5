"""The commands that prepare a cluster."""

from __future__ import annotations

from pathlib import Path

import click

from pipelines.cli.cluster import deployment_option


@click.group()
def cluster() -> None:
    """Prepare a cluster for runs; nothing is applied to it."""


@cluster.command()
@click.argument("parts", nargs=-1)
@click.option(
    "--namespace",
    envvar="KFP_NAMESPACE",
    show_envvar=True,
    default="kubeflow",
    show_default=True,
    help="that the runs' pods start in: your profile's, where KFP serves several users",
)
@click.option("--mlflow", is_flag=True, help="add MLflow's tracking server, for a PostgreSQL database and a bucket that exist")
@click.option(
    "--mlflow-image", default="", metavar="IMAGE", help="that it runs in, such as the one that make push-images pushed"
)
@click.option("--s3", default="", metavar="URI", help="s3://BUCKET/PREFIX where MLflow's server keeps artifacts  [s3://mlflow]")
@click.option(
    "--s3-endpoint", default="", metavar="URL", help="of the S3 store, as pods reach it  [http://seaweedfs:8333, an example]"
)
@deployment_option
def manifests(
    parts: tuple[str, ...],
    namespace: str,
    mlflow: bool,
    mlflow_image: str,
    s3: str,
    s3_endpoint: str,
    deployment: Path | None,
) -> None:
    """Print what tasks need in their namespace as YAML for kubectl: PARTS, or credentials settings access volume.

    PARTS: credentials (a Secret), settings (a ConfigMap), access (rights to look after runs), volume (a claim), mlflow (its
    server), disk (a limit for all pods). Names and keys are those of the deployment file. No secret is printed: comments say
    how kubectl fills a Secret from a file or from variables. Only the part credentials, where it is named, has the Secret's
    manifest, with placeholders.

    \b
      rco cluster manifests --namespace team-a > team-a.yaml     # look at it, edit it
      kubectl apply -f team-a.yaml
      rco doctor --cluster --namespace team-a
    """
    from pipelines.cluster.deployment import read_deployment
    from pipelines.cluster.manifests import Site, render

    site = Site(
        namespace=namespace,
        deployment=read_deployment(deployment) if deployment else None,
        s3=s3,
        s3_endpoint=s3_endpoint,
        mlflow_image=mlflow_image,
    )
    click.echo(render(site, parts, mlflow), nl=False)
