"""The deployment files: Ray's own schema, what that misses, and versions that agree with the project's."""

from __future__ import annotations

import importlib.util
import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml

from patchsieve.jobs.arguments import read_config
from patchsieve.pipeline.cluster import spot_notice
from patchsieve.pipeline.schedule.config import OnceConfig
from patchsieve.pipeline.score.config import ScoreConfig
from tests.helpers.checkout import ROOT

AWS, KUBERAY, DOCKERFILE = ROOT / "ray_cluster.yaml", ROOT / "deploy/kuberay.yaml", ROOT / "deploy/Dockerfile"
SKY, GCP = ROOT / "deploy/skypilot.yaml", ROOT / "deploy/ray_cluster_gcp.yaml"
RAY = Path(importlib.util.find_spec("ray").submodule_search_locations[0])  # type: ignore[union-attr, index]
PLACEHOLDER = re.compile(r"<[A-Z_]+>")
# The fields of EC2's request that we use, and those of Ray's AWS provider: Ray's schema lets any name pass.
NODE_FIELDS = {
    *("InstanceType", "ImageId", "SubnetIds", "SecurityGroupIds", "IamInstanceProfile", "MetadataOptions"),
    *("BlockDeviceMappings", "InstanceMarketOptions"),
}
GCP_NODE_FIELDS = {
    *("machineType", "disks", "networkInterfaces", "serviceAccounts", "scheduling"),  # of Google's reference
}
PROVIDER_FIELDS = {"type", "region", "availability_zone", "cache_stopped_nodes"}


def comments(file: Path) -> str:
    lines = file.read_text(encoding="utf-8").splitlines()
    return "\n".join(line for line in lines if line.startswith("#"))


def filled(file: Path) -> str:
    """The file's text with something in every place that a user has to fill."""
    lists = file.read_text(encoding="utf-8").replace("<SUBNETS>", "[subnet-1, subnet-2]")
    return PLACEHOLDER.sub(lambda found: found[0].strip("<>").lower(), lists)


def pinned(name: str) -> str:
    found = re.search(
        rf"^{name}==(.+)$", (ROOT / "constraints.txt").read_text(encoding="utf-8"), re.MULTILINE
    )
    assert found is not None
    return found[1]


@pytest.fixture
def aws() -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load(filled(AWS))
    return content


@pytest.fixture
def gcp() -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load(filled(GCP))
    return content


@pytest.fixture
def kubernetes() -> dict[str, Any]:
    return {document["kind"]: document for document in yaml.safe_load_all(filled(KUBERAY)) if document}


def pods(kubernetes: dict[str, Any]) -> dict[str, Any]:
    cluster = kubernetes["RayCluster"]["spec"]
    return {
        "head": cluster["headGroupSpec"]["template"],
        **{group["groupName"]: group["template"] for group in cluster["workerGroupSpecs"]},
        "tick": kubernetes["CronJob"]["spec"]["jobTemplate"]["spec"]["template"],
    }


@pytest.mark.parametrize("file", [AWS, GCP, KUBERAY, DOCKERFILE, SKY])
def test_every_placeholder_is_explained_and_every_explained_one_is_used(file: Path) -> None:
    explained = set(re.findall(r"^# +(<[A-Z_]+>) {2,}\S", comments(file), re.MULTILINE))
    lines = file.read_text(encoding="utf-8").splitlines()
    used = {name for line in lines if not line.startswith("#") for name in PLACEHOLDER.findall(line)}
    assert used <= explained
    assert explained - used <= {"<NAMESPACE>"}
    assert set(PLACEHOLDER.findall(comments(file))) - explained <= {"<IMAGE>"}


def validate_as_ray_does(cluster: dict[str, Any]) -> None:
    import jsonschema  # type: ignore[import-untyped]
    from ray.autoscaler.sdk import fillout_defaults

    schema = json.loads((RAY / "autoscaler/ray-schema.json").read_text(encoding="utf-8"))
    jsonschema.validate(fillout_defaults(cluster), schema)


def test_ray_accepts_the_cluster_file(aws: dict[str, Any]) -> None:
    validate_as_ray_does(aws)
    assert aws["head_node_type"] in aws["available_node_types"]
    assert {"image", "container_name"} <= aws["docker"].keys()


def test_ray_refuses_a_misspelt_name(aws: dict[str, Any]) -> None:
    """What the test before is worth."""
    from jsonschema import ValidationError

    aws["available_node_types"]["gpu_worker"]["min_worker"] = 1
    with pytest.raises(ValidationError, match="min_worker"):
        validate_as_ray_does(aws)


def test_names_that_rays_schema_lets_pass(aws: dict[str, Any]) -> None:
    assert set(aws["provider"]) == PROVIDER_FIELDS
    for kind in aws["available_node_types"].values():
        assert set(kind["node_config"]) <= NODE_FIELDS
    assert aws["available_node_types"]["gpu_worker"]["max_workers"] <= aws["max_workers"]


