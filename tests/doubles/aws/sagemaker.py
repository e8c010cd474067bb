"""SageMaker's control plane and data plane, as far as Interlock uses them: stateful, strict, slow.

Endpoints take their time (`start_s`, `update_s`, `weights_s`, by the cloud's clock), refuse changes
meanwhile, and fail as the service does: a failed update ends as InService on the old
configuration, with nothing but `FailureReason` and the configuration's name to tell.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import Any

from tests.doubles.aws.wire import Fault, invalid

ACCOUNT = "123456789012"


@dataclass
class Variant:
    """A production variant in service, on instances of one of its types."""

    spec: dict[str, Any]
    weight: float
    instances: int
    kind: str

    @property
    def pools(self) -> dict[str, Any]:
        """What the service says of instance pools, where there are any."""
        if "InstancePools" not in self.spec:
            return {}
        counts = {pool["InstanceType"]: 0 for pool in self.spec["InstancePools"]} | {
            self.kind: self.instances
        }
        return {
            "InstancePools": [
                {"InstanceType": kind, "CurrentInstanceCount": count} for kind, count in counts.items()
            ]
        }


@dataclass
class EndpointState:
    """One endpoint. `pending` is what comes into force at `ready_at` (the cloud's clock)."""

    name: str
    arn: str
    created: float
    changed: float
    status: str
    configuration: str
    variants: dict[str, Variant] = field(default_factory=dict)
    ready_at: float = 0.0
    pending: dict[str, Any] | None = None
    reason: str = ""
    deployment: dict[str, Any] | None = None


class SageMaker:
    """The state of one region. `cloud` gives clock, faults and what versions do."""

    def __init__(self, cloud: Any) -> None:
        self.cloud = cloud
        self.models: dict[str, dict[str, Any]] = {}
        self.configurations: dict[str, dict[str, Any]] = {}
        self.endpoints: dict[str, EndpointState] = {}
        self.tags: dict[str, dict[str, str]] = {}
        self.instance_limit = 20

    # -- models and configurations -------------------------------------------------------------------

    def create_model(self, asked: dict[str, Any]) -> dict[str, Any]:
        if asked["ModelName"] in self.models:
            raise invalid(f'Cannot create already existing model "{self._arn("model", asked["ModelName"])}".')
        container = asked.get("PrimaryContainer") or {}
        if not container.get("Image"):
            raise invalid("PrimaryContainer.Image is required")
        if "ExecutionRoleArn" not in asked:
            raise invalid("ExecutionRoleArn is required")
        uri = container["ModelDataSource"]["S3DataSource"]["S3Uri"]
        bucket, _, prefix = uri.removeprefix("s3://").partition("/")
        if not any(key.startswith(prefix) for key in self.cloud.s3.keys(bucket)):
            raise invalid(f"Could not find model data at {uri}.")
        self.models[asked["ModelName"]] = copy.deepcopy(asked)
        return {"ModelArn": self._arn("model", asked["ModelName"])}

    def delete_model(self, asked: dict[str, Any]) -> None:
        if asked["ModelName"] not in self.models:
            raise invalid(f'Could not find model "{self._arn("model", asked["ModelName"])}".')
        del self.models[asked["ModelName"]]

    def create_endpoint_config(self, asked: dict[str, Any]) -> dict[str, Any]:
        name = asked["EndpointConfigName"]
        if name in self.configurations:
            arn = self._arn("endpoint-config", name)
            raise invalid(f'Cannot create already existing endpoint configuration "{arn}".')
        names = [one["VariantName"] for one in asked["ProductionVariants"]]
        if len(set(names)) < len(names):
            raise invalid("Variant names must be unique.")
        for one in asked["ProductionVariants"]:
            if one.get("ModelName") not in self.models:
                raise invalid(f'Could not find model "{self._arn("model", one.get("ModelName", ""))}".')
            if ("InstanceType" in one) == ("InstancePools" in one):
                raise invalid("Exactly one of InstanceType and InstancePools must be given.")
            if one.get("InitialInstanceCount", 0) < 1:
                raise invalid("InitialInstanceCount must be at least 1.")
        self.configurations[name] = copy.deepcopy(asked) | {"CreationTime": self.cloud.clock()}
        return {"EndpointConfigArn": self._arn("endpoint-config", name)}

    def describe_endpoint_config(self, asked: dict[str, Any]) -> dict[str, Any]:
        found = self._configuration(asked["EndpointConfigName"])
        shown = {key: value for key, value in found.items() if key != "Tags"}
        return {**shown, "EndpointConfigArn": self._arn("endpoint-config", asked["EndpointConfigName"])}

    def delete_endpoint_config(self, asked: dict[str, Any]) -> None:
        self._configuration(asked["EndpointConfigName"])
        if any(one.configuration == asked["EndpointConfigName"] for one in self.endpoints.values()):
            raise invalid("Cannot delete an endpoint configuration that is in use.")
        del self.configurations[asked["EndpointConfigName"]]

    # -- endpoints -----------------------------------------------------------------------------------

    def create_endpoint(self, asked: dict[str, Any]) -> dict[str, Any]:
        name, arn = asked["EndpointName"], self._arn("endpoint", asked["EndpointName"])
        if name in self.endpoints:
            raise invalid(f'Cannot create already existing endpoint "{arn}".')
        configuration = self._configuration(asked["EndpointConfigName"])
        self._check_quota(configuration["ProductionVariants"])
        now = self.cloud.clock()
        self.tags[arn] = {tag["Key"]: tag["Value"] for tag in asked.get("Tags", [])}
        self.endpoints[name] = EndpointState(
            name,
            arn,
            now,
            now,
            "Creating",
            asked["EndpointConfigName"],
            ready_at=now + self.cloud.start_s,
            pending={"variants": configuration["ProductionVariants"], "old": ""},
        )
        return {"EndpointArn": arn}

    def describe_endpoint(self, asked: dict[str, Any]) -> dict[str, Any]:
        found = self._endpoint(asked["EndpointName"])
        capture = self.configurations.get(found.configuration, {}).get("DataCaptureConfig")
        answer: dict[str, Any] = {
            "EndpointName": found.name,
            "EndpointArn": found.arn,
            "EndpointConfigName": found.configuration,
            "EndpointStatus": found.status,
            "CreationTime": found.created,
            "LastModifiedTime": found.changed,
        }
        if found.variants:
            answer["ProductionVariants"] = [
                {
                    "VariantName": name,
                    "CurrentWeight": one.weight,
                    "DesiredWeight": (found.pending or {}).get("weights", {}).get(name, one.weight),
                    "CurrentInstanceCount": one.instances,
                    "DesiredInstanceCount": one.instances,
                    **one.pools,
                }
                for name, one in found.variants.items()
            ]
        if capture:
            answer["DataCaptureConfig"] = {
                "EnableCapture": True,
                "CaptureStatus": "Started",
                "CurrentSamplingPercentage": capture["InitialSamplingPercentage"],
                "DestinationS3Uri": capture["DestinationS3Uri"],
                "KmsKeyId": capture.get("KmsKeyId", ""),
            }
        if found.reason:
            answer["FailureReason"] = found.reason
        if found.deployment:
            answer["LastDeploymentConfig"] = found.deployment
        return answer

    def update_endpoint(self, asked: dict[str, Any]) -> dict[str, Any]:
        found = self._free(asked["EndpointName"])
        configuration = self._configuration(asked["EndpointConfigName"])
        deployment = asked.get("DeploymentConfig")
        for alarm in (deployment or {}).get("AutoRollbackConfiguration", {}).get("Alarms", []):
            if alarm["AlarmName"] not in self.cloud.cloudwatch.alarms:
                raise invalid(f"Alarm {alarm['AlarmName']} does not exist.")
        wanted = [one["VariantName"] for one in configuration["ProductionVariants"]]
        for name in set(found.variants) - set(wanted):
            if self.cloud.scaling.is_registered(f"endpoint/{found.name}/variant/{name}"):
                raise invalid(
                    f"Cannot remove variant {name}: deregister it from Application Auto Scaling first."
                )
        self._check_quota(configuration["ProductionVariants"])
        found.status, found.reason = "Updating", ""
        found.ready_at = self.cloud.clock() + self.cloud.update_s
        found.pending = {
            "variants": configuration["ProductionVariants"],
            "old": found.configuration,
            "configuration": asked["EndpointConfigName"],
            "retain": asked.get("RetainAllVariantProperties", False),
        }
        found.deployment = deployment
        return {"EndpointArn": found.arn}

    def update_endpoint_weights_and_capacities(self, asked: dict[str, Any]) -> dict[str, Any]:
        found = self._free(asked["EndpointName"])
        weights = {name: one.weight for name, one in found.variants.items()}
        for one in asked["DesiredWeightsAndCapacities"]:
            if one["VariantName"] not in weights:
                raise invalid(f"Could not find variant {one['VariantName']}.")
            weights[one["VariantName"]] = float(one.get("DesiredWeight", weights[one["VariantName"]]))
        if sum(weights.values()) <= 0:
            raise invalid("At least one variant must have a weight above 0.")
        found.status = "Updating"
        found.ready_at = self.cloud.clock() + self.cloud.weights_s
        found.pending = {"weights": weights}
        return {"EndpointArn": found.arn}

    def delete_endpoint(self, asked: dict[str, Any]) -> None:
        found = self._endpoint(asked["EndpointName"])
        if found.status not in ("InService", "Failed", "OutOfService"):
            raise invalid(f"Cannot delete in-progress endpoint {found.arn}.")
        found.status, found.pending = "Deleting", {}
        found.ready_at = self.cloud.clock() + self.cloud.weights_s

    def add_tags(self, asked: dict[str, Any]) -> dict[str, Any]:
        tags = self._tags(asked["ResourceArn"])
        tags.update({tag["Key"]: tag["Value"] for tag in asked["Tags"]})
        return {"Tags": [{"Key": key, "Value": value} for key, value in tags.items()]}

    def list_tags(self, asked: dict[str, Any]) -> dict[str, Any]:
        tags = self._tags(asked["ResourceArn"])
        return {"Tags": [{"Key": key, "Value": value} for key, value in tags.items()]}

    # -- time ----------------------------------------------------------------------------------------

    def settle(self) -> None:
        """Let what is due by now come into force."""
        now = self.cloud.clock()
        for found in list(self.endpoints.values()):
            if found.pending is not None and now >= found.ready_at:
                self._complete(found, now)

    def _complete(self, found: EndpointState, now: float) -> None:
        pending, found.pending, found.changed = found.pending or {}, None, now
        if found.status == "Deleting":
            del self.endpoints[found.name]
            self.tags.pop(found.arn, None)
            return
        if "weights" in pending:
            if self.cloud.weights_fail:
                found.reason = self.cloud.weights_fail
                self.cloud.weights_fail = ""
            else:
                for name, weight in pending["weights"].items():
                    found.variants[name].weight = weight
            found.status = "InService"
            return
        trouble = self._trouble(found, pending["variants"])
        if trouble and not pending["old"]:
            found.status, found.reason = "Failed", trouble
            return
        found.status, found.reason = "InService", trouble
        if trouble:
            return  # the silent way back: InService on the old configuration
        found.configuration = pending.get("configuration", found.configuration)
        before = found.variants
        found.variants = {}
        for spec in pending["variants"]:
            old = before.get(spec["VariantName"]) if pending.get("retain") else None
            weight = float(spec.get("InitialVariantWeight", 1.0))
            found.variants[spec["VariantName"]] = (
                Variant(spec, old.weight, old.instances, old.kind)
                if old
                else Variant(spec, weight, spec["InitialInstanceCount"], self._kinds(spec)[0])
            )

    def _trouble(self, found: EndpointState, specs: list[dict[str, Any]]) -> str:
        """Why an update does not succeed, in the service's words."""
        if self.cloud.silent_rollback:
            self.cloud.silent_rollback = False
            return "One or more configured alarms were triggered during the deployment."
        for spec in specs:
            if spec["VariantName"] in found.variants:
                continue
            if not self._kinds(spec):
                return (
                    "InsufficientInstanceCapacity: Unable to provision requested ML compute capacity "
                    f"({_kinds_of(spec)[0]}) due to InsufficientInstanceCapacity error."
                )
            version = self.version_of(spec)
            if version in self.cloud.broken:
                return (
                    f"The primary container for production variant {spec['VariantName']} did not pass the "
                    "ping health check. Please check CloudWatch logs for this endpoint."
                )
        return ""

    def _kinds(self, spec: dict[str, Any]) -> list[str]:
        """The types that a variant may have and that there are machines of, the wanted one first."""
        return [kind for kind in _kinds_of(spec) if kind not in self.cloud.no_capacity]

    # -- reading -------------------------------------------------------------------------------------

    def version_of(self, spec: dict[str, Any]) -> str:
        """The version that a variant's container was told."""
        return self.models[spec["ModelName"]]["PrimaryContainer"]["Environment"]["INTERLOCK_VERSION"]

    def running(self, name: str) -> EndpointState:
        """An endpoint that answers requests."""
        found = self.endpoints.get(name)
        if found is None or not found.variants:
            raise Fault("ValidationError", f"Endpoint {name} of account {ACCOUNT} not found.")
        return found

    def _endpoint(self, name: str) -> EndpointState:
        if name not in self.endpoints:
            raise invalid(f'Could not find endpoint "{self._arn("endpoint", name)}".')
        return self.endpoints[name]

    def _free(self, name: str) -> EndpointState:
        found = self._endpoint(name)
        if found.status != "InService":
            raise invalid(f'Cannot update in-progress endpoint "{found.arn}".')
        return found

    def _configuration(self, name: str) -> dict[str, Any]:
        if name not in self.configurations:
            raise invalid(f'Could not find endpoint configuration "{self._arn("endpoint-config", name)}".')
        return self.configurations[name]

    def _tags(self, arn: str) -> dict[str, str]:
        if arn not in self.tags:
            raise invalid(f"Could not find resource {arn}.")
        return self.tags[arn]

    def _check_quota(self, variants: list[dict[str, Any]]) -> None:
        asked = sum(one["InitialInstanceCount"] for one in variants)
        if asked > self.instance_limit:
            raise Fault(
                "ResourceLimitExceeded",
                f"The account-level service limit is {self.instance_limit} Instances, with utilization "
                f"of 0 Instances and a request delta of {asked} Instances.",
            )

    def _arn(self, kind: str, name: str) -> str:
        return f"arn:aws:sagemaker:eu-central-1:{ACCOUNT}:{kind}/{name}"


def _kinds_of(spec: dict[str, Any]) -> list[str]:
    if "InstanceType" in spec:
        return [spec["InstanceType"]]
    return [one["InstanceType"] for one in sorted(spec["InstancePools"], key=lambda one: one["Priority"])]
