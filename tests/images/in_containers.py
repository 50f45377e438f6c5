"""Run pipelines with `kfp.local.DockerRunner`, in a process of its own: `python -m tests.images.in_containers request.json`.

The image's name is read when components are imported (RCO_IMAGE). KFP's own handler starts containers that remove themselves
and takes one that is gone for a success, so its function is replaced: a container stays until its exit status has
been read, and every task must leave its executor_output.json.
"""

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

from kfp import dsl, local
from kfp.local import docker_task_handler

from components.image import IMAGE
from pipelines.local.work import READERS, make_plan

ENOUGH = "the task whose process was killed has ended, and nothing else is asked for"


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def raises() -> int:
    """Fail as Python code does."""
    raise ValueError("this task had to fail")


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def vanishes() -> int:
    """End at once, as if all were well, and leave nothing."""
    import os

    os._exit(0)


class Containers:
    """Starts one container a task, and remembers what each was allowed and how it ended.

    Args:
        kill_after: the first worker process (`rco.tasks.worker`) of the first container that prints this is killed (SIGKILL);
            once that container has ended, no other is started.
    """

    def __init__(self, root: Path, kill_after: str = "") -> None:
        self.root = root
        self.kill_after = kill_after
        self.killed: list[int] = []
        self.ended: list[dict[str, Any]] = []

    def run(self, client: Any, image: str, command: list[str], volumes: dict[str, Any], **options: Any) -> int:
        """Takes the place of kfp.local.docker_task_handler.run_docker_container."""
        if self.killed:
            raise RuntimeError(ENOUGH)
        before = self._outputs()
        container = client.containers.run(image=image, command=command, detach=True, volumes=volumes, **options)
        try:
            for line in container.logs(stream=True):
                print(line.decode(errors="replace"), end="")
                if self.kill_after and not self.killed and self.kill_after in line.decode(errors="replace"):
                    self._kill_worker(container)
            status = int(container.wait()["StatusCode"])
            container.reload()
            known = container.attrs
        finally:
            container.remove(force=True)
        left = self._outputs() - before
        self.ended.append(
            {
                "status": status,
                "user": known["Config"]["User"],
                "read_only": known["HostConfig"]["ReadonlyRootfs"],
                "network": known["HostConfig"]["NetworkMode"],
                "image": known["Config"]["Image"],
                "outputs": sorted(left),
            }
        )
        if status == 0 and len(left) != 1:
            print(f"a task ended with 0 and left {len(left)} executor_output.json")
            return 1
        return status

    def _kill_worker(self, container: Any) -> None:
        known = container.top(ps_args="-ewwo pid,args")  # whole lines
        pid, command = (known["Titles"].index(title) for title in ("PID", "COMMAND"))
        self.killed = [int(row[pid]) for row in known["Processes"] if "rco.tasks.worker" in row[command]][:1]
        for number in self.killed:  # as it is known outside the container
            os.kill(number, signal.SIGKILL)

    def _outputs(self) -> set[str]:
        return {str(path.relative_to(self.root)) for path in self.root.rglob("executor_output.json")}


def main(path: Path) -> None:
    """Run what request.json asks for; the result lies beside it."""
    request = json.loads(path.read_text())
    root = Path(request["root"])
    containers = Containers(root, request["kill_after"])
    docker_task_handler.run_docker_container = containers.run
    local.init(
        runner=local.DockerRunner(
            environment=request["environment"],
            network_mode="none",
            read_only=True,
            tmpfs={"/tmp": "mode=1777"},
            cap_drop=["ALL"],
        ),
        pipeline_root=str(root),
    )
    result: dict[str, Any] = {}
    try:
        if request["pipeline"] in READERS:
            plan = make_plan(READERS[request["pipeline"]](request["parameters"]))
            outputs = plan.make()(**plan.arguments).outputs
            result["summary"] = outputs["summary"].path
        else:
            {"raises": raises, "vanishes": vanishes}[request["pipeline"]]()
    except RuntimeError as error:
        result["error"] = str(error)
    path.with_name("result.json").write_text(
        json.dumps({**result, "killed": len(containers.killed), "containers": containers.ended})
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