def test_the_cluster_on_google_is_that_on_aws_but_for_the_machines(
    aws: dict[str, Any], gcp: dict[str, Any]
) -> None:
    validate_as_ray_does(gcp)
    assert set(gcp["provider"]) == PROVIDER_FIELDS | {"project_id"}
    for kind in gcp["available_node_types"].values():
        assert set(kind["node_config"]) <= GCP_NODE_FIELDS
        (account,) = kind["node_config"]["serviceAccounts"]
        assert account["email"]  # or Ray makes one with wide rights
        assert kind["node_config"]["networkInterfaces"][0]["subnetwork"]
    kinds = gcp["available_node_types"]
    assert kinds["gpu_worker"]["node_config"]["scheduling"]["provisioningModel"] == "SPOT"
    assert "scheduling" not in kinds["head"]["node_config"]
    for cluster in (aws, gcp):
        for kind in cluster["available_node_types"].values():
            del kind["node_config"]
        # What differs beside the machines: the provider, and packages by store and cloud.
        for other in ("provider", "head_setup_commands"):
            del cluster[other]
        cluster["setup_commands"][0] = re.sub(r"\[\w+\]$", "", cluster["setup_commands"][0])
    assert gcp == aws


def test_workers_are_on_spot_and_the_head_takes_no_actor(aws: dict[str, Any]) -> None:
    kinds = aws["available_node_types"]
    assert kinds["gpu_worker"]["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}
    assert "InstanceMarketOptions" not in kinds["head"]["node_config"]
    assert kinds["head"]["resources"] == {"CPU": 0}
    assert kinds["gpu_worker"]["resources"]["GPU"] == 1
    assert kinds["gpu_worker"]["min_workers"] == 0


def test_nothing_of_the_aws_cluster_is_open_to_the_public(aws: dict[str, Any]) -> None:
    for kind in aws["available_node_types"].values():
        # Named groups keep Ray from making one of its own, which opens port 22 to everybody.
        assert kind["node_config"]["SecurityGroupIds"]
        assert kind["node_config"]["MetadataOptions"]["HttpTokens"] == "required"
    (start,) = [line for line in aws["head_start_ray_commands"] if "ray start" in line]
    assert "--dashboard-host=127.0.0.1" in start
    for line in [*aws["head_start_ray_commands"], *aws["worker_start_ray_commands"]]:
        assert "ray start" not in line or "RAY_AUTH_MODE=token" in line
    assert aws["file_mounts"]["/home/ray/.ray/auth_token"] == "~/.ray/auth_token"


def test_the_object_store_fits_into_shared_memory(aws: dict[str, Any], kubernetes: dict[str, Any]) -> None:
    (shared,) = [option for option in aws["docker"]["run_options"] if option.startswith("--shm-size")]
    commands = aws["head_start_ray_commands"] + aws["worker_start_ray_commands"]
    stores = [int(n) for line in commands for n in re.findall(r"--object-store-memory=(\d+)", line)]
    assert len(stores) == 2
    assert max(stores) < int(shared.removeprefix("--shm-size=").removesuffix("g")) * 2**30
    cluster = kubernetes["RayCluster"]["spec"]
    for group in [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]:
        volumes = {volume["name"]: volume["emptyDir"] for volume in group["template"]["spec"]["volumes"]}
        room = int(volumes["shared-memory"]["sizeLimit"].removesuffix("Gi")) * 2**30
        assert int(group["rayStartParams"]["object-store-memory"]) < room


def test_versions_agree(aws: dict[str, Any], kubernetes: dict[str, Any]) -> None:
    ray = pinned("ray")
    assert aws["docker"]["image"] == f"rayproject/ray:{ray}-py311-gpu"
    assert kubernetes["RayCluster"]["spec"]["rayVersion"] == ray
    assert "--constraint ~/patchsieve/constraints.txt" in " ".join(aws["setup_commands"])
    docker = DOCKERFILE.read_text(encoding="utf-8")
    assert "ARG BASE=python:3.11-" in docker
    assert "FROM ${BASE}" in docker
    assert "--constraint constraints.txt" in docker


def test_the_image_holds_every_package_and_runs_as_the_user_that_kubernetes_expects() -> None:
    docker = DOCKERFILE.read_text(encoding="utf-8")
    # COPY keeps links as they are: what they lead to has to come along.
    links = [path for path in (ROOT / "patchsieve").iterdir() if path.is_symlink()]
    folders = {"patchsieve", *(path.resolve().name for path in links)}
    assert folders == {"patchsieve", "pipeline", "ranker", "jobs"}
    copied = re.findall(r"^COPY (.+) \S+$", docker, re.MULTILINE)
    assert folders <= {name for line in copied for name in line.split()}
    assert all((ROOT / name).exists() for line in copied for name in line.split())
    seen = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    assert {f"!{name}" for line in copied for name in line.split() if name != "./"} <= set(seen)
    assert "useradd --create-home --uid 1000" in docker
    assert re.findall(r"^USER (.+)$", docker, re.MULTILINE)[-1] == "ray"


def test_kubernetes_pods_are_confined_and_have_time_to_drain(kubernetes: dict[str, Any]) -> None:
    label = kubernetes["NetworkPolicy"]["spec"]["podSelector"]["matchLabels"]
    for template in pods(kubernetes).values():
        assert template["metadata"]["labels"] == label
        confined = template["spec"]["securityContext"]
        assert confined["runAsNonRoot"]
        assert confined["seccompProfile"] == {"type": "RuntimeDefault"}
        for container in template["spec"]["containers"]:
            dropped = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
            assert container["securityContext"] == dropped
        assert template["spec"]["serviceAccountName"] == kubernetes["ServiceAccount"]["metadata"]["name"]
    worker = pods(kubernetes)["gpu-spot"]["spec"]
    environment = {entry["name"]: entry["value"] for entry in worker["containers"][0]["env"]}
    drain = float(environment["RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"])
    assert 0 < drain < worker["terminationGracePeriodSeconds"] - 10
    assert kubernetes["RayCluster"]["spec"]["authOptions"] == {"mode": "token"}
    assert kubernetes["RayCluster"]["spec"]["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"


def test_pods_that_decode_hold_no_token_and_reach_no_metadata(kubernetes: dict[str, Any]) -> None:
    mounted = {
        name
        for name, pod in pods(kubernetes).items()
        if pod["spec"].get("automountServiceAccountToken", True)
    }
    assert mounted == {"head"}, (
        "its autoscaler asks the API of Kubernetes for workers; it has no CPU to decode with"
    )
    policy = kubernetes["NetworkPolicy"]["spec"]
    assert set(policy["policyTypes"]) == {"Ingress", "Egress"}
    blocks = [to["ipBlock"] for rule in policy["egress"] for to in rule["to"] if "ipBlock" in to]
    assert [block["except"] for block in blocks] == [["169.254.0.0/16"]]
    assert all(rule.get("ports") for rule in policy["egress"] if "ipBlock" in rule["to"][0])


def test_commands_of_kubernetes_are_ones_that_patchsieve_takes(kubernetes: dict[str, Any]) -> None:
    (container,) = pods(kubernetes)["tick"]["spec"]["containers"]
    words = container["args"]
    assert words[:3] == ["patchsieve", "schedule", "once"]
    cut = words.index("--")
    tick = read_config("schedule once", OnceConfig, words[3:cut])
    cluster, dashboard = kubernetes["RayCluster"]["metadata"]["name"], "8265"
    assert tick.address == f"http://{cluster}-head-svc:{dashboard}"
    assert read_config("score", ScoreConfig, ["x.tar", "--out", "o", *words[cut + 1 :]]).max_actors == 16
    entrypoint = shlex.split(kubernetes["RayJob"]["spec"]["entrypoint"])
    assert entrypoint[:2] == ["patchsieve", "score"]
    assert read_config("score", ScoreConfig, entrypoint[2:]).teacher == "mae-base"
    (secret,) = container["env"]
    assert secret["valueFrom"]["secretKeyRef"] == {"name": cluster, "key": "auth_token"}


def test_ray_knows_the_drain_setting_that_kubernetes_is_given() -> None:
    # Nothing public names it: the text of the module that reads the environment has to do.
    constants = (RAY / "_private/ray_constants.py").read_text(encoding="utf-8")
    assert '"RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"' in constants


def test_spot_workers_listen_for_their_notice(aws: dict[str, Any]) -> None:
    (line,) = [line for line in aws["worker_start_ray_commands"] if "spot_notice" in line]
    module = re.search(r"python -m (\S+) \$RAY_HEAD_IP:6379", line)
    assert module is not None
    assert module[1] == spot_notice.__name__


def test_skypilot_runs_a_command_that_patchsieve_takes() -> None:
    task = yaml.safe_load(filled(SKY))
    assert task["resources"]["use_spot"]
    words = shlex.split(task["run"].replace("$PART", task["envs"]["PART"]))
    assert words[0].endswith("/patchsieve")
    config = read_config(words[1], ScoreConfig, words[2:])
    assert (config.part, config.teacher) == ("1/1", "mae-base")
    extras = re.findall(r"\[([a-z0-9,]+)\]", task["setup"])
    assert extras == re.findall(r"'\.\[([a-z0-9,]+)\]'", DOCKERFILE.read_text(encoding="utf-8"))
