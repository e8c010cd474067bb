"""What an endpoint's variants are made of: models, configurations, scaling and alarms.

Everything is named by its content, so making it twice makes it once.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from configs.policy import Policy
from configs.sagemaker import SageMaker
from serving.endpoint import Slot
from serving.errors import Refused
from serving.llm.errors import NotServable
from serving.llm.source import Source, packed_source
from serving.sagemaker.clients import Clients, exists_already, is_missing, translated
from serving.sagemaker.container import environment
from serving.sagemaker.naming import ENDPOINT_TAG, content_name, variant_name

if TYPE_CHECKING:
    from serving.sagemaker.artifacts import Artifacts

_DIMENSION = "sagemaker:variant:DesiredInstanceCount"
_SCALING_METRICS = {
    "concurrency": "SageMakerVariantConcurrentRequestsPerModelHighResolution",
    "invocations": "SageMakerVariantInvocationsPerInstance",
}


class Fleet:
    """Makes and removes what the variants of one endpoint need."""

    def __init__(
        self, name: str, policy: Policy, here: SageMaker, clients: Clients, artifacts: Artifacts
    ) -> None:
        self._name = name
        self._policy = policy
        self._here = here
        self._clients = clients
        self._artifacts = artifacts

    def model(self, version: str, uri: str) -> str:
        """The SageMaker model of a version, its artifact uploaded; returns its name."""
        from botocore.exceptions import ClientError

        weights = self._weights(uri) if self._here.vllm is not None else None
        container: dict[str, Any] = {
            "Image": self._here.image,
            "ModelDataSource": {
                "S3DataSource": {
                    "S3Uri": self._artifacts.upload(uri),
                    "S3DataType": "S3Prefix",
                    "CompressionType": "None",
                }
            },
            "Environment": environment(
                self._name, self._policy, self._here, version=version, uri=uri, weights=weights
            ),
        }
        content: dict[str, Any] = {"PrimaryContainer": container, "ExecutionRoleArn": self._here.role_arn}
        if self._here.subnets:
            content["VpcConfig"] = {
                "Subnets": list(self._here.subnets),
                "SecurityGroupIds": list(self._here.security_groups),
            }
        name = content_name(self._name, f"v{version}", content)
        with translated(f"{self._name}: create model {name}"):
            try:
                self._clients.sagemaker.create_model(ModelName=name, Tags=self._tags(), **content)
            except ClientError as error:
                if not exists_already(error):
                    raise
        return name

    def _weights(self, uri: str) -> Source:
        try:
            return packed_source(self._artifacts.folder(uri))
        except NotServable as error:
            raise Refused(f"{self._name}: {uri}: {error}") from error

    def variant(self, slot: Slot, version: str, model: str, *, weight: float) -> dict[str, Any]:
        """A new production variant. The weight is always said: SageMaker's default is 1, not 0."""
        here = self._here
        made: dict[str, Any] = {
            "VariantName": variant_name(slot, version),
            "ModelName": model,
            "InitialInstanceCount": here.instances,
            "InitialVariantWeight": weight,
            "ContainerStartupHealthCheckTimeoutInSeconds": here.startup_timeout_s,
        }
        if len(here.instance_types) == 1:
            made["InstanceType"] = here.instance_types[0]
        else:
            made["InstancePools"] = [
                {"InstanceType": kind, "Priority": rank} for rank, kind in enumerate(here.instance_types, 1)
            ]
        return made

    def configuration(self, variants: Sequence[dict[str, Any]]) -> str:
        """An endpoint configuration with these variants; returns its name."""
        from botocore.exceptions import ClientError

        here = self._here
        content: dict[str, Any] = {"ProductionVariants": list(variants)}
        if here.capture is not None:
            capture: dict[str, Any] = {
                "EnableCapture": True,
                "InitialSamplingPercentage": here.capture.percent,
                "DestinationS3Uri": here.capture.uri,
                "CaptureOptions": [{"CaptureMode": "Input"}, {"CaptureMode": "Output"}],
                "CaptureContentTypeHeader": {
                    "JsonContentTypes": ["application/json"],
                    "CsvContentTypes": ["text/csv"],
                },
            }
            content["DataCaptureConfig"] = capture | ({"KmsKeyId": here.kms_key} if here.kms_key else {})
        if here.kms_key:
            content["KmsKeyId"] = here.kms_key
        if here.metrics_period_s < 60:
            content["MetricsConfig"] = {
                "EnableEnhancedMetrics": True,
                "MetricPublishFrequencyInSeconds": here.metrics_period_s,
            }
        name = content_name(self._name, "config", content)
        with translated(f"{self._name}: create configuration {name}"):
            try:
                self._clients.sagemaker.create_endpoint_config(
                    EndpointConfigName=name, Tags=self._tags(), **content
                )
            except ClientError as error:
                if not exists_already(error):
                    raise
        return name

    def variants_of(self, configuration: str) -> list[dict[str, Any]]:
        """The variants of a configuration, as they can be written into another one."""
        with translated(f"{self._name}: read configuration {configuration}"):
            found = self._clients.sagemaker.describe_endpoint_config(EndpointConfigName=configuration)
        return [dict(variant) for variant in found["ProductionVariants"]]

    def forget(self, configuration: str, keep: Sequence[str]) -> None:
        """Delete a configuration that is no longer in force, and its models but those of `keep`."""
        from botocore.exceptions import ClientError

        try:
            gone = [
                one["ModelName"] for one in self.variants_of(configuration) if one["VariantName"] not in keep
            ]
            with translated(f"{self._name}: delete configuration {configuration}"):
                self._clients.sagemaker.delete_endpoint_config(EndpointConfigName=configuration)
                for model in gone:
                    self._clients.sagemaker.delete_model(ModelName=model)
        except Exception as error:
            cause = error.__cause__
            if not (isinstance(cause, ClientError) and is_missing(cause)):
                raise

    # -- scaling and alarms --------------------------------------------------------------------------

    def scale(self, slot: Slot, version: str) -> None:
        """Register the variant with Application Auto Scaling, where the policy wants that."""
        auto = self._here.autoscale
        if auto is None:
            return
        where: dict[str, Any] = self._scalable(slot, version)
        with translated(f"{self._name}: register scaling of {slot.value}"):
            self._clients.scaling.register_scalable_target(
                **where, MinCapacity=auto.min_instances, MaxCapacity=auto.max_instances
            )
            self._clients.scaling.put_scaling_policy(
                **where,
                PolicyName=f"interlock-{self._name}-{slot.value}",
                PolicyType="TargetTrackingScaling",
                TargetTrackingScalingPolicyConfiguration={
                    "TargetValue": auto.value,
                    "PredefinedMetricSpecification": {"PredefinedMetricType": _SCALING_METRICS[auto.target]},
                    "ScaleInCooldown": auto.scale_in_cooldown_s,
                    "ScaleOutCooldown": auto.scale_out_cooldown_s,
                },
            )

    def unscale(self, slot: Slot, version: str) -> None:
        """Deregister the variant: SageMaker removes none that still scales. A no-op where it does not."""
        from botocore.exceptions import ClientError

        with translated(f"{self._name}: deregister scaling of {slot.value}"):
            try:
                self._clients.scaling.deregister_scalable_target(**self._scalable(slot, version))
            except ClientError as error:
                if not is_missing(error):
                    raise

    def watch(self, slot: Slot, version: str) -> None:
        """The alarm on a variant's errors by which SageMaker itself takes an update back."""
        if self._here.alarm_errors_per_minute is None:
            return
        with translated(f"{self._name}: put the alarm of {slot.value}"):
            self._clients.cloudwatch.put_metric_alarm(
                AlarmName=self.alarm_name(slot, version),
                Namespace="AWS/SageMaker",
                MetricName="Invocation5XXErrors",
                Dimensions=[
                    {"Name": "EndpointName", "Value": self._name},
                    {"Name": "VariantName", "Value": variant_name(slot, version)},
                ],
                Statistic="Sum",
                Period=60,
                EvaluationPeriods=1,
                Threshold=float(self._here.alarm_errors_per_minute),
                ComparisonOperator="GreaterThanOrEqualToThreshold",
                TreatMissingData="notBreaching",
            )

    def unwatch(self, slot: Slot, version: str) -> None:
        """Remove the variant's alarm; deleting one that is not there is no error."""
        if self._here.alarm_errors_per_minute is not None:
            with translated(f"{self._name}: delete the alarm of {slot.value}"):
                self._clients.cloudwatch.delete_alarms(AlarmNames=[self.alarm_name(slot, version)])

    def deployment(self, stays: Sequence[tuple[Slot, str]]) -> dict[str, Any]:
        """How an update replaces instances, and on which alarms SageMaker takes it back."""
        alarms = list(self._here.alarms)
        if self._here.alarm_errors_per_minute is not None:
            alarms += [self.alarm_name(slot, version) for slot, version in stays]
        if not alarms:
            return {}
        routing = {"Type": "ALL_AT_ONCE", "WaitIntervalInSeconds": 0}
        return {
            "DeploymentConfig": {
                "BlueGreenUpdatePolicy": {"TrafficRoutingConfiguration": routing},
                "AutoRollbackConfiguration": {"Alarms": [{"AlarmName": name} for name in alarms]},
            }
        }

    def alarm_name(self, slot: Slot, version: str) -> str:
        """Name of a variant's alarm."""
        return f"interlock-{self._name}-{variant_name(slot, version)}-errors"

    def _scalable(self, slot: Slot, version: str) -> dict[str, Any]:
        return {
            "ServiceNamespace": "sagemaker",
            "ResourceId": f"endpoint/{self._name}/variant/{variant_name(slot, version)}",
            "ScalableDimension": _DIMENSION,
        }

    def _tags(self) -> list[dict[str, str]]:
        return [{"Key": ENDPOINT_TAG, "Value": self._name}]
